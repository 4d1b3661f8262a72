"""Everything a device does, on a GPU: the same texts as on the CPU, with and without captured graphs."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnn_edge import stepper as stepper_module
from rnn_edge import unrolling
from rnn_edge.bundle import open_bundle
from rnn_edge.captured_stepper import CapturedStepper
from rnn_edge.choice import NO_FILTERS
from rnn_edge.chooser import DEPTH, Chooser
from rnn_edge.errors import DeviceError, InvalidValueError
from rnn_edge.language_model import LanguageModel
from rnn_edge.providers import captures_graphs, cuda_available
from rnn_edge.state import load_state, save_state, zero_state
from rnn_edge.stepper import Stepper
from rnn_edge.translator import Translator
from rnn_edge.verification import verify
from tests.device.tiny import GRU, LSTM, TRANSLATOR, WORDS

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not cuda_available(), reason="this ONNX Runtime has no CUDA provider"),
]

EIGHT_BITS = [Path(__file__).parents[2] / "models" / name for name in ("shakespeare", "en-fr")]
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"top_k": 12, "top_p": 0.9, "repeat_penalty": 1.2},
]


@pytest.fixture(scope="module", params=[LSTM, GRU], ids=["lstm", "gru"])
def pair(request: pytest.FixtureRequest) -> tuple[LanguageModel, LanguageModel]:
    return LanguageModel.load(request.param, device="cuda"), LanguageModel.load(request.param, device="cpu")


def text(model: LanguageModel, **settings: Any) -> str:
    return "".join(event.text for event in model.generate("Marta", max_tokens=60, seed=4, **settings))


@pytest.mark.parametrize("path", [LSTM, GRU, TRANSLATOR, WORDS, *EIGHT_BITS], ids=lambda path: path.name)
def test_bundles_prove_themselves(path: Path) -> None:
    assert [finding for finding in verify(open_bundle(path), device="cuda") if not finding.passed] == []


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_same_text(pair: tuple[LanguageModel, LanguageModel], settings: dict[str, Any]) -> None:
    cuda, cpu = pair
    assert cuda.graph.device == "cuda"
    assert text(cuda, **settings) == text(cpu, **settings)
    assert text(cuda, **settings) == text(cpu, **settings)  # replayed where the first run captured


def test_eight_bits() -> None:
    """CUDA lacks these products: the runtime takes them to the CPU."""
    cuda, cpu = (LanguageModel.load(EIGHT_BITS[0], device=device) for device in ("cuda", "cpu"))
    for settings in SETTINGS:
        assert text(cuda, **settings) == text(cpu, **settings)


def test_graphs_are_captured(pair: tuple[LanguageModel, LanguageModel]) -> None:
    assert captures_graphs(pair[0].graph.session)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_captured_steps_equal_plain_ones(pair: tuple[LanguageModel, LanguageModel], batch: int) -> None:
    """From a state that is not zero, over more steps than there are buffers, twice from the same start."""
    graph = pair[0].graph
    stepper, chooser = graph.stepper(batch), Chooser(graph, batch)
    random = np.random.default_rng(batch)
    first = random.integers(0, 60, batch)
    stepper.step(random.integers(0, 60, batch))
    start = stepper.state()
    for _ in range(2):
        stepper.load(start)
        chooser.start(start, first, 1.0)
        tokens = first
        for count in (1, DEPTH, 3, DEPTH):
            found = chooser.run(count)
            for row in found:
                tokens = stepper.step(tokens).argmax(axis=1)
                assert row.tolist() == tokens.tolist()
            assert chooser.state(count).largest_difference(stepper.state()) < 1e-6


def test_reordering_and_replacing_rows(pair: tuple[LanguageModel, LanguageModel]) -> None:
    cuda, cpu = (model.graph.stepper(4) for model in pair)
    for stepper in (cuda, cpu):
        stepper.step(np.array([1, 2, 3, 4]))
        stepper.reorder([3, 3, 0, 1])
        stepper.step(np.array([5, 6, 7, 8]))
        stepper.replace(np.array([[2]]), zero_state(stepper.manifest))
        stepper.reorder([2, 1, 0, 0])
    assert cuda.state().largest_difference(cpu.state()) < 1e-4


def test_steppers_share_what_is_captured(pair: tuple[LanguageModel, LanguageModel]) -> None:
    cuda, cpu = (model.graph for model in pair)
    tokens = np.random.default_rng(3).integers(0, 60, (2 * DEPTH + 3, 2))
    counts = []
    for _ in range(3):
        captured, plain = cuda.stepper(2), cpu.stepper(2)
        assert isinstance(captured, CapturedStepper)
        for index, row in enumerate(tokens):
            assert np.abs(captured.step(row) - plain.step(row)).max() < 1e-4
            if index == DEPTH:  # anywhere: they go on from what the other has
                kept = captured.state()
                captured.load(plain.state())
                plain.load(kept)
        assert captured.state().largest_difference(plain.state()) < 1e-4
        assert np.abs(captured.feed([1, 2]) - plain.feed([1, 2])).max() < 1e-4
        counts.append(repr(cuda._numbers))
        del captured
        gc.collect()
    assert counts[1:] == counts[:-1]
    with pytest.raises(InvalidValueError, match="2 streams, not 1"):
        cuda.stepper().load(plain.state())
    assert isinstance(cuda.stepper(65), Stepper)


def test_buffers_serve_the_next_text(pair: tuple[LanguageModel, LanguageModel]) -> None:
    """Those of finished and of abandoned texts, at once."""
    cuda, counts = pair[0], []
    gc.disable()
    try:
        for _ in range(4):
            text(cuda, temperature=0.8)
            next(cuda.generate("The", max_tokens=60))
            for _ in cuda.generate_samples("The", 6, max_tokens=20, seed=2):
                pass
            next(cuda.generate_samples("The", 6, max_tokens=20, seed=2))
            next(cuda.generate_batch(["The", "a", "I"], max_tokens=20, seed=2).texts())
            counts.append(repr(cuda.graph._numbers))
    finally:
        gc.enable()
    assert counts[2:] == counts[1:-1]


def test_runs_are_not_captured_without_end(
    pair: tuple[LanguageModel, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepper_module, "_MOST_CAPTURED", 12)
    cuda = LanguageModel.load(pair[0].bundle.path, device="cuda")
    texts = [cuda.generate("Marta", max_tokens=60, seed=4) for _ in range(3)]
    found = ["".join(event.text for event in events) for events in texts]
    del texts  # whose buffers go back
    assert found == [text(pair[1])] * 3
    together = [item.text for item in cuda.generate_samples("The", 5, max_tokens=30, seed=2).texts()]
    assert together == [item.text for item in pair[1].generate_samples("The", 5, max_tokens=30, seed=2).texts()]
    captured = [chooser.is_captured for chooser in cuda.graph._choosers]
    assert set(captured) == {True, False}


def test_a_filter_whose_graph_does_not_open(
    pair: tuple[LanguageModel, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unrolling, "_PAYS_AFTER", 25)
    cuda = LanguageModel.load(pair[0].bundle.path, device="cuda")

    def fail(*_: Any, **__: Any) -> Any:
        raise DeviceError("--device cuda: out of memory", "use --device cpu")

    monkeypatch.setattr(unrolling, "open_session", fail)
    assert text(cuda, **SETTINGS[2]) == text(pair[1], **SETTINGS[2])


def test_filters_make_a_graph(pair: tuple[LanguageModel, LanguageModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as it pays, in the midst of a text."""
    monkeypatch.setattr(unrolling, "_PAYS_AFTER", 25)
    cuda = LanguageModel.load(pair[0].bundle.path, device="cuda")
    unrolled = cuda.graph.unrolled(1)
    assert unrolled is not None
    for settings in (SETTINGS[2], {"top_p": 0.8}, {"min_p": 0.1, "temperature": 1.3}):
        for _ in range(2):
            assert text(cuda, **settings) == text(pair[1], **settings)
    assert len(unrolled._sessions) == 3


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 0.8}], ids=str)
def test_four_steps_in_one_graph(pair: tuple[LanguageModel, LanguageModel], settings: dict[str, Any]) -> None:
    cuda = LanguageModel.load(pair[0].bundle.path, device="cuda")
    unrolled = cuda.graph.unrolled(1)
    assert unrolled is not None
    assert unrolled.steps_before(NO_FILTERS) == sys.maxsize
    unrolled.always()
    for _ in range(2):  # captured, replayed
        assert text(cuda, **settings) == text(pair[1], **settings)
    assert unrolled.session(NO_FILTERS) is not None


def test_a_batch_and_samples(pair: tuple[LanguageModel, LanguageModel]) -> None:
    def texts(model: LanguageModel) -> list[str]:
        found = model.generate_batch(["The", "Marta", "a"] * 3, batch_size=4, max_tokens=30, seed=2)
        samples = model.generate_samples("The", 5, max_tokens=30, seed=2)
        return [item.text for generation in (found, samples) for item in generation.texts()]

    assert texts(pair[0]) == texts(pair[1])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_hundreds_of_streams(pair: tuple[LanguageModel, LanguageModel], settings: dict[str, Any]) -> None:
    """Prompts of many lengths in fewer rows than there are of them, texts that end at any time, rows that stay idle."""
    prompts = [
        ("Marta said that the sea was not there " * 2)[index % 30 : index % 30 + 1 + index % 37] for index in range(700)
    ]

    def texts(model: LanguageModel, batch_size: int) -> list[tuple[str, str]]:
        found = model.generate_batch(
            prompts, batch_size=batch_size, max_tokens=50, seed=2, stop=["\n", "he"], **settings
        )
        return [(item.text, item.finish_reason) for item in found.texts()]

    expected = texts(pair[1], 300)
    assert len({len(text) for text, _ in expected}) > 5
    for _ in range(2):  # captured, and replayed
        assert texts(pair[0], 300) == expected
    events = pair[0].generate_batch(prompts, batch_size=64, max_tokens=50, seed=2, stop=["\n", "he"], **settings)
    pieces = [""] * len(prompts)
    for event in events:
        assert event.index is not None
        pieces[event.index] += event.text
    assert pieces == [text for text, _ in expected]


def test_a_batch_that_is_given_up(pair: tuple[LanguageModel, LanguageModel]) -> None:
    """Its buffers serve the next one, whatever is left in them."""
    batch = pair[0].generate_samples("The", 200, batch_size=200, max_tokens=100, seed=2, temperature=0.8)
    for _ in range(1000):
        next(batch)
    batch.cancel()
    assert {event.finish_reason for event in batch if event.finish_reason} == {"interrupt"}
    for temperature in (0.0, 0.8):
        settings: dict[str, Any] = {"batch_size": 200, "max_tokens": 30, "seed": 3, "temperature": temperature}
        found = [[item.text for item in model.generate_samples("Marta", 200, **settings).texts()] for model in pair]
        assert found[0] == found[1]


def test_a_state_goes_from_one_to_the_other(pair: tuple[LanguageModel, LanguageModel], tmp_path: Path) -> None:
    cuda, cpu = pair
    generation = cuda.generate("Marta", max_tokens=20, seed=3)
    begun = "".join(event.text for event in generation)
    save_state(tmp_path / "state", generation.state(), cuda.manifest)
    state = load_state(tmp_path / "state", cpu.manifest)
    rest = "".join(event.text for event in cpu.generate(max_tokens=20, state=state))
    assert begun + rest == "".join(event.text for event in cpu.generate("Marta", max_tokens=40, seed=3))


@pytest.mark.parametrize("path", [TRANSLATOR, WORDS], ids=lambda path: path.name)
@pytest.mark.parametrize("beam", [1, 4])
def test_translations(path: Path, beam: int) -> None:
    sentences = ["the small house", "a red dog sees the old man .", "a dog"] * 3
    found = []
    for device in ("cuda", "cpu"):
        translator = Translator.load(path, device=device)
        found.append(
            [
                item.candidates[0].text
                for item in translator.translate_sentences(sentences, translator.options(beam=beam))
            ]
        )
    assert found[0] == found[1]
