"""A small view on an ONNX graph that is read node by node and written anew."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
MICROSOFT = "com.microsoft"
RECURRENT = ("LSTM", "GRU", "RNN")


class GraphReader:
    """Nodes, and the constants among the values; weights stored in half precision read as float32."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants: dict[str, Array] = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if node.op_type == "Cast" and node.input[0] in self.constants:
                kind = helper.tensor_dtype_to_np_dtype(attribute(node, "to"))
                self.constants[node.output[0]] = self.constants[node.input[0]].astype(kind)
            else:
                self.nodes.append(node)
        self.producers = {name: node for node in self.nodes for name in node.output}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)

    def consumers(self, name: str) -> list[onnx.NodeProto]:
        """Nodes that read a value."""
        return self._consumers.get(name, [])

    def only_consumer(self, name: str, operator: str) -> onnx.NodeProto | None:
        """The one node that reads a value, if it is of this operator and the value is no output of the graph."""
        readers = self.consumers(name)
        outputs = {item.name for item in self.graph.output}
        alone = len(readers) == 1 and name not in outputs and readers[0].op_type == operator
        return readers[0] if alone else None

    def weight(self, name: str) -> Array | None:
        """A constant matrix, or None."""
        found = self.constants.get(name)
        return found if found is not None and found.ndim == 2 and found.dtype == np.float32 else None


class GraphWriter:
    """New nodes and constants, in the order in which they compute."""

    def __init__(self, taken: Iterator[str] | Sequence[str] = ()) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, Array] = {}
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._names = set(taken)

    def add(
        self, operator: str, inputs: Sequence[str], *, output: str = "", domain: str = "", **attributes: Any
    ) -> str:
        """A node of one output → its name."""
        return self.add_many(operator, inputs, [output], domain=domain, **attributes)[0]

    def add_many(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """A node → the names of its outputs; an empty name is made up."""
        names = [name or self.new_name(operator.lower()) for name in outputs]
        self.nodes.append(helper.make_node(operator, list(inputs), names, domain=domain, **attributes))
        return names

    def copy(self, node: onnx.NodeProto) -> None:
        """A node as it is."""
        self.nodes.append(node)

    def constant(self, value: Array, name: str = "") -> str:
        """A constant → its name; small equal ones are one."""
        value = np.asarray(value, order="C")  # keeps scalars scalar
        key = (str(value.dtype), value.shape, value.tobytes()) if value.nbytes <= 64 else None
        if key and not name and key in self._shared:
            return self._shared[key]
        if not name or name in self._constants or name in self._names:
            name = self.new_name(name or "constant")
        self._names.add(name)
        self._constants[name] = value
        if key:
            self._shared.setdefault(key, name)
        return name

    def finish(self, graph: onnx.GraphProto, constants: dict[str, Array]) -> None:
        """Put the new nodes into a graph, without those that nothing reads; old constants that are read stay."""
        needed = {item.name for item in graph.output}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        del graph.node[:], graph.initializer[:]
        graph.node.extend(reversed(kept))
        values = constants | self._constants
        graph.initializer.extend(
            numpy_helper.from_array(values[name], name) for name in sorted(needed) if name in values
        )

    def inner(self) -> "GraphWriter":
        """For a graph within this one: no name stands in both."""
        writer = GraphWriter()
        writer._names = self._names
        return writer

    def graph(self, name: str, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> onnx.GraphProto:
        """What was written, as a graph of its own; inputs and outputs are float32 [B, width]."""
        graph = helper.make_graph([], name, list(map(_rows, inputs.items())), list(map(_rows, outputs.items())))
        self.finish(graph, {})
        return graph

    def new_name(self, stem: str) -> str:
        """One that nothing has."""
        count = len(self._names)
        while f"{stem}_{count}" in self._names:
            count += 1
        self._names.add(f"{stem}_{count}")
        return f"{stem}_{count}"


def _rows(item: tuple[str, int]) -> onnx.ValueInfoProto:
    name, width = item
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, width])


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def is_step(reader: GraphReader, node: onnx.NodeProto) -> bool:
    """Whether a recurrent operator computes a single step, not a sequence."""
    x = reader.producers.get(node.input[0])
    return x is not None and x.op_type == "Unsqueeze" and attribute(node, "direction", b"forward") == b"forward"
