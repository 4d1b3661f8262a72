"""Bursts of steps whose tokens the graph chooses: the same tokens and states as step by step."""

from __future__ import annotations

import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from onnxruntime import InferenceSession

from rnn_edge import chooser as chooser_module
from rnn_edge.buffers import Buffer
from rnn_edge.choice import choice_nodes
from rnn_edge.chooser import DEPTH, Chooser
from rnn_edge.errors import BundleError
from rnn_edge.language_model import LanguageModel
from rnn_edge.noise import Noise, Values, gumbel_noise
from rnn_edge.onnx_nodes import Node, Tensor, model_bytes
from rnn_edge.reordering import Reordering, reordering_session
from rnn_edge.sampling import Sampler, SamplingOptions
from rnn_edge.state import State, zero_state

SETTINGS: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 0.8}, {"temperature": 3.0}]


@pytest.fixture(params=["lstm", "gru"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    loaded: LanguageModel = request.getfixturevalue(request.param)
    return loaded


def step_by_step(model: LanguageModel, start: int, count: int, **settings: Any) -> tuple[list[int], list[State]]:
    """Tokens chosen outside of the graph, and the state after each step."""
    stepper = model.graph.stepper()
    sampler = Sampler(SamplingOptions(**settings), model.manifest.tokenizer.vocabulary_size, seed=7)
    tokens, states = [start], []
    for _ in range(count):
        tokens.append(sampler.choose(stepper.step(tokens[-1])[0]))
        states.append(stepper.state())
    return tokens[1:], states


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("seconds", [0.0, 1.0], ids=["one at once", "as many as can be"])
def test_the_text_and_every_state_in_it(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], seconds: float
) -> None:
    monkeypatch.setattr(chooser_module, "BURST_SECONDS", seconds)
    text = "M"
    expected, states = step_by_step(model, model.tokenizer.encode(text)[0], 40, **settings)
    generation = model.generate(text, max_tokens=40, seed=7, **settings)
    assert generation.state().largest_difference(zero_state(model.manifest)) == 0
    for token, state in zip(expected, states, strict=True):
        assert next(generation).token == token
        assert generation.state().largest_difference(state) == 0
    assert next(generation).finish_reason == "length"
    assert generation.state().largest_difference(states[-1]) == 0


@pytest.mark.parametrize("wanted", [1, 2, 9, 12])
def test_cancel_in_mid_burst(lstm: LanguageModel, monkeypatch: pytest.MonkeyPatch, wanted: int) -> None:
    monkeypatch.setattr(chooser_module, "BURST_SECONDS", 1.0)
    expected, states = step_by_step(lstm, lstm.tokenizer.encode("M")[0], wanted, temperature=0.8)
    generation = lstm.generate("M", seed=7, temperature=0.8)
    assert [next(generation).token for _ in range(wanted)] == expected
    generation.cancel()
    (end,) = generation
    assert end.finish_reason == "interrupt"
    assert generation.state().largest_difference(states[-1]) == 0
    assert generation.state().continuation.step == wanted


def test_the_first_token_comes_alone_and_bursts_are_short(lstm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    run = Chooser.run

    def counted(self: Chooser, count: int, noise: Any = None) -> Any:
        counts.append(count)
        return run(self, count, noise)

    monkeypatch.setattr(Chooser, "run", counted)
    list(lstm.generate("M", max_tokens=30, temperature=0))
    assert counts[0] == 1
    assert sum(counts) == 30
    assert max(counts) == DEPTH  # steps of this model take microseconds
    counts.clear()
    clock = iter(range(10_000))
    monkeypatch.setattr(
        chooser_module, "perf_counter", lambda: 0.02 * next(clock)
    )  # a step takes longer than a burst may
    list(lstm.generate("M", max_tokens=5, temperature=0))
    assert counts == [1] * 5


def test_generations_side_by_side_and_one_after_another(lstm: LanguageModel) -> None:
    def text(seed: int) -> str:
        return "".join(event.text for event in lstm.generate("M", max_tokens=30, seed=seed))

    expected = [text(1), text(2)]
    both = [lstm.generate("M", max_tokens=30, seed=seed) for seed in (1, 2)]
    pieces = ["", ""]
    for _ in range(30):
        for index, generation in enumerate(both):
            pieces[index] += next(generation).text
    assert pieces == expected
    del both, generation
    gc.collect()
    # A greedy text after a drawn one: nothing of its noise is left in the buffers.
    greedy = step_by_step(lstm, lstm.tokenizer.encode("M")[0], 20, temperature=0)[0]
    assert [event.token for event in lstm.generate("M", max_tokens=20, temperature=0)][:-1] == greedy
    assert text(1) == expected[0]


def test_texts_of_many_threads(lstm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def text(seed: int) -> str:
        return "".join(event.text for event in lstm.generate("M", max_tokens=3, seed=seed))

    monkeypatch.setattr(lstm.graph, "_choosers", [])
    expected = [text(seed) for seed in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(100):
                assert list(pool.map(text, range(4))) == expected
    finally:
        sys.setswitchinterval(interval)


def test_buffers_are_used_again(lstm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Chooser] = []
    create = Chooser.__init__

    def counted(self: Chooser, *arguments: Any) -> None:
        made.append(self)
        create(self, *arguments)

    monkeypatch.setattr(Chooser, "__init__", counted)
    monkeypatch.setattr(lstm.graph, "_choosers", [])
    for _ in range(5):
        list(lstm.generate("M", max_tokens=12))
    assert len(made) == 1


def test_several_streams_at_once(lstm: LanguageModel) -> None:
    """The ring itself takes any batch, greedy."""
    chooser, stepper = Chooser(lstm.graph, 3), lstm.graph.stepper(3)
    tokens = np.array([1, 5, 9])
    chooser.start(zero_state(lstm.manifest, 3), tokens, 1.0)
    for count in (1, 3, DEPTH, 5):
        found = chooser.run(count)
        assert found.shape == (count, 3)
        for index in range(count):
            tokens = stepper.step(tokens).argmax(axis=1)
            assert found[index].tolist() == tokens.tolist()
            assert np.array_equal(chooser.logits(index).argmax(axis=1), tokens)
        assert chooser.state(count).largest_difference(stepper.state()) == 0


def test_a_graph_that_fails(lstm: LanguageModel) -> None:
    chooser = Chooser(lstm.graph)
    chooser.start(zero_state(lstm.manifest), 10**6, 1.0)
    with pytest.raises(BundleError, match="the graph fails"):
        chooser.run(1)


# --- the nodes


def choosing_session() -> InferenceSession:
    given, logits = Tensor("given", "float32", ("batch", "size")), Tensor("logits", "float32", ("batch", "size"))
    return InferenceSession(model_bytes([Node("Identity", ("given",), "logits")], [given], [logits]) + choice_nodes())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [2, 65, 5000])
def test_the_graph_chooses_what_numpy_chooses(size: int) -> None:
    session, random = choosing_session(), np.random.default_rng(size)
    assert [item.name for item in session.get_inputs()] == ["given"]
    for temperature in (0.3, 0.8, 1.7):
        sampler = Sampler(SamplingOptions(temperature=temperature), size, seed=3, stream=5, step=11)
        noise = gumbel_noise(3, 5, 11, 50, size)
        for row in noise:
            logits = (random.standard_normal((1, size)) * random.choice([0.1, 1, 8])).astype(np.float32)
            logits[0, random.integers(0, size, 2)] = logits.max()  # ties
            feeds = {"given": logits, "temperature": np.array([temperature], np.float32), "noise": row[None]}
            assert session.run(["choice"], feeds)[0].tolist() == [sampler.choose(logits[0])]


def test_left_out_the_likeliest_is_chosen() -> None:
    session = choosing_session()
    logits = np.array([[1, 3, 3], [2, 0, 1], [-5, -6, -1]], np.float32)
    assert session.run(["choice"], {"given": logits})[0].tolist() == [1, 0, 2]


def test_quotients_are_those_of_numpy() -> None:
    """Not products with a reciprocal, which differ in the last bit and so, rarely, in the token."""
    session = choosing_session()
    values = np.random.default_rng(1).standard_normal((1, 100_000)).astype(np.float32) * 10
    quotients = values / np.float32(0.7)
    # The noise takes the quotient of NumPy away again: what is left is 0 everywhere, and the first id is chosen.
    feeds = {"given": values, "temperature": np.array([0.7], np.float32), "noise": -quotients}
    assert session.run(["choice"], feeds)[0].tolist() == [0]
    assert (values * np.float32(1 / 0.7) != quotients).any()


# --- noise in pieces, rows in another order


def test_noise_taken_in_pieces() -> None:
    whole = gumbel_noise(5, 2, 30, 1200, 70)
    noise, sizes = Noise(70, seed=5, stream=2, step=30), iter([1, 3, 8] * 200)
    pieces: list[Values] = []
    while sum(len(piece) for piece in pieces) < 1000:
        pieces.append(noise.take(next(sizes)))
        assert len(pieces[-1]) >= 1
    joined = np.concatenate(pieces)
    assert np.array_equal(joined, whole[: len(joined)])


def test_reordering() -> None:
    random = np.random.default_rng(0)
    arrays = {"h0": random.random((4, 6), np.float32), "c0": random.random((4, 3), np.float32)}
    sides = [{name: Buffer(array.copy(), "cpu") for name, array in arrays.items()} for _ in range(2)]
    session = reordering_session({"h0": 6, "c0": 3}, "cpu")
    reordering = Reordering(session, sides, "cpu")
    rows = [2, 2, 0, 1]
    reordering.run(0, rows)
    for name, array in arrays.items():
        assert np.array_equal(sides[1][name].read(), array[rows])
    reordering.run(1, [3, 3, 3, 0])
    for name, array in arrays.items():
        assert np.array_equal(sides[0][name].read(), array[rows][[3, 3, 3, 0]])
