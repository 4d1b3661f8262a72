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
_THREADS_CHUNK = 4 * _CHUNK  # with several threads, which wait for each other between two operations

Ids = NDArray[np.int64]


class RowNoise:
    """The noise of the rows of a batch, drawn for blocks of steps. A row belongs to a stream from ``start`` on."""

    def __init__(self, vocabulary_size: int, batch: int, *, seed: int, least: int = 1, threads: int = 1) -> None:
        """A block has ``least`` steps or more, drawn by so many threads."""
        self._seed, self._size, self._threads = seed, vocabulary_size, threads
        self._streams = np.zeros(batch, np.uint64)
        self._steps = np.zeros(batch, np.uint64)  # the step that the next choice of a row is
        self._waits = np.zeros(batch, np.int64)  # choices before the first that counts; below 0 after it
        steps = max(least, min(64, _BLOCK // (batch * vocabulary_size)))
        self._block: Logits = np.zeros((steps, batch, vocabulary_size), np.float32)
        self._used = steps  # of the block, the same for all rows

    def start(
        self, rows: Sequence[int], streams: Sequence[int], steps: Sequence[int], waits: Sequence[int] | None = None
    ) -> None:
        """After ``waits[i]`` choices of ``rows[i]`` that do not count comes step ``steps[i]`` of ``streams[i]``."""
        self._waits[rows] = 0 if waits is None else waits
        self._streams[rows] = streams
        self._steps[rows] = steps
        self._steps[rows] -= self._waits[rows].astype(np.uint64)  # modulo 2⁶⁴, until the waiting is over
        self._draw(np.array(rows), self._used)

    def take(self, steps: int = 1) -> Logits:
        """Noise [steps or fewer, batch, vocabulary] of the next choices: fewer at the end of a block, at least one.

        Rows that still wait have anything there.
        """
        if self._used == len(self._block):
            self._used = 0
            self._draw(np.arange(len(self._streams)), 0)
        taken = self._block[self._used : self._used + steps]
        self._used += len(taken)
        self._steps += np.uint64(len(taken))
        self._waits -= len(taken)
        return taken

    def keep(self, rows: Sequence[int], least: int = 1) -> RowNoise:
        """Noise that goes on with these rows, in blocks of ``least`` steps or more."""
        kept = RowNoise(self._size, len(rows), seed=self._seed, least=least, threads=self._threads)
        kept._streams, kept._steps, kept._waits = self._streams[rows], self._steps[rows], self._waits[rows]
        return kept

    def _draw(self, rows: Ids, first: int) -> None:
        """Noise of these rows for the rest of the block, the choice at ``first`` being the next."""
        count = len(self._block) - first
        rows = rows[self._waits[rows] < count]
        values = len(rows) * count * self._size
        if not values:
            return
        parts = -(-values // _CHUNK)
        if self._threads > 1:
            parts = max(-(-values // _THREADS_CHUNK), min(parts, self._threads))

        def draw(some: Ids) -> None:
            self._block[first:, some] = gumbel_noise_of_streams(
                self._seed, self._streams[some], self._steps[some], count, self._size
            )

        chunks = np.array_split(rows, min(parts, len(rows)))
        if self._threads > 1 and len(chunks) > 1:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(min(self._threads, len(chunks))) as pool:
                list(pool.map(draw, chunks))
        else:
            for some in chunks:
                draw(some)


class BatchSampler:
    """Choose ids for the rows of a batch, with the noise of each where it is not greedy."""

    def __init__(
        self,
        options: SamplingOptions,
        vocabulary_size: int,
        batch: int,
        noise: RowNoise | None,
        *,
        barred: int | None = None,
    ) -> None:
        """The id ``barred`` is never chosen."""
        self._options = options
        self._barred = barred
        self._noise = noise
        self._scaled: Logits = np.empty((batch, vocabulary_size), np.float32)
        self._temperature = np.float32(options.temperature)

    def choose(self, logits: Logits, recent: Iterable[Sequence[int]] = ()) -> Ids:
        """The next id of each row for ``logits`` [batch, vocabulary].

        ``recent`` has for each row the ids that the repeat penalty weakens; without a penalty it is not looked at.
        """
        options = self._options
        if self._barred is not None:
            logits = bar(logits, self._barred)
        if options.repeat_penalty != 1:
            logits = penalise_rows(logits, recent, options.repeat_penalty)
        if self._noise is None:
            return _likeliest(logits)
        scaled = np.divide(logits, self._temperature, out=self._scaled)
        if options.filters:
            scaled = keep_likely_rows(scaled, options.top_k, options.top_p, options.min_p)
        scaled += self._noise.take()[0]
        return _likeliest(scaled)


def _likeliest(logits: Logits) -> Ids:
    ids: Ids = logits.argmax(axis=1)
    return ids


def penalise_rows(logits: Logits, recent: Iterable[Sequence[int]], penalty: float) -> Logits:
    """``RepeatPenalty.weaken`` for each row of [batch, vocabulary]."""
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
