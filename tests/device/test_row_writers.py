"""Batches in bursts: the events of step by step, whatever the prompts, ends and refills."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnn_edge import chooser, row_writers
from rnn_edge.batch_generation import BatchGeneration, _burst
from rnn_edge.chooser import DEPTH, Chooser
from rnn_edge.events import Event
from rnn_edge.language_model import LanguageModel
from rnn_edge.row_writers import larger_batch, smaller_batch
from rnn_edge.stepper import Stepper
from tests.device.test_batch_generation import Coming
from tests.device.tiny import GRU, LSTM, copy_bundle

PROMPTS = [("The sea and MARTA: " * 3)[: 1 + 7 * index % 40] for index in range(70)]
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8},
    {"temperature": 1.5, "stop": ["e ", "and", "\n"]},
    {"temperature": 0, "stop": "e"},
    {"temperature": 0.8, "max_tokens": 5},
    {"temperature": 0.9, "log_probabilities": True},
]


@pytest.fixture(params=[LSTM, GRU], ids=["lstm", "gru"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LanguageModel:
    """A model of its own, with an end token and one that is never written, both of which it would often write."""
    plain = LanguageModel.load(request.param, device="cpu")
    ids = {"end": plain.tokenizer.encode("q")[0], "unknown": plain.tokenizer.encode("e")[0]}
    path = copy_bundle(request.param, tmp_path / "b", lambda manifest: manifest["special_ids"].update(ids))
    return LanguageModel.load(path, device="cpu")


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], list[int]]:
    """Choose between bursts and single steps for all batches from now on → how long each of them is."""
    run, step = Chooser.run, Stepper.step
    counts: list[int] = []

    def counted(self: Chooser, count: int, noise: Any = None) -> Any:
        counts.append(count)
        return run(self, count, noise)

    def counted_step(self: Stepper, tokens: Any) -> Any:
        counts.append(0)
        return step(self, tokens)

    def choose(bursts: bool) -> list[int]:
        monkeypatch.setattr(row_writers, "BURSTS_UP_TO", 10**6 if bursts else 0)
        monkeypatch.setattr(chooser, "BURST_SECONDS", 10.0)
        counts.clear()
        return counts

    monkeypatch.setattr(Chooser, "run", counted)
    monkeypatch.setattr(Stepper, "step", counted_step)
    return choose


def of_each(events: list[Event]) -> dict[int | None, list[tuple[Any, ...]]]:
    """What is told of each text, without times."""
    found: dict[int | None, list[tuple[Any, ...]]] = {}
    for event in events:
        prompt = event.timings and (event.timings.prompt_tokens, event.timings.generated_tokens)
        seen = (event.text, event.token, event.log_probability, event.finish_reason, prompt)
        found.setdefault(event.index, []).append(seen)
    return found


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("batch_size", [3, 16, 100])
def test_both_ways_tell_the_same(
    model: LanguageModel, way: Callable[[bool], list[int]], settings: dict[str, Any], batch_size: int
) -> None:
    def batch() -> BatchGeneration:
        return model.generate_batch(PROMPTS, batch_size=batch_size, **{"max_tokens": 40, "seed": 3} | settings)

    counts = way(False)
    expected = of_each(list(batch()))
    assert set(counts) == {0}
    texts = list(batch().texts())
    assert len(expected) == len(texts) == len(PROMPTS)
    counts = way(True)
    assert of_each(list(batch())) == expected
    assert max(counts) > 3
    assert 0 not in counts
    for text, other in zip(texts, batch().texts(), strict=True):
        assert (text.index, text.text, text.finish_reason) == (other.index, other.text, other.finish_reason)
        assert text.timings.generated_tokens == other.timings.generated_tokens
        told = expected[text.index]
        assert text.text == "".join(piece for piece, *_ in told)
        assert text.finish_reason == told[-1][3]


def test_samples_go_on_from_a_state_in_bursts(model: LanguageModel, way: Callable[[bool], list[int]]) -> None:
    first = model.generate("The ", max_tokens=20, seed=9)
    list(first)
    state = first.state()
    way(False)
    expected = [text.text for text in model.generate_samples("a", 9, batch_size=4, state=state).texts()]
    assert len(set(expected)) == 9
    counts = way(True)
    assert [text.text for text in model.generate_samples("a", 9, batch_size=4, state=state).texts()] == expected
    assert DEPTH in counts


def test_single_tokens_and_then_whole_texts(model: LanguageModel, way: Callable[[bool], list[int]]) -> None:
    """Whoever has seen some events gets the rest of these texts."""
    way(True)
    settings: dict[str, Any] = {"batch_size": 2, "max_tokens": 30, "seed": 3, "temperature": 0.8}
    expected = [text.text for text in model.generate_batch(PROMPTS[:4], **settings).texts()]
    batch = model.generate_batch(PROMPTS[:4], **settings)
    seen = [next(batch) for _ in range(25)]
    rest = [text.text for text in batch.texts()]
    begun = ["".join(event.text for event in seen if event.index == index) for index in range(4)]
    assert [one + other for one, other in zip(begun, rest, strict=True)] == expected


@pytest.mark.parametrize("whole", [False, True])
def test_cancel_in_mid_burst(model: LanguageModel, way: Callable[[bool], list[int]], whole: bool) -> None:
    counts = way(True)
    settings: dict[str, Any] = {"batch_size": 4, "max_tokens": 300, "seed": 3, "temperature": 0}
    expected = [text.text for text in model.generate_batch(["a", "b", "c", "d"], **settings).texts()]
    batch = model.generate_batch(["a", "b", "c", "d"], **settings)
    seen = [next(batch) for _ in range(50)]
    counts.clear()
    batch.cancel()
    if whole:
        texts = list(batch.texts())
        assert {text.finish_reason for text in texts} <= {"interrupt", "end"}
    else:
        texts = []
        seen += batch
        assert [event.finish_reason for event in seen if event.finish_reason].count("interrupt") >= 1
    assert counts == []  # nothing more was fed
    for index in range(4):
        made = "".join(event.text for event in seen if event.index == index)
        made += "".join(text.text for text in texts if text.index == index)
        assert expected[index].startswith(made)


def test_prompts_in_which_the_barred_token_stands(model: LanguageModel, way: Callable[[bool], list[int]]) -> None:
    """It is read all the same, and not written."""
    way(False)
    expected = [text.text for text in model.generate_batch(["eeeee", "Teeth", "e"], seed=1, max_tokens=30).texts()]
    way(True)
    texts = [text.text for text in model.generate_batch(["eeeee", "Teeth", "e"], seed=1, max_tokens=30).texts()]
    assert texts == expected
    assert not any("e" in text for text in texts)


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_batches_that_grow_and_shrink_change_their_way(
    model: LanguageModel, way: Callable[[bool], list[int]], monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    settings: dict[str, Any] = {"batch_size": 20, "max_tokens": 40, "seed": 3, "temperature": temperature}
    way(False)
    expected = [text.text for text in model.generate_batch(PROMPTS, **settings).texts()]
    counts = way(True)
    monkeypatch.setattr(row_writers, "BURSTS_UP_TO", 6)
    coming = Coming(PROMPTS, [3 * index for index in range(70)])
    assert [text.text for text in model.generate_batch(coming, **settings).texts()] == expected
    ways = [count > 0 for count in counts]
    first, last = ways.index(False), len(ways) - ways[::-1].index(False)
    assert all(ways[:first])
    assert first > 0  # few rows: bursts
    assert any(ways[last:])
    assert not any(ways[first : first + 10])


def test_how_long_bursts_are() -> None:
    assert _burst([40, 40], 8) == 8
    assert _burst([5, 5, 5], 8) == 5  # never past all of them
    assert _burst([3, 8, 8], 8) == 3  # few rows: up to the first end
    assert _burst([1] + [8] * 99, 8) == 8  # one of a hundred may stay idle
    assert _burst([1] * 50 + [8] * 50, 8) == 1
    assert _burst([8], 1) == 1


def test_how_batches_get_smaller_and_larger(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [larger_batch(model.graph, 3, used, 100) for used in (4, 99)] == [4, 99]
    assert [smaller_batch(model.graph, 100, used) for used in (99, 70, 69, 1)] == [100, 100, 69, 1]
    monkeypatch.setattr(model.graph, "device", "cuda")
    assert [smaller_batch(model.graph, 255, used) for used in (255, 1)] == [255, 255]
    assert [smaller_batch(model.graph, 4100, used) for used in (4100, 1026, 1025, 257, 65, 1)] == [
        *(4100, 4100, 1025, 1025, 256, 64)
    ]
    assert [larger_batch(model.graph, 3, used, 100) for used in (4, 12, 13, 49)] == [12, 12, 48, 100]


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_batches_that_keep_idle_rows(
    model: LanguageModel, way: Callable[[bool], list[int]], monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """As on CUDA, where batches get smaller in few steps."""
    settings: dict[str, Any] = {"batch_size": 11, "max_tokens": 30, "seed": 3, "temperature": temperature}
    way(False)
    expected = [text.text for text in model.generate_batch(PROMPTS, **settings).texts()]
    way(True)
    sizes: list[int] = []

    def power_of_two(graph: object, batch: int, used: int) -> int:
        sizes.append(min(batch, 1 << (used - 1).bit_length()))
        return sizes[-1]

    monkeypatch.setattr("rnn_edge.batch_generation.smaller_batch", power_of_two)
    assert [text.text for text in model.generate_batch(PROMPTS, **settings).texts()] == expected
    assert set(sizes) >= {8, 4}


def test_buffers_of_batches_are_lent_on_where_they_are_captured(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Owner:
        pass

    def lent(batch: int) -> Chooser:
        return model.graph.borrow_chooser(Owner(), batch)  # given back at once

    assert lent(3) is not lent(3)
    assert lent(1) is lent(1)
    monkeypatch.setattr(model.graph, "_captures", True)
    monkeypatch.setattr(model.graph, "capture", lambda: None)
    kept = lent(3)
    assert kept is lent(3)
    assert lent(4).batch == 4
    for batch in range(5, 15):
        lent(batch)
    assert lent(3) is not kept  # not for ever
