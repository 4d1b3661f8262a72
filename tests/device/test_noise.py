"""The generator behind sampling, against published and recorded vectors."""

import math

import numpy as np
import pytest

from rnn_edge.noise import gumbel_noise, philox

# Known answers of Philox4x32-10 from Random123 (Salmon et al. 2011): counter, key, output.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def gumbel(word: int) -> float:
    """The noise of one 32-bit word, as the documentation defines it."""
    return -math.log(-math.log(((word >> 8) + 0.5) / 2**24))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = philox(tuple(np.uint64(word) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


def test_counters_broadcast() -> None:
    first = np.array([0, 0xFFFFFFFF], np.uint64)
    words = philox((first, np.uint64(0), np.uint64(0), np.uint64(0)), (0, 0))
    assert [int(np.asarray(word)[0]) for word in words] == list(KNOWN_ANSWERS[0][2])


def test_noise_of_the_first_ids() -> None:
    noise = gumbel_noise(0, 0, 0, 1, 4)
    assert noise.dtype == np.float32
    assert noise.shape == (1, 4)
    assert noise[0] == pytest.approx([gumbel(word) for word in KNOWN_ANSWERS[0][2]], rel=1e-6)


def test_what_keys_the_noise() -> None:
    """Seed and step are split into words; the stream is the last word; an id is a group of four and a place in it."""
    seed, stream, step, token = 9 << 32 | 4, 7, 3 << 32 | 5, 6
    words = philox(tuple(np.uint64(word) for word in (token // 4, 5, 3, stream)), (4, 9))
    noise = gumbel_noise(seed, stream, step, 1, 8)
    assert noise[0, token] == pytest.approx(gumbel(int(words[token % 4])), rel=1e-6)


def test_recorded_noise() -> None:
    """Vectors for other implementations: seed, stream, step and id."""
    recorded = {
        (0, 0, 0, 0): 0.0848202,
        (1, 0, 0, 0): 2.1520755,
        (1, 0, 0, 1): 2.1956706,
        (1, 0, 1, 0): 0.4033557,
        (1, 2, 3, 64): -0.1799192,
        (42, 0, 1000, 5): 0.7431942,
        (2**32 + 1, 1, 2**32, 255): -0.6642280,
        (2**64 - 1, 2**32 - 1, 2**40 + 7, 3): 0.2144014,
    }
    for (seed, stream, step, token), expected in recorded.items():
        assert gumbel_noise(seed, stream, step, 1, token + 1)[0, token] == pytest.approx(expected, rel=1e-6)


def test_noise_depends_on_nothing_but_its_key() -> None:
    whole = gumbel_noise(5, 0, 0, 40, 70)
    for start, steps, size in [(0, 1, 70), (13, 20, 70), (39, 1, 70), (7, 3, 1), (7, 3, 5), (0, 40, 68)]:
        assert np.array_equal(gumbel_noise(5, 0, start, steps, size), whole[start : start + steps, :size])
    assert np.array_equal(gumbel_noise(5, 0, 3, 2, 90)[:, :70], whole[3:5])


def test_steps_go_on_past_32_bits() -> None:
    border = gumbel_noise(1, 0, 2**32 - 1, 2, 4)
    assert np.array_equal(border[1], gumbel_noise(1, 0, 2**32, 1, 4)[0])
    assert not np.array_equal(border[1], gumbel_noise(1, 0, 0, 1, 4)[0])


def test_seeds_and_streams_differ() -> None:
    rows = [gumbel_noise(seed, stream, 0, 1, 8)[0] for seed in (0, 1, 2**32, 2**64 - 1) for stream in (0, 1, 2**32 - 1)]
    assert len({row.tobytes() for row in rows}) == len(rows)


def test_noise_is_finite_and_has_the_moments_of_gumbel() -> None:
    noise = gumbel_noise(3, 0, 0, 500, 400).astype(np.float64)
    assert np.isfinite(noise).all()
    # Mean γ and variance π²/6; standard errors of 200,000 draws are about 0.003 and 0.008.
    assert noise.mean() == pytest.approx(0.5772157, abs=0.015)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.04)
    # 24 bits: never 0 or 1, so the extremes are -log(log 2²⁵) and -log(-log(1 - 2⁻²⁵)).
    assert -math.log(math.log(2**25)) <= noise.min()
    assert noise.max() <= -math.log(-math.log(1 - 2**-25))
