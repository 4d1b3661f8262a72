"""Rounded encoders and decoders: what they compute, for batches and for each sentence, and what is in them."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import onnx
import pytest

from rnn_edge.manifest import AttentionKind, Cell, Lowering, Manifest, Precision
from rnn_edge.sessions import graph_metadata
from tests.export.quantisation.reference import (
    Array,
    Bits,
    Differences,
    Feeds,
    decoder_step,
    encoded,
    open_graph,
    rounded,
)
from tests.export.translation.conftest import Combination

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.export.quantisation.conftest import DraftTranslator

EMBEDDING = 64
# All that may differ is in these; the whole grid takes minutes.
PLAIN = Combination("lstm", "general", "operator", feeding=False, layers=2, tokenizer="subword")
FED = Combination("gru", "bahdanau", "cell", feeding=True, layers=1, tokenizer="word")
DOT = Combination("lstm", "dot", "cell", feeding=False, layers=1, tokenizer="word")
_FAST = {PLAIN, FED, DOT}
LENGTHS = (9, 4, 1)


def _grid() -> list[Any]:
    found = [*_FAST]
    for cell, attention, lowering, feeding in itertools.product(
        ("lstm", "gru"), get_args(AttentionKind), get_args(Lowering), (False, True)
    ):
        rest = FED[4:] if cell == "gru" else PLAIN[4:]
        found.append(Combination(cell, attention, lowering, feeding, *rest))
    return [
        pytest.param(item, marks=() if item in _FAST else pytest.mark.slow, id="-".join(map(str, item)))
        for item in sorted(set(found))
    ]


def _as(manifest: Manifest, precision: Precision) -> Manifest:
    return replace(manifest, precision=precision, lowering="cell")


def _sources(manifest: Manifest) -> tuple[Array, Array]:
    assert manifest.source is not None
    lengths = np.array(LENGTHS)
    random = np.random.default_rng(3)
    return random.integers(0, manifest.source.tokenizer.vocabulary_size, (len(LENGTHS), max(LENGTHS))), lengths


def _decode(content: bytes, manifest: Manifest, given: Feeds, steps: int) -> list[tuple[Feeds, Feeds]]:
    """What goes into each step, and what comes out; ``given`` are memory, lengths and first state."""
    decoder, random = open_graph(content), np.random.default_rng(4)
    rows = len(given["source_lengths"])
    seen = []
    for _ in range(steps):
        feeds = {"token": random.integers(0, manifest.tokenizer.vocabulary_size, rows)} | given
        outputs = decoder(feeds)
        seen.append((feeds, outputs))
        given = given | {pair.input: outputs[pair.output] for pair in manifest.state}
    return seen


def _encode(content: bytes, source: Array, lengths: Array) -> Feeds:
    return open_graph(content)({"source": source, "source_lengths": lengths})


@pytest.mark.parametrize("combination", _grid())
def test_eight_bits_compute_what_the_equations_say(draft_translator: DraftTranslator, combination: Combination) -> None:
    model, manifest, contents = draft_translator(combination, EMBEDDING)
    changed, (source, lengths) = _as(manifest, "int8"), _sources(manifest)
    found = _encode(rounded(contents, "encoder", changed), source, lengths)
    differences = Differences()
    differences.add(_unpadded(found, lengths), _unpadded(encoded(model, source, lengths, found), lengths))
    differences.check(rare=5e-3)
    differences = Differences()
    given = found | {"source_lengths": lengths}
    for feeds, seen in _decode(rounded(contents, "decoder", changed), manifest, given, steps=20):
        expected = decoder_step(model, combination.lowering, "int8", folded=False, feeds=feeds, seen=seen)
        differences.add(seen, expected)
    differences.check(rare=5e-3)
    _check_content(contents, manifest)


def _unpadded(values: Feeds, lengths: Array) -> Feeds:
    """What lies behind the end of a source means nothing."""
    places = np.arange(max(lengths)) < lengths[:, None]
    return {name: value[places] if name in ("memory", "keys") else value for name, value in values.items()}


def _check_content(contents: dict[str, bytes], manifest: Manifest) -> None:
    changed = _as(manifest, "int8")
    for role in ("encoder", "decoder"):
        model = onnx.load_model_from_string(rounded(contents, role, changed))
        graph = model.graph
        assert {node.domain for node in graph.node} == {""}
        assert {item.key: item.value for item in model.metadata_props} == graph_metadata(changed)
        read = {name for node in graph.node for name in node.input}
        assert {item.name for item in graph.initializer} <= read
        floats = [item for item in graph.initializer if item.data_type == onnx.TensorProto.FLOAT]
        assert max(np.prod(item.dims) for item in floats) < 4096
        used = Counter(node.op_type for node in graph.node)
        assert "DynamicQuantizeLinear" not in used
        assert "Gemm" not in used
        given = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
        assert len(given) == len(set(given))  # what several products read is rounded once
        if role == "decoder":
            assert not used.keys() & {"LSTM", "GRU"}


@pytest.mark.parametrize(("cell", "layers"), [("lstm", 1), ("gru", 2)])
def test_encoders_loop_over_products_of_integers(draft_translator: DraftTranslator, cell: Cell, layers: int) -> None:
    chosen = Combination(cell, "general", "operator", feeding=False, layers=layers, tokenizer="word")
    model, manifest, contents = draft_translator(chosen, EMBEDDING, 40)
    content, (source, lengths) = rounded(contents, "encoder", _as(manifest, "int8")), _sources(manifest)
    encoder = open_graph(content)
    found = encoder({"source": source, "source_lengths": lengths})
    differences = Differences()
    differences.add(_unpadded(found, lengths), _unpadded(encoded(model, source, lengths, found), lengths))
    differences.check(rare=5e-3)
    # Each sentence is what it is alone, bit by bit.
    for row, length in enumerate(lengths):
        alone = encoder({"source": source[row : row + 1, :length], "source_lengths": lengths[row : row + 1]})
        for name, value in alone.items():
            mine = found[name][row, :length] if name in ("memory", "keys") else found[name][row]
            assert value[0].tobytes() == mine.tobytes(), name

    graph = onnx.load_model_from_string(content).graph
    assert not {"LSTM", "GRU"} & {node.op_type for node in graph.node}
    bodies = [node.attribute[0].g for node in graph.node if node.op_type == "Scan"]
    assert len(bodies) == 2 * layers
    names = [name for part in (graph, *bodies) for node in part.node for name in node.output]
    assert len(names) == len(set(names))
    for body in bodies:
        assert sum(node.op_type == "MatMulInteger" for node in body.node) == 1
        made = {item.name for item in (*body.input, *body.initializer)} | {n for node in body.node for n in node.output}
        assert {name for node in body.node for name in node.input} <= made  # nothing of the graph around it


def test_other_sequences_keep_their_operator(draft_translator: DraftTranslator) -> None:
    """Where an input has no bound, or directions are not split as the exporter does it."""
    _, manifest, contents = draft_translator(PLAIN, EMBEDDING)
    original, changed = onnx.load_model_from_string(contents["encoder.onnx"]), _as(manifest, "int8")

    def used(change: Callable[[onnx.GraphProto], None]) -> Counter[str]:
        copy = onnx.ModelProto()
        copy.CopyFrom(original)
        change(copy.graph)
        content = rounded(contents | {"encoder.onnx": copy.SerializeToString()}, "encoder", changed)
        return Counter(node.op_type for node in onnx.load_model_from_string(content).graph.node)

    def read_twice(graph: onnx.GraphProto) -> None:
        lstm = next(node for node in graph.node if node.op_type == "LSTM")
        graph.node.append(onnx.helper.make_node("Shape", [lstm.output[0]], ["steps"]))
        graph.output.append(onnx.helper.make_tensor_value_info("steps", onnx.TensorProto.INT64, [4]))

    def unbounded(graph: onnx.GraphProto) -> None:
        lstm = next(node for node in graph.node if node.op_type == "LSTM")
        graph.node.insert(list(graph.node).index(lstm), onnx.helper.make_node("Softplus", [lstm.input[0]], ["soft"]))
        lstm.input[0] = "soft"

    assert used(lambda graph: None)["Scan"] == 4
    for change in (read_twice, unbounded):
        found = used(change)
        assert (found["LSTM"], found["Scan"]) == (1, 2)


@pytest.mark.parametrize("combination", [PLAIN, FED, DOT], ids=["plain", "fed", "dot"])
def test_four_bits_compute_what_the_equations_say(draft_translator: DraftTranslator, combination: Combination) -> None:
    """Nearly: the runtime rounds activations in a way of its own."""
    model, manifest, contents = draft_translator(combination, EMBEDDING)
    changed, (source, lengths) = _as(manifest, "int4"), _sources(manifest)
    found = _encode(rounded(contents, "encoder", changed), source, lengths)
    expected = _unpadded(encoded(model, source, lengths, found), lengths)
    for name, value in _unpadded(found, lengths).items():
        assert np.abs(value - expected[name]).max() < 0.02, name
    largest: dict[Bits, float] = {"int4": 0, "int8": 0}
    for feeds, seen in _decode(
        rounded(contents, "decoder", changed), manifest, found | {"source_lengths": lengths}, steps=10
    ):
        for bits in largest:
            expected = decoder_step(model, combination.lowering, bits, folded=False, feeds=feeds, seen=seen)
            largest[bits] = max(largest[bits], *(float(np.abs(seen[name] - expected[name]).max()) for name in seen))
    assert largest["int4"] < 0.05
    assert largest["int8"] > 3 * largest["int4"]


def test_a_folded_embedding_that_is_also_the_output_layer(draft_translator: DraftTranslator) -> None:
    """A wide embedding is worth multiplying beforehand; the output layer still needs it."""
    chosen = Combination("lstm", "general", "operator", feeding=False, layers=1, tokenizer="word")
    model, manifest, contents = draft_translator(chosen, 256)
    changed, (source, lengths) = _as(manifest, "int8"), _sources(manifest)
    content = rounded(contents, "decoder", changed)
    graph = onnx.load_model_from_string(content).graph
    size = manifest.tokenizer.vocabulary_size
    shapes = [tuple(item.dims) for item in graph.initializer if size in item.dims and len(item.dims) > 1]
    assert sorted(shapes) == sorted([(size, 256), (size, 4 * 72)])
    found = _encode(rounded(contents, "encoder", changed), source, lengths)
    differences = Differences()
    for feeds, seen in _decode(content, manifest, found | {"source_lengths": lengths}, steps=10):
        expected = decoder_step(model, "operator", "int8", folded=True, feeds=feeds, seen=seen)
        differences.add(seen, expected)
    differences.check(rare=5e-3)


@pytest.mark.parametrize("combination", [PLAIN, FED], ids=["plain", "fed"])
@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
def test_a_tied_embedding_is_in_each_file_once(
    draft_translator: DraftTranslator, combination: Combination, precision: Precision
) -> None:
    _, manifest, contents = draft_translator(combination, EMBEDDING)
    assert manifest.source is not None
    sizes = {"encoder": manifest.source.tokenizer.vocabulary_size, "decoder": manifest.tokenizer.vocabulary_size}
    kind = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8
    for role, size in sizes.items():
        graph = onnx.load_model_from_string(rounded(contents, role, _as(manifest, precision))).graph
        tables = [item for item in graph.initializer if size in item.dims and EMBEDDING in item.dims]
        assert [(list(item.dims), item.data_type) for item in tables] == [([size, EMBEDDING], kind)]


@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
@pytest.mark.parametrize("combination", [PLAIN, FED, DOT], ids=["plain", "fed", "dot"])
def test_a_padded_batch_is_each_sentence_alone(
    draft_translator: DraftTranslator, combination: Combination, precision: Precision
) -> None:
    """But for the last bits of float sums, which may tip a value over to its neighbour."""
    _, manifest, contents = draft_translator(combination, EMBEDDING)
    changed, (source, lengths) = _as(manifest, precision), _sources(manifest)
    encoder, decoder = rounded(contents, "encoder", changed), rounded(contents, "decoder", changed)
    together = _encode(encoder, source, lengths)
    steps = _decode(decoder, manifest, together | {"source_lengths": lengths}, steps=6)
    differences = Differences()
    run, read = open_graph(decoder), open_graph(encoder)
    for row, length in enumerate(lengths):
        alone = read({"source": source[row : row + 1, :length], "source_lengths": lengths[row : row + 1]})
        mine = {name: value[row : row + 1] for name, value in together.items()}
        mine |= {name: mine[name][:, :length] for name in ("memory", "keys") if name in mine}
        differences.add(mine, alone)
        given = alone | {"source_lengths": lengths[row : row + 1]}
        for feeds, seen in steps:
            outputs = run({"token": feeds["token"][row : row + 1]} | given)
            expected = {name: value[row : row + 1] for name, value in seen.items()}
            expected["attention"] = expected["attention"][:, :length]
            differences.add(outputs, expected)
            given |= {pair.input: seen[pair.output][row : row + 1] for pair in manifest.state}
    differences.check(rare=0.02)
