"""Choosing the next token of each text of a batch at once: bit for bit what ``sampling`` chooses for each alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from rnn_edge.noise import gumbel_noise_of_streams
from rnn_edge.sampling import Logits, SamplingOptions, bar

_BLOCK = 65536  # values of noise drawn at once: what a draw costs beside its values is then a tenth
_CHUNK = 65536  # and of these so many in one go, since each takes about a hundred bytes on its way

Ids = NDArray[np.int64]


class BatchSampler:
    """Choose ids for the rows of a batch. A row belongs to a stream of noise from ``start`` on."""

    def __init__(
        self, options: SamplingOptions, vocabulary_size: int, batch: int, *, seed: int, barred: int | None = None
    ) -> None:
        """The id ``barred`` is never chosen."""
        self._options = options
        self._barred = barred
        self._seed, self._size = seed, vocabulary_size
        self._streams = np.zeros(batch, np.uint64)
        self._steps = np.zeros(batch, np.uint64)  # the step that the next choice of a row is
        steps = min(64, max(1, _BLOCK // (batch * vocabulary_size)))
        self._noise: Logits = np.zeros((0 if options.greedy else steps, batch, vocabulary_size), np.float32)
        self._used = len(self._noise)  # of the steps drawn, the same for all rows
        self._scaled: Logits = np.empty((batch, vocabulary_size), np.float32)
        self._temperature = np.float32(options.temperature)

    def start(self, rows: Sequence[int], streams: Sequence[int], steps: Sequence[int]) -> None:
        """The next choice of ``rows[i]`` is that of step ``steps[i]`` in stream ``streams[i]``."""
        self._streams[rows] = streams
        self._steps[rows] = steps
        self._draw(np.array(rows), self._used)

    def choose(self, logits: Logits, recent: Iterable[Sequence[int]] = ()) -> Ids:
        """The next id of each row for ``logits`` [batch, vocabulary].

        ``recent`` has for each row the ids that the repeat penalty weakens; without a penalty it is not looked at.
        """
        options = self._options
        if self._barred is not None:
            logits = bar(logits, self._barred)
        if options.repeat_penalty != 1:
            logits = penalise_rows(logits, recent, options.repeat_penalty)
        if options.greedy:
            return _likeliest(logits)
        scaled = np.divide(logits, self._temperature, out=self._scaled)
        if options.filters:
            scaled = keep_likely_rows(scaled, options.top_k, options.top_p, options.min_p)
        if self._used == len(self._noise):
            self._used = 0
            self._draw(np.arange(len(self._streams)), 0)
        scaled += self._noise[self._used]
        self._used += 1
        self._steps += np.uint64(1)
        return _likeliest(scaled)

    def take(self, rows: Sequence[int]) -> BatchSampler:
        """A sampler that goes on with these rows."""
        taken = BatchSampler(self._options, self._size, len(rows), seed=self._seed, barred=self._barred)
        taken.start(range(len(rows)), self._streams[rows].tolist(), self._steps[rows].tolist())
        return taken

    def _draw(self, rows: Ids, first: int) -> None:
        """Noise of these rows for the rest of the block, the choice at ``first`` being the next."""
        count = len(self._noise) - first
        if not count:
            return
        chunk = max(1, _CHUNK // (count * self._size))
        for some in (rows[start : start + chunk] for start in range(0, len(rows), chunk)):
            self._noise[first:, some] = gumbel_noise_of_streams(
                self._seed, self._streams[some], self._steps[some], count, self._size
            )


def _likeliest(logits: Logits) -> Ids:
    ids: Ids = logits.argmax(axis=1)
    return ids


def penalise_rows(logits: Logits, recent: Iterable[Sequence[int]], penalty: float) -> Logits:
    """``penalise`` for each row of [batch, vocabulary]."""
    recent = list(recent)
    lengths = [len(ids) for ids in recent]
    rows = np.repeat(np.arange(len(recent)), lengths)
    ids = np.fromiter(chain.from_iterable(recent), np.int64, count=sum(lengths))
    result = logits.copy()
    chosen = result[rows, ids]
    result[rows, ids] = np.where(chosen > 0, chosen / np.float32(penalty), chosen * np.float32(penalty))
    return result


def keep_likely_rows(scaled: Logits, top_k: int, top_p: float, min_p: float) -> Logits:
    """``keep_likely`` for each row of [batch, vocabulary]."""
    batch, size = scaled.shape
    ascending = np.sort(scaled, axis=1)
    threshold = np.full(batch, -np.inf)
    if 0 < top_k < size:
        threshold = ascending[:, size - top_k].astype(np.float64)
    if top_p < 1:
        descending = ascending[:, ::-1].astype(np.float64)
        mass = descending - descending[:, :1]
        np.exp(mass, out=mass)
        mass[descending < threshold[:, None]] = 0
        mass.cumsum(axis=1, out=mass)
        last = (mass >= top_p * mass[:, -1:]).argmax(axis=1)
        threshold = descending[np.arange(batch), last]
    if min_p > 0:
        threshold = np.maximum(threshold, ascending[:, -1].astype(np.float64) + math.log(min_p))
    return np.where(scaled >= threshold.astype(np.float32)[:, None], scaled, np.float32(-np.inf))


def log_probability_rows(logits: Logits, ids: Ids) -> NDArray[np.float64]:
    """``log_probability`` of an id of each row."""
    wide = logits.astype(np.float64)
    largest = wide.max(axis=1)
    chosen = wide[np.arange(len(ids)), ids]
    found: NDArray[np.float64] = chosen - largest - np.log(np.exp(wide - largest[:, None]).sum(axis=1))
    return found
