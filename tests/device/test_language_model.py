"""Streaming generation: the same text again, from a saved state, and for ever."""

import tracemalloc
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnn_edge.bundle import open_bundle
from rnn_edge.errors import BundleError, InvalidValueError, StateError, UnknownTokenError
from rnn_edge.events import Event
from rnn_edge.generation import Generation
from rnn_edge.language_model import LanguageModel
from rnn_edge.noise import gumbel_noise
from rnn_edge.state import load_state, save_state
from rnn_edge.tokenizer import load_tokenizer
from tests.device.tiny import GRU, LSTM, copy_bundle

OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    {"repeat_penalty": 1.3, "repeat_window": 10},
    {"repeat_penalty": 1.3, "repeat_window": 0},
]


@pytest.fixture(params=["lstm", "gru"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    loaded: LanguageModel = request.getfixturevalue(request.param)
    return loaded


def text_of(generation: Generation) -> str:
    return "".join(event.text for event in generation)


def take(generation: Generation, count: int) -> str:
    return "".join(next(generation).text for _ in range(count))


def test_events(model: LanguageModel) -> None:
    events = list(model.generate("MARTA: ", max_tokens=30, seed=1))
    *tokens, last = events
    assert len(tokens) == 30
    assert all(event.finish_reason is None and event.timings is None for event in tokens)
    assert all(event.log_probability is None for event in events)
    ids = [event.token for event in tokens if event.token is not None]
    assert "".join(event.text for event in events) == model.tokenizer.decode(ids)
    assert (last.text, last.token, last.finish_reason) == ("", None, "length")
    assert last.timings is not None
    assert (last.timings.prompt_tokens, last.timings.generated_tokens) == (7, 30)
    assert 0 < last.timings.prompt_seconds <= last.timings.first_token_seconds
    assert last.timings.generation_seconds > 0


@pytest.mark.parametrize("options", OPTIONS)
def test_same_seed_same_text(model: LanguageModel, options: dict[str, Any]) -> None:
    first = text_of(model.generate("The ", max_tokens=100, seed=5, **options))
    assert text_of(model.generate("The ", max_tokens=100, seed=5, **options)) == first
    assert text_of(model.generate("The ", max_tokens=40, seed=5, **options)) == first[:40]
    other = text_of(model.generate("The ", max_tokens=100, seed=6, **options))
    assert (other == first) == (options.get("temperature") == 0)


def test_a_seed_is_drawn_and_named(model: LanguageModel) -> None:
    generation = model.generate("The ", max_tokens=50)
    text = text_of(generation)
    assert text_of(model.generate("The ", max_tokens=50, seed=generation.seed)) == text
    assert len({model.generate("The ").seed for _ in range(5)}) > 1


def test_greedy_is_what_the_graph_says(model: LanguageModel) -> None:
    stepper, expected = model.graph.stepper(), []
    logits = stepper.feed(model.tokenizer.encode("The "))
    for _ in range(20):
        expected.append(int(logits[0].argmax()))
        logits = stepper.step(expected[-1])
    events = model.generate("The ", max_tokens=20, temperature=0)
    assert [event.token for event in events][:-1] == expected


def test_defaults_are_the_bundle_s(tmp_path: Path) -> None:
    def greedy(manifest: dict[str, Any]) -> None:
        manifest["sampling"] = {"temperature": 0.0, "top_k": 3}

    changed = LanguageModel.load(copy_bundle(GRU, tmp_path / "b", greedy))
    assert text_of(changed.generate("a", max_tokens=30, seed=1)) == text_of(
        changed.generate("a", max_tokens=30, seed=2)
    )
    assert text_of(changed.generate("a", max_tokens=30, seed=1, temperature=0.9)) != text_of(
        changed.generate("a", max_tokens=30, seed=2, temperature=0.9)
    )


def test_log_probabilities(model: LanguageModel) -> None:
    events = list(model.generate("The ", max_tokens=10, seed=3, temperature=1.5, top_k=5, log_probabilities=True))
    stepper = model.graph.stepper()
    logits = stepper.feed(model.tokenizer.encode("The "))[0].astype(np.float64)
    for event in events[:-1]:
        assert event.token is not None
        expected = np.log(np.exp(logits)[event.token] / np.exp(logits).sum())
        assert event.log_probability == pytest.approx(expected, rel=1e-9)
        logits = stepper.step(event.token)[0].astype(np.float64)
    assert events[-1].log_probability is None


# --- prompts


def test_an_empty_prompt_starts_from_the_start_token(model: LanguageModel) -> None:
    assert model.manifest.special_ids.start == model.tokenizer.id_of("\n")
    assert text_of(model.generate("", max_tokens=40, seed=2)) == text_of(model.generate("\n", max_tokens=40, seed=2))


def test_an_empty_prompt_without_a_start_token_starts_from_a_random_one(tmp_path: Path) -> None:
    model = LanguageModel.load(copy_bundle(GRU, tmp_path / "b", lambda manifest: manifest["special_ids"].clear()))
    assert model.manifest.special_ids.start is None
    for seed in (1, 2):
        start = int(gumbel_noise(seed, 2**32 - 1, 0, 1, 70)[0].argmax())
        expected = text_of(model.generate(model.tokenizer.decode([start]), max_tokens=40, seed=seed))
        assert text_of(model.generate(max_tokens=40, seed=seed)) == expected


def test_unknown_characters(model: LanguageModel) -> None:
    with pytest.raises(UnknownTokenError, match="'€'"):
        model.generate("€The ")
    skipped = text_of(model.generate("Th€e ", max_tokens=20, seed=1, unknown="skip"))
    assert skipped == text_of(model.generate("The ", max_tokens=20, seed=1))
    assert text_of(model.generate("€", max_tokens=20, seed=1, unknown="skip")) == text_of(
        model.generate("", max_tokens=20, seed=1)
    )


@pytest.mark.parametrize("number", [0, -2, -400])
def test_max_tokens_out_of_range(gru: LanguageModel, number: int) -> None:
    with pytest.raises(InvalidValueError, match=f"max-tokens is {number}"):
        gru.generate("a", max_tokens=number)


def test_other_values_out_of_range(gru: LanguageModel) -> None:
    with pytest.raises(InvalidValueError, match="temperature is nan"):
        gru.generate("a", temperature=float("nan"))
    with pytest.raises(InvalidValueError, match="seed is -1"):
        gru.generate("a", seed=-1)
    with pytest.raises(InvalidValueError, match="a stop text is empty"):
        gru.generate("a", stop=["x", ""])


# --- ends


def test_stop_texts(model: LanguageModel) -> None:
    whole = text_of(model.generate("The ", max_tokens=300, seed=7))
    stop = whole[100:106]
    cut = whole.index(stop)
    events = list(model.generate("The ", max_tokens=300, seed=7, stop=[stop, "never seen §"]))
    assert "".join(event.text for event in events) == whole[:cut]
    assert events[-1].finish_reason == "stop"
    assert events[-1].timings is not None
    assert events[-1].timings.generated_tokens == cut + len(stop)


def test_the_start_of_a_stop_text_is_shown_at_the_end(model: LanguageModel) -> None:
    whole = text_of(model.generate("The ", max_tokens=50, seed=7))
    assert text_of(model.generate("The ", max_tokens=50, seed=7, stop=[whole[-3:] + "§"])) == whole


def test_cancel(model: LanguageModel) -> None:
    generation = model.generate("The ", max_tokens=-1, seed=1)
    text = take(generation, 25)
    generation.cancel()
    rest = list(generation)
    assert rest[-1].finish_reason == "interrupt"
    assert len(rest) <= 2  # at most the token in the making, and the end
    text += "".join(event.text for event in rest)
    assert text == text_of(model.generate("The ", max_tokens=len(text), seed=1))


def test_cancel_before_the_first_token(model: LanguageModel) -> None:
    generation = model.generate("The " * 100, seed=1)
    generation.cancel()
    (last,) = generation
    assert last.finish_reason == "interrupt"
    assert last.timings is not None
    assert last.timings.generated_tokens == 0


# --- states


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cut", [1, 2, 33])
def test_a_saved_state_goes_on_as_if_never_stopped(
    model: LanguageModel, tmp_path: Path, options: dict[str, Any], cut: int
) -> None:
    whole = text_of(model.generate("The ", max_tokens=90, seed=9, **options))
    first = model.generate("The ", max_tokens=cut, seed=9, **options)
    text = text_of(first)
    save_state(tmp_path / "state", first.state(), model.manifest)
    state = load_state(tmp_path / "state", model.manifest)
    second = model.generate(max_tokens=90 - cut, seed=9, state=state, **options)
    assert text + text_of(second) == whole
    # And once more, from the second one's end.
    third = model.generate(max_tokens=30, seed=9, state=second.state(), **options)
    assert whole + text_of(third) == text_of(model.generate("The ", max_tokens=120, seed=9, **options))


def test_a_state_taken_in_mid_text(model: LanguageModel) -> None:
    whole = text_of(model.generate("The ", max_tokens=60, seed=9))
    generation = model.generate("The ", max_tokens=60, seed=9)
    text = take(generation, 20)
    state = generation.state()
    assert text + text_of(generation) == whole
    for _ in range(2):  # a state can be used again
        assert text + text_of(model.generate(max_tokens=40, seed=9, state=state)) == whole


def test_a_state_after_cancel_goes_on_as_if_never_stopped(model: LanguageModel) -> None:
    whole = text_of(model.generate("The ", max_tokens=60, seed=9))
    generation = model.generate("The ", max_tokens=60, seed=9)
    text = take(generation, 20)
    generation.cancel()
    text += text_of(generation)
    assert text + text_of(model.generate(max_tokens=60 - len(text), seed=9, state=generation.state())) == whole


def test_a_state_and_more_prompt(model: LanguageModel) -> None:
    first = model.generate("The ", max_tokens=20, seed=9)
    text = text_of(first)
    on = text_of(model.generate("Marta", max_tokens=20, temperature=0, state=first.state()))
    assert on == text_of(model.generate("The " + text + "Marta", max_tokens=20, temperature=0))


def test_a_state_that_does_not_fit(lstm: LanguageModel, gru: LanguageModel) -> None:
    state = gru.generate("a", max_tokens=1).state()
    with pytest.raises(StateError):
        lstm.generate(state=state)
    with pytest.raises(InvalidValueError, match="2 streams"):
        gru.generate(state=state.fork(2))


# --- for ever


def test_memory_does_not_grow_with_the_text(lstm: LanguageModel) -> None:
    generation = lstm.generate("The ", max_tokens=-1, seed=1, stop=["never seen §"], repeat_penalty=1.1)

    def run(count: int) -> None:
        deque((next(generation) for _ in range(count)), maxlen=0)

    tracemalloc.start()
    try:
        run(1000)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        run(4000)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Four thousand events, ids or pieces of text kept anywhere would be more than 32 kB.
    assert after - before < 32_000
    # The noise of one block comes and goes.
    assert peak - before < 2_000_000


# --- loading


def test_load_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_EDGE_MODELS", str(LSTM.parent))
    model = LanguageModel.load("lstm", device="auto", threads=1)
    assert model.bundle.path == LSTM
    assert isinstance(next(model.generate("a")), Event)


def test_a_tokenizer_of_another_size(tmp_path: Path) -> None:
    bundle = open_bundle(LSTM)
    spec = replace(bundle.manifest.tokenizer, vocabulary_size=69)
    with pytest.raises(BundleError, match="the tokenizer has 70 tokens, the manifest says 69"):
        load_tokenizer(replace(bundle, manifest=replace(bundle.manifest, tokenizer=spec)))


def test_one_stop_text_may_be_a_plain_string(gru: LanguageModel) -> None:
    whole = text_of(gru.generate("The ", max_tokens=60, seed=1))
    stop = whole[20:23]
    assert text_of(gru.generate("The ", max_tokens=60, seed=1, stop=stop)) == whole[: whole.index(stop)]
