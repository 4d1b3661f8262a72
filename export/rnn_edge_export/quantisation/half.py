"""Weights in half the bytes (IEEE binary16), and products with them in half precision where the hardware has it.

Recurrent operators of one step compute in half precision as a whole, which on CUDA is one call of cuDNN; written-out
cells and attention do so in their products alone. What goes in and comes out is fp32, states above all, whose values
are those of half precision. A CPU has no such products: ONNX Runtime widens the weights there once, when the graph is
loaded, and computes in fp32, but for the state between two steps.
"""

import numpy as np
import onnx
from onnx import numpy_helper

from rnn_edge.errors import ParityError
from rnn_edge_export.quantisation.graph import RECURRENT, Array, GraphReader, GraphWriter, attribute, is_step

_HALF_FROM = 256  # values; smaller matrices are not worth a node


def check_fits(graph: onnx.GraphProto) -> None:
    """Raises ParityError for a weight that is too large for half precision."""
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1 and np.abs(values).max() > np.finfo(np.float16).max:
            raise ParityError(f"{tensor.name} has values that half precision cannot hold", "leave it in fp32")


def _is_large(value: Array) -> bool:
    return value.dtype == np.float32 and value.ndim > 1 and value.size >= _HALF_FROM


def halve(graph: onnx.GraphProto) -> None:
    """Round large weights, and multiply with them as they are."""
    _Halving(graph).run()


class _Halving:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._reader = GraphReader(graph)
        self._writer = GraphWriter(sorted({name for node in graph.node for name in (*node.input, *node.output)}))
        self._halves: dict[str, str] = {}  # of values and constants: the names of their rounded copies

    def run(self) -> None:
        for node in self._reader.nodes:
            operator, inputs = node.op_type, node.input
            if operator in ("MatMul", "Gemm") and self._is_large(inputs[1]):
                self._product(node)
            elif operator == "Gather" and self._is_large(inputs[0]):
                self._widen(self._writer.add("Gather", [self._half(inputs[0]), *inputs[1:]]), node.output[0])
            elif operator in RECURRENT and self._is_large(inputs[1]) and is_step(self._reader, node):
                self._recurrent(node)
            else:
                self._store(node)
        self._writer.finish(self._graph, self._reader.constants)

    def _is_large(self, name: str) -> bool:
        value = self._reader.constants.get(name)
        return value is not None and _is_large(value)

    def _product(self, node: onnx.NodeProto) -> None:
        writer, (x, weight, *bias) = self._writer, node.input
        half = self._half(weight)
        if node.op_type == "Gemm" and attribute(node, "transB", 0):
            half = writer.add("Transpose", [half], perm=[1, 0])
        product = self._widen(writer.add("MatMul", [self._half(x), half]), "" if bias else node.output[0])
        if bias:
            writer.add("Add", [product, *bias], output=node.output[0])

    def _recurrent(self, node: onnx.NodeProto) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for place, name in enumerate(node.input):
            copy.input[place] = self._half(name) if name else ""
        for place, name in enumerate(node.output):
            copy.output[place] = self._writer.new_name(name) if name else ""
        self._writer.copy(copy)
        for name, half in zip(node.output, copy.output, strict=True):
            if name:
                self._widen(half, name)

    def _store(self, node: onnx.NodeProto) -> None:
        """A node as it is, with large constants widened for it."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for place, name in enumerate(node.input):
            if self._is_large(name):
                copy.input[place] = self._widen(self._half(name))
        self._writer.copy(copy)

    def _half(self, name: str) -> str:
        """A value in half precision: what it was widened from, where it was, seen through nodes that move nothing."""
        if name not in self._halves:
            value, producer = self._reader.constants.get(name), self._reader.producers.get(name)
            if value is not None:
                half = self._writer.constant(value.astype(np.float16), f"{name}_fp16")
            elif producer is not None and producer.op_type in ("Squeeze", "Unsqueeze"):
                half = self._writer.add(producer.op_type, [self._half(producer.input[0]), *producer.input[1:]])
            else:
                half = self._writer.add("Cast", [name], to=onnx.TensorProto.FLOAT16)
            self._halves[name] = half
        return self._halves[name]

    def _widen(self, name: str, output: str = "") -> str:
        wide = self._writer.add("Cast", [name], output=output, to=onnx.TensorProto.FLOAT)
        self._halves[wide] = name
        return wide
