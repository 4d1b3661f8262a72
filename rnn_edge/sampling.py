"""Choosing the next token: pure functions over logits, numpy only.

One rule everywhere: after temperature and filters the next id is ``argmax(logits / T + g)`` over the ids that remain,
where ``g`` is Gumbel noise (Gumbel 1954; Maddison et al. 2014, "A* sampling"), so that id ``i`` is chosen with
probability ``softmax(logits / T)[i]``. ``noise`` says where it comes from.

All sums are float32, ties go to the lowest id: equal logits give equal ids on every machine.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import InvalidValueError
from rnn_edge.noise import Noise

Logits = NDArray[np.float32]

_GREEDY_BELOW = 1e-3  # colder, the quotients leave what float32 tells apart
_DOUBT = 1e-4  # far above what float32 sums of probabilities are off by


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
    def plain(self) -> bool:
        """Whether nothing counts but temperature and noise."""
        return self.repeat_penalty == 1 and not self.filters

    @property
    def filters(self) -> bool:
        """Whether any filter counts: none changes what is likeliest."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


class Sampler:
    """Choose ids for one stream, step after step."""

    def __init__(
        self,
        options: SamplingOptions,
        vocabulary_size: int,
        *,
        seed: int,
        stream: int = 0,
        step: int = 0,
        recent: Iterable[int] = (),
        barred: int | None = None,
    ) -> None:
        """``step`` is the number of tokens that the stream has chosen before, ``recent`` are the last of its text.

        The id ``barred`` is never chosen.
        """
        self._options = options
        self._barred = barred
        self._noise = Noise(vocabulary_size, seed=seed, stream=stream, step=step)
        self._temperature = np.float32(options.temperature)
        self._scaled: Logits = np.empty(vocabulary_size, np.float32)
        self._noisy: Logits = np.empty(vocabulary_size, np.float32)
        self._greedy, self._filters = options.greedy, options.filters
        self._penalty = (
            RepeatPenalty(vocabulary_size, options.repeat_penalty, options.repeat_window, recent)
            if options.repeat_penalty != 1
            else None
        )

    def choose(self, logits: Logits) -> int:
        """The next id of the stream for ``logits`` [vocabulary]."""
        if self._barred is not None:
            logits = bar(logits, self._barred)
        if self._penalty:
            logits = self._penalty.weaken(logits)
        chosen = int(logits.argmax()) if self._greedy else self._draw(logits)
        if self._penalty:
            self._penalty.push(chosen)
        return chosen

    def _draw(self, logits: Logits) -> int:
        options = self._options
        scaled = np.divide(logits, self._temperature, out=self._scaled)
        noise = self._noise.take()[0]
        chosen = int(np.add(scaled, noise, out=self._noisy).argmax())
        # The best of all is the best of those that remain if it is one of them: mostly so, and cheap to see.
        if self._filters and not _surely_kept(scaled, chosen, options):
            kept = keep_likely(scaled, options.top_k, options.top_p, options.min_p)
            kept += noise
            chosen = int(kept.argmax())
        return chosen


def bar(logits: Logits, token: int) -> Logits:
    """Logits [..., vocabulary] with −∞ for one id."""
    result = logits.copy()
    result[..., token] = -np.inf
    return result


class RepeatPenalty:
    """Divide positive logits of the last ``window`` ids by ``penalty`` and multiply negative ones, each id once."""

    def __init__(self, vocabulary_size: int, penalty: float, window: int, recent: Iterable[int]) -> None:
        self._penalty, self._window = np.float32(penalty), window
        self._weights: Logits = np.ones(vocabulary_size, np.float32)
        self._recent: deque[int] = deque()
        self._counts: Counter[int] = Counter()
        for token in recent:
            self.push(token)

    def push(self, token: int) -> None:
        """This id comes after the others, the first of which may leave the window."""
        self._recent.append(token)
        self._counts[token] += 1
        self._weights[token] = self._penalty
        if len(self._recent) > self._window:
            oldest = self._recent.popleft()
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
                self._weights[oldest] = 1

    def ahead(self, weights: Logits) -> None:
        """Fill in the weights [steps, vocabulary] of the next choices as far as they are known: without each other.

        The steps are at most the window.
        """
        weights[:] = self._weights
        recent, leaving = self._recent, dict[int, int]()
        full = self._window - len(recent) + 1  # the choice before which the first one leaves
        for step in range(len(weights) - full):
            oldest = recent[step]
            leaving[oldest] = leaving.get(oldest, 0) + 1
            if leaving[oldest] == self._counts[oldest]:
                weights[full + step :, oldest] = 1

    def weaken(self, logits: Logits) -> Logits:
        """The logits [vocabulary] that remain."""
        result = logits * self._weights
        np.divide(logits, self._weights, out=result, where=logits > 0)
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
        # The first place where the mass reaches the share.
        threshold = float(descending[mass.searchsorted(top_p * mass[-1])])
    if min_p > 0:
        threshold = max(threshold, float(ascending[-1]) + math.log(min_p))
    return np.where(scaled >= threshold, scaled, np.float32(-np.inf))


def _surely_kept(scaled: Logits, token: int, options: SamplingOptions) -> bool:
    """Whether ``keep_likely`` keeps an id, without sorting; False also where rounding might decide.

    In few operations, as each costs some microseconds between two steps.
    """
    likeliest = int(scaled.argmax())
    if token == likeliest:
        return True
    value, largest = scaled.item(token), scaled.item(likeliest)
    if options.min_p > 0 and value - largest < math.log(options.min_p) + _DOUBT:
        return False
    top_k = options.top_k if options.top_k < len(scaled) else 0
    if top_k and np.count_nonzero(scaled > value) >= top_k:
        return False
    if options.top_p == 1:
        return True
    powers = scaled - np.float32(largest)
    np.exp(powers, out=powers)
    above = np.add.reduce(powers, where=scaled > value)
    if top_k:
        powers = np.partition(powers, len(powers) - top_k)[-top_k:]
    return bool(above < (options.top_p - _DOUBT) * np.add.reduce(powers))


def log_probability(logits: Logits, token: int) -> float:
    """Natural log of ``softmax(logits)[token]``: the model's own opinion, before temperature and filters."""
    wide = logits.astype(np.float64)
    largest = wide.max()
    return float(wide[token] - largest - np.log(np.exp(wide - largest).sum()))
