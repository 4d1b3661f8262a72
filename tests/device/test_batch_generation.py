"""Batches: each text as if it were alone, whatever its neighbours do."""

import gc
import tracemalloc
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rnn_edge import memory
from rnn_edge.batch_generation import BatchGeneration, GeneratedText, in_order
from rnn_edge.chooser import DEPTH, Chooser
from rnn_edge.errors import InvalidValueError, StateError, UnknownTokenError
from rnn_edge.events import Event
from rnn_edge.language_model import LanguageModel
from rnn_edge.state import load_state, save_state
from rnn_edge.stepper import Logits, Stepper, Tokens
from tests.device.tiny import GRU, copy_bundle

PROMPTS = ["The ", "", "MARTA: I have ", "a", "Tobias", "The café –\n\tTob", "x", "It was the end of the "]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    {"repeat_penalty": 1.3, "repeat_window": 10, "stop": ["e ", "and"]},
]


@pytest.fixture(params=["lstm", "gru"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    loaded: LanguageModel = request.getfixturevalue(request.param)
    return loaded


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of streams in each step from now on."""
    batches: list[int] = []
    step, run = Stepper.step, Chooser.run

    def counted(self: Stepper, tokens: Tokens | int) -> Logits:
        batches.append(self.batch)
        return step(self, tokens)

    def counted_burst(self: Chooser, count: int, noise: Logits | None = None) -> Tokens:
        batches.extend([self.batch] * count)
        return run(self, count, noise)

    monkeypatch.setattr(Stepper, "step", counted)
    monkeypatch.setattr(Chooser, "run", counted_burst)
    return batches


def alone(model: LanguageModel, prompt: str, stream: int, **options: Any) -> tuple[str, str | None]:
    events = list(model.generate(prompt, stream=stream, **options))
    return "".join(event.text for event in events), events[-1].finish_reason


def whole(batch: BatchGeneration) -> list[tuple[str, str | None]]:
    texts = list(batch.texts())
    assert [text.index for text in texts] == list(range(len(texts)))
    return [(text.text, text.finish_reason) for text in texts]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_each_text_is_that_of_its_prompt_alone(model: LanguageModel, options: dict[str, Any], batch_size: int) -> None:
    options = {"max_tokens": 45, "seed": 5, **options}
    expected = [alone(model, prompt, index, **options) for index, prompt in enumerate(PROMPTS)]
    # With stop texts they end at different times.
    assert (len({len(text) for text, _ in expected}) > 3) == ("stop" in options)
    assert whole(model.generate_batch(PROMPTS, batch_size=batch_size, **options)) == expected


@pytest.mark.parametrize("prompt", ["MARTA: I have ", "a", ""])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_samples_are_the_streams_of_one_prompt(model: LanguageModel, prompt: str, batch_size: int) -> None:
    expected = [alone(model, prompt, stream, max_tokens=40, seed=5) for stream in range(5)]
    assert len(set(expected)) == 5
    assert expected[0] == alone(model, prompt, 0, max_tokens=40, seed=5)
    assert whole(model.generate_samples(prompt, 5, batch_size=batch_size, max_tokens=40, seed=5)) == expected


def test_stream_0_is_the_text_without_a_stream(gru: LanguageModel) -> None:
    text = "".join(event.text for event in gru.generate("The ", max_tokens=40, seed=5))
    assert alone(gru, "The ", 0, max_tokens=40, seed=5) == (text, "length")
    assert alone(gru, "The ", 1, max_tokens=40, seed=5) != (text, "length")


def test_samples_without_a_start_token_begin_differently(tmp_path: Path) -> None:
    model = LanguageModel.load(copy_bundle(GRU, tmp_path / "b", lambda manifest: manifest["special_ids"].clear()))
    expected = [alone(model, "", stream, max_tokens=20, temperature=0, seed=1) for stream in range(6)]
    assert len(set(expected)) > 1
    assert whole(model.generate_samples("", 6, max_tokens=20, temperature=0, seed=1)) == expected


def test_a_prompt_is_read_once_for_all_samples(gru: LanguageModel, fed: list[int]) -> None:
    list(gru.generate_samples("The sea ", 6, max_tokens=10, seed=1))
    assert fed == [1] * 7 + [6] * 10


def test_rows_are_given_on_at_once(gru: LanguageModel, fed: list[int]) -> None:
    """Prompts of 1 to 5 characters, 8 tokens each, in three rows: each text takes its prompt and 7 steps."""
    prompts = ["a" * (1 + index % 5) for index in range(10)]
    costs, ends = [len(prompt) + 7 for prompt in prompts], [0, 0, 0]
    for cost in costs:
        ends[ends.index(min(ends))] += cost
    batch = gru.generate_batch(prompts, batch_size=3, max_tokens=8, seed=1)
    list(batch)
    assert batch.steps == len(fed) == max(ends)
    assert sum(fed) < 3 * max(ends)  # at the end the batch gets smaller
    assert fed[0] == 3


def test_a_batch_is_no_larger_than_its_texts(gru: LanguageModel, fed: list[int]) -> None:
    list(gru.generate_batch(["a", "b"], batch_size=500, max_tokens=3, seed=1))
    assert fed == [2, 2, 2]
    assert list(gru.generate_batch([], max_tokens=3)) == []


def test_events(model: LanguageModel) -> None:
    singles = [
        list(model.generate(prompt, stream=index, max_tokens=9, seed=2, log_probabilities=True))
        for index, prompt in enumerate(PROMPTS)
    ]
    events = list(model.generate_batch(PROMPTS, batch_size=3, max_tokens=9, seed=2, log_probabilities=True))
    for index, single in enumerate(singles):
        own = [event for event in events if event.index == index]
        assert [(event.text, event.token) for event in own] == [(event.text, event.token) for event in single]
        for event, expected in zip(own[:-1], single[:-1], strict=True):
            assert event.log_probability == pytest.approx(expected.log_probability, abs=1e-5)
        end = own[-1]
        assert (end.finish_reason, end.log_probability) == ("length", None)
        assert end.timings is not None
        assert single[-1].timings is not None
        assert end.timings.prompt_tokens == single[-1].timings.prompt_tokens
        assert end.timings.generated_tokens == 9
        assert 0 < end.timings.prompt_seconds <= end.timings.first_token_seconds
    assert all(event.log_probability is None for event in model.generate_batch(["a"], max_tokens=3))


def test_the_seed_is_named(gru: LanguageModel) -> None:
    batch = gru.generate_samples("The ", 3, max_tokens=30)
    assert whole(gru.generate_samples("The ", 3, max_tokens=30, seed=batch.seed)) == whole(batch)


def test_an_end_token_ends_its_own_text(tmp_path: Path, gru: LanguageModel) -> None:
    end = gru.tokenizer.encode("e")[0]
    path = copy_bundle(GRU, tmp_path / "b", lambda manifest: manifest["special_ids"].update(end=end))
    model = LanguageModel.load(path)
    plain = [text for text, _ in whole(gru.generate_batch(PROMPTS, batch_size=3, max_tokens=60, seed=2))]
    expected = [(text.partition("e")[0], "end" if "e" in text else "length") for text in plain]
    assert any(reason == "end" for _, reason in expected)
    assert whole(model.generate_batch(PROMPTS, batch_size=3, max_tokens=60, seed=2)) == expected
    assert [alone(model, prompt, index, max_tokens=60, seed=2) for index, prompt in enumerate(PROMPTS)] == expected


# --- states


@pytest.mark.parametrize("prompt", ["", "a", "Marta"])
def test_all_texts_go_on_from_a_state(model: LanguageModel, prompt: str) -> None:
    first = model.generate("The ", max_tokens=20, seed=9)
    begun = "".join(event.text for event in first)
    state = first.state()
    expected = [alone(model, prompt, stream, state=state, max_tokens=30) for stream in range(3)]
    assert whole(model.generate_samples(prompt, 3, state=state, max_tokens=30)) == expected
    assert whole(model.generate_batch([prompt] * 3, batch_size=2, state=state, max_tokens=30)) == expected
    if not prompt:
        assert begun + expected[0][0] == alone(model, "The ", 0, max_tokens=50, seed=9)[0]


def test_a_saved_text_remembers_its_stream(gru: LanguageModel, tmp_path: Path) -> None:
    first = gru.generate("The ", stream=3, max_tokens=20, seed=9)
    begun = "".join(event.text for event in first)
    save_state(tmp_path / "state", first.state(), gru.manifest)
    rest = gru.generate(state=load_state(tmp_path / "state", gru.manifest), max_tokens=20)
    assert begun + "".join(event.text for event in rest) == alone(gru, "The ", 3, max_tokens=40, seed=9)[0]


def test_states_that_do_not_fit(lstm: LanguageModel, gru: LanguageModel) -> None:
    state = gru.generate("a", max_tokens=1).state()
    with pytest.raises(StateError):
        lstm.generate_batch(["a"], state=state)
    with pytest.raises(InvalidValueError, match="2 streams"):
        gru.generate_samples("a", state=state.fork(2))


# --- ends


def test_cancel_keeps_what_was_made(model: LanguageModel) -> None:
    texts = [alone(model, prompt, index, max_tokens=60, seed=5)[0] for index, prompt in enumerate(PROMPTS)]
    batch = model.generate_batch(PROMPTS, batch_size=3, max_tokens=60, seed=5)
    events = [next(batch) for _ in range(40)]
    steps = batch.steps
    batch.cancel()
    events += batch
    assert batch.steps == steps  # only what the step under way had already chosen
    ends = [event for event in events if event.finish_reason]
    assert [event.finish_reason for event in ends] == ["interrupt"] * 3
    for index in range(3):
        made = "".join(event.text for event in events if event.index == index)
        assert texts[index].startswith(made)
    assert sum(len(event.text) for event in events) >= 40


class Coming:
    """Prompts of which only some are there: after each of ``arrivals`` looks one more has come."""

    def __init__(self, prompts: list[str], arrivals: list[int]) -> None:
        self.prompts, self._arrivals, self._looks = prompts, arrivals, 0
        self.taken = 0
        self.waited = 0  # how often one was taken that was not there

    def ready(self) -> bool:
        self._looks += 1
        return self.taken == len(self.prompts) or self._arrivals[self.taken] <= self._looks

    def __iter__(self) -> Iterator[str]:
        for prompt, arrival in zip(self.prompts, self._arrivals, strict=True):
            self.waited += arrival > self._looks
            self._looks = max(self._looks, arrival)
            self.taken += 1
            yield prompt


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_texts_go_on_while_no_prompt_is_there(model: LanguageModel, options: dict[str, Any], fed: list[int]) -> None:
    expected = [alone(model, prompt, index, max_tokens=40, seed=3, **options) for index, prompt in enumerate(PROMPTS)]
    fed.clear()
    coming = Coming(PROMPTS, [0, 3, 4, 5, 100, 101, 101, 400])
    batch = model.generate_batch(coming, batch_size=5, max_tokens=40, seed=3, **options)
    found, told = [], []
    for text in batch.texts():
        found.append((text.text, text.finish_reason))
        told.append(coming.taken)
    assert found == expected
    assert max(told[:4]) == 4  # before the next came
    assert max(told[:7]) == 7
    assert coming.waited == 2  # where all others were finished
    assert set(fed) >= {1, 2}
    assert max(fed) <= 5


def test_a_prompt_that_fails_while_others_are_written(model: LanguageModel) -> None:
    coming = Coming(["The ", "☃", "a"], [0, 5, 5])
    found: list[str] = []
    with pytest.raises(UnknownTokenError, match="prompt 2"):
        found.extend(text.text for text in model.generate_batch(coming, batch_size=4, max_tokens=30, seed=1).texts())
    assert found == [alone(model, "The ", 0, max_tokens=30, seed=1)[0]]


def test_cancel_while_the_prompt_is_read(gru: LanguageModel, fed: list[int]) -> None:
    batch = gru.generate_samples("The " * 100, 2, seed=1)
    batch.cancel()
    assert [event.finish_reason for event in batch] == ["interrupt"] * 2
    assert fed == []


def test_texts_before_a_bad_prompt_are_not_lost(gru: LanguageModel) -> None:
    found: list[GeneratedText] = []
    texts = gru.generate_batch(["a", "b", "c€", "d"], batch_size=2, max_tokens=5, seed=1).texts()
    with pytest.raises(UnknownTokenError, match="prompt 3: the model has never seen '€'"):
        found.extend(texts)
    assert [text.text for text in found] == [alone(gru, p, i, max_tokens=5, seed=1)[0] for i, p in enumerate("ab")]
    assert len(list(gru.generate_batch(["c€"], unknown="skip", max_tokens=5).texts())) == 1


# --- order and memory


def test_order() -> None:
    def token(index: int, text: str, reason: Any = None) -> Event:
        return Event(text, None, finish_reason=reason, index=index)

    events = [token(0, "a"), token(1, "b"), token(2, "c"), token(2, "", "stop"), token(1, "d")]
    events += [token(0, "e", "length"), token(1, "f"), token(1, "", "stop"), token(3, "g", "length")]
    shown = [(event.index, event.text, event.finish_reason) for event in in_order(events)]
    assert shown == [
        (0, "a", None),
        (0, "e", "length"),
        (1, "bd", None),
        (1, "f", None),
        (1, "", "stop"),
        (2, "c", "stop"),
        (3, "g", "length"),
    ]


def test_prompts_are_taken_when_there_is_room_and_memory_stays(gru: LanguageModel) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "The "[: 1 + taken % 4]

    texts = gru.generate_batch(endless(), batch_size=4, max_tokens=4, seed=1, repeat_penalty=1.1).texts()

    def run(count: int) -> None:
        deque((next(texts) for _ in range(count)), maxlen=0)

    tracemalloc.start()
    try:
        run(100)
        traced = []
        for _ in range(10):
            run(100)
            gc.collect()
            traced.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert 1100 <= taken <= 1100 + 2 * 4
    # What is kept for each text shows in every round, what NumPy keeps at hand for small arrays in the first few only.
    assert min(after - before for before, after in pairwise(traced)) < 2_000


def test_values_out_of_range(gru: LanguageModel) -> None:
    with pytest.raises(InvalidValueError, match="samples is 0"):
        gru.generate_samples("a", 0)
    with pytest.raises(InvalidValueError, match="batch-size is 0"):
        gru.generate_batch(["a"], batch_size=0)
    with pytest.raises(InvalidValueError, match="seed is -1"):
        gru.generate_batch(["a"], seed=-1)
    with pytest.raises(InvalidValueError, match="prompts is one text"):
        gru.generate_batch("abc")
    for stream in (-1, 2**32 - 1):
        with pytest.raises(InvalidValueError, match=f"stream is {stream}"):
            gru.generate("a", stream=stream)
    with pytest.raises(TypeError, match="nonsense"):
        gru.generate_batch(["a"], nonsense=1)  # type: ignore[call-arg]


def test_a_batch_that_memory_does_not_hold(lstm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    one = memory.stream_bytes(lstm.manifest, burst=DEPTH)
    monkeypatch.setattr(memory, "available_memory", lambda: 10 * one + 1)
    lstm.generate_samples("a", 10)
    lstm.generate_samples("a", 100, batch_size=10)
    with pytest.raises(InvalidValueError, match=r"a batch of 11 with tiny-lstm needs \d+ MB, and ") as caught:
        lstm.generate_batch(["a"], batch_size=11)
    assert caught.value.hint == "use at most 10"
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    lstm.generate_batch(["a"], batch_size=10**12)


def test_what_a_batch_needs(lstm: LanguageModel) -> None:
    """The figure is of the right size, with every filter on."""
    batch = 2000
    texts = lstm.generate_samples("a", batch, batch_size=batch, max_tokens=3, top_k=9, top_p=0.9, min_p=0.1, seed=1)
    tracemalloc.start()
    try:
        list(texts)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.3 < peak / (batch * memory.stream_bytes(lstm.manifest)) < 1.5
