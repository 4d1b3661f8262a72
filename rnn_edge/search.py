"""One hypothesis a sentence, token by token: the likeliest, a drawn one or a given one. Sentences advance together.

    score = log P(target | source) / ((5 + length) / 6)^α + β Σ_source log min(Σ_target attention, 1)

is the score of Wu et al. (2016, equation 14) with length penalty α and coverage penalty β; length counts the end token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

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

    ``log_probability`` is natural, of all tokens and the end; ``attention`` float32 [tokens + 1, source_length], the
    last row that of the end token, or [tokens, …] where the text was cut off at its maximum length.
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
    """One step of ``follow``: for each sentence in work, its index, token, log probability and attention."""

    sentences: list[int]
    tokens: list[int]
    log_probabilities: list[float]
    attention: Logits


def follow(
    slots: Slots,
    limits: Sequence[int],
    chooser: Callable[[int], Choose] | None = None,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> Iterator[Step]:
    """One hypothesis for each sentence, step by step until each has its end token or ``limits`` tokens.

    ``chooser`` gives a sentence's own way to choose among its logits; None takes the largest. Each target starts with
    its prefix. The log probabilities are the model's own, whatever is chosen.
    """
    ids = slots.graphs.manifest.special_ids
    assert ids.start is not None
    tokens = np.full(len(slots.sentences), ids.start)
    counts = np.zeros(len(tokens), np.int64)  # of tokens that each sentence in work has
    choose: dict[int, Choose] = {}
    while slots.sentences:
        logits = slots.stepper.step(tokens)
        if chooser is None:
            tokens = logits.argmax(axis=1)
        else:
            choose = {sentence: choose.get(sentence) or chooser(sentence) for sentence in slots.sentences}
            tokens = np.array([choose[sentence](row) for sentence, row in zip(slots.sentences, logits, strict=True)])
        if prefixes is not None:
            for slot, sentence in enumerate(slots.sentences):
                if counts[slot] < len(prefixes[sentence]):
                    tokens[slot] = prefixes[sentence][counts[slot]]
        opinions = logits[np.arange(len(tokens)), tokens] - log_normalisers(logits)
        yield Step(list(slots.sentences), tokens.tolist(), opinions.tolist(), slots.stepper.attention.copy())
        counts += 1
        longest = [limits[sentence] for sentence in slots.sentences]
        ended = np.flatnonzero((tokens == ids.end) | (counts == longest)).tolist()
        if ended:
            tokens[ended], counts[ended] = ids.start, 0
            kept = slots.go_on(ended)
            tokens, counts = tokens[kept], counts[kept]


def collect(steps: Iterable[Step], sources: Sequence[Sequence[int]], end: int, scoring: Scoring) -> list[Hypothesis]:
    """What ``follow`` found, one hypothesis a source."""
    found = [_Trail() for _ in sources]
    for step in steps:
        for row, sentence in enumerate(step.sentences):
            trail = found[sentence]
            trail.tokens.append(step.tokens[row])
            trail.log_probability += step.log_probabilities[row]
            trail.attention.append(step.attention[row, : len(sources[sentence])])
    return [trail.hypothesis(end, scoring) for trail in found]


@dataclass
class _Trail:
    tokens: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    attention: list[Logits] = field(default_factory=list)

    def hypothesis(self, end: int, scoring: Scoring) -> Hypothesis:
        """``tokens`` may have the end token last."""
        attention = np.stack(self.attention)
        finished = self.tokens[-1] == end
        score = scoring.score(self.log_probability, len(self.tokens), attention.sum(axis=0))
        tokens = tuple(self.tokens[:-1] if finished else self.tokens)
        return Hypothesis(tokens, self.log_probability, score, finished, attention)


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
        if not np.isfinite(some.max(axis=1, out=largest[rows])).all():
            raise BundleError("the model gives logits that are not finite", "export the bundle again")
        above = np.subtract(some, largest[rows, None], out=powers[: len(some)])
        np.exp(above, out=above).sum(axis=1, out=sums[rows])
    total: Logits = largest + np.log(sums)
    return total
