"""A step, encoder or decoder graph written anew with rounded weights.

Recurrent operators of one step become cells around rounded products; those over whole sequences keep their operator
and read weights that are stored in eight bits and widened once, when the graph is loaded. Embeddings have eight bits
with one scale a row; where the table is small it is multiplied by the first layer's input weights beforehand, so that
a step looks up what the others compute.
"""

from dataclasses import dataclass

import numpy as np
import onnx

from rnn_edge_export.quantisation.bounds import find_bounds
from rnn_edge_export.quantisation.cells import CELLS, Layer, table_bias
from rnn_edge_export.quantisation.graph import Array, GraphReader, GraphWriter, attribute, is_step
from rnn_edge_export.quantisation.products import ROUNDED_FROM, Activation, Products, StaticProducts
from rnn_edge_export.quantisation.sequences import BothDirections, add_sequence
from rnn_edge_export.quantisation.weights import Columns, Matrix, to_columns


@dataclass(frozen=True)
class _Lookup:
    """Rows of ``table`` [V, E], already scaled, picked by the value ``ids``."""

    table: Matrix
    ids: str


class Rewriter:
    """Writes one graph anew; make one for each."""

    def __init__(self, graph: onnx.GraphProto, bounded_inputs: dict[str, float], recurrent: Products) -> None:
        """``recurrent`` computes the products of cells; all others have eight bits.

        In four, the readout of a translator alone was measured to cost far more than all its cells.
        """
        self._graph = graph
        self._reader = GraphReader(graph)
        self._bounds = find_bounds(self._reader, bounded_inputs)
        names = {name for node in graph.node for name in (*node.input, *node.output)}
        self._writer = GraphWriter(sorted(names))
        self._recurrent = recurrent
        self._static = recurrent if isinstance(recurrent, StaticProducts) else StaticProducts()
        self._rows: dict[str, tuple[str, Columns]] = {}  # of embeddings: name of the rounded table, its rows' scales
        self._merged: set[str] = set()  # outputs of nodes that are part of another node now

    def run(self) -> None:
        """Rewrite in place."""
        for node in self._reader.nodes:
            if self._merged.issuperset(node.output):
                continue
            if node.op_type in CELLS:
                self._recurrent_operator(node)
            elif node.op_type in ("MatMul", "Gemm") and self._reader.weight(node.input[1]) is not None:
                self._product(node)
            elif node.op_type == "Gather" and self._reader.weight(node.input[0]) is not None:
                self._lookup(node)
            else:
                self._writer.copy(node)
        self._writer.finish(self._graph, self._reader.constants)

    def _recurrent_operator(self, node: onnx.NodeProto) -> None:
        reader = self._reader
        if not is_step(reader, node):
            self._sequence_operator(node)
            return
        w, r, b = (reader.constants[name][0] for name in node.input[1:4])
        state = [reader.producers[name].input[0] for name in node.input[5:] if name]
        outputs = []
        for name in [item for item in node.output[1:] if item]:
            squeeze = reader.only_consumer(name, "Squeeze")
            assert squeeze is not None, f"{name} of {node.op_type} is not squeezed"
            self._merged.update(squeeze.output)
            outputs.append(squeeze.output[0])
        b = b.reshape(2, -1)
        given = reader.producers[node.input[0]].input[0]
        lookup = self._small_lookup(given, w)
        table, source = "", None
        if lookup:
            product = lookup.table @ w.T + table_bias(node.op_type, b)  # [V, G·H]
            rows = self._half(product.astype(np.float32), "table")
            table = self._writer.add("Gather", [rows, lookup.ids])
        else:
            source = Activation(given, w.shape[1], self._bounds.get(given))
        h = Activation(state[0], r.shape[1], self._bounds.get(state[0]))
        layer = Layer(np.ascontiguousarray(w.T), np.ascontiguousarray(r.T), b, source, table, state, outputs, h)
        CELLS[node.op_type](self._writer, self._recurrent, layer)

    def _sequence_operator(self, node: onnx.NodeProto) -> None:
        """A loop over rounded products; where it cannot be one, the operator with matrices stored in eight bits."""
        if (layer := self._both_directions(node)) is not None:
            add_sequence(self._writer, self._static, layer)
        else:
            self._store(node)

    def _both_directions(self, node: onnx.NodeProto) -> BothDirections | None:
        """The operator as an encoder has it, with its directions split apart, and the nodes that split them merged."""
        reader = self._reader
        bound = self._bounds.get(node.input[0])
        plain = (
            node.op_type in ("LSTM", "GRU")
            and attribute(node, "direction") == b"bidirectional"
            and attribute(node, "linear_before_reset", 0) == (node.op_type == "GRU")
            and {item.name for item in node.attribute} <= {"direction", "hidden_size", "linear_before_reset"}
        )
        if not plain or bound is None or len(node.input) != 5 or not all(node.input) or any(node.output[2:]):
            return None
        w, r, b = (reader.constants[name] for name in node.input[1:4])
        parts = [self._split_apart(name, axis) for name, axis in zip(node.output, (1, 0), strict=False)]
        if min(w[0].size, r[0].size) < ROUNDED_FROM or not all(parts):
            return None
        self._merged.update(name for part in parts for name in part)
        outputs, *finals = [part[-2:] for part in parts]
        lengths = self._writer.add("Cast", [node.input[4]], to=onnx.TensorProto.INT64)
        x = Activation(node.input[0], w.shape[2], bound)
        return BothDirections(node.op_type, w, r, b, x, lengths, outputs, *finals)

    def _split_apart(self, name: str, axis: int) -> list[str]:
        """What splits an output's directions, the names of both last; empty where nothing does."""
        split = self._reader.only_consumer(name, "Split")
        if split is None or attribute(split, "axis", 0) != axis or len(split.output) != 2:
            return []
        squeezes = [self._reader.only_consumer(item, "Squeeze") for item in split.output]
        found = [item.output[0] for item in squeezes if item is not None]
        return [*split.output, *found] if len(found) == 2 else []

    def _store(self, node: onnx.NodeProto) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for place in (1, 2):
            weight = self._reader.constants[node.input[place]]  # [directions, G·H, D or H]
            rows = to_columns(weight.reshape(-1, weight.shape[2]).T)
            values = self._writer.constant(rows.values.T.reshape(weight.shape), "weight_int8")
            scales = self._writer.constant(rows.scales.reshape(*weight.shape[:2], 1), "scales")
            copy.input[place] = self._writer.add("Mul", [self._widen(values), scales])
        self._writer.copy(copy)

    def _product(self, node: onnx.NodeProto) -> None:
        reader, writer = self._reader, self._writer
        name = node.input[1]
        turned = node.op_type == "Gemm" and attribute(node, "transB", 0) == 1
        weight = reader.constants[name].T if turned else reader.constants[name]
        output, bias = node.output[0], None
        if node.op_type == "Gemm":
            bias = reader.constants[node.input[2]] if len(node.input) > 2 else None
        elif (add := reader.only_consumer(output, "Add")) is not None:
            other = next(item for item in add.input if item != output)
            if other in reader.constants:
                bias, output = reader.constants[other], add.output[0]
                self._merged.add(output)
        x = Activation(node.input[0], weight.shape[0], self._bounds.get(node.input[0]))
        if turned and self._is_embedding(name) and x.bound is not None:  # tied: one table in the file
            table, rows = self._rounded_rows(name)
            values = writer.add("Transpose", [table], perm=[1, 0])
            given = self._static.rounded(writer, [x], x.bound)
            y = self._static.integer_product(writer, given, x.bound, values, rows.scales)
            bias = np.zeros(len(rows.scales), np.float32) if bias is None else bias
            writer.add("Add", [y, writer.constant(bias, "bias")], output=output)
            return
        products = self._recurrent if self._is_of_cell(node.input[0], output) else self._static
        products.add(writer, [x], np.ascontiguousarray(weight, np.float32), bias, output)

    def _is_of_cell(self, given: str, output: str) -> bool:
        """Whether a product is a cell's, in the ``cell`` lowering: it reads a state, or gates are split from it."""
        producer = self._reader.producers.get(given)
        read = {given, *(producer.input if producer is not None and producer.op_type == "Concat" else ())}
        split = any(node.op_type == "Split" for node in self._reader.consumers(output))
        return split or not read.isdisjoint(item.name for item in self._graph.input)

    def _lookup(self, node: onnx.NodeProto) -> None:
        """Rows of an embedding; the scale that the network puts on them is part of the rows' own."""
        table = self._reader.weight(node.input[0])
        assert table is not None
        if table.size < ROUNDED_FROM:
            self._writer.copy(node)
            return
        name, rows = self._rounded_rows(node.input[0])
        output, factor, writer = node.output[0], np.float32(1), self._writer
        scaled = self._scaling(output)
        if scaled:
            output, factor = scaled
            self._merged.add(output)
        scales = writer.constant((rows.scales * factor).reshape(-1, 1), "scales")
        picked = writer.add("Cast", [writer.add("Gather", [name, node.input[1]])], to=onnx.TensorProto.FLOAT)
        writer.add("Mul", [picked, writer.add("Gather", [scales, node.input[1]])], output=output)

    def _small_lookup(self, given: str, w: Array) -> _Lookup | None:
        """The table that ``given`` is looked up in, if multiplying it by w [G·H, E] beforehand is worth its size."""
        reader = self._reader
        factor: Array = np.array(1, np.float32)
        producer = reader.producers.get(given)
        if producer is not None and producer.op_type == "Mul" and producer.input[1] in reader.constants:
            factor = reader.constants[producer.input[1]]
            producer = reader.producers.get(producer.input[0])
        if producer is None or producer.op_type != "Gather" or factor.ndim:
            return None
        table = reader.weight(producer.input[0])
        if table is None:
            return None
        # In half precision, against table and weights in eight bits.
        small = 2 * len(table) * len(w) <= 2 * (table.size + w.size)
        return _Lookup(table * factor, producer.input[1]) if small else None

    def _scaling(self, name: str) -> tuple[str, np.float32] | None:
        """The output and the factor of a Mul by a scalar that alone reads a value."""
        mul = self._reader.only_consumer(name, "Mul")
        factor = self._reader.constants.get(mul.input[1]) if mul is not None else None
        if mul is None or factor is None or factor.ndim:
            return None
        return mul.output[0], np.float32(factor)

    def _is_embedding(self, name: str) -> bool:
        return any(node.op_type == "Gather" and node.input[0] == name for node in self._reader.consumers(name))

    def _rounded_rows(self, name: str) -> tuple[str, Columns]:
        if name not in self._rows:
            columns = to_columns(self._reader.constants[name].T)
            self._rows[name] = self._writer.constant(columns.values.T, f"{name}_int8"), columns
        return self._rows[name]

    def _half(self, value: Matrix, name: str) -> str:
        """A constant stored in half precision."""
        return self._widen(self._writer.constant(value.astype(np.float16), name))

    def _widen(self, name: str) -> str:
        return self._writer.add("Cast", [name], to=onnx.TensorProto.FLOAT)
