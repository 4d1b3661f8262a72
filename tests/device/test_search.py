"""The search over a decoder's steps: tables that a reader can follow, and a reference that takes no short cuts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from rnn_edge.beam_search import beam_search, largest
from rnn_edge.encoder_decoder import Encoded, EncoderDecoderGraphs
from rnn_edge.errors import BundleError
from rnn_edge.manifest import SpecialIds
from rnn_edge.sampling import Sampler, SamplingOptions
from rnn_edge.search import Choose, Hypothesis, Scoring, collect, follow, log_normalisers
from rnn_edge.slots import Slots
from rnn_edge.state import State
from rnn_edge.stepper import LENGTHS, Logits, Memory

START, END = 0, 1
PLACES = 8191  # prime, and exact in float32
LONGEST = 12  # of the sources

Tokens = tuple[int, ...]


class Decoder:
    """Stands in for both graphs: a network that remembers one number, which each token changes.

    Logits and attention are rows of tables, at a place that the number and the sentence make: a hypothesis that went on
    with the state of another, or with the memory of another sentence, would get other ones.
    """

    def __init__(self, vocabulary: int, seed: int = 0, *, factor: int = 31, stride: int = 977) -> None:
        """With ``factor`` and ``stride`` 0 only the last token counts."""
        random = np.random.default_rng(seed)
        self.vocabulary, self.factor, self.stride = vocabulary, factor, stride
        self.logits = random.normal(0, 1.5, (PLACES, vocabulary)).astype(np.float32)
        self.weights = np.exp(random.normal(0, 1.5, (PLACES, LONGEST))).astype(np.float32)
        self.manifest = SimpleNamespace(special_ids=SpecialIds(start=START, end=END))
        self.batches: list[int] = []  # of every step that was made
        self.widths: list[int] = []  # of the attention in every step
        self.encoded: list[list[int]] = []  # the sentences of each call of the encoder

    @property
    def graphs(self) -> EncoderDecoderGraphs:
        return cast(EncoderDecoderGraphs, self)

    def slots(self, lengths: Sequence[int], batch: int = 32, width: int = 1) -> Slots:
        """Sentences with these source lengths, whose every token is their number."""
        return Slots(self.graphs, [[number] * length for number, length in enumerate(lengths)], batch, width)

    def encode(self, sources: Sequence[Sequence[int]]) -> Encoded:
        """The memory of each sentence is its number."""
        lengths = np.array([len(source) for source in sources])
        self.encoded.append([source[0] for source in sources])
        memory = np.zeros((len(lengths), lengths.max(), 1), np.float32)
        memory[:] = np.array(self.encoded[-1])[:, None, None]
        return Encoded({"memory": memory, LENGTHS: lengths}, State({"h": np.zeros((len(lengths), 1), np.float32)}))

    def stepper(self, encoded: Encoded) -> Stepper:
        return Stepper(self, encoded)

    def log_probabilities(self, sentence: int, tokens: Tokens) -> NDArray[np.float64]:
        """Of each token after these."""
        logits = self.logits[self._place(sentence, tokens)].astype(np.float64)
        return cast("NDArray[np.float64]", logits - np.log(np.exp(logits).sum()))

    def attention(self, sentence: int, length: int, tokens: Tokens) -> Logits:
        """float32 [len(tokens), length]: a row for each token, of the step that chose it."""
        rows = [self._place(sentence, tokens[:index]) for index in range(len(tokens))]
        weights = self.weights[rows][:, :length]
        return cast(Logits, weights / weights.sum(axis=1, keepdims=True))

    def _place(self, sentence: int, tokens: Tokens) -> int:
        state = 0
        for token in (START, *tokens):
            state = (state * self.factor + token) % PLACES
        return (state + self.stride * sentence) % PLACES


class Stepper:
    """Gives buffers that the next step overwrites, and pads attention with zeros, as the shipped one does."""

    def __init__(self, decoder: Decoder, encoded: Encoded) -> None:
        self.batch = len(encoded.lengths)
        self.memory = encoded.memory
        self.attention: Logits = np.zeros(encoded.memory["memory"].shape[:2], np.float32)
        self._decoder = decoder
        self._state = encoded.state.tensors["h"].copy()
        self._logits = np.zeros((self.batch, decoder.vocabulary), np.float32)

    def step(self, tokens: NDArray[np.int64]) -> Logits:
        assert tokens.shape == (self.batch,)
        self._decoder.batches.append(self.batch)
        state = (self._state[:, 0].astype(np.int64) * self._decoder.factor + tokens) % PLACES
        self._state[:, 0] = state
        places = (state + self._decoder.stride * self.memory["memory"][:, 0, 0].astype(np.int64)) % PLACES
        self._logits[:] = self._decoder.logits[places]
        width = self.attention.shape[1]
        self._decoder.widths.append(width)
        weights = np.where(np.arange(width) < self.memory[LENGTHS][:, None], self._decoder.weights[places, :width], 0)
        self.attention[:] = weights / weights.sum(axis=1, keepdims=True)
        return self._logits

    def reorder(self, rows: NDArray[np.int64]) -> None:
        self._state = self._state[rows]

    def replace(self, rows: NDArray[np.int64], state: State, memory: Memory) -> None:
        assert memory["memory"].shape[1] <= self.attention.shape[1]
        self.memory["memory"][rows, : memory["memory"].shape[1]] = memory["memory"][:, None]
        self.memory[LENGTHS][rows] = memory[LENGTHS][:, None]
        self._state[rows] = state.tensors["h"][:, None]

    def state(self) -> State:
        return State({"h": self._state.copy()})


def table(*rows: Sequence[float]) -> Decoder:
    """A decoder that looks only at the last token: the probability of each token after token 0, after token 1, …"""
    decoder = Decoder(len(rows[0]), factor=0, stride=0)
    with np.errstate(divide="ignore"):
        decoder.logits[: len(rows)] = np.log(rows)
    return decoder


def score_of(decoder: Decoder, sentence: int, length: int, tokens: Tokens, scoring: Scoring) -> tuple[float, float]:
    """Log probability and score of tokens, the end token included, by the formula of Wu et al."""
    steps = [decoder.log_probabilities(sentence, tokens[:index])[token] for index, token in enumerate(tokens)]
    covered = np.minimum(decoder.attention(sentence, length, tokens).sum(axis=0, dtype=np.float64), 1)
    penalty = ((5 + len(tokens)) / 6) ** scoring.length_penalty
    value = sum(steps) / penalty + scoring.coverage_penalty * float(np.log(covered).sum())
    return float(sum(steps)), float(value)


def reference(
    decoder: Decoder,
    sentence: int,
    length: int,
    limit: int,
    *,
    beam: int,
    n_best: int,
    scoring: Scoring,
    prefix: Tokens = (),
) -> list[tuple[float, Tokens]]:
    """Beam search to the very end: scores and tokens, the end token included."""
    going: list[tuple[float, Tokens]] = [(0.0, ())]
    finished: list[Tokens] = []
    for step in range(limit):
        continuations = [
            (value + more, (*tokens, token))
            for value, tokens in going
            for token, more in enumerate(decoder.log_probabilities(sentence, tokens).tolist())
            if step >= len(prefix) or token == prefix[step]
        ]
        continuations.sort(key=lambda item: -item[0])
        finished += [tokens for _, tokens in continuations[:beam] if tokens[-1] == END]
        going = [item for item in continuations if item[1][-1] != END][:beam]

    def ranked(found: list[Tokens]) -> list[tuple[float, Tokens]]:
        scored = [(score_of(decoder, sentence, length, tokens, scoring)[1], tokens) for tokens in found]
        return sorted(scored, key=lambda item: -item[0])

    best = ranked(finished)[:n_best]
    return best + ranked([tokens for _, tokens in going])[: n_best - len(best)]


def check(
    found: list[Hypothesis],
    expected: list[tuple[float, Tokens]],
    decoder: Decoder,
    sentence: int,
    length: int,
    scoring: Scoring,
) -> None:
    """The expected scores in this order, and hypotheses that are what their tokens make them."""
    assert [item.score for item in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [(*item.tokens, *([END] if item.finished else [])) for item in found] == [tokens for _, tokens in expected]
    for item, (score, tokens) in zip(found, expected, strict=True):
        log_probability, again = score_of(decoder, sentence, length, tokens, scoring)
        assert again == score
        assert item.log_probability == pytest.approx(log_probability, abs=1e-4)
        np.testing.assert_allclose(item.attention, decoder.attention(sentence, length, tokens), rtol=1e-5)


# --- pure functions

FEW = st.sampled_from([-math.inf, -3.0, -1.0, 0.0, 0.5, 2.0])  # so that there are ties
ANY = st.floats(-100, 100, width=32)


@given(st.data())
@settings(max_examples=150)
def test_largest_is_the_start_of_a_stable_sort(data: st.DataObject) -> None:
    groups, per_group = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    size, count = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 40))
    elements = data.draw(st.sampled_from([FEW, ANY]))
    rows = groups * per_group
    values = data.draw(arrays.arrays(np.float32, (rows, size), elements=elements))
    offsets = data.draw(arrays.arrays(np.float32, rows, elements=elements))
    before = values.copy()
    best, places = largest(values, offsets, groups, count)
    flat = (values + offsets[:, None]).reshape(groups, per_group * size)
    expected = np.argsort(-flat, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(best, np.take_along_axis(flat, expected, axis=1))
    # What is impossible may stand in any order, and at any place.
    np.testing.assert_array_equal(np.where(best == -np.inf, -1, places), np.where(best == -np.inf, -1, expected))
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("size", [1, 63, 64, 67, 1000, 4099])
def test_largest_of_equal_values_are_the_first(size: int) -> None:
    values = np.zeros((6, size), np.float32)
    best, places = largest(values, np.zeros(6, np.float32), 2, 8)
    count = min(8, 3 * size)
    assert best.tolist() == [[0.0] * count] * 2
    assert places.tolist() == [list(range(count))] * 2


@pytest.mark.parametrize("size", [1, 63, 67, 128])
def test_largest_gives_all_where_there_are_no_more(size: int) -> None:
    values = np.random.default_rng(0).normal(size=(2, size)).astype(np.float32)
    best, places = largest(values, np.zeros(2, np.float32), 1, 10_000)
    assert places.tolist() == [np.argsort(-values.ravel()).tolist()]
    assert best.tolist() == [np.sort(values.ravel())[::-1].tolist()]


@given(arrays.arrays(np.float32, (19, 17), elements=st.floats(-1000, 1000, width=32)))
def test_log_normalisers(logits: Logits) -> None:
    wide = logits.astype(np.float64)
    expected = wide.max(axis=1) + np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1))
    np.testing.assert_allclose(log_normalisers(logits), expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(wide, logits)  # it leaves its argument alone


@pytest.mark.parametrize("row", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]], ids=str)
def test_logits_that_are_no_probabilities(row: list[float]) -> None:
    with pytest.raises(BundleError, match="the model gives logits that are not finite"):
        log_normalisers(np.array([[1.0, 2.0], row], np.float32))
    decoder = Decoder(2)
    decoder.logits[:] = row
    with pytest.raises(BundleError):
        followed(decoder, [1], [5])
    with pytest.raises(BundleError):
        searched(decoder, [1], [5], beam=2)


def test_the_score_of_wu_et_al() -> None:
    coverage = np.array([0.5, 2.0, 1.0], np.float32)
    assert Scoring(0, 0).score(-6.0, 7, None) == -6
    assert Scoring(1, 0).score(-6.0, 7, coverage) == -3  # (5 + 7) / 6 = 2
    assert Scoring(0.5, 0).score(-6.0, 19, coverage) == -3  # √4
    assert Scoring(1, 0.2).score(-6.0, 7, coverage) == pytest.approx(-3 + 0.2 * math.log(0.5))
    assert Scoring(0, 1).score(0.0, 1, np.zeros(1, np.float32)) == pytest.approx(math.log(1e-9))  # not minus infinity


# --- one hypothesis at a time

#                     <s>  </s>    a    b
CHAIN = table(
    (0.0, 0.1, 0.6, 0.3),  # after <s>
    (1.0, 0.0, 0.0, 0.0),
    (0.0, 0.3, 0.1, 0.6),  # after a
    (0.0, 0.9, 0.0, 0.1),  # after b
)
A, B = 2, 3


def followed(
    decoder: Decoder,
    lengths: Sequence[int],
    limits: Sequence[int],
    prefixes: Sequence[Tokens] | None = None,
    scoring: Scoring = Scoring(0),  # noqa: B008  # frozen
    batch: int = 32,
) -> list[Hypothesis]:
    slots = decoder.slots(lengths, batch)
    return collect(follow(slots, limits, None, prefixes), slots.sources, END, scoring)


def test_greedy_takes_the_likeliest_at_each_step() -> None:
    (found,) = followed(CHAIN, [3], [10])
    assert (found.tokens, found.finished) == ((A, B), True)
    assert found.log_probability == pytest.approx(math.log(0.6 * 0.6 * 0.9), abs=1e-5)
    assert found.score == found.log_probability
    assert found.attention.shape == (3, 3)


def test_a_limit_cuts_off() -> None:
    found = followed(CHAIN, [1, 1, 1], [1, 2, 3])
    assert [(item.tokens, item.finished) for item in found] == [((A,), False), ((A, B), False), ((A, B), True)]
    assert [len(item.attention) for item in found] == [1, 2, 3]


def test_steps_name_their_sentences() -> None:
    steps = list(follow(CHAIN.slots([2, 2, 2]), [1, 9, 2]))
    assert [step.sentences for step in steps] == [[0, 1, 2], [1, 2], [1]]
    assert [step.tokens for step in steps] == [[A, A, A], [B, B], [END]]
    assert [step.attention.shape for step in steps] == [(3, 2), (2, 2), (1, 2)]
    steps = list(follow(CHAIN.slots([2, 2, 2], 2), [1, 9, 2]))
    assert [step.sentences for step in steps] == [[0, 1], [2, 1], [2, 1]]
    assert [step.tokens for step in steps] == [[A, A], [A, B], [B, END]]


def test_log_probabilities_are_made_only_where_they_are_asked_for() -> None:
    decoder = Decoder(9)
    slots, silent = (decoder.slots([5, 4, 3], 2) for _ in range(2))
    asked = collect(follow(slots, [4, 2, 3]), slots.sources, END, Scoring(1, 0.2))
    found = collect(follow(silent, [4, 2, 3], log_probabilities=False), silent.sources, END, Scoring(1, 0.2))
    for one, other in zip(asked, found, strict=True):
        assert (other.tokens, other.finished) == (one.tokens, one.finished)
        np.testing.assert_array_equal(other.attention, one.attention)
        assert math.isnan(other.log_probability)
        assert math.isnan(other.score)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("asked", [True, False])
def test_logits_that_are_not_finite(value: float, *, asked: bool) -> None:
    decoder = Decoder(9)
    decoder.logits[:, slice(None) if value < 0 else 4] = value
    with pytest.raises(BundleError, match="the model gives logits that are not finite"):
        list(follow(decoder.slots([5, 4]), [4, 2], log_probabilities=asked))
    with pytest.raises(BundleError, match="the model gives logits that are not finite"):
        searched(decoder, [4], [6], beam=3)


def test_drawn_logits_that_are_not_finite() -> None:
    decoder = Decoder(9)
    decoder.logits[:, 4] = np.nan
    sampler = Sampler(SamplingOptions(), 9, seed=1)
    with pytest.raises(BundleError, match="the model gives logits that are not finite"):
        list(follow(decoder.slots([5, 4]), [4, 2], lambda _: sampler.choose, log_probabilities=False))


def test_nothing_ends_within_a_prefix() -> None:
    """Vocabularies from elsewhere may have the end as a word."""
    decoder = Decoder(9)
    slots = decoder.slots([4, 3], 2)
    targets = [(A, END, B, END), (END, END)]
    steps = list(follow(slots, [4, 2], prefixes=targets))
    found = [[step.tokens[step.sentences.index(n)] for step in steps if n in step.sentences] for n in range(2)]
    assert found == [list(target) for target in targets]


def test_prefixes_force_the_start_and_keep_the_model_s_opinion() -> None:
    found = followed(CHAIN, [2, 2, 2], [9, 9, 9], [(), (B,), (A, A)])
    assert [item.tokens for item in found] == [(A, B), (B,), (A, A, B)]
    expected = [0.6 * 0.6 * 0.9, 0.3 * 0.9, 0.6 * 0.1 * 0.6 * 0.9]
    assert [item.log_probability for item in found] == pytest.approx(np.log(expected), abs=1e-5)
    (whole,) = followed(CHAIN, [2], [2], [(B, END)])
    assert (whole.tokens, whole.finished) == ((B,), True)


def test_a_chooser_sees_each_sentence_s_logits_and_the_opinion_stays_the_model_s() -> None:
    decoder = Decoder(9)
    decoder.logits[:, END] += 50
    seen: list[tuple[int, Logits]] = []
    begun: list[int] = []

    def least(sentence: int) -> Choose:
        def choose(logits: Logits) -> int:
            seen.append((sentence, logits.copy()))
            return int(logits.argmin())

        begun.append(sentence)
        return choose

    slots = decoder.slots([5, 4, 3], 2)
    found = collect(follow(slots, [4, 2, 3], least), slots.sources, END, Scoring(0))
    assert [sentence for sentence, _ in seen] == [0, 1, 0, 1, 0, 2, 0, 2, 2]
    assert begun == [0, 1, 2]  # once, and no earlier than needed
    for sentence, item in enumerate(found):
        rows = [logits for owner, logits in seen if owner == sentence]
        assert list(item.tokens) == [int(row.argmin()) for row in rows]
        assert item.log_probability == pytest.approx(
            sum(decoder.log_probabilities(sentence, item.tokens[:i])[t] for i, t in enumerate(item.tokens)), abs=1e-4
        )


@given(st.integers(0, 2**32), st.lists(st.integers(1, LONGEST), min_size=1, max_size=9), st.data())
def test_a_batch_in_any_size_gives_what_each_sentence_gives_alone(
    seed: int, lengths: list[int], data: st.DataObject
) -> None:
    limits = [data.draw(st.integers(1, 15)) for _ in lengths]
    prefixes = [tuple(data.draw(st.lists(st.integers(2, 5), max_size=limit - 1))) for limit in limits]
    decoder, scoring, batch = Decoder(6, seed), Scoring(1, 0.3), data.draw(st.integers(1, 9))
    for sentence, item in enumerate(followed(decoder, lengths, limits, prefixes, scoring, batch)):
        tokens: Tokens = ()
        while len(tokens) < limits[sentence] and END not in tokens:
            forced = prefixes[sentence][len(tokens) : len(tokens) + 1]
            tokens += forced or (int(decoder.log_probabilities(sentence, tokens).argmax()),)
        expected = [(score_of(decoder, sentence, lengths[sentence], tokens, scoring)[1], tokens)]
        check([item], expected, decoder, sentence, lengths[sentence], scoring)


def test_no_row_is_computed_for_a_sentence_that_has_ended() -> None:
    decoder, limits = Decoder(6), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    forced = [(A,) * limit for limit in limits]
    followed(decoder, [3] * 10, limits, forced)
    assert decoder.batches == limits[::-1]
    decoder = Decoder(6)
    followed(decoder, [3] * 10, limits, forced, batch=4)
    assert sum(decoder.batches) == sum(limits)
    assert decoder.batches[:10] == [4] * 10  # full as long as sentences wait: the last but two end with step 10
    assert decoder.batches == sorted(decoder.batches, reverse=True)


def test_the_longest_come_first_and_are_encoded_when_they_are_needed() -> None:
    decoder = Decoder(6)
    limits = [5] * 6
    steps = follow(decoder.slots([3, 12, 4, 9, 3, 10], 2), limits, prefixes=[(A,) * 5] * 6)
    assert decoder.encoded == [[1, 5]]
    assert [next(steps).sentences for _ in range(5)] == [[1, 5]] * 5
    assert decoder.encoded == [[1, 5]]
    assert [next(steps).sentences for _ in range(6)] == [[3, 2]] * 5 + [[0, 4]]
    assert decoder.encoded == [[1, 5], [3, 2], [0, 4]]
    # Memory of 9 columns fits into one of 12; when none needs more than 3, there are no more.
    assert decoder.widths == [12] * 10 + [3]


# --- beams


def searched(
    decoder: Decoder,
    lengths: Sequence[int],
    limits: Sequence[int],
    *,
    beam: int,
    n_best: int = 1,
    scoring: Scoring = Scoring(0),  # noqa: B008  # frozen
    prefix: Tokens = (),
    batch: int = 32,
) -> list[list[Hypothesis]]:
    slots = decoder.slots(lengths, batch, beam)
    return beam_search(slots, limits, n_best=n_best, scoring=scoring, prefix=prefix)


def test_a_beam_finds_what_greedy_search_passes_by() -> None:
    #                 <s>  </s>   a     b
    decoder = table(
        (0.0, 0.0, 0.55, 0.45),  # a is likelier than b at first,
        (1.0, 0.0, 0.0, 0.0),
        (0.0, 0.4, 0.3, 0.3),  # but nothing likely follows it
        (0.0, 0.9, 0.1, 0.0),
    )
    (greedy,) = followed(decoder, [1], [8])
    assert greedy.tokens == (A,)
    (found,) = searched(decoder, [1], [8], beam=2, n_best=2)
    assert [item.tokens for item in found] == [(B,), (A,)]
    assert [item.log_probability for item in found] == pytest.approx(np.log([0.45 * 0.9, 0.55 * 0.4]), abs=1e-5)
    (narrow,) = searched(decoder, [1], [8], beam=1)
    assert [item.tokens for item in narrow] == [(A,)]


def test_the_length_penalty_prefers_longer_ones() -> None:
    #                 <s>  </s>   a    b
    decoder = table((0.0, 0.5, 0.5, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.1, 0.0, 0.9), (0.0, 0.9, 0.1, 0.0))
    short, long = math.log(0.5), math.log(0.5 * 0.9 * 0.9)
    (found,) = searched(decoder, [1], [8], beam=4, n_best=2)
    assert [item.tokens for item in found] == [(), (A, B)]
    assert [item.score for item in found] == pytest.approx([short, long], abs=1e-5)
    (found,) = searched(decoder, [1], [8], beam=4, n_best=2, scoring=Scoring(1.5))
    assert [item.tokens for item in found] == [(A, B), ()]
    assert [item.score for item in found] == pytest.approx([long / (8 / 6) ** 1.5, short], abs=1e-5)


def test_the_coverage_penalty_prefers_those_that_read_everything() -> None:
    #                 <s>  </s>   a    b
    decoder = table((0.0, 0.0, 0.6, 0.4), (1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0))
    decoder.weights[[START, A], :2] = (0.99, 0.01)
    decoder.weights[B, :2] = (0.01, 0.99)
    (found,) = searched(decoder, [2], [4], beam=2, n_best=2)
    assert [item.tokens for item in found] == [(A,), (B,)]
    (found,) = searched(decoder, [2], [4], beam=2, n_best=2, scoring=Scoring(0, 0.3))
    assert [item.tokens for item in found] == [(B,), (A,)]
    assert found[0].score == pytest.approx(math.log(0.4), abs=1e-5)  # both places are covered
    assert found[1].score == pytest.approx(math.log(0.6) + 0.3 * math.log(0.02), abs=1e-4)
    np.testing.assert_allclose(found[0].attention, [[0.99, 0.01], [0.01, 0.99]], rtol=1e-5)


@pytest.mark.parametrize("scoring", [Scoring(0), Scoring(1), Scoring(0.6, 0.3)], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_everything_finds_the_best_of_everything(seed: int, scoring: Scoring) -> None:
    decoder, limit = Decoder(4, seed), 4
    words = [token for token in range(4) if token != END]
    texts = [(*tokens, END) for count in range(limit) for tokens in product(words, repeat=count)]
    scored = [(score_of(decoder, 0, 5, tokens, scoring)[1], tokens) for tokens in texts]
    best = sorted(scored, key=lambda item: -item[0])
    for n_best in (1, 5, len(texts)):
        (found,) = searched(decoder, [5], [limit], beam=128, n_best=n_best, scoring=scoring)
        check(found, best[:n_best], decoder, 0, 5, scoring)


@given(
    seed=st.integers(0, 2**32),
    vocabulary=st.integers(2, 9),
    limit=st.integers(1, 10),
    beam=st.integers(1, 6),
    best=st.integers(1, 6),
    scoring=st.builds(Scoring, st.sampled_from([0, 0.6, 1]), st.sampled_from([0, 0.3])),
    eager=st.sampled_from([-2.0, 0.0, 2.0]),
    prefix=st.lists(st.just(0), max_size=2),
)
@settings(max_examples=200)
def test_stopping_early_changes_nothing(
    seed: int, vocabulary: int, limit: int, beam: int, best: int, scoring: Scoring, eager: float, prefix: list[int]
) -> None:
    """Against the reference, which goes on to the maximum length. ``eager`` makes the end token more or less likely."""
    decoder, n_best = Decoder(vocabulary, seed), min(best, beam)
    decoder.logits[:, END] += eager
    forced = tuple(prefix)[: limit - 1]
    expected = reference(decoder, 0, 7, limit, beam=beam, n_best=n_best, scoring=scoring, prefix=forced)
    (found,) = searched(decoder, [7], [limit], beam=beam, n_best=n_best, scoring=scoring, prefix=forced)
    check(found, expected, decoder, 0, 7, scoring)


@given(
    seed=st.integers(0, 2**32),
    lengths=st.lists(st.integers(1, LONGEST), min_size=2, max_size=6),
    beam=st.integers(1, 4),
    scoring=st.sampled_from([Scoring(0), Scoring(1, 0.3)]),
    prefix=st.sampled_from([(), (2,), (3, 2)]),
    data=st.data(),
)
@settings(max_examples=50)
def test_beams_in_a_batch_of_any_size_give_what_each_sentence_gives_alone(
    seed: int, lengths: list[int], beam: int, scoring: Scoring, prefix: Tokens, data: st.DataObject
) -> None:
    decoder = Decoder(70, seed)
    decoder.logits[:, END] += 4
    limits = [data.draw(st.integers(len(prefix) + 1, 12)) for _ in lengths]
    batch = data.draw(st.integers(1, 6))
    found = searched(decoder, lengths, limits, beam=beam, n_best=beam, scoring=scoring, prefix=prefix, batch=batch)
    for sentence, (length, limit) in enumerate(zip(lengths, limits, strict=True)):
        expected = reference(decoder, sentence, length, limit, beam=beam, n_best=beam, scoring=scoring, prefix=prefix)
        check(found[sentence], expected, decoder, sentence, length, scoring)


def test_nothing_is_computed_for_sentences_that_are_decided() -> None:
    decoder = Decoder(8)
    decoder.logits[:, END] += 20  # the end token at once
    searched(decoder, [3] * 4, [50] * 4, beam=2)
    assert len(decoder.batches) == 1
    decoder = Decoder(8)
    decoder.logits[:, END] -= 20
    searched(decoder, [3] * 8, [2] * 6 + [9] * 2, beam=2)
    assert decoder.batches == [16] * 2 + [4] * 7
    decoder = Decoder(8)
    decoder.logits[:, END] -= 20
    searched(decoder, [3] * 8, [2] * 6 + [9] * 2, beam=2, batch=4)
    # Two slots pass to the last two sentences, which go on with full rows until they are cut off.
    assert decoder.batches == [8] * 2 + [8] * 2 + [4] * 7


def test_a_forced_start_is_scored_by_the_model() -> None:
    (found,) = searched(CHAIN, [2], [9], beam=3, n_best=2, prefix=(A, A))
    assert [item.tokens for item in found] == [(A, A, B), (A, A)]
    expected = [0.6 * 0.1 * 0.6 * 0.9, 0.6 * 0.1 * 0.3]
    assert [item.log_probability for item in found] == pytest.approx(np.log(expected), abs=1e-5)


def test_what_is_cut_off_is_not_finished_and_comes_last() -> None:
    #                 <s>  </s>   a    b
    decoder = table((0.0, 0.0, 0.9, 0.1), (1.0, 0.0, 0.0, 0.0), (0.0, 0.1, 0.9, 0.0), (0.0, 0.2, 0.0, 0.8))
    (found,) = searched(decoder, [3], [3], beam=3, n_best=3)
    assert [(item.tokens, item.finished, len(item.attention)) for item in found] == [
        ((A,), True, 2),
        ((A, A), True, 3),
        ((A, A, A), False, 3),
    ]
    assert found[2].log_probability > found[0].log_probability  # likelier, and still no translation
    (found,) = searched(decoder, [3], [1], beam=2, n_best=2)
    assert [(item.tokens, item.finished) for item in found] == [((A,), False), ((B,), False)]


@pytest.mark.parametrize("vocabulary", [2, 3])
def test_a_vocabulary_smaller_than_the_beam(vocabulary: int) -> None:
    decoder = Decoder(vocabulary, seed=1)
    expected = reference(decoder, 0, 4, 6, beam=8, n_best=8, scoring=Scoring(1))
    (found,) = searched(decoder, [4], [6], beam=8, n_best=8, scoring=Scoring(1))
    check(found, expected, decoder, 0, 4, Scoring(1))


def test_a_vocabulary_of_the_end_alone() -> None:
    decoder = Decoder(2)
    decoder.logits[:, 0] = -np.inf
    (found,) = searched(decoder, [4], [6], beam=3, n_best=3)
    assert [(item.tokens, item.finished, item.log_probability) for item in found] == [((), True, 0.0)]


@pytest.mark.parametrize("vocabulary", [67, 131])
def test_impossible_tokens_are_never_taken(vocabulary: int) -> None:
    """Fewer possible tokens than a beam, in a vocabulary that does not divide into blocks."""
    decoder = Decoder(vocabulary)
    decoder.logits[:, 4:] = -np.inf
    expected = reference(decoder, 0, 4, 5, beam=8, n_best=8, scoring=Scoring(1))
    for sentence in searched(decoder, [4, 4], [5, 5], beam=8, n_best=8, scoring=Scoring(1)):
        assert all(max(item.tokens, default=0) < 4 for item in sentence)
    (found,) = searched(decoder, [4], [5], beam=8, n_best=8, scoring=Scoring(1))
    check(found, expected, decoder, 0, 4, Scoring(1))
