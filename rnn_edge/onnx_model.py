"""An ONNX model taken apart into nodes and tensors, and put together again, without the onnx package.

Whatever is not looked into keeps its bytes, so weights and attributes pass through unread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import BundleError
from rnn_edge.onnx_file import fields
from rnn_edge.onnx_nodes import field as encoded
from rnn_edge.onnx_nodes import head

# Field numbers and values of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA = 1, 7, 8, 14
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 2, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_I, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TYPE = 1, 3, 6, 20
_TYPE_INT, _TYPE_GRAPH = 2, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 2, 1, 1, 2
_SHAPE_DIM, _DIM_VALUE, _DIM_NAME = 1, 1, 2
FLOAT, UINT8, INT8, INT32, INT64, BOOL, HALF, DOUBLE = 1, 2, 3, 6, 7, 9, 10, 11
_DTYPES = {FLOAT: "<f4", UINT8: "u1", INT8: "i1", INT32: "<i4", INT64: "<i8", BOOL: "?", HALF: "<f2", DOUBLE: "<f8"}


@dataclass(frozen=True)
class Node:
    """One operator. ``attributes`` are encoded AttributeProto messages."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[bytes, ...] = ()
    domain: str = ""

    @property
    def name(self) -> str:
        """The operator as DOMAIN::NAME, the standard domain without a prefix."""
        return f"{self.domain}::{self.operator}" if self.domain not in ("", "ai.onnx") else self.operator

    def integers(self) -> dict[str, int]:
        """Attributes that are one integer."""
        found = {}
        for attribute in self.attributes:
            values = dict(fields(memoryview(attribute)))
            name, value = values.get(_ATTRIBUTE_NAME), values.get(_ATTRIBUTE_I)
            if isinstance(name, memoryview) and isinstance(value, int):
                found[str(name, "utf-8")] = value - (value >> 63 << 64)  # two's complement
        return found

    def graphs(self) -> dict[str, Model]:
        """Attributes that are a graph: what a loop repeats.

        Raises:
            BundleError: one that is no ONNX graph.
        """
        found = {}
        for attribute in self.attributes:
            values = dict(fields(memoryview(attribute)))
            name, graph = values.get(_ATTRIBUTE_NAME), values.get(_ATTRIBUTE_GRAPH)
            if isinstance(name, memoryview) and isinstance(graph, memoryview):
                model = found[_text(name)] = Model([], {}, {}, {}, {})
                try:
                    _read_graph(graph, model)
                except ValueError as error:
                    mend = "copy or export the bundle again"
                    raise BundleError(
                        f"the {_text(name)} of {self.operator} is not an ONNX graph: {error}", mend
                    ) from error
        return found

    def with_graph(self, name: str, model: Model) -> Node:
        """The same operator with another graph as this attribute."""
        others = [item for item in self.attributes if _first(memoryview(item), _ATTRIBUTE_NAME) != name]
        return replace(self, attributes=(*others, subgraph(name, model.graph())))

    def encode(self) -> bytes:
        """As NodeProto."""
        content = [encoded(_NODE_INPUT, name) for name in self.inputs]
        content += [encoded(_NODE_OUTPUT, name) for name in self.outputs]
        content.append(encoded(_NODE_OPERATOR, self.operator))
        content += [encoded(_NODE_ATTRIBUTE, attribute) for attribute in self.attributes]
        return b"".join(content) + (encoded(_NODE_DOMAIN, self.domain) if self.domain else b"")


@dataclass
class Model:
    """A model with one graph. ``initializers``, ``inputs`` and ``outputs`` are encoded messages by name."""

    nodes: list[Node]
    initializers: dict[str, bytes | memoryview]
    inputs: dict[str, bytes]
    outputs: dict[str, bytes]
    opsets: dict[str, int]
    ir_version: int = 8
    metadata: list[bytes] = field(default_factory=list)

    def constant(self, name: str) -> NDArray[np.generic] | None:
        """The values of an initializer, or None where there is none of this name, or none with plain bytes."""
        content = self.initializers.get(name)
        return None if content is None else _array(content)

    def free(self) -> set[str]:
        """What the graph reads and does not make: values of the graph that it is within."""
        read = {*self.outputs}
        for node in self.nodes:
            read |= {*node.inputs}.union(*(graph.free() for graph in node.graphs().values()))
        made = {name for node in self.nodes for name in node.outputs}
        return read - made - {*self.inputs, *self.initializers, ""}

    def change_within(self, change: Callable[[Model], None]) -> bool:
        """Change the graphs of loops; False, and nothing is changed, where one reads values of the graph around it.

        Raises:
            BundleError: one is no ONNX graph.
        """
        within = [(index, *item) for index, node in enumerate(self.nodes) for item in node.graphs().items()]
        if any(graph.free() for _, _, graph in within):
            return False
        for index, name, graph in within:
            change(graph)
            self.nodes[index] = self.nodes[index].with_graph(name, graph)
        return True

    def graph(self) -> bytes:
        """As GraphProto."""
        return graph_message(self.nodes, self.inputs.values(), self.outputs.values(), self.initializers.values())

    def encode(self) -> bytes:
        """As ModelProto."""
        content: list[bytes | memoryview] = [encoded(_MODEL_IR, self.ir_version)]
        for domain, version in self.opsets.items():
            name = encoded(_OPSET_DOMAIN, domain) if domain else b""
            content.append(encoded(_MODEL_OPSET, name + encoded(_OPSET_VERSION, version)))
        parts = _graph_parts(self.nodes, self.inputs.values(), self.outputs.values(), self.initializers.values())
        content += [head(_MODEL_GRAPH, sum(map(len, parts))), *parts]
        return b"".join([*content, *(encoded(_MODEL_METADATA, item) for item in self.metadata)])


def read_model(content: bytes, where: str) -> Model:
    """Take a model apart.

    Raises:
        BundleError: truncated, or not an ONNX model. ``where`` names it.
    """
    model = Model([], {}, {}, {}, {})
    try:
        for number, value in fields(memoryview(content)):
            if number == _MODEL_IR and isinstance(value, int):
                model.ir_version = value
            elif isinstance(value, memoryview) and number == _MODEL_OPSET:
                parts = dict(fields(value))
                model.opsets[_text(parts.get(_OPSET_DOMAIN))] = int(parts[_OPSET_VERSION])
            elif isinstance(value, memoryview) and number == _MODEL_METADATA:
                model.metadata.append(bytes(value))
            elif isinstance(value, memoryview) and number == _MODEL_GRAPH:
                _read_graph(value, model)
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{where} is not an ONNX model: {error}", "copy or export the bundle again") from error
    return model


def graph_message(
    nodes: Iterable[Node],
    inputs: Iterable[bytes],
    outputs: Iterable[bytes],
    initializers: Iterable[bytes | memoryview] = (),
) -> bytes:
    """As GraphProto."""
    return b"".join(_graph_parts(nodes, inputs, outputs, initializers))


def integer(name: str, value: int) -> bytes:
    """An attribute that is an integer."""
    number = encoded(_ATTRIBUTE_I, value % 2**64)  # two's complement
    return encoded(_ATTRIBUTE_NAME, name) + number + encoded(_ATTRIBUTE_TYPE, _TYPE_INT)


def subgraph(name: str, graph: bytes) -> bytes:
    """An attribute that is a graph."""
    return encoded(_ATTRIBUTE_NAME, name) + encoded(_ATTRIBUTE_GRAPH, graph) + encoded(_ATTRIBUTE_TYPE, _TYPE_GRAPH)


def tensor(name: str, array: NDArray[np.generic]) -> bytes:
    """An initializer."""
    element = next(number for number, dtype in _DTYPES.items() if np.dtype(dtype) == array.dtype)
    content = [encoded(_TENSOR_DIMS, size) for size in array.shape]
    content += [encoded(_TENSOR_TYPE, element), encoded(_TENSOR_NAME, name), encoded(_TENSOR_RAW, array.tobytes())]
    return b"".join(content)


def value(name: str, element: int, shape: Sequence[int | str]) -> bytes:
    """An input or output: its axes are numbers, or names where they are free."""
    axes = (encoded(_DIM_NAME if isinstance(axis, str) else _DIM_VALUE, axis) for axis in shape)
    axis_messages = b"".join(encoded(_SHAPE_DIM, axis) for axis in axes)
    kind = encoded(_TENSOR_ELEMENT, element) + encoded(_TENSOR_SHAPE, axis_messages)
    return encoded(_VALUE_NAME, name) + encoded(_VALUE_TYPE, encoded(_TYPE_TENSOR, kind))


def constant_nodes(model: Model) -> tuple[list[Node], list[Node]]:
    """Nodes that read nothing but initializers that are no inputs, which a loop needs once, and the others."""
    known = {*model.initializers.keys() - model.inputs.keys(), ""}
    constant, rest = [], []
    for node in model.nodes:
        if node.inputs and known.issuperset(node.inputs):
            constant.append(node)
            known.update(node.outputs)
        else:
            rest.append(node)
    return constant, rest


def renamed(node: Node, names: dict[str, str]) -> Node:
    """The same operator with other names of values."""
    inputs, outputs = (tuple(names.get(name, name) for name in group) for group in (node.inputs, node.outputs))
    return replace(node, inputs=inputs, outputs=outputs)


def _graph_parts(
    nodes: Iterable[Node],
    inputs: Iterable[bytes],
    outputs: Iterable[bytes],
    initializers: Iterable[bytes | memoryview],
) -> list[bytes | memoryview]:
    """To be joined once: weights are megabytes."""
    parts: list[bytes | memoryview] = [encoded(_GRAPH_NODE, node.encode()) for node in nodes]
    parts.append(encoded(_GRAPH_NAME, "rnn-edge"))
    for item in initializers:
        parts += [head(_GRAPH_INITIALIZER, len(item)), item]
    parts += [encoded(_GRAPH_INPUT, item) for item in inputs]
    return parts + [encoded(_GRAPH_OUTPUT, item) for item in outputs]


def _read_graph(message: memoryview, model: Model) -> None:
    for number, item in fields(message):
        if not isinstance(item, memoryview):
            continue
        if number == _GRAPH_NODE:
            model.nodes.append(_read_node(item))
        elif number == _GRAPH_INITIALIZER:
            model.initializers[_first(item, _TENSOR_NAME)] = item
        elif number == _GRAPH_INPUT:
            model.inputs[_first(item, _VALUE_NAME)] = bytes(item)
        elif number == _GRAPH_OUTPUT:
            model.outputs[_first(item, _VALUE_NAME)] = bytes(item)


def _read_node(message: memoryview) -> Node:
    parts: dict[int, list[memoryview]] = {}
    for number, item in fields(message):
        if isinstance(item, memoryview):
            parts.setdefault(number, []).append(item)
    inputs, outputs = (tuple(map(_text, parts.get(number, ()))) for number in (_NODE_INPUT, _NODE_OUTPUT))
    operator, domain = (_text(parts.get(number, [None])[-1]) for number in (_NODE_OPERATOR, _NODE_DOMAIN))
    return Node(operator, inputs, outputs, tuple(map(bytes, parts.get(_NODE_ATTRIBUTE, ()))), domain)


def _array(content: bytes | memoryview) -> NDArray[np.generic] | None:
    shape, element, raw = [], 0, None
    for number, item in fields(memoryview(content)):
        if number == _TENSOR_DIMS:
            shape += [item] if isinstance(item, int) else list(_packed(item))
        elif number == _TENSOR_TYPE and isinstance(item, int):
            element = item
        elif number == _TENSOR_RAW and isinstance(item, memoryview):
            raw = item
    if raw is None or element not in _DTYPES:
        return None
    return np.frombuffer(raw, _DTYPES[element]).reshape(shape)


def _packed(message: memoryview) -> Iterable[int]:
    number = shift = 0
    for byte in message:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number = shift = 0


def _first(message: memoryview, wanted: int) -> str:
    return next((_text(item) for number, item in fields(message) if number == wanted), "")


def _text(item: int | memoryview | None) -> str:
    return str(item, "utf-8") if isinstance(item, memoryview) else ""
