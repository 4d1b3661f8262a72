"""What an ONNX file says about itself, read from its bytes without the onnx package.

An ONNX file is one protocol-buffer message (ModelProto). Only its structure is walked: names, operators, metadata and
whether any tensor lives in another file. Weights are skipped by their length and never copied.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from rnn_edge.errors import BundleError

# Field numbers of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_FUNCTION_NODE, _FUNCTION_ATTRIBUTE = 7, 11
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 22, 23
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_MAXIMUM_DEPTH = 16


@dataclass(frozen=True)
class OnnxSummary:
    """Operators as DOMAIN::NAME (the standard domain has no prefix), subgraphs and functions included."""

    operators: frozenset[str]
    node_count: int
    external_data: bool


def summarise(content: bytes, where: str) -> OnnxSummary:
    """Walk the file. ``where`` names it in errors.

    Raises:
        BundleError: truncated, or not an ONNX model.
    """
    walk = _Walk()
    try:
        graphs = 0
        for number, value in fields(memoryview(content)):
            if number == _MODEL_GRAPH and isinstance(value, memoryview):
                walk.graph(value, 0)
                graphs += 1
            elif number == _MODEL_FUNCTIONS and isinstance(value, memoryview):
                walk.function(value)
        if graphs != 1:
            raise ValueError("it holds no graph")
    except ValueError as error:
        raise BundleError(f"{where} is not an ONNX model: {error}", "copy or export the bundle again") from error
    return OnnxSummary(frozenset(walk.operators), walk.nodes, walk.external)


class _Walk:
    def __init__(self) -> None:
        self.operators: set[str] = set()
        self.nodes = 0
        self.external = False

    def graph(self, message: memoryview, depth: int) -> None:
        if depth > _MAXIMUM_DEPTH:
            raise ValueError("its subgraphs are nested too deeply")
        for number, value in _messages(message):
            if number == _GRAPH_NODE:
                self.node(value, depth)
            elif number == _GRAPH_INITIALIZER:
                self.tensor(value)
            elif number == _GRAPH_SPARSE:
                self.sparse(value)

    def function(self, message: memoryview) -> None:
        for number, value in _messages(message):
            if number == _FUNCTION_NODE:
                self.node(value, 0)
            elif number == _FUNCTION_ATTRIBUTE:
                self.attribute(value, 0)

    def node(self, message: memoryview, depth: int) -> None:
        operator, domain = "", ""
        for number, value in _messages(message):
            if number == _NODE_OP_TYPE:
                operator = str(value, "utf-8")
            elif number == _NODE_DOMAIN:
                domain = str(value, "utf-8")
            elif number == _NODE_ATTRIBUTE:
                self.attribute(value, depth)
        self.nodes += 1
        self.operators.add(f"{domain}::{operator}" if domain not in ("", "ai.onnx") else operator)

    def attribute(self, message: memoryview, depth: int) -> None:
        for number, value in _messages(message):
            if number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                self.tensor(value)
            elif number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                self.graph(value, depth + 1)
            elif number in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES):
                self.sparse(value)

    def sparse(self, message: memoryview) -> None:
        for number, value in _messages(message):
            if number in (_SPARSE_VALUES, _SPARSE_INDICES):
                self.tensor(value)

    def tensor(self, message: memoryview) -> None:
        for number, value in fields(message):
            if number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value != 0):
                self.external = True


def _messages(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    return ((number, value) for number, value in fields(message) if isinstance(value, memoryview))


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of one message: integers, or the bytes of strings and nested messages.

    The wire format: https://protobuf.dev/programming-guides/encoding/.
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag >> 32:  # readers differ in what they make of it, so a field could hide here
            raise ValueError("it has a malformed tag")
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _varint(message, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"it has a field of wire type {wire_type}")
        if position + length > len(message):
            raise ValueError("it is truncated")
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("it is truncated")
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise ValueError("it has a number that never ends")
