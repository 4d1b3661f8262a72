"""One hypothesis a sentence, token by token: the likeliest, a drawn one or a given one. Sentences advance together.

    score = log P(target | source) / ((5 + length) / 6)^α + β Σ_source log min(Σ_target attention, 1)

is the score of Wu et al. (2016, equation 14) with length penalty α and coverage penalty β; length counts the end token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import BundleError
from rnn_edge.slots import Slots
from rnn_edge.stepper import Logits

Choose = Callable[[Logits], int]
_ROWS = 8  # of logits, which stay in the cache until their powers are summed


@dataclass(frozen=True)
class Hypothesis:
    """A translation as token ids, without start and end token.

    ``log_probability`` is natural, of all tokens and the end; it and ``score`` are NaN where nobody asked for them.
    ``attention`` float32 [tokens + 1, source_length], the last row that of the end token, or [tokens, …] where the text
    was cut off at its maximum length.
    """

    tokens: tuple[int, ...]
    log_probability: float
    score: float
    finished: bool
    attention: NDArray[np.float32]


@dataclass(frozen=True)
class Scoring:
    """α and β of the module's head."""

    length_penalty: float = 1.0
    coverage_penalty: float = 0.0

    def score(self, log_probability: float, length: int, coverage: NDArray[np.float32] | None) -> float:
        """``coverage`` [source_length] is the attention summed over the target; None leaves the term out."""
        value = log_probability / self.normaliser(length)
        if coverage is not None and self.coverage_penalty:
            covered = np.minimum(coverage.astype(np.float64), 1).clip(1e-9)
            value += self.coverage_penalty * float(np.log(covered).sum())
        return value

    def normaliser(self, length: int) -> float:
        """What a log probability is divided by."""
        return float(((5 + length) / 6) ** self.length_penalty)


@dataclass(frozen=True)
class Step:
    """One step of ``follow``: for each sentence in work, its index, token, log probability if asked for, attention."""

    sentences: list[int]
    tokens: list[int]
    log_probabilities: list[float] | None
    attention: Logits


def follow(
    slots: Slots,
    limits: Sequence[int],
    chooser: Callable[[int], Choose] | None = None,
    prefixes: Sequence[Sequence[int]] | None = None,
    *,
    log_probabilities: bool = True,
) -> Iterator[Step]:
    """One hypothesis for each sentence, step by step until each has its end token or ``limits`` tokens.

    ``chooser`` gives a sentence's own way to choose among its logits; None takes the largest. Each target starts with
    its prefix, within which nothing ends. The log probabilities are the model's own, whatever is chosen; without them a
    batch takes a tenth less.

    Raises:
        BundleError: logits that are not finite.
    """
    ids = slots.graphs.manifest.special_ids
    assert ids.start is not None
    most = np.array([limits[item] for item in slots.sentences])
    tokens = np.full(len(slots.sentences), ids.start)
    counts = np.zeros(len(tokens), np.int64)  # of tokens that each sentence in work has
    choose: dict[int, Choose] = {}
    while slots.sentences:
        logits = slots.stepper.step(tokens)
        if chooser is None:
            tokens = logits.argmax(axis=1)
            _check_finite(logits[np.arange(len(tokens)), tokens].sum())  # NaN counts as the largest
        else:
            choose = {sentence: choose.get(sentence) or chooser(sentence) for sentence in slots.sentences}
            _check_finite(logits.max(axis=1).sum())
            tokens = np.array([choose[sentence](row) for sentence, row in zip(slots.sentences, logits, strict=True)])
        if prefixes is not None:
            for slot, sentence in enumerate(slots.sentences):
                if counts[slot] < len(prefixes[sentence]):
                    tokens[slot] = prefixes[sentence][counts[slot]]
        opinions = None
        if log_probabilities:
            opinions = (logits[np.arange(len(tokens)), tokens] - log_normalisers(logits)).tolist()
        yield Step(list(slots.sentences), tokens.tolist(), opinions, slots.stepper.attention.copy())
        counts += 1
        ends = tokens == ids.end
        if prefixes is not None:  # where the end may be a word like others
            ends &= counts >= [len(prefixes[sentence]) for sentence in slots.sentences]
        ended = (ends | (counts == most)).nonzero()[0].tolist()
        if ended:
            tokens[ended], counts[ended] = ids.start, 0
            kept = slots.go_on(ended)
            tokens, counts, most = tokens[kept], counts[kept], np.array([limits[item] for item in slots.sentences])


def collect(steps: Iterable[Step], sources: Sequence[Sequence[int]], end: int, scoring: Scoring) -> list[Hypothesis]:
    """What ``follow`` found, one hypothesis a source; where it gave no log probabilities, these and scores are NaN."""
    found = list(steps)
    owners = np.array([sentence for step in found for sentence in step.sentences], np.int64)
    order = owners.argsort(kind="stable")  # the rows of all steps, sentence by sentence
    ends = np.bincount(owners, minlength=len(sources)).cumsum().tolist()
    tokens = np.array([token for step in found for token in step.tokens], np.int64)[order].tolist()
    opinions = [value for step in found for value in step.log_probabilities or [math.nan] * len(step.tokens)]
    sums = np.bincount(owners, opinions, len(sources)).tolist()
    attention = np.concatenate([step.attention.ravel() for step in found])
    widths = np.array([step.attention.shape[1] for step in found for _ in step.tokens], np.int64)
    starts = (widths.cumsum() - widths)[order, None]  # of each row in what was laid flat
    return [
        _hypothesis(tokens[first:last], total, attention[starts[first:last] + np.arange(len(source))], end, scoring)
        for first, last, total, source in zip([0, *ends], ends, sums, sources, strict=False)
    ]


def _hypothesis(
    tokens: Sequence[int], log_probability: float, attention: Logits, end: int, scoring: Scoring
) -> Hypothesis:
    """``tokens`` may have the end token last."""
    finished = tokens[-1] == end
    coverage = attention.sum(axis=0) if scoring.coverage_penalty else None
    score = scoring.score(log_probability, len(tokens), coverage)
    return Hypothesis(tuple(tokens[:-1] if finished else tokens), log_probability, score, finished, attention)


def log_normalisers(logits: Logits) -> Logits:
    """log Σ exp over the last axis of [rows, vocabulary].

    Raises:
        BundleError: logits that no probabilities can be made of.
    """
    powers = np.empty((_ROWS, logits.shape[1]), np.float32)
    largest, sums = np.empty((2, len(logits)), np.float32)
    for first in range(0, len(logits), _ROWS):
        rows = slice(first, first + _ROWS)
        some = logits[rows]
        _check_finite(some.max(axis=1, out=largest[rows]).sum())
        above = np.subtract(some, largest[rows, None], out=powers[: len(some)])
        np.exp(above, out=above).sum(axis=1, out=sums[rows])
    total: Logits = largest + np.log(sums)
    return total


def _check_finite(total: float) -> None:
    """``total`` is the sum of some rows' largest logits."""
    if not math.isfinite(total):
        raise BundleError("the model gives logits that are not finite", "export the bundle again")
