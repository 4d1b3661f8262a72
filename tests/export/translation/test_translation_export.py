"""From a translator to a bundle: parity, what the graphs and the manifest say, sabotage."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from numpy.typing import NDArray

from rnn_edge import Translator
from rnn_edge.bundle import read_bundle
from rnn_edge.encoder_decoder import EncoderDecoderGraphs
from rnn_edge.errors import ParityError
from rnn_edge.manifest import AttentionKind, EncoderArchitecture, Lowering, MemoryTensor
from rnn_edge.sessions import graph_metadata
from rnn_edge.text_files import Pair
from rnn_edge.verification import Finding, verify
from rnn_edge_export.onnx_export import export_bundle
from rnn_edge_export.translation import export as translation_export
from rnn_edge_export.translation.export import decoder_graph, encoder_graph
from rnn_edge_export.translation.parity import check_parity
from rnn_edge_export.translation.steps import DECODER_OPERATORS, ENCODER_OPERATORS
from rnn_edge_export.translation.task import translate_greedily
from tests.device.tiny import copy_bundle, edit_manifest, replace_file
from tests.export.conftest import names
from tests.export.translation.conftest import Combination

if TYPE_CHECKING:
    from tests.export.translation.conftest import Export, Exported, MakeSource

# All that may differ is in these two; the whole grid takes more than a minute.
DEEP = Combination("lstm", "general", "operator", feeding=False, layers=2, tokenizer="subword")
FED = Combination("gru", "bahdanau", "cell", feeding=True, layers=1, tokenizer="word")
_FAST = {combination[:4] for combination in (DEEP, FED)}


def _grid() -> list[Any]:
    found = []
    for cell, attention, lowering, feeding in itertools.product(
        ("lstm", "gru"), get_args(AttentionKind), get_args(Lowering), (False, True)
    ):
        layers, tokenizer = (FED[4:]) if cell == "gru" else (DEEP[4:])
        marks = () if (cell, attention, lowering, feeding) in _FAST else pytest.mark.slow
        name = f"{cell}-{attention}-{lowering}{'-feeding' if feeding else ''}"
        chosen = Combination(cell, attention, lowering, feeding, layers, tokenizer)
        found.append(pytest.param(chosen, marks=marks, id=name))
    return found


@pytest.fixture(params=[DEEP, FED], ids=["deep", "fed"], scope="module")
def chosen(request: pytest.FixtureRequest, exported: Export) -> Exported:
    """One of the two."""
    return exported(request.param)


def _graph(exported: Exported, role: str) -> onnx.ModelProto:
    return onnx.load_model_from_string(exported.bundle.graph(role))


def _findings(folder: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in verify(read_bundle(folder), device="cpu")}


@pytest.mark.parametrize("combination", _grid())
def test_every_combination_exports_and_verifies(exported: Export, combination: Combination) -> None:
    _, bundle, checks = exported(combination)
    assert [check.name for check in checks] == [
        "encoder: memory",
        "encoder: first state",
        "decoder: logits of 32 single steps against one run",
        "decoder: attention of 32 steps",
        "decoder: state after 32 steps",
        "a padded batch against each sentence alone",
        "each state input moves the outputs it should",
        "state outputs that ignore or copy their input",
    ]
    assert all(check.passed for check in checks)
    assert max(check.difference for check in checks) < 1e-5
    findings = _findings(bundle.path)
    assert [finding for finding in findings.values() if not finding.passed] == []
    assert len(findings) >= 7
    encoder = bundle.manifest.architecture.encoder
    assert encoder == EncoderArchitecture(6, combination.layers, combination.attention, combination.feeding)
    for role, allowed in (("encoder", ENCODER_OPERATORS), ("decoder", DECODER_OPERATORS[combination.lowering])):
        graph = _graph(exported(combination), role)
        assert {node.op_type for node in graph.graph.node} <= allowed
        assert {node.domain for node in graph.graph.node} == {""}
        assert not graph.functions
    used = [node.op_type for node in _graph(exported(combination), "decoder").graph.node]
    layers = combination.layers if combination.lowering == "operator" else 0
    assert used.count(combination.cell.upper()) == layers
    if combination.lowering == "cell":
        # Weights are folded: nothing transposes them at run time.
        assert "Transpose" not in used


def _largest(mine: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    assert mine.shape == other.shape
    return float(np.abs(mine - other).max())


@pytest.mark.parametrize("lengths", [(1,), (50,), (3, 3), (2, 33, 1, 7, 7, 12)])  # traced are 7, 5 and 2
@torch.no_grad()
def test_the_graphs_compute_what_the_model_computes(chosen: Exported, lengths: tuple[int, ...]) -> None:
    model, (encoder, decoder) = chosen.source.model, chosen.source.tokenizers
    random = np.random.default_rng(len(lengths))
    sources = [random.integers(0, encoder.vocabulary_size, length).tolist() for length in lengths]
    graphs = EncoderDecoderGraphs(chosen.bundle, device="cpu")
    encoded = graphs.encode(sources)
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in sources])
    memory, state = model.encode(padded, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        assert _largest(encoded.memory["memory"][row, :length], memory.values[row, :length].numpy()) < 2e-5
        assert _largest(encoded.memory["keys"][row, :length], memory.keys[row, :length].numpy()) < 2e-5
    for name, tensor in zip(model.state_names(), state, strict=True):
        assert _largest(encoded.state.tensors[name], tensor.numpy()) < 2e-5
    stepper = graphs.stepper(encoded)
    tokens = random.integers(0, decoder.vocabulary_size, (20, len(lengths)))
    logits, attention, last = model.decode(torch.from_numpy(tokens), state, memory)
    for step, row in enumerate(tokens):
        assert _largest(stepper.step(row), logits[step].numpy()) < 5e-5
        assert _largest(stepper.attention, attention[:, step].numpy()) < 5e-5
    for name, tensor in zip(model.state_names(), last, strict=True):
        assert _largest(stepper.state().tensors[name], tensor.numpy()) < 5e-5


def test_the_device_translates_as_pytorch_does(exported: Export, pairs: list[Pair]) -> None:
    source, bundle, _ = exported(DEEP)
    translator = Translator.load(bundle.path, device="cpu")
    sentences = [text for text, _ in pairs[:40]]
    found = [item.text.strip() for item in translator.translate_sentences(sentences, translator.options(beam=1))]
    assert found == translate_greedily(source.model, sentences, source.tokenizers)
    assert len(set(found)) > 20


def test_what_the_files_say(chosen: Exported) -> None:
    manifest = chosen.bundle.manifest
    state = [("h0", 12), ("c0", 12), ("h1", 12), ("c1", 12)]
    if manifest.architecture.cell == "gru":
        state = [("h0", 12), ("feed", 8)]
    memory = [("memory", ["batch", "source_length", 12]), ("keys", ["batch", "source_length", 12])]
    size = manifest.tokenizer.vocabulary_size
    expected = {
        "encoder": (
            [("source", ["batch", "source_length"]), ("source_lengths", ["batch"])],
            [*memory, *((name, ["batch", width]) for name, width in state)],
        ),
        "decoder": (
            [("token", ["batch"]), *memory, ("source_lengths", ["batch"])]
            + [(name, ["batch", width]) for name, width in state],
            [("logits", ["batch", size]), ("attention", ["batch", "source_length"])]
            + [(f"{name}_next", ["batch", width]) for name, width in state],
        ),
    }
    for role, ports in expected.items():
        graph = _graph(chosen, role)
        onnx.checker.check_model(graph, full_check=True)
        assert [(item.domain, item.version) for item in graph.opset_import] == [("", 18)]
        assert (graph.ir_version, graph.producer_name) == (8, "rnn-edge")
        assert {item.key: item.value for item in graph.metadata_props} == graph_metadata(manifest)
        for found, wanted in zip((graph.graph.input, graph.graph.output), ports, strict=True):
            shapes = [
                (item.name, [axis.dim_param or axis.dim_value for axis in item.type.tensor_type.shape.dim])
                for item in found
            ]
            assert shapes == wanted
            for item in found:
                integer = item.name in ("source", "source_lengths", "token")
                kind = onnx.TensorProto.INT64 if integer else onnx.TensorProto.FLOAT
                assert item.type.tensor_type.elem_type == kind
    used = [node for node in _graph(chosen, "encoder").graph.node if node.op_type in ("LSTM", "GRU")]
    assert len(used) == manifest.architecture.layers
    for node in used:
        assert {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}["direction"] == (
            b"bidirectional"
        )


def test_nothing_of_the_exporting_machine_is_inside(chosen: Exported) -> None:
    for role in ("encoder", "decoder"):
        content = chosen.bundle.graph(role)
        for trace in (rb"\.py", rb"site-packages", rb"torch", rb"pkg\.", rb"namespace", rb"/\w+/\w+/"):
            assert re.search(trace, content) is None, trace


def test_a_shared_embedding_is_in_each_file_once(exported: Export) -> None:
    """Tied to the output layer in the decoder."""
    size = exported(DEEP).source.tokenizers[1].vocabulary_size
    for role in ("encoder", "decoder"):
        shapes = [list(item.dims) for item in _graph(exported(DEEP), role).graph.initializer]
        assert [shape for shape in shapes if size in shape and len(shape) == 2] == [[size, 8]]


def test_the_manifest(chosen: Exported, exported: Export) -> None:
    manifest, (source, target) = chosen.bundle.manifest, chosen.source.tokenizers
    deep = chosen is exported(DEEP)
    assert (manifest.task, manifest.name, manifest.precision) == ("translation", "tiny", "fp32")
    assert manifest.graphs == {"encoder": "encoder.onnx", "decoder": "decoder.onnx"}
    assert manifest.memory == (MemoryTensor("memory", 12), MemoryTensor("keys", 12))
    assert manifest.source is not None
    assert manifest.source.tokenizer.file == ("tokenizer.json" if deep else "source_tokenizer.json")
    assert manifest.source.tokenizer.vocabulary_size == source.vocabulary_size
    assert (manifest.source.end, manifest.source.unknown) == ((1, None) if deep else (2, 0))
    assert (manifest.source.longest, manifest.source.language) == (100, "en")
    assert manifest.tokenizer.file == "tokenizer.json"
    assert manifest.tokenizer.kind == ("subword" if deep else "word")
    assert manifest.tokenizer.vocabulary_size == target.vocabulary_size
    ids = manifest.special_ids
    assert (ids.start, ids.end, ids.unknown) == ((0, 1, None) if deep else (1, 2, 0))
    assert manifest.provenance.data_title == "sentences"
    assert 'task = "translation"' in manifest.provenance.recipe
    files = ["README.md", "decoder.onnx", "encoder.onnx", "tokenizer.json"]
    assert sorted(manifest.files) == sorted([*files, *([] if deep else ["source_tokenizer.json"])])
    assert names(chosen.bundle.path) == sorted([*manifest.files, "manifest.json"])
    assert chosen.bundle.read("tokenizer.json") == target.content
    card = (chosen.bundle.path / "README.md").read_text(encoding="utf-8")
    for words in ("A translator", "bidirectional", "general attention" if deep else "bahdanau attention"):
        assert words in card


def test_dot_attention_has_no_keys_of_its_own(make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation_export, "decoder_graph", lambda *_: b"")
    source = make_source("word", attention="dot", layers=1)
    manifest, contents = source.draft("tiny", "cell")
    assert manifest.memory == (MemoryTensor("memory", 12),)
    graph = onnx.load_model_from_string(contents["encoder.onnx"]).graph
    assert [item.name for item in graph.output] == ["memory", "h0", "c0"]
    assert sorted(contents) == ["decoder.onnx", "encoder.onnx", "source_tokenizer.json", "tokenizer.json"]


def test_the_longest_source_is_that_of_the_data(make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    for graph in ("encoder_graph", "decoder_graph"):
        monkeypatch.setattr(translation_export, graph, lambda *_: b"")
    spec = make_source(longest=37).draft("tiny", "cell")[0].source
    assert spec is not None
    assert spec.longest == 37


@torch.no_grad()
def test_the_golden_translations(chosen: Exported) -> None:
    goldens, (encoder, decoder) = chosen.bundle.manifest.golden_translations, chosen.source.tokenizers
    model, end = chosen.source.model, encoder.id_of("</s>")
    assert [bool(golden.text) for golden in goldens] == [True] * 3 + [False] * 4
    assert len({len(golden.source) for golden in goldens}) >= 5
    assert {2, 6, 18, 41} <= {len(golden.source) for golden in goldens}  # 1, 5, 17 and 40 random ids, and the end
    for golden in goldens:
        assert golden.source[-1] == end
        if golden.text:
            assert golden.source[:-1] == tuple(encoder.encode(golden.text))
        assert golden.tokens == (decoder.id_of("<s>"), *golden.best[:-1])
        assert len(golden.tokens) == len(golden.margins) == 24
        # What PyTorch says about them.
        memory, state = model.encode(torch.tensor([golden.source]).t(), torch.tensor([len(golden.source)]))
        logits = model.decode(torch.tensor([golden.tokens]).t(), state, memory)[0][:, 0]
        top = logits.topk(2)
        margins = (top.values[:, 0] - top.values[:, 1]).tolist()
        assert list(golden.margins) == pytest.approx(margins, abs=2e-4)
        certain = [margin > golden.tolerance for margin in margins]
        assert sum(certain) > 20
        for best, token, sure in zip(golden.best, top.indices[:, 0].tolist(), certain, strict=True):
            assert best == token or not sure


@pytest.mark.parametrize(
    ("field", "place", "finding"), [("best", 7, "golden translations (7)"), ("source", 0, "golden texts")]
)
def test_a_tampered_golden_translation_fails(
    exported: Export, tmp_path: Path, field: str, place: int, finding: str
) -> None:
    folder = copy_bundle(exported(DEEP).bundle.path, tmp_path / "b")
    size = exported(DEEP).bundle.manifest.tokenizer.vocabulary_size

    def change(manifest: dict[str, Any]) -> None:
        row = manifest["golden_translations"][1][field]
        row[place] = (row[place] + 11) % size

    assert all(found.passed for found in _findings(folder).values())
    edit_manifest(folder, change)
    failed = {name for name, found in _findings(folder).items() if not found.passed}
    assert finding in failed
    assert failed <= {"golden texts", "golden translations (7)"}


def _swap(graph: onnx.ModelProto, one: str, other: str) -> None:
    """Give two values each other's name wherever they are made and read; what the graph declares stays."""
    swapped = {one: other, other: one}
    for node in graph.graph.node:
        for ports in (node.input, node.output):
            ports[:] = [swapped.get(name, name) for name in ports]


def _edited(content: bytes, change: Callable[[onnx.ModelProto], None]) -> bytes:
    graph = onnx.load_model_from_string(content)
    change(graph)
    edited: bytes = graph.SerializeToString()
    assert edited != content
    return edited


@pytest.mark.parametrize(
    ("combination", "role", "one", "other"),
    [
        (DEEP, "decoder", "h0_next", "c0_next"),
        (DEEP, "decoder", "h0_next", "h1_next"),
        (DEEP, "decoder", "c0_next", "c1_next"),
        (DEEP, "encoder", "h0", "h1"),
        (DEEP, "encoder", "h0", "c0"),
        (DEEP, "encoder", "memory", "keys"),
    ],
)
def test_swapped_outputs_are_found_and_nothing_is_written(
    exported: Export,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    combination: Combination,
    role: str,
    one: str,
    other: str,
) -> None:
    source, bundle, _ = exported(combination)
    graphs = {kind: bundle.graph(kind) for kind in ("encoder", "decoder")}
    for kind, content in graphs.items():
        monkeypatch.setattr(translation_export, f"{kind}_graph", lambda *_, content=content: content)
    export_bundle(source, tmp_path / "good", name="tiny")
    content = _edited(graphs[role], lambda graph: _swap(graph, one, other))
    monkeypatch.setattr(translation_export, f"{role}_graph", lambda *_: content)
    with pytest.raises(ParityError, match=r"differs by .*, allowed are") as caught:
        export_bundle(source, tmp_path / "bad", name="tiny")
    assert caught.value.message.startswith(role)
    assert "nothing was written" in caught.value.hint
    assert names(tmp_path) == ["good"]


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_every_weight_counts(chosen: Exported, tmp_path: Path, role: str) -> None:
    """Negate one after another: none goes unnoticed."""
    content = chosen.bundle.graph(role)
    weights = [
        item.name
        for item in _graph(chosen, role).graph.initializer
        if item.data_type == onnx.TensorProto.FLOAT and np.isfinite(onnx.numpy_helper.to_array(item)).all()
    ]
    assert len(weights) > 6
    assert check_parity(chosen.source.model, read_bundle(copy_bundle(chosen.bundle.path, tmp_path / "same")))

    for number, name in enumerate(weights):

        def negate(graph: onnx.ModelProto, name: str = name) -> None:
            (tensor,) = (item for item in graph.graph.initializer if item.name == name)
            tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), name))

        folder = copy_bundle(chosen.bundle.path, tmp_path / str(number))
        replace_file(folder, f"{role}.onnx", _edited(content, negate))
        with pytest.raises(ParityError, match="differs by"):
            check_parity(chosen.source.model, read_bundle(folder))


def test_a_mask_that_lets_padding_through_is_found(chosen: Exported, tmp_path: Path) -> None:
    def loosen(graph: onnx.ModelProto) -> None:
        (node,) = (node for node in graph.graph.node if node.op_type == "Less")
        node.op_type = "LessOrEqual"

    folder = copy_bundle(chosen.bundle.path, tmp_path / "b")
    replace_file(folder, "decoder.onnx", _edited(chosen.bundle.graph("decoder"), loosen))
    with pytest.raises(ParityError, match="decoder: logits"):
        check_parity(chosen.source.model, read_bundle(folder))


@pytest.mark.slow
@pytest.mark.parametrize("combination", [DEEP, FED], ids=["deep", "fed"])
def test_exporting_again_gives_the_same_bytes(exported: Export, combination: Combination) -> None:
    source, bundle, _ = exported(combination)
    assert encoder_graph(source.model, bundle.manifest) == bundle.graph("encoder")
    assert decoder_graph(source.model, bundle.manifest) == bundle.graph("decoder")
