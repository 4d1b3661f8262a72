"""One hypothesis a sentence, token by token: the likeliest, a drawn one or a given one. Sentences advance together.

    score = log P(target | source) / ((5 + length) / 6)^α + β Σ_source log min(Σ_target attention, 1)

is the score of Wu et al. (2016, equation 14) with length penalty α and coverage penalty β; length counts the end token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rnn_edge.encoder_decoder import Encoded, EncoderDecoderGraphs
from rnn_edge.errors import BundleError
from rnn_edge.stepper import Logits, Stepper

Rows = NDArray[np.int64]
SHRINK_BELOW = 0.7  # of the streams still unfinished: then buffers are made anew without the finished ones


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
    """One step of ``follow``: for each stream that went on, its sentence, token, log probability and attention."""

    sentences: list[int]
    tokens: list[int]
    log_probabilities: list[float]
    attention: Logits


def follow(
    graphs: EncoderDecoderGraphs,
    encoded: Encoded,
    limits: Sequence[int],
    choose: Callable[[int, Logits], int] | None = None,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> Iterator[Step]:
    """One hypothesis for each sentence, step by step until each has its end token or ``limits`` tokens.

    ``choose`` takes a sentence's index and its logits; None takes the largest. Each target starts with its prefix. The
    log probabilities are the model's own, whatever is chosen.
    """
    ids = graphs.manifest.special_ids
    assert ids.start is not None
    alive = list(range(len(limits)))
    stepper = graphs.stepper(encoded)
    places = list(range(len(alive)))  # of the alive sentences in the stepper
    tokens = np.full(stepper.batch, ids.start)
    for step in range(max(limits)):
        logits = stepper.step(tokens)
        if len(places) < stepper.batch:
            logits = logits[places]
        if choose is None:
            chosen = logits.argmax(axis=1)
        else:
            chosen = np.array([choose(*item) for item in zip(alive, logits, strict=True)])
        if prefixes is not None:
            for place, sentence in enumerate(alive):
                if step < len(prefixes[sentence]):
                    chosen[place] = prefixes[sentence][step]
        opinions = logits[np.arange(len(alive)), chosen] - log_normalisers(logits)
        yield Step(alive, chosen.tolist(), opinions.tolist(), stepper.attention[places])
        kept = [
            place
            for place, (sentence, token) in enumerate(zip(alive, chosen, strict=True))
            if token != ids.end and step + 1 < limits[sentence]
        ]
        if not kept:
            return
        alive = [alive[place] for place in kept]
        places = [places[place] for place in kept]
        if len(places) < SHRINK_BELOW * stepper.batch:
            stepper = shrink(graphs, stepper, encoded, places, alive)
            places = list(range(len(alive)))
            tokens = chosen[kept]
        else:
            tokens = tokens.copy()
            tokens[places] = chosen[kept]


def collect(steps: Iterator[Step], encoded: Encoded, end: int, scoring: Scoring) -> list[Hypothesis]:
    """What ``follow`` found, one hypothesis a sentence."""
    found = [_Trail() for _ in encoded.lengths]
    for step in steps:
        for row, sentence in enumerate(step.sentences):
            trail = found[sentence]
            trail.tokens.append(step.tokens[row])
            trail.log_probability += step.log_probabilities[row]
            trail.attention.append(step.attention[row, : encoded.lengths[sentence]])
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
    largest = logits.max(axis=1)
    if not np.isfinite(largest).all():
        raise BundleError("the model gives logits that are not finite", "export the bundle again")
    powers = logits - largest[:, None]
    np.exp(powers, out=powers)
    total: Logits = largest + np.log(powers.sum(axis=1))
    return total


def shrink(
    graphs: EncoderDecoderGraphs, stepper: Stepper, encoded: Encoded, rows: Sequence[int] | Rows, sentences: list[int]
) -> Stepper:
    """A stepper for these rows of the old one, which belong to these sentences."""
    state = stepper.state()
    kept = replace(state, tensors={name: tensor[rows] for name, tensor in state.tensors.items()})
    return graphs.stepper(replace(encoded.take(sentences), state=kept))
