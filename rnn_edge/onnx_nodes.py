"""ONNX graphs of a few nodes, written as bytes without the onnx package.

The messages of protocol buffers are made to be joined: bytes of one model appended to another's are read as one model
with the nodes of both (https://protobuf.dev/programming-guides/encoding/#last-one-wins).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Field numbers and values of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
_MODEL_IR_VERSION, _MODEL_GRAPH, _MODEL_OPSET = 1, 7, 8
_OPSET_VERSION = 2
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 2, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_I, _ATTRIBUTE_TYPE, _TYPE_INT = 1, 3, 20, 2
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 2, 1, 1, 2
_SHAPE_DIM, _DIM_VALUE, _DIM_NAME = 1, 1, 2
_ELEMENTS = {"float32": 1, "int64": 7, "bool": 9}
_IR_VERSION, _OPSET = 8, 17


@dataclass(frozen=True)
class Node:
    """One operator of the standard domain with integer attributes."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Tensor:
    """An input or output: its axes are numbers, or names where they are free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def graph_bytes(
    nodes: Sequence[Node],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    defaults: Mapping[str, NDArray[np.float32]] | None = None,
) -> bytes:
    """These nodes as an extension of a model: append the bytes to its own.

    ``defaults`` are values of inputs that a caller may leave out.
    """
    graph = b"".join(field(_GRAPH_NODE, _node(node)) for node in nodes)
    graph += b"".join(field(_GRAPH_INITIALIZER, _initializer(*item)) for item in (defaults or {}).items())
    graph += b"".join(field(_GRAPH_INPUT, _value(tensor)) for tensor in inputs)
    graph += b"".join(field(_GRAPH_OUTPUT, _value(tensor)) for tensor in outputs)
    return field(_MODEL_GRAPH, graph)


def model_bytes(nodes: Sequence[Node], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bytes:
    """A model of its own."""
    head = field(_MODEL_IR_VERSION, _IR_VERSION) + field(_MODEL_OPSET, field(_OPSET_VERSION, _OPSET))
    return head + field(_MODEL_GRAPH, field(_GRAPH_NAME, "rnn-edge")) + graph_bytes(nodes, inputs, outputs)


def _node(node: Node) -> bytes:
    content = b"".join(field(_NODE_INPUT, name) for name in node.inputs)
    content += field(_NODE_OUTPUT, node.output) + field(_NODE_OP_TYPE, node.operator)
    for name, value in node.attributes:
        attribute = field(_ATTRIBUTE_NAME, name) + field(_ATTRIBUTE_I, value) + field(_ATTRIBUTE_TYPE, _TYPE_INT)
        content += field(_NODE_ATTRIBUTE, attribute)
    return content


def _initializer(name: str, array: NDArray[np.float32]) -> bytes:
    content = b"".join(field(_TENSOR_DIMS, size) for size in array.shape)
    content += field(_TENSOR_TYPE, _ELEMENTS["float32"]) + field(_TENSOR_NAME, name)
    return content + field(_TENSOR_RAW, array.astype("<f4").tobytes())


def _value(tensor: Tensor) -> bytes:
    axes = (field(_DIM_NAME if isinstance(axis, str) else _DIM_VALUE, axis) for axis in tensor.shape)
    shape = b"".join(field(_SHAPE_DIM, axis) for axis in axes)
    kind = field(_TENSOR_ELEMENT, _ELEMENTS[tensor.dtype]) + field(_TENSOR_SHAPE, shape)
    return field(_VALUE_NAME, tensor.name) + field(_VALUE_TYPE, field(_TYPE_TENSOR, kind))


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return head(number, len(content)) + content


def head(number: int, length: int) -> bytes:
    """What stands before a message or string of this length."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)
    return bytes(content)
