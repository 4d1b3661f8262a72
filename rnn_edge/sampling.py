"""Choosing the next token: pure functions over logits, numpy only.

One rule everywhere: after temperature and filters the next id is ``argmax(logits / T + g)`` over the ids that remain,
where ``g`` is Gumbel noise (Gumbel 1954; Maddison et al. 2014, "A* sampling"), so that id ``i`` is chosen with
probability ``softmax(logits / T)[i]``. The noise is a function of (seed, stream, step, id) and nothing else, through
the counter-based generator Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"):

    key = (seed mod 2³², seed div 2³²), counter = (id div 4, step mod 2³², step div 2³², stream)
    word = output[id mod 4]
    u = (word div 2⁸ + ½) · 2⁻²⁴                24 bits, never 0 or 1
    g = float32(−log(−log u))                    logarithms in float64

All sums are float32, ties go to the lowest id: equal logits give equal ids on every machine.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import InvalidValueError

Logits = NDArray[np.float32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_GREEDY_BELOW = 1e-3  # colder, the quotients leave what float32 tells apart
_DOUBT = 1e-4  # far above what float32 sums of probabilities are off by
_BLOCK = 8192  # values of noise drawn at once: their cost per token is a few microseconds, their memory 32 kB


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen.

    ``temperature`` 0, or less than 0.001, is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 turn these filters off.
    ``repeat_penalty`` (Keskar et al. 2019, CTRL) weakens ids among the last ``repeat_window`` tokens; 1 is off.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_window: int = 64

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            InvalidValueError: a value is out of its range or not a number.
        """
        # Each test is written so that NaN fails it.
        if not 0 <= self.temperature <= 1000:
            raise InvalidValueError(f"temperature is {self.temperature}", "use 0 for greedy, or a value up to 1000")
        if self.top_k < 0:
            raise InvalidValueError(f"top-k is {self.top_k}", "use 0 for no limit, or a positive number")
        if not 0 < self.top_p <= 1:
            raise InvalidValueError(f"top-p is {self.top_p}", "use a value above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise InvalidValueError(f"min-p is {self.min_p}", "use a value from 0 to 1")
        if not 0.01 <= self.repeat_penalty <= 100:
            raise InvalidValueError(
                f"repeat-penalty is {self.repeat_penalty}", "use 1 for none, or a value from 0.01 to 100"
            )
        if not 0 <= self.repeat_window <= 1_000_000:
            raise InvalidValueError(
                f"repeat-window is {self.repeat_window}", "use a number of tokens from 0 to 1000000"
            )

    @property
    def greedy(self) -> bool:
        """Whether the largest logit is chosen, without noise."""
        return self.temperature < _GREEDY_BELOW

    @property
    def filters(self) -> bool:
        """Whether any filter is on."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


class Sampler:
    """Choose ids for one stream, step after step, with the noise of many steps drawn at once."""

    def __init__(
        self, options: SamplingOptions, vocabulary_size: int, *, seed: int, stream: int = 0, step: int = 0
    ) -> None:
        """``step`` is the number of tokens that the stream has chosen before."""
        check_seed(seed)
        self.step = step
        self._options = options
        self._seed, self._stream, self._size = seed, stream, vocabulary_size
        self._steps_per_block = min(64, max(1, _BLOCK // vocabulary_size))
        self._noise: Logits = np.empty((0, vocabulary_size), np.float32)
        self._used = 0
        self._temperature = np.float32(options.temperature)
        self._greedy, self._filters = options.greedy, options.filters

    def choose(self, logits: Logits, recent: Iterable[int] = ()) -> int:
        """The next id for ``logits`` [vocabulary]; ``recent`` are the ids that the repeat penalty weakens."""
        options = self._options
        if options.repeat_penalty != 1:
            logits = penalise(logits, recent, options.repeat_penalty)
        if self._greedy:
            self.step += 1
            return int(logits.argmax())
        scaled = logits / self._temperature
        if self._used == len(self._noise):
            self._noise = gumbel_noise(self._seed, self._stream, self.step, self._steps_per_block, self._size)
            self._used = 0
        noise = self._noise[self._used]
        self._used += 1
        self.step += 1
        chosen = int((scaled + noise).argmax())
        # The best of all is the best of those that remain if it is one of them: mostly so, and cheap to see.
        if self._filters and not _surely_kept(scaled, chosen, options):
            kept = keep_likely(scaled, options.top_k, options.top_p, options.min_p)
            kept += noise
            chosen = int(kept.argmax())
        return chosen


def penalise(logits: Logits, recent: Iterable[int], penalty: float) -> Logits:
    """Divide positive logits of ``recent`` ids by ``penalty`` and multiply negative ones, each id once."""
    ids = np.fromiter(set(recent), dtype=np.int64)
    result = logits.copy()
    chosen = result[ids]
    result[ids] = np.where(chosen > 0, chosen / np.float32(penalty), chosen * np.float32(penalty))
    return result


def keep_likely(scaled: Logits, top_k: int, top_p: float, min_p: float) -> Logits:
    """Put −inf where a filter removes an id. ``scaled`` [vocabulary] are logits divided by the temperature.

    In this order: the ``top_k`` largest; of these the fewest that together have at least the share ``top_p``
    (Holtzman et al. 2020); those with at least ``min_p`` times the probability of the likeliest (Nguyen et al. 2024).
    Every filter is a threshold on the logits, so ids that tie with the last one kept remain too.
    """
    size = len(scaled)
    ascending = np.sort(scaled)
    threshold = -math.inf
    if 0 < top_k < size:
        threshold = float(ascending[size - top_k])
    if top_p < 1:
        descending = ascending[ascending.searchsorted(threshold) :][::-1].astype(np.float64)
        mass = np.exp(descending - descending[0]).cumsum()
        # The first place where the mass reaches the share; rounding may leave the last sum just below it.
        last = min(int(mass.searchsorted(top_p * mass[-1])), len(descending) - 1)
        threshold = float(descending[last])
    if min_p > 0:
        threshold = max(threshold, float(ascending[-1]) + math.log(min_p))
    return np.where(scaled >= threshold, scaled, np.float32(-np.inf))


def _surely_kept(scaled: Logits, token: int, options: SamplingOptions) -> bool:
    """Whether ``keep_likely`` keeps an id, without sorting; False also where rounding might decide."""
    value, size = scaled[token], len(scaled)
    if 0 < options.top_k < size and np.count_nonzero(scaled > value) >= options.top_k:
        return False
    if options.min_p > 0 and value < scaled.max() + math.log(options.min_p) + _DOUBT:
        return False
    if options.top_p < 1:
        powers = np.exp(scaled - scaled.max())
        if 0 < options.top_k < size:
            powers[scaled < np.partition(scaled, size - options.top_k)[size - options.top_k]] = 0
        above = powers[scaled > value].sum()
        return bool(above < (options.top_p - _DOUBT) * powers.sum())
    return True


def log_probability(logits: Logits, token: int) -> float:
    """Natural log of ``softmax(logits)[token]``: the model's own opinion, before temperature and filters."""
    wide = logits.astype(np.float64)
    largest = wide.max()
    return float(wide[token] - largest - np.log(np.exp(wide - largest).sum()))


def check_seed(seed: int) -> None:
    """A seed has 64 bits.

    Raises:
        InvalidValueError: it has not.
    """
    if not 0 <= seed < 2**64:
        raise InvalidValueError(f"seed is {seed}", "use a whole number from 0 to 2^64 - 1")


def gumbel_noise(seed: int, stream: int, first_step: int, steps: int, vocabulary_size: int) -> Logits:
    """Noise [steps, vocabulary] for ``steps`` steps from ``first_step``, as the module's head defines it."""
    streams, first_steps = np.array([stream], np.uint64), np.array([first_step], np.uint64)
    return gumbel_noise_of_streams(seed, streams, first_steps, steps, vocabulary_size)[:, 0]


def gumbel_noise_of_streams(
    seed: int, streams: NDArray[np.uint64], first_steps: NDArray[np.uint64], steps: int, vocabulary_size: int
) -> Logits:
    """Noise [steps, streams, vocabulary] for ``steps`` steps of each stream from its own first step."""
    groups = (vocabulary_size + 3) // 4
    step = (first_steps + np.arange(steps, dtype=np.uint64)[:, None])[:, :, None]
    group = np.arange(groups, dtype=np.uint64)
    words = philox(
        (group, step & _LOW, step >> _HALF, streams[:, None]), (seed & 0xFFFFFFFF, seed >> 32)
    )  # 4 × [steps, streams, groups]
    word = np.stack(np.broadcast_arrays(*words), axis=-1).reshape(steps, len(streams), groups * 4)
    noise = (word[:, :, :vocabulary_size] >> np.uint64(8)).astype(np.float64)
    noise += 0.5
    noise *= 2.0**-24
    for _ in range(2):
        np.log(noise, out=noise)
        np.negative(noise, out=noise)
    return noise.astype(np.float32)


def philox(
    counter: tuple[NDArray[np.uint64] | np.uint64, ...], key: tuple[int, int]
) -> tuple[NDArray[np.uint64] | np.uint64, ...]:
    """Philox4x32-10: four 32-bit words, held in uint64, for each counter of four words (which broadcast)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3
