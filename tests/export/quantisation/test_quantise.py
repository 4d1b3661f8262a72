"""From bundle to bundle: what is written, what is refused, and that nothing is left behind then."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rnn_edge import LanguageModel, Translator
from rnn_edge.bundle import Bundle, read_bundle
from rnn_edge.errors import BundleError, DataError, InvalidValueError, ParityError, RnnEdgeError
from rnn_edge.manifest import Precision
from rnn_edge.providers import cuda_available
from rnn_edge.text_files import read_pairs
from rnn_edge.verification import verify
from rnn_edge_export import model_card
from rnn_edge_export.onnx_export import export_bundle
from rnn_edge_export.quantisation import products
from rnn_edge_export.quantisation.quantise import BLOCK_SIZES, Material, quantise
from rnn_edge_export.quantisation.weights import Columns, Matrix, to_columns
from tests.device.tiny import DATA, GRU, LSTM, TRANSLATOR, WORDS, copy_bundle, edit_manifest, replace_file
from tests.export.conftest import MakeSource, contents, names

TEXT = Material("corpus.txt", text=(DATA / "corpus.txt").read_text(encoding="utf-8"))
SENTENCES = Material("pairs.tsv", pairs=read_pairs([DATA / "pairs.tsv"])[0])
BUNDLES = {"lstm": (LSTM, TEXT), "gru": (GRU, TEXT), "translator": (TRANSLATOR, SENTENCES), "words": (WORDS, SENTENCES)}
TOO_SMALL: set[tuple[str, Precision]] = {("gru", "int8"), ("gru", "int4"), ("words", "int4")}
HUGE = 10.0


def _quantise(name: str, output: Path, precision: Precision, **options: Any) -> Bundle:
    source, material = BUNDLES[name]
    return quantise(read_bundle(source), output, precision, name="small", material=material, **options)[0]


@pytest.mark.parametrize(
    ("name", "precision"),
    [case for case in itertools.product(BUNDLES, ("fp16", "int8", "int4")) if case not in TOO_SMALL],
)
def test_a_rounded_bundle_proves_itself(name: str, precision: Precision, tmp_path: Path) -> None:
    source = BUNDLES[name][0]
    bundle = _quantise(name, tmp_path / "b", precision, maximum_increase=HUGE)
    assert bundle.path == tmp_path / "b"
    assert names(tmp_path) == ["b"]
    findings = list(verify(bundle, device="cpu"))
    assert [finding for finding in findings if not finding.passed] == []
    given, manifest = read_bundle(source).manifest, bundle.manifest
    assert (manifest.name, manifest.precision) == ("small", precision)
    assert manifest.lowering == (given.lowering if precision == "fp16" else "cell")
    assert sorted(manifest.files) == sorted(given.files)
    for file in manifest.files:
        assert (bundle.read(file) == read_bundle(source).read(file)) == ("tokenizer" in file), file
    kept = ("architecture", "state", "memory", "graphs", "tokenizer", "source", "special_ids", "sampling", "provenance")
    for field in kept:
        assert getattr(manifest, field) == getattr(given, field), field
    assert len(manifest.golden) == len(given.golden)
    batches = next(finding.detail for finding in findings if finding.name == "batches")
    assert batches.endswith("5e-02" if precision == "fp16" else "1e-04")
    tolerances = {item.tolerance for item in manifest.golden} | {
        item.tolerance for item in manifest.golden_translations
    }
    assert tolerances == {0.05 if precision == "fp16" else 0.001}
    assert len(manifest.golden_translations) == len(given.golden_translations)


@pytest.mark.cuda
@pytest.mark.skipif(not cuda_available(), reason="this ONNX Runtime has no CUDA provider")
@pytest.mark.parametrize("name", BUNDLES)
def test_half_precision_proves_itself_on_a_gpu(name: str, tmp_path: Path) -> None:
    bundle = _quantise(name, tmp_path / "b", "fp16", maximum_increase=HUGE)
    assert [finding for finding in verify(bundle, device="cuda") if not finding.passed] == []


@pytest.mark.parametrize(("name", "precision"), sorted(TOO_SMALL))
def test_no_bundle_says_of_itself_what_nothing_in_it_is(name: str, precision: Precision, tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=f"nothing in .* can be rounded to {precision}: .* fewer than 4,096"
    ) as caught:
        _quantise(name, tmp_path / "b", precision, maximum_increase=HUGE)
    assert ("try int8" in caught.value.hint) == (precision == "int4")
    assert names(tmp_path) == []


def test_transcripts_are_those_of_the_rounded_graph(tmp_path: Path) -> None:
    bundle = _quantise("lstm", tmp_path / "b", "int4", maximum_increase=HUGE)
    before = read_bundle(LSTM).manifest.golden
    assert [golden.margins for golden in bundle.manifest.golden] != [golden.margins for golden in before]
    stepper = LanguageModel.load(bundle.path, device="cpu").graph.stepper()
    for token, best in zip(bundle.manifest.golden[1].tokens, bundle.manifest.golden[1].best, strict=True):
        assert int(stepper.step(token)[0].argmax()) == best


def test_rounded_bundles_write_and_translate(tmp_path: Path) -> None:
    model = LanguageModel.load(_quantise("lstm", tmp_path / "lm", "int8").path, device="cpu")
    original = LanguageModel.load(LSTM, device="cpu")
    texts = ["".join(event.text for event in item.generate("The", max_tokens=12, seed=1)) for item in (model, original)]
    assert texts[0] == texts[1]
    path = _quantise("translator", tmp_path / "t", "int8").path
    found = [
        Translator.load(folder, device="cpu").translate("Marta sees the old house.").text
        for folder in (path, TRANSLATOR)
    ]
    assert found[0] == found[1]


def test_the_figures_stand_in_manifest_and_card(tmp_path: Path) -> None:
    bundle, found = quantise(read_bundle(LSTM), tmp_path / "b", "int8", name="small", material=TEXT)
    given = read_bundle(LSTM).manifest.metrics
    metrics = bundle.manifest.metrics
    assert metrics[: len(given)] == given
    assert [metric.name for metric in metrics[len(given) :]] == [
        *("loss increase", "top-1 agreement", "KL divergence", "largest logit difference")
    ]
    assert metrics[len(given)].value == pytest.approx(100 * found.increase)
    assert 0 < abs(found.increase) < 0.002
    assert 0.97 < found.top1_agreement < 1
    card = (bundle.path / "README.md").read_text(encoding="utf-8")
    for words in ("# small", "| weights | int8, cell lowering |", "| loss increase | ", "95 % interval", "corpus.txt"):
        assert words in card


@pytest.fixture
def noted(make_source: MakeSource, tmp_path: Path) -> Path:
    """A bundle with notes of its author."""
    source = replace(
        make_source("lstm", 1, False), notes="Tried twice: naïvely, then with care.\n\n## Why\n\nTo see.\n"
    )
    return export_bundle(source, tmp_path / "noted", name="noted")[0].path


def test_notes_survive(noted: Path, tmp_path: Path) -> None:
    bundle = read_bundle(noted)
    card = bundle.read("README.md").decode()
    assert (
        model_card.notes_of(card, bundle.manifest, "") == "Tried twice: naïvely, then with care.\n\n## Why\n\nTo see."
    )
    rounded, _ = quantise(bundle, tmp_path / "b", "fp16", name="small", material=Material())
    card = rounded.read("README.md").decode()
    assert "naïvely, then with care.\n\n## Why\n\nTo see.\n\n## Recipe" in card
    assert card.count("## Recipe") == 1
    assert model_card.notes_of(card, rounded.manifest, "").endswith("To see.")


@pytest.mark.parametrize("card", ["", "# Mine\n\nWritten by hand.\n", None])
def test_a_card_of_another_hand_is_written_anew(noted: Path, tmp_path: Path, card: str | None) -> None:
    if card is None:
        (noted / "README.md").unlink()
        edit_manifest(noted, lambda manifest: manifest["files"].pop("README.md"))
    else:
        replace_file(noted, "README.md", card.encode())
    rounded, _ = quantise(read_bundle(noted), tmp_path / "b", "fp16", name="small", material=Material())
    found = rounded.read("README.md").decode()
    assert found.startswith("# small\n")
    assert "by hand" not in found


def test_a_recipe_that_is_no_toml(noted: Path, tmp_path: Path) -> None:
    """Bundles come from others."""
    edit_manifest(noted, lambda manifest: manifest["provenance"].update(recipe="title = ["))
    rounded, _ = quantise(read_bundle(noted), tmp_path / "b", "fp16", name="small", material=Material())
    assert "A recurrent language model" in rounded.read("README.md").decode()


@pytest.mark.parametrize(
    ("made", "wanted"),
    [("int8", "int8"), ("int8", "fp16"), ("int4", "int8"), ("int8", "int4"), ("fp16", "fp16"), ("fp16", "int8")],
)
def test_a_rounded_bundle_is_refused(tmp_path: Path, made: Precision, wanted: Precision) -> None:
    bundle = _quantise("lstm", tmp_path / "b", made, maximum_increase=HUGE)
    with pytest.raises(BundleError, match=f"has {made} weights already") as caught:
        quantise(bundle, tmp_path / "again", wanted, name="x", material=TEXT)
    assert f"make {wanted} from its fp32 bundle" in caught.value.hint
    assert names(tmp_path) == ["b"]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Signs turned round."""

    def scale(weight: Matrix) -> Columns:
        columns = to_columns(weight)
        return Columns(columns.values, -columns.scales)

    with monkeypatch.context() as patch:
        patch.setattr(products, "to_columns", scale)
        yield


@pytest.mark.parametrize("name", ["lstm", "translator"])
@pytest.mark.usefixtures("broken")
def test_a_broken_rounding_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"int8 may raise the loss by [\d.]+ %, more than 0\.5 %") as caught:
        _quantise(name, tmp_path / "b", "int8")
    for word in ("--max-loss-increase", "--force"):
        assert word in caught.value.hint
    assert names(tmp_path) == []
    bundle = _quantise(name, tmp_path / "b", "int8", force=True)
    assert all(finding.passed for finding in verify(bundle, device="cpu"))
    increase = next(metric for metric in bundle.manifest.metrics if metric.name == "loss increase")
    assert increase.value > 0.5


@pytest.mark.usefixtures("broken")
def test_a_refusal_leaves_what_stood_there(tmp_path: Path) -> None:
    copy_bundle(GRU, tmp_path / "b")
    before = contents(tmp_path / "b")
    with pytest.raises(RnnEdgeError, match="exists"):
        _quantise("lstm", tmp_path / "b", "int8")
    assert contents(tmp_path / "b") == before
    assert names(tmp_path) == ["b"]


def test_the_limit_is_that_of_the_interval(tmp_path: Path) -> None:
    """Its upper end, not the middle."""
    _, found = quantise(read_bundle(LSTM), tmp_path / "a", "int8", name="a", material=TEXT)
    assert found.increase < found.upper_increase
    between = (found.increase + found.upper_increase) / 2
    with pytest.raises(ParityError, match="may raise"):
        _quantise("lstm", tmp_path / "b", "int8", maximum_increase=between)
    assert _quantise("lstm", tmp_path / "b", "int8", maximum_increase=found.upper_increase * 1.001)


def test_a_model_that_gives_no_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(weight: Matrix) -> Columns:
        columns = to_columns(weight)
        return Columns(columns.values, columns.scales * np.float32("nan"))

    monkeypatch.setattr(products, "to_columns", spoil)
    with pytest.raises(RnnEdgeError):
        _quantise("lstm", tmp_path / "b", "int8", maximum_increase=HUGE)
    assert names(tmp_path) == []


@pytest.mark.parametrize("limit", [float("nan"), -0.001])
def test_a_limit_that_is_none(tmp_path: Path, limit: float) -> None:
    with pytest.raises(InvalidValueError):
        _quantise("lstm", tmp_path / "b", "int8", maximum_increase=limit)
    assert names(tmp_path) == []


def test_weights_that_half_precision_cannot_hold(tmp_path: Path) -> None:
    def enlarge(graph: onnx.GraphProto) -> str:
        tensor = max(graph.initializer, key=lambda item: int(np.prod(item.dims)))
        values = onnx.numpy_helper.to_array(tensor).copy()
        values.flat[7] = 70000
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return str(tensor.name)

    folder = copy_bundle(LSTM, tmp_path / "large")
    model = onnx.load_model_from_string((folder / "step.onnx").read_bytes())
    name = enlarge(model.graph)
    replace_file(folder, "step.onnx", model.SerializeToString())
    with pytest.raises(ParityError) as caught:
        quantise(read_bundle(folder), tmp_path / "b", "fp16", name="x", material=TEXT)
    assert caught.value.message == f"{name} has values that half precision cannot hold"
    assert "fp32" in caught.value.hint
    assert names(tmp_path) == ["large"]


def test_every_large_matrix_has_half_the_bytes(tmp_path: Path) -> None:
    bundle = _quantise("translator", tmp_path / "b", "fp16")
    for role in ("encoder", "decoder"):
        graph = onnx.load_model_from_string(bundle.graph(role)).graph
        for tensor in graph.initializer:
            if len(tensor.dims) > 1 and int(np.prod(tensor.dims)) >= 256:
                assert tensor.data_type == onnx.TensorProto.FLOAT16, tensor.name
    # What reads a whole sequence keeps its operator, with weights that are widened once.
    graph = onnx.load_model_from_string(bundle.graph("encoder")).graph
    before = onnx.load_model_from_string(read_bundle(TRANSLATOR).graph("encoder")).graph
    values = {item.name: onnx.numpy_helper.to_array(item) for item in (*before.initializer, *graph.initializer)}
    for old, new in zip(*([n for n in g.node if n.op_type in ("LSTM", "GRU")] for g in (before, graph)), strict=True):
        for name, widened in zip(old.input[1:3], new.input[1:3], strict=True):
            cast = next(node for node in graph.node if widened in node.output)
            assert values[cast.input[0]].tobytes() == values[name].astype(np.float16).tobytes()


def test_what_can_not_be_measured(tmp_path: Path) -> None:
    output = tmp_path / "b"
    for precision in ("int8", "fp16"):
        for material in (Material(), Material("nothing.tsv", pairs=[])):
            with pytest.raises(DataError, match="sentence pairs") as caught:
                quantise(read_bundle(TRANSLATOR), output, precision, name="x", material=material)
            assert "--data" in caught.value.hint
    with pytest.raises(DataError, match=r"nothing in odd\.txt is in the vocabulary"):
        quantise(read_bundle(LSTM), output, "int8", name="x", material=Material("odd.txt", text="你好世界" * 100))
    with pytest.raises(DataError, match=r"short\.txt has 3 tokens"):
        quantise(read_bundle(LSTM), output, "int8", name="x", material=Material("short.txt", text="The"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("block_size", [0, 8, 48, 512, -32])
def test_a_block_size_that_the_operator_lacks(tmp_path: Path, block_size: int) -> None:
    with pytest.raises(InvalidValueError, match=f"block size is {block_size}"):
        _quantise("lstm", tmp_path / "b", "int4", block_size=block_size)
    assert names(tmp_path) == []


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_every_block_size_works(tmp_path: Path, block_size: int) -> None:
    bundle = _quantise("lstm", tmp_path / "b", "int4", block_size=block_size, maximum_increase=HUGE)
    nodes = onnx.load_model_from_string(bundle.graph("step")).graph.node
    sizes = [
        onnx.helper.get_attribute_value(item)
        for node in nodes
        if node.op_type == "MatMulNBits"
        for item in node.attribute
        if item.name == "block_size"
    ]
    assert sizes == [min(block_size, 64)] * 2  # the rows fill no more
    assert all(finding.passed for finding in verify(bundle, device="cpu"))


def test_a_bundle_is_not_written_over_itself(tmp_path: Path) -> None:
    """It is what others are made from."""
    folder = copy_bundle(LSTM, tmp_path / "b")
    before = contents(folder)
    with pytest.raises(InvalidValueError):
        quantise(read_bundle(folder), folder, "int8", name="x", material=TEXT, force=True)
    assert contents(folder) == before


def test_force_replaces_bundles_alone(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(RnnEdgeError, match="is not a bundle"):
        _quantise("lstm", tmp_path / "documents", "int8", force=True)
    assert contents(tmp_path / "documents") == {"letter.txt": b"dear"}


def test_an_alphabet_of_one_letter(make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be lost where nothing is uncertain."""
    monkeypatch.setattr("tests.export.conftest.ALPHABET", "\n")
    bundle, _ = export_bundle(make_source("lstm", 1, False), tmp_path / "one", name="one")
    _, found = quantise(bundle, tmp_path / "b", "fp16", name="small", material=Material())
    assert found.increase == 0
