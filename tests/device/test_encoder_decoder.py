"""The two graphs of a translator: padding counts for nothing, rows stay apart, and what does not fit is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnn_edge.bundle import Bundle, open_bundle
from rnn_edge.encoder_decoder import Encoded, EncoderDecoderGraphs
from rnn_edge.errors import BundleError, InvalidValueError, StateError
from rnn_edge.state import State
from rnn_edge.stepper import LENGTHS
from rnn_edge.translator import Translator
from rnn_edge.verification import Finding, batch_difference, replay, verify
from tests.device.tiny import TRANSLATOR, WORDS, copy_bundle, replace_file

TOLERANCE = 1e-5  # another batch size may take another kernel
SOURCES = [[5, 9, 1], [7, 3, 8, 2, 6, 4, 9, 1], [1], [9, 9, 9, 9, 1]]  # ids that both vocabularies have


@pytest.fixture(params=["translator", "words"])
def graphs(request: pytest.FixtureRequest) -> EncoderDecoderGraphs:
    model: Translator = request.getfixturevalue(request.param)
    return model.graphs


def random_state(graphs: EncoderDecoderGraphs, batch: int) -> State:
    random = np.random.default_rng(3)
    return State(
        {pair.input: random.uniform(-1, 1, (batch, pair.width)).astype(np.float32) for pair in graphs.manifest.state}
    )


# --- what the encoder gives


def test_shapes(graphs: EncoderDecoderGraphs) -> None:
    encoded = graphs.encode(SOURCES)
    assert encoded.lengths.tolist() == [3, 8, 1, 5]
    assert {name: array.shape for name, array in encoded.memory.items()} == {
        "memory": (4, 8, 24),
        "keys": (4, 8, 24),
        LENGTHS: (4,),
    }
    assert {array.dtype for name, array in encoded.memory.items() if name != LENGTHS} == {np.dtype(np.float32)}
    assert {name: array.shape for name, array in encoded.state.tensors.items()} == {
        pair.input: (4, pair.width) for pair in graphs.manifest.state
    }


def test_a_padded_batch_gives_what_each_source_gives_alone(graphs: EncoderDecoderGraphs) -> None:
    together = graphs.encode(SOURCES)
    for row, source in enumerate(SOURCES):
        alone = graphs.encode([source])
        for name in ("memory", "keys"):
            np.testing.assert_allclose(
                together.memory[name][row, : len(source)], alone.memory[name][0], rtol=0, atol=TOLERANCE
            )
        assert together.take([row]).state.largest_difference(alone.state) < TOLERANCE


@pytest.mark.parametrize("batch", [7, 40])
def test_eight_bits_give_each_source_the_same_bits_in_any_batch(batch: int) -> None:
    """Forty have kernels of their own."""
    graphs = EncoderDecoderGraphs(open_bundle("en-fr"), device="cpu")
    random = np.random.default_rng(batch)
    sources = [[*random.integers(2, 6000, length).tolist(), 1] for length in random.integers(1, 25, batch)]
    together = graphs.encode(sources)
    for row in random.integers(0, batch, 7):
        alone, length = graphs.encode([sources[row]]), len(sources[row])
        for name in ("memory", "keys"):
            assert alone.memory[name][0].tobytes() == together.memory[name][row, :length].tobytes()
        for name, value in alone.state.tensors.items():
            assert value[0].tobytes() == together.state.tensors[name][row].tobytes()


def test_taken_rows_repeat_in_any_order_and_are_cut_to_the_longest(graphs: EncoderDecoderGraphs) -> None:
    encoded = graphs.encode(SOURCES)
    taken = encoded.take([3, 0, 3])
    assert taken.lengths.tolist() == [5, 3, 5]
    for name in ("memory", "keys"):
        assert taken.memory[name].flags.c_contiguous  # the runtime reads the bytes as they lie
        np.testing.assert_array_equal(taken.memory[name], encoded.memory[name][[3, 0, 3], :5])
    for name, tensor in taken.state.tensors.items():
        np.testing.assert_array_equal(tensor, encoded.state.tensors[name][[3, 0, 3]])


def test_a_taken_row_decodes_as_if_it_were_alone(graphs: EncoderDecoderGraphs) -> None:
    encoded = graphs.encode(SOURCES)
    many, one = graphs.stepper(encoded.take([1, 3, 0, 0])), graphs.stepper(graphs.encode([SOURCES[3]]))
    for token in (0, 7, 8, 9):
        logits, alone = many.step(np.array([5, token, token, 3])), one.step(token)
        np.testing.assert_allclose(logits[1], alone[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(many.attention[1, :5], one.attention[0], rtol=0, atol=TOLERANCE)


def test_ids_outside_the_vocabulary(graphs: EncoderDecoderGraphs) -> None:
    with pytest.raises(BundleError, match=r"encoder\.onnx: the graph fails: ") as caught:
        graphs.encode([[5, 100_000, 1]])
    assert "\n" not in caught.value.message
    stepper = graphs.stepper(graphs.encode([[5, 1]]))
    with pytest.raises(BundleError, match=r"decoder\.onnx: the graph fails: "):
        stepper.step(100_000)


# --- what the decoder makes of it


def test_attention_is_shared_out_among_the_source_alone(graphs: EncoderDecoderGraphs) -> None:
    stepper = graphs.stepper(graphs.encode(SOURCES))
    for token in (0, 5, 6):
        stepper.step(token)
        assert stepper.attention.shape == (4, 8)
        np.testing.assert_allclose(stepper.attention.sum(axis=1), np.ones(4), rtol=1e-5)
        for row, source in enumerate(SOURCES):
            assert not stepper.attention[row, len(source) :].any()
            assert stepper.attention[row, : len(source)].all()


def test_memory_and_state_both_matter(graphs: EncoderDecoderGraphs) -> None:
    encoded = graphs.encode(SOURCES)
    logits = graphs.stepper(encoded).step(5).copy()
    swapped = Encoded(encoded.take([1, 0, 3, 2]).memory, encoded.state)
    assert (np.abs(graphs.stepper(swapped).step(5) - logits).max(axis=1) > 1e-3).all()
    swapped = Encoded(encoded.memory, encoded.take([1, 0, 3, 2]).state)
    assert (np.abs(graphs.stepper(swapped).step(5) - logits).max(axis=1) > 1e-3).all()


def test_reordered_streams_go_on_from_one_another(graphs: EncoderDecoderGraphs) -> None:
    """After odd and even steps: the state lies in either of two sets of buffers."""
    encoded = graphs.encode([SOURCES[1]] * 4)
    stepper, state, rows = graphs.stepper(encoded), encoded.state, [2, 0, 0, 3]
    for step in range(5):
        stepper.step(np.arange(4) + step)
        state = stepper.state()
        stepper.reorder(rows)
        expected = State({name: tensor[rows] for name, tensor in state.tensors.items()})
        assert stepper.state().largest_difference(expected) == 0
    fresh = graphs.stepper(Encoded(encoded.memory, stepper.state()))
    np.testing.assert_array_equal(stepper.step(7), fresh.step(7))


def test_replaced_streams_begin_anew_and_the_others_go_on(graphs: EncoderDecoderGraphs) -> None:
    """After an odd and an even number of steps: the state lies in either of two sets of buffers."""
    begun = graphs.encode([SOURCES[1]] * 5)
    for steps in (1, 2):
        stepper, other = (graphs.stepper(begun.take(range(5))) for _ in range(2))
        for token in range(steps):
            stepper.step(token)
            other.step(token)
        new = graphs.encode([SOURCES[0], SOURCES[3]])
        stepper.replace(np.array([[0, 3], [4, 1]]), new.state, new.memory)
        fresh = graphs.stepper(new.take([0, 1, 1, 0, 1]))
        for token in (0, 7, 8):
            logits, expected, gone_on = stepper.step(token), fresh.step(token), other.step(token)
            np.testing.assert_allclose(logits[[0, 1, 3, 4]], expected[[0, 1, 3, 4]], rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(logits[2], gone_on[2])
            assert not stepper.attention[0, len(SOURCES[0]) :].any()


def test_a_first_state_that_does_not_fit(graphs: EncoderDecoderGraphs) -> None:
    encoded = graphs.encode(SOURCES)
    with pytest.raises(InvalidValueError, match="the state has 3 streams, not 4"):
        graphs.stepper(Encoded(encoded.memory, random_state(graphs, 3)))
    broken = random_state(graphs, 4)
    broken.tensors["h0"][2, 2] = np.nan
    with pytest.raises(StateError, match="h0 holds values that are not finite"):
        graphs.stepper(Encoded(encoded.memory, broken))


def test_the_recorded_translations_come_again(graphs: EncoderDecoderGraphs) -> None:
    for golden in graphs.manifest.golden_translations:
        result = replay(graphs.stepper(graphs.encode([golden.source])), golden)
        assert (result.steps, result.unexplained) == (24, ())
    assert batch_difference(graphs, SOURCES, [0, 5, 6, 7, 8]) < TOLERANCE
    rows = np.random.default_rng(5).integers(0, 30, (12, 4))  # a token a source
    assert batch_difference(graphs, SOURCES, rows) < TOLERANCE


# --- graphs that are not what the manifest says


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        EncoderDecoderGraphs(open_bundle(path), device="cpu")
    assert str(path) in caught.value.message
    assert "again" in caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda manifest: manifest["memory"].pop(), "encoder.onnx: output keys is not what the manifest says"),
        (
            lambda manifest: manifest["memory"][0].update(name="values"),
            "encoder.onnx: output memory is not what the manifest says",
        ),
        (
            lambda manifest: manifest["memory"][0].update(width=25),
            "encoder.onnx: memory is 24 wide, the manifest says 25",
        ),
        (lambda manifest: manifest["state"].pop(), "encoder.onnx: output c1 is not what the manifest says"),
        (
            lambda manifest: manifest["state"][1].update(width=25),
            "encoder.onnx: c0 is 24 wide, the manifest says 25",
        ),
        (
            lambda manifest: manifest["tokenizer"].update(vocabulary_size=301),
            "decoder.onnx: logits is 300 wide, the manifest says 301",
        ),
        (
            lambda manifest: manifest["graphs"].update(encoder="decoder.onnx", decoder="encoder.onnx"),
            "decoder.onnx: input c0 is not what the manifest says",
        ),
        (lambda manifest: manifest.update(name="other"), "rnn_edge.name = 'tiny-translator', the manifest 'other'"),
        (
            # Inputs and outputs exist, but crossed: plausible text that slowly degrades.
            lambda manifest: (
                manifest["state"][0].update(output="h1_next"),
                manifest["state"][2].update(output="h0_next"),
            ),
            "rnn_edge.state",
        ),
    ],
)
def test_graphs_that_disagree_with_the_manifest(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], expected: str
) -> None:
    assert expected in refusal(copy_bundle(TRANSLATOR, tmp_path / "b", change))


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx"])
def test_graphs_of_another_bundle_damaged_or_foreign(tmp_path: Path, name: str) -> None:
    path, whole = copy_bundle(TRANSLATOR, tmp_path / "b"), (TRANSLATOR / name).read_bytes()
    replace_file(path, name, (WORDS / name).read_bytes())
    assert "is not what the manifest says" in refusal(path)
    replace_file(path, name, whole[:1000])
    assert f"{name} is not an ONNX model" in refusal(path)
    (path / name).write_bytes(whole[:-1] + b"?")
    assert "truncated or changed" in refusal(path)


# --- what a device proves by itself


def findings(bundle: Bundle) -> dict[str, Finding]:
    return {finding.name: finding for finding in verify(bundle, device="cpu")}


def failed(bundle: Bundle) -> list[str]:
    return [name for name, finding in findings(bundle).items() if not finding.passed]


def with_golden(bundle: Bundle, **changes: Any) -> Bundle:
    first, *rest = bundle.manifest.golden_translations
    goldens = (replace(first, **changes), *rest)
    return replace(bundle, manifest=replace(bundle.manifest, golden_translations=goldens))


@pytest.mark.parametrize("path", [TRANSLATOR, WORDS], ids=lambda path: path.name)
def test_tiny_translators_pass(path: Path) -> None:
    found = findings(open_bundle(path))
    assert list(found) == [
        "files",
        "tokenizer",
        "encoder graph",
        "decoder graph",
        "golden texts",
        "golden translations (7)",
        "state saved and loaded",
        "batches",
        "timing",
    ]
    assert all(finding.passed for finding in found.values())
    assert found["golden translations (7)"].detail == "168 steps, 0 explained differences, 0 unexplained"
    assert found["golden texts"].detail == "3 texts, 0 with other tokens than recorded"


def test_another_answer_fails_unless_its_margin_explains_it() -> None:
    bundle = open_bundle(TRANSLATOR)
    golden = bundle.manifest.golden_translations[0]
    step = 3
    best = [*golden.best]
    best[step] = (best[step] + 1) % 300
    changed = with_golden(bundle, best=tuple(best))
    assert failed(changed) == ["golden translations (7)"]
    assert "1 unexplained (first at step 3)" in findings(changed)["golden translations (7)"].detail
    assert failed(with_golden(bundle, best=tuple(best), tolerance=golden.margins[step])) == ["golden translations (7)"]
    assert failed(with_golden(bundle, best=tuple(best), tolerance=golden.margins[step] + 1e-6)) == []


def test_a_text_with_other_tokens_fails() -> None:
    bundle = open_bundle(TRANSLATOR)
    changed = with_golden(bundle, text=bundle.manifest.golden_translations[0].text + "!")
    assert failed(changed) == ["golden texts"]


def test_no_golden_translation_proves_nothing() -> None:
    bundle = open_bundle(TRANSLATOR)
    assert failed(replace(bundle, manifest=replace(bundle.manifest, golden_translations=()))) == ["golden translations"]


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx"])
def test_other_weights_fail(tmp_path: Path, name: str) -> None:
    """Weights that changed together with their hash: only the recorded translations can tell."""
    path = copy_bundle(TRANSLATOR, tmp_path / "b")
    content = (path / name).read_bytes()
    # Some 250 weights in a row, wherever they begin behind the embedding: small numbers, as only weights are.
    for place in range(len(content) // 2, len(content)):
        weights = np.frombuffer(content[place : place + 1000], np.float32)
        if (np.abs(weights) < 10).all() and (np.abs(weights) > 1e-6).all():
            break
    replace_file(path, name, content[:place] + (-weights).tobytes() + content[place + 1000 :])
    assert "golden translations (7)" in failed(open_bundle(path))


def test_damaged_files_end_it(tmp_path: Path) -> None:
    path = copy_bundle(TRANSLATOR, tmp_path / "b")
    with (path / "decoder.onnx").open("ab") as file:
        file.write(b"x")
    assert list(findings(open_bundle(path))) == ["bundle"]
