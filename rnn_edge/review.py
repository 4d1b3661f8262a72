"""Filters and bursts: the graph chooses among all ids, and what filters would have chosen is seen afterwards.

Mostly it is the same: the best of all ids, noise included, is the best of those that remain if it is one of them. Where
it is not, the burst ends with the step in question, and the steps behind it were made in vain. So the rule is that of
``sampling``, to the bit, and NumPy is called once a burst, in place of once a step from caches that the step has used.
It pays where rejections are rare, as with a top-k of half a vocabulary; otherwise the text goes on step by step.
"""

import math
from time import perf_counter

import numpy as np

from rnn_edge.sampling import Logits, SamplingOptions, bar, keep_likely, surely_kept

_PRIOR = (0.3, 20.0)  # rejected of so many, before any are known
_ENOUGH = 60  # tokens, after which the share of rejected ones counts
_MEMORY = 300  # tokens back, about, that count for it
_BESIDE = 4  # times a look itself is what Python between two bursts costs, caches included
_LONGEST = 2e-4  # seconds of that at most: more of it belongs to the steps, of which large vocabularies make much
_LEAST = 6  # steps of a burst, below which step by step is as fast


class Review:
    """The tokens of one text as filters leave them."""

    def __init__(self, options: SamplingOptions, barred: int | None) -> None:
        """The id ``barred`` is never chosen."""
        self._options, self._barred = options, barred
        self._rejected, self._seen = _PRIOR
        self._seconds = 0.0  # between two bursts

    def length(self, step_seconds: float) -> int:
        """How many steps to make in one go, so that what is between bursts and steps in vain together cost least.

        With ``c`` seconds between bursts of ``n`` steps of ``s`` seconds, of which the share ``r`` is rejected, about
        ``r·n²/2`` are in vain: least a token at n = √(2c / (r·s)). 0 where step by step is faster.
        """
        vain = self._rejected / self._seen * step_seconds
        best = round(math.sqrt(2 * self._seconds / max(vain, 1e-9)))
        return 0 if best < _LEAST and self._seen > _ENOUGH else max(1, best)

    def look(self, logits: Logits, noise: Logits, tokens: list[int]) -> list[int]:
        """What the filters choose instead of ``tokens``, up to the first that differs.

        ``logits`` and ``noise`` are [steps, vocabulary].
        """
        began, options = perf_counter(), self._options
        if self._barred is not None:
            logits = bar(logits, self._barred)
        rejected = 0
        for step, likeliest in enumerate(logits.argmax(axis=1).tolist()):
            if surely_kept(logits[step], likeliest, tokens[step], options, options.temperature):
                continue
            scaled = logits[step] / np.float32(options.temperature)
            chosen = int((keep_likely(scaled, options.top_k, options.top_p, options.min_p) + noise[step]).argmax())
            if chosen != tokens[step]:
                tokens, rejected = [*tokens[:step], chosen], 1
                break
        fading = 1 - len(tokens) / _MEMORY
        self._rejected = self._rejected * fading + rejected
        self._seen = self._seen * fading + len(tokens)
        self._seconds = min(_LONGEST, _BESIDE * (perf_counter() - began))
        return tokens
