"""Gumbel noise that is a function of (seed, stream, step, id) and nothing else.

It comes through the counter-based generator Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1,
2, 3"):

    key = (seed mod 2³², seed div 2³²), counter = (id div 4, step mod 2³², step div 2³², stream)
    word = output[id mod 4]
    u = (word div 2⁸ + ½) · 2⁻²⁴                24 bits, never 0 or 1
    g = float32(−log(−log u))                    logarithms in float64
"""

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import InvalidValueError

Values = NDArray[np.float32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BLOCK = 32768  # values drawn at once: their cost per token is a few microseconds, their memory 128 kB


class Noise:
    """The noise of one stream from one step on, drawn for many steps at once."""

    def __init__(
        self, vocabulary_size: int, *, seed: int, stream: int = 0, step: int = 0, barred: int | None = None
    ) -> None:
        """``barred`` is an id whose noise is −∞, so that it is never chosen."""
        check_seed(seed)
        self._barred = barred
        self._seed, self._stream, self._size = seed, stream, vocabulary_size
        self._next = step
        self._block: Values = np.empty((0, vocabulary_size), np.float32)
        self._used = 0

    def take(self, steps: int = 1) -> Values:
        """Noise [steps or fewer, vocabulary] of the next steps: fewer at the end of what is drawn, at least one."""
        if self._used == len(self._block):
            count = max(1, _BLOCK // self._size)
            self._block = gumbel_noise(self._seed, self._stream, self._next, count, self._size)
            if self._barred is not None:
                self._block[:, self._barred] = -np.inf
            self._next += count
            self._used = 0
        taken = self._block[self._used : self._used + steps]
        self._used += len(taken)
        return taken


def check_seed(seed: int) -> None:
    """A seed has 64 bits.

    Raises:
        InvalidValueError: it has not.
    """
    if not 0 <= seed < 2**64:
        raise InvalidValueError(f"seed is {seed}", "use a whole number from 0 to 2^64 - 1")


def gumbel_noise(seed: int, stream: int, first_step: int, steps: int, vocabulary_size: int) -> Values:
    """Noise [steps, vocabulary] for ``steps`` steps from ``first_step``, as the module's head defines it."""
    streams, first_steps = np.array([stream], np.uint64), np.array([first_step], np.uint64)
    return gumbel_noise_of_streams(seed, streams, first_steps, steps, vocabulary_size)[:, 0]


def gumbel_noise_of_streams(
    seed: int, streams: NDArray[np.uint64], first_steps: NDArray[np.uint64], steps: int, vocabulary_size: int
) -> Values:
    """Noise [steps, streams, vocabulary] for ``steps`` steps of each stream from its own first step."""
    groups = (vocabulary_size + 3) // 4
    step = (first_steps + np.arange(steps, dtype=np.uint64)[:, None])[:, :, None]
    group = np.arange(groups, dtype=np.uint64)
    words = philox(
        (group, step & _LOW, step >> _HALF, streams[:, None]), (seed & 0xFFFFFFFF, seed >> 32)
    )  # 4 × [steps, streams, groups]
    noise = np.empty((steps, len(streams), groups, 4))
    for index, word in enumerate(words):
        word >>= np.uint64(8)
        noise[..., index] = word.view(np.int64)  # which NumPy converts faster
    noise = np.ascontiguousarray(noise.reshape(steps, len(streams), groups * 4)[:, :, :vocabulary_size])
    noise += 0.5
    noise *= 2.0**-24
    for _ in range(2):
        np.log(noise, out=noise)
        np.negative(noise, out=noise)
    return noise.astype(np.float32)


def philox(counter: tuple[NDArray[np.uint64] | np.uint64, ...], key: tuple[int, int]) -> tuple[NDArray[np.uint64], ...]:
    """Philox4x32-10: four 32-bit words, held in uint64, for each counter of four words (which broadcast)."""
    c0, c1, c2, c3 = (np.array(word, order="C") for word in np.broadcast_arrays(*counter))
    product0, product1 = np.empty_like(c0), np.empty_like(c0)
    k0, k1 = key
    for _ in range(10):  # in place: new arrays would cost more than what is done with them
        np.multiply(c0, _MULTIPLIERS[0], out=product0)
        np.multiply(c2, _MULTIPLIERS[1], out=product1)
        np.right_shift(product1, _HALF, out=c0)
        c0 ^= c1
        c0 ^= np.uint64(k0)
        np.right_shift(product0, _HALF, out=c2)
        c2 ^= c3
        c2 ^= np.uint64(k1)
        np.bitwise_and(product1, _LOW, out=c1)
        np.bitwise_and(product0, _LOW, out=c3)
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3
