"""Reading ONNX files without the onnx package: true summaries, and clean refusals of everything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_edge.errors import BundleError
from rnn_edge.onnx_file import OnnxSummary, summarise
from tests.device.tiny import GRU, LSTM

STEP = (LSTM / "step.onnx").read_bytes()

# Protocol-buffer messages by hand (https://protobuf.dev/programming-guides/encoding/).


def varint(value: int) -> bytes:
    rest, low = divmod(value, 128)
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, *content: bytes) -> bytes:
    joined = b"".join(content)
    return varint(field << 3 | 2) + varint(len(joined)) + joined


def node(operator: bytes, *rest: bytes) -> bytes:
    return message(1, message(4, operator), *rest)


def model(*graph: bytes) -> bytes:
    return message(7, *graph)


EXTERNAL = number(14, 1)  # TensorProto.data_location = EXTERNAL
ENTRY = message(13, message(1, b"location"), message(2, b"weights.bin"))  # TensorProto.external_data


def test_the_tiny_graphs() -> None:
    operators = {"Add", "Gather", "LSTM", "MatMul", "Squeeze", "Unsqueeze"}
    assert summarise(STEP, "x") == OnnxSummary(frozenset(operators), 15, False)
    operators = {"Add", "Gather", "MatMul", "Mul", "Sigmoid", "Split", "Sub", "Tanh"}
    assert summarise((GRU / "step.onnx").read_bytes(), "x") == OnnxSummary(frozenset(operators), 18, False)


def test_domains_subgraphs_and_functions() -> None:
    inner = message(5, message(6, node(b"Inner", message(7, b"com.microsoft"))))  # NodeProto.attribute.g
    several = message(5, message(11, node(b"A")), message(11, node(b"B")))  # NodeProto.attribute.graphs
    content = model(node(b"If", message(7, b"ai.onnx"), inner, several)) + message(25, message(7, message(4, b"F")))
    assert summarise(content, "x").operators == {"If", "com.microsoft::Inner", "A", "B", "F"}
    assert summarise(content, "x").node_count == 5


@pytest.mark.parametrize(
    "graph",
    [
        message(5, EXTERNAL),
        message(5, ENTRY),
        message(15, message(1, EXTERNAL)),
        message(15, message(2, ENTRY)),
        node(b"Constant", message(5, message(5, EXTERNAL))),
        node(b"Constant", message(5, message(10, ENTRY))),
        node(b"Constant", message(5, message(22, message(1, EXTERNAL)))),
        node(b"Constant", message(5, message(23, message(2, EXTERNAL)))),
        node(b"If", message(5, message(6, message(5, EXTERNAL)))),
    ],
)
def test_external_data_is_seen_wherever_it_hides(graph: bytes) -> None:
    assert summarise(model(graph), "x").external_data
    assert not summarise(model(message(5, number(14, 0)), node(b"Constant")), "x").external_data


def test_external_data_in_functions() -> None:
    constant = message(7, message(4, b"Constant"), message(5, message(5, EXTERNAL)))
    assert summarise(model() + message(25, constant), "x").external_data


def test_fields_of_every_wire_type_are_passed_over() -> None:
    fixed = varint(99 << 3 | 1) + bytes(8) + varint(98 << 3 | 5) + bytes(4)
    assert summarise(number(1, 8) + fixed + model(fixed, node(b"Add")), "x").operators == {"Add"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it holds no graph"),
        (number(1, 8), "it holds no graph"),
        (b"PK\x03\x04 a zip file", ""),
        (b"\x89PNG\r\n\x1a\n", ""),
        (b"\xff" * 20, "a number that never ends"),
        (varint(7 << 3 | 2) + varint(2**60), "truncated"),
        (varint(1 << 3 | 5) + b"\x00", "truncated"),
        (varint(1 << 3 | 3), "wire type 3"),
        (model(node(b"\xff")), "utf-8"),
    ],
)
def test_foreign_files(content: bytes, reason: str) -> None:
    with pytest.raises(BundleError) as caught:
        summarise(content, "step.onnx")
    assert caught.value.message.startswith("step.onnx is not an ONNX model: ")
    assert reason in caught.value.message


def test_subgraphs_without_end_do_not_exhaust_the_stack() -> None:
    content = b""
    for _ in range(5000):
        content = node(b"If", message(5, message(6, content)))
    with pytest.raises(BundleError, match="too deeply"):
        summarise(model(content), "x")


def test_truncated_anywhere() -> None:
    whole = summarise(STEP, "x")
    cuts = [*range(600), *range(600, len(STEP), 97), *range(len(STEP) - 300, len(STEP))]
    refused = 0
    for cut in cuts:
        try:
            summary = summarise(STEP[:cut], "x")
        except BundleError:
            refused += 1
        else:
            # A cut between two fields after the graph leaves a whole, shorter message.
            assert summary == whole
    assert refused > 0.9 * len(cuts)


@given(st.binary())
def test_any_bytes_are_summarised_or_refused(content: bytes) -> None:
    for attempt in (content, model(content), model(node(b"If", message(5, content)))):
        try:
            assert isinstance(summarise(attempt, "x"), OnnxSummary)
        except BundleError as error:
            assert error.message.startswith("x is not an ONNX model")


@given(place=st.integers(0, len(STEP) - 1), byte=st.integers(0, 255))
def test_any_changed_byte_is_summarised_or_refused(place: int, byte: int) -> None:
    changed = bytearray(STEP)
    changed[place] = byte
    try:
        assert isinstance(summarise(bytes(changed), "x"), OnnxSummary)
    except BundleError as error:
        assert error.message.startswith("x is not an ONNX model")


def test_a_tag_beyond_32_bits_hides_nothing() -> None:
    # Protocol-buffer readers cut tags to 32 bits, so this field is external_data to them.
    hidden = varint((13 << 3 | 2) + 2**32) + varint(0)
    with pytest.raises(BundleError, match="malformed tag"):
        summarise(model(message(5, hidden)), "x")
