"""Several steps as one graph: the same tokens and states as one by one, with filters and without."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from onnxruntime import InferenceSession

from rnn_edge import unrolling
from rnn_edge.choice import NO_FILTERS, Filters, choice_nodes
from rnn_edge.chooser import DEPTH
from rnn_edge.language_model import LanguageModel
from rnn_edge.onnx_model import read_model
from rnn_edge.onnx_nodes import Node, Tensor, model_bytes
from rnn_edge.sampling import Sampler, SamplingOptions
from rnn_edge.state import State
from rnn_edge.unrolling import STEPS, UnrolledGraphs
from tests.device.tiny import DATA

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "top_k": 3},
    {"temperature": 0.8},
    {"top_k": 1},
    {"top_k": 5, "temperature": 2.0},
    {"top_k": 10_000},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"top_p": 0.6, "top_k": 7, "temperature": 3.0},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 12, "top_p": 0.8, "min_p": 0.05, "temperature": 1.5},
    {"repeat_penalty": 1.4},
    {"repeat_penalty": 3.0, "repeat_window": 8, "temperature": 0.0},
    {"repeat_penalty": 0.7, "repeat_window": 11},
    {"repeat_penalty": 1.2, "top_k": 9, "top_p": 0.9, "min_p": 0.02},
]
PLAIN_FILTERS = [item for item in SETTINGS if not {"temperature", "repeat_penalty"} & set(item)]
FILTERS = Filters(top_k=3)


@pytest.fixture(params=["lstm", "gru"])
def fresh(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel.load(DATA / str(request.param), device="cpu")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs pay from the first token on."""
    monkeypatch.setattr(unrolling, "_PAYS_AFTER", 0)
    monkeypatch.setattr(unrolling, "_FILTERS_PAY_AFTER", 0)


def one_by_one(model: LanguageModel, count: int, **settings: Any) -> tuple[list[int], list[State]]:
    """Tokens chosen outside of the graph, and the state after each step."""
    stepper, size = model.graph.stepper(), model.manifest.tokenizer.vocabulary_size
    tokens, states = [model.tokenizer.encode("M")[0]], list[State]()
    barred = model.manifest.special_ids.unknown
    sampler = Sampler(SamplingOptions(**settings), size, seed=7, recent=tokens, barred=barred)
    for _ in range(count):
        tokens.append(sampler.choose(stepper.step(tokens[-1])[0]))
        states.append(stepper.state())
    return tokens[1:], states


def sessions(model: LanguageModel) -> list[Filters]:
    """What graphs there are."""
    unrolled = model.graph.unrolled(1)
    assert unrolled is not None
    return list(unrolled._sessions)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_text_and_every_state_in_it(fresh: LanguageModel, settings: dict[str, Any]) -> None:
    expected, states = one_by_one(fresh, 42, **settings)
    generation = fresh.generate("M", max_tokens=42, seed=7, **settings)
    for token, state in zip(expected, states, strict=True):
        assert next(generation).token == token
        assert generation.state().largest_difference(state) == 0
    assert next(generation).finish_reason == "length"
    assert len(sessions(fresh)) == 1


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.8}, {"top_k": 5, "top_p": 0.9}, {"repeat_penalty": 2.0, "repeat_window": 9}], ids=str
)
def test_in_the_middle_of_a_text(
    fresh: LanguageModel, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(unrolling, "_PAYS_AFTER", 10)
    monkeypatch.setattr(unrolling, "_FILTERS_PAY_AFTER", 10)
    expected, states = one_by_one(fresh, 50, **settings)
    generation = fresh.generate("M", max_tokens=50, seed=7, **settings)
    assert [next(generation).token for _ in range(9)] == expected[:9]
    assert sessions(fresh) == []
    assert [next(generation).token for _ in range(41)] == expected[9:]
    assert len(sessions(fresh)) == 1
    assert generation.state().largest_difference(states[-1]) == 0
    assert generation.state().continuation.step == 50


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("wanted", [1, 2, 6, 11])
def test_cancel_in_mid_burst(fresh: LanguageModel, wanted: int) -> None:
    expected, states = one_by_one(fresh, wanted, top_k=4)
    generation = fresh.generate("M", seed=7, top_k=4)
    assert [next(generation).token for _ in range(wanted)] == expected
    generation.cancel()
    assert next(generation).finish_reason == "interrupt"
    assert generation.state().largest_difference(states[-1]) == 0


@pytest.mark.usefixtures("at_once")
def test_the_opinion_stays_the_model_s(fresh: LanguageModel) -> None:
    def opinions(**settings: Any) -> list[float | None]:
        found = fresh.generate("M", max_tokens=20, seed=7, log_probabilities=True, top_k=5, **settings)
        return [event.log_probability for event in found]

    assert opinions() == opinions(
        repeat_window=1, repeat_penalty=1 + 1e-12
    )  # which goes one by one, and changes nothing


def test_several_streams_share_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ["M", "A lamp", "It"]

    def texts(model: LanguageModel) -> list[str]:
        found = model.generate_batch(prompts, max_tokens=30, seed=3).texts()
        return [text.text for text in found]

    expected = texts(LanguageModel.load(DATA / "lstm", device="cpu"))
    monkeypatch.setattr(unrolling, "_PAYS_AFTER", 0)
    model = LanguageModel.load(DATA / "lstm", device="cpu")
    assert texts(model) == expected
    assert sessions(model) == [NO_FILTERS]


# --- when it pays


def test_short_texts_never_make_one(fresh: LanguageModel) -> None:
    list(fresh.generate("M", max_tokens=40))
    list(fresh.generate("M", max_tokens=40, top_k=3))
    assert sessions(fresh) == []


def test_texts_count_together(fresh: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unrolling, "_PAYS_AFTER", 100)
    monkeypatch.setattr(unrolling, "_FILTERS_PAY_AFTER", 50)
    for _ in range(3):
        assert sessions(fresh) == []
        list(fresh.generate("M", max_tokens=40))
    assert sessions(fresh) == [NO_FILTERS]
    list(fresh.generate("M", max_tokens=49, top_k=3))
    assert sessions(fresh) == [NO_FILTERS]
    list(fresh.generate("M", max_tokens=2, top_k=3))
    assert sessions(fresh) == [NO_FILTERS, FILTERS]


@pytest.mark.usefixtures("at_once")
def test_there_are_few(fresh: LanguageModel) -> None:
    for top_k in (2, 3, 4, 5, 6, 2):
        expected = one_by_one(fresh, 12, top_k=top_k)[0]
        found = [event.token for event in fresh.generate("M", max_tokens=12, seed=7, top_k=top_k)]
        assert found[:-1] == expected
    assert sessions(fresh) == [Filters(top_k=top_k) for top_k in (2, 3, 4, 5)]


def test_not_where_steps_are_slow_or_on_cuda_or_in_large_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = LanguageModel.load(DATA / "lstm", device="cpu").bundle
    graphs = UnrolledGraphs(bundle, "cpu", 1)
    assert 0 < graphs.steps_before(FILTERS) < graphs.steps_before(NO_FILTERS)
    graphs.note(NO_FILTERS, 10**6, seconds=0.1)
    assert graphs.steps_before(NO_FILTERS) == graphs.steps_before(FILTERS) == sys.maxsize
    graphs.note(NO_FILTERS, 1, seconds=0.001)  # the machine was busy with something else
    assert graphs.steps_before(NO_FILTERS) == 0
    on_cuda = UnrolledGraphs(bundle, "cuda", 1)
    assert on_cuda.steps_before(NO_FILTERS) == sys.maxsize
    on_cuda.always()
    assert on_cuda.steps_before(NO_FILTERS) == on_cuda.steps_before(FILTERS) == 0
    monkeypatch.setattr(unrolling, "_LARGEST", (bundle.path / "step.onnx").stat().st_size - 1)
    assert UnrolledGraphs(bundle, "cpu", 1).steps_before(NO_FILTERS) == sys.maxsize


def test_filtered_texts_with_slow_steps_stay_step_by_step(
    fresh: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unrolling, "_FILTERS_PAY_AFTER", 10)
    monkeypatch.setattr(unrolling, "_SLOW", 0.0)
    list(fresh.generate("M", max_tokens=30, top_k=3))
    unrolled = fresh.graph.unrolled(1)
    assert unrolled is not None
    assert unrolled.steps_before(FILTERS) == sys.maxsize
    monkeypatch.setattr(unrolling, "_SLOW", 60.0)
    assert unrolled.steps_before(FILTERS) == 0


@pytest.mark.parametrize(
    ("settings", "size", "expected"),
    [
        ({}, 65, NO_FILTERS),
        ({"temperature": 0, "top_p": 0.9}, 65, NO_FILTERS),
        ({"top_k": 65}, 65, NO_FILTERS),
        ({"top_k": 3}, 50_000, FILTERS),
        ({"top_p": 0.9}, 513, None),  # sorting
        ({"repeat_penalty": 1.1}, 65, Filters(penalty=1.1)),
        ({"repeat_penalty": 1.1, "repeat_window": 7}, 65, None),
    ],
)
def test_which_choices_are_a_graph_s(settings: dict[str, Any], size: int, expected: Filters | None) -> None:
    assert Filters.of(SamplingOptions(**settings), None, size) == expected


# --- the nodes


def choosing_session(size: int, filters: Filters) -> InferenceSession:
    axes = ("batch", size)
    given, logits = Tensor("given", "float32", axes), Tensor("logits", "float32", axes)
    content = model_bytes([Node("Identity", ("given",), "logits")], [given], [logits])
    model = read_model(content + choice_nodes(), "a test")
    filters.apply(model, size)
    model.opsets[""] = 18
    return InferenceSession(replace(model).encode(), providers=["CPUExecutionProvider"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [2, 65, 400])
@pytest.mark.parametrize("barred", [None, 1])
@pytest.mark.parametrize("settings", PLAIN_FILTERS, ids=str)
def test_the_graph_chooses_what_numpy_chooses(size: int, barred: int | None, settings: dict[str, Any]) -> None:
    options, random = SamplingOptions(**settings), np.random.default_rng(size)
    filters = Filters.of(options, barred, size)
    assert filters is not None
    if not filters.any:
        return
    session = choosing_session(size, filters)
    sampler = Sampler(options, size, seed=3, barred=barred)
    noise = Sampler(options, size, seed=3, barred=barred)._noise
    for _ in range(60):
        logits = (random.standard_normal((1, size)) * random.choice([0.1, 1, 8])).astype(np.float32)
        logits[0, random.integers(0, size, 2)] = logits.max()  # ties
        row = noise.take().copy()
        row[0, [] if barred is None else [barred]] = -np.inf
        feeds = {"given": logits, "temperature": np.array([options.temperature], np.float32), "noise": row}
        assert session.run(["choice"], feeds)[0].tolist() == [sampler.choose(logits[0])]


def test_weights_are_there_once() -> None:
    bundle = LanguageModel.load(DATA / "lstm", device="cpu").bundle
    content = bundle.graph("step")
    model = read_model(content + choice_nodes(), "a test")
    unrolled = unrolling.unroll(model, bundle.manifest.state, bundle.manifest.tokenizer.vocabulary_size)
    assert len(unrolled) < len(content) + 20_000
    outputs = [item.name for item in InferenceSession(unrolled).get_outputs()]
    assert len(outputs) == STEPS * (2 + len(bundle.manifest.state))
    assert DEPTH % STEPS == 0  # so that bursts begin in few slots


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}], ids=str)
def test_texts_go_on_when_the_bundle_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(unrolling, "_PAYS_AFTER", 20)
    monkeypatch.setattr(unrolling, "_FILTERS_PAY_AFTER", 20)
    model = LanguageModel.load(copytree(DATA / "lstm", tmp_path / "lstm"), device="cpu")
    expected = one_by_one(model, 60, **settings)[0]
    graph = tmp_path / "lstm" / "step.onnx"
    graph.write_bytes(b"\0" * graph.stat().st_size)
    found = [event.token for event in model.generate("M", max_tokens=60, seed=7, temperature=0.8, **settings)]
    assert found[:-1] == expected
    assert sessions(model) == []


def test_not_with_graphs_within(fresh: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    unrolled = fresh.graph.unrolled(1)
    assert unrolled is not None
    unrolled.always()
    monkeypatch.setattr(unrolling, "_NESTED", ("Gather",))  # which every step graph has
    assert unrolled.session(NO_FILTERS) is None
    assert unrolled.steps_before(NO_FILTERS) == sys.maxsize
    assert len(list(fresh.generate("M", max_tokens=20, top_k=4))) == 21
