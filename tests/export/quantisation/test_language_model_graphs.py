"""Rounded step graphs of language models: what they compute, row by row, and what is in them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from rnn_edge.manifest import Cell, Lowering, Manifest
from rnn_edge.sessions import graph_metadata
from rnn_edge_export.onnx_export import OPSET
from tests.export.quantisation.conftest import EMBEDDING, FEW, HIDDEN, MANY
from tests.export.quantisation.reference import Bits, Differences, Feeds, language_model_step, open_graph, rounded

if TYPE_CHECKING:
    from tests.export.quantisation.conftest import DraftLetters, MakeLetters

GRID = [
    pytest.param(cell, lowering, layers, letters, id=f"{cell}-{lowering}-{layers}-{letters}")
    for cell in get_args(Cell)
    for lowering in get_args(Lowering)
    for layers, letters in ((1, FEW), (2, FEW), (1, MANY), (2, MANY))
]


def _int8(manifest: Manifest) -> Manifest:
    return replace(manifest, precision="int8", lowering="cell")


def _fp16(manifest: Manifest) -> Manifest:
    return replace(manifest, precision="fp16")


def _int4(manifest: Manifest) -> Manifest:
    return replace(manifest, precision="int4", lowering="cell")


def _first_state(manifest: Manifest, batch: int) -> Feeds:
    """Anything in (−1, 1), and cells beyond."""
    random = np.random.default_rng(5)
    state = {pair.input: random.uniform(-1, 1, (batch, pair.width)).astype(np.float32) for pair in manifest.state}
    return {name: tensor * (3 if name[0] == "c" else 1) for name, tensor in state.items()}


def _follow(content: bytes, manifest: Manifest, batch: int, steps: int) -> list[tuple[Feeds, Feeds]]:
    """What goes into each step, and what comes out."""
    graph, random = open_graph(content), np.random.default_rng(6)
    state, seen = _first_state(manifest, batch), []
    for _ in range(steps):
        feeds = {"token": random.integers(0, manifest.tokenizer.vocabulary_size, batch)} | state
        outputs = graph(feeds)
        seen.append((feeds, outputs))
        state = {pair.input: outputs[pair.output] for pair in manifest.state}
    return seen


@pytest.mark.parametrize(("cell", "lowering", "layers", "letters"), GRID)
def test_half_precision_multiplies_with_half_weights(
    draft_letters: DraftLetters, cell: Cell, lowering: Lowering, layers: int, letters: int
) -> None:
    _, manifest, contents = draft_letters(cell, lowering, layers, letters)
    content, plain = rounded(contents, "step", _fp16(manifest)), open_graph(contents["step.onnx"])
    lost = 0.0
    for feeds, seen in _follow(content, manifest, batch=3, steps=25):
        lost = max(lost, *(float(np.abs(value - seen[name]).max()) for name, value in plain(feeds).items()))
    assert 1e-6 < lost < 5e-3
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content)).graph
    kinds = {item.name: item.type.tensor_type.elem_type for item in (*graph.value_info, *graph.input, *graph.output)}
    kinds |= {item.name: item.data_type for item in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "LSTM", "GRU", "RNN")]
    assert len(products) == (1 + layers if lowering == "operator" else 1 + layers * (2 if cell == "gru" else 1))
    for node in products:
        assert {kinds[name] for name in (*node.input, *node.output) if name} == {onnx.TensorProto.FLOAT16}
    large = [item for item in graph.initializer if len(item.dims) > 1 and int(np.prod(item.dims)) > 1000]
    assert {item.data_type for item in large} == {onnx.TensorProto.FLOAT16}
    # Nothing is widened only to be rounded again.
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    moved = {node.output[0]: node.input[0] for node in graph.node if node.op_type in ("Squeeze", "Unsqueeze")}
    for name in casts:
        if kinds[name] == onnx.TensorProto.FLOAT16:
            origin = casts[name]
            while origin in moved:
                origin = moved[origin]
            assert origin not in casts


def _activation_scales(graph: onnx.GraphProto) -> list[float]:
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    return sorted(float(constants[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear")


@pytest.mark.parametrize(("cell", "lowering", "layers", "letters"), GRID)
def test_eight_bits_compute_what_the_equations_say(
    draft_letters: DraftLetters, cell: Cell, lowering: Lowering, layers: int, letters: int
) -> None:
    model, manifest, contents = draft_letters(cell, lowering, layers, letters)
    folded = lowering == "operator" and letters == FEW
    plain = open_graph(contents["step.onnx"])
    differences, lost = Differences(), 0.0
    for feeds, seen in _follow(rounded(contents, "step", _int8(manifest)), manifest, batch=3, steps=25):
        expected = language_model_step(model, lowering, "int8", folded=folded, feeds=feeds, seen=seen)
        differences.add(seen, expected)
        original = plain(feeds)
        lost = max(lost, *(float(np.abs(original[name] - seen[name]).max()) for name in seen))
    differences.check(rare=5e-4)
    assert 1e-3 < lost < 0.2  # something was rounded, and not much is lost


@pytest.mark.parametrize(("cell", "lowering", "layers", "letters"), GRID)
def test_each_row_of_a_batch_is_what_it_is_alone(
    draft_letters: DraftLetters, cell: Cell, lowering: Lowering, layers: int, letters: int
) -> None:
    """Bit by bit: no scale depends on the neighbours."""
    _, manifest, contents = draft_letters(cell, lowering, layers, letters)
    content = rounded(contents, "step", _int8(manifest))
    graph = open_graph(content)
    for feeds, seen in _follow(content, manifest, batch=5, steps=8):
        for row in range(5):
            alone = graph({name: value[row : row + 1] for name, value in feeds.items()})
            for name, value in alone.items():
                assert value[0].tobytes() == seen[name][row].tobytes(), name


@pytest.mark.parametrize(("cell", "lowering", "layers", "letters"), GRID)
def test_what_is_in_an_int8_graph(
    draft_letters: DraftLetters, cell: Cell, lowering: Lowering, layers: int, letters: int
) -> None:
    _, manifest, contents = draft_letters(cell, lowering, layers, letters)
    model = onnx.load_model_from_string(rounded(contents, "step", _int8(manifest)))
    graph, before = model.graph, onnx.load_model_from_string(contents["step.onnx"]).graph
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in graph.node} == {""}
    assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
    assert {item.key: item.value for item in model.metadata_props} == graph_metadata(_int8(manifest))
    assert list(graph.input) == list(before.input)
    assert list(graph.output) == list(before.output)
    read = Counter(name for node in graph.node for name in node.input)
    assert {item.name for item in graph.initializer} <= read.keys()
    assert {name for node in graph.node for name in node.output} <= read.keys() | {item.name for item in graph.output}
    used = Counter(node.op_type for node in graph.node)
    assert not used.keys() & {"LSTM", "GRU", "RNN", "MatMul", "Gemm", "DynamicQuantizeLinear"}
    # Every matrix is in eight bits or, folded, in half precision.
    kinds = {item.data_type for item in graph.initializer if np.prod(item.dims) >= 4096}
    folded = lowering == "operator" and letters == FEW
    assert kinds == {onnx.TensorProto.INT8} | ({onnx.TensorProto.FLOAT16} if folded else set())


def test_the_state_is_rounded_once_a_layer(draft_letters: DraftLetters) -> None:
    """And what a layer gives is rounded once, for the layer above and for the output."""
    _, manifest, contents = draft_letters("lstm", "operator", 2, FEW)
    graph = onnx.load_model_from_string(rounded(contents, "step", _int8(manifest))).graph
    given = Counter(node.input[0] for node in graph.node if node.op_type == "QuantizeLinear")
    assert given == dict.fromkeys(("h0", "h1", "h0_next", "h1_next"), 1)
    assert _activation_scales(graph) == [np.float32(1 / 127)] * 4


def test_a_concatenated_input_has_the_largest_bound(draft_letters: DraftLetters) -> None:
    """The cell lowering multiplies Concat(x, h): x are rows of the embedding, and reach further than h does."""
    model, manifest, contents = draft_letters("lstm", "cell", 2, MANY)
    largest = float(model.embedding.weight.abs().max())
    assert largest > 2
    graph = onnx.load_model_from_string(rounded(contents, "step", _int8(manifest))).graph
    assert _activation_scales(graph) == pytest.approx(
        [1 / 127, 1 / 127, largest / 127]
    )  # output layer, second layer, first layer


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_folded_table_stands_for_embedding_and_input_weights(draft_letters: DraftLetters, cell: Cell) -> None:
    _, manifest, contents = draft_letters(cell, "operator", 1, FEW)
    graph = onnx.load_model_from_string(rounded(contents, "step", _int8(manifest))).graph
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[cell] * HIDDEN
    shapes = sorted(tuple(item.dims) for item in graph.initializer if len(item.dims) == 2)
    assert shapes == sorted([(HIDDEN, gates), (HIDDEN, FEW), (FEW, gates)])
    _, manifest, contents = draft_letters(cell, "operator", 1, MANY)
    graph = onnx.load_model_from_string(rounded(contents, "step", _int8(manifest))).graph
    shapes = sorted(tuple(item.dims) for item in graph.initializer if len(item.dims) == 2)
    first = [(HIDDEN, gates), (EMBEDDING, gates)]  # two bounds
    assert shapes == sorted([*first, (HIDDEN, MANY), (MANY, EMBEDDING), (MANY, 1)])


def test_files_shrink_to_a_quarter(draft_letters: DraftLetters) -> None:
    _, manifest, contents = draft_letters("lstm", "operator", 2, MANY)
    whole = len(contents["step.onnx"])
    assert 0.25 < len(rounded(contents, "step", _int8(manifest))) / whole < 0.31
    # Output layer and embedding keep eight bits; a scale for every 16 values.
    assert len(rounded(contents, "step", _int4(manifest))) / whole < 0.27


@pytest.mark.parametrize(("cell", "letters"), [("lstm", FEW), ("gru", MANY), ("rnn", FEW)])
@pytest.mark.parametrize("lowering", get_args(Lowering))
def test_four_bits_compute_what_the_equations_say(
    draft_letters: DraftLetters, cell: Cell, letters: int, lowering: Lowering
) -> None:
    """Nearly: the runtime rounds activations in a way of its own."""
    model, manifest, contents = draft_letters(cell, lowering, 2, letters)
    folded = lowering == "operator" and letters == FEW
    content = rounded(contents, "step", _int4(manifest))
    differences: dict[Bits, float] = {"int4": 0, "int8": 0}
    for feeds, seen in _follow(content, manifest, batch=3, steps=20):
        for bits in differences:
            expected = language_model_step(model, lowering, bits, folded=folded, feeds=feeds, seen=seen)
            for name in (pair.output for pair in manifest.state):
                differences[bits] = max(differences[bits], float(np.abs(seen[name] - expected[name]).max()))
            # The output layer has eight bits, computed as in int8.
            np.testing.assert_allclose(seen["logits"], expected["logits"], atol=2e-5)
    assert differences["int4"] < 0.02
    assert differences["int8"] > 4 * differences["int4"]
    model_proto = onnx.load_model_from_string(content)
    assert sorted(item.domain for item in model_proto.opset_import) == ["", "com.microsoft"]
    nodes = [node for node in model_proto.graph.node if node.op_type == "MatMulNBits"]
    # Joined, a GRU's layer has three products, and that of the first layer's candidate is too small to be rounded.
    assert len(nodes) == (2 if cell != "gru" else 4 if lowering == "cell" else 5)


def test_a_tied_language_model(make_letters: MakeLetters) -> None:
    manifest, contents = make_letters("gru", 1, MANY, HIDDEN, tied=True).draft("tied", "operator")
    graph = onnx.load_model_from_string(rounded(contents, "step", _int8(manifest))).graph
    tables = [item for item in graph.initializer if item.data_type == onnx.TensorProto.INT8 and MANY in item.dims]
    assert len(tables) == 2  # the fp32 graph has them twice, too


def test_small_matrices_stay_as_they_are(make_letters: MakeLetters) -> None:
    """An output layer over 11 letters costs more nodes than it saves bytes."""
    source = make_letters("lstm", 1, 11)
    manifest, contents = source.draft("few", "operator")
    model = onnx.load_model_from_string(rounded(contents, "step", _int8(manifest)))
    assert Counter(node.op_type for node in model.graph.node)["MatMul"] == 1
    assert Counter(node.op_type for node in model.graph.node)["MatMulInteger"] == 1
    differences = Differences()
    for feeds, seen in _follow(rounded(contents, "step", _int8(manifest)), manifest, batch=3, steps=10):
        expected = language_model_step(source.model, "operator", "int8", folded=True, feeds=feeds, seen=seen)
        differences.add(seen, expected)
    differences.check(rare=5e-4)


@pytest.mark.parametrize("lowering", get_args(Lowering))
def test_rounding_is_deterministic(draft_letters: DraftLetters, lowering: Lowering) -> None:
    _, manifest, contents = draft_letters("lstm", lowering, 1, FEW)
    for changed in (_int8(manifest), _int4(manifest)):
        assert rounded(contents, "step", changed) == rounded(contents, "step", changed)
