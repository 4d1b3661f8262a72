"""Choosing for a batch: bit for bit what is chosen for each row alone."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rnn_edge.batch_sampling import BatchSampler, RowNoise, keep_likely_rows, log_probability_rows, penalise_rows
from rnn_edge.noise import gumbel_noise, gumbel_noise_of_streams
from rnn_edge.sampling import RepeatPenalty, Sampler, SamplingOptions, keep_likely, log_probability

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"top_k": 9, "top_p": 0.9, "min_p": 0.02, "temperature": 1.3},
    {"repeat_penalty": 1.5, "top_p": 0.95},
]


def random_logits(rows: int, size: int, key: int = 1) -> NDArray[np.float32]:
    values = np.random.default_rng(key).normal(0, 3, (rows, size)).astype(np.float32)
    values[:, size // 2 :] = np.round(values[:, size // 2 :])  # ties
    return values


@pytest.mark.parametrize("size", [3, 70, 2001])
@pytest.mark.parametrize("filters", [(0, 0.5, 0.0), (7, 1.0, 0.0), (7, 0.9, 0.01), (0, 0.999, 0.3), (10**6, 0.7, 0.0)])
def test_filters_and_opinions(size: int, filters: tuple[int, float, float]) -> None:
    logits = random_logits(9, size)
    together = keep_likely_rows(logits, *filters)
    assert together.dtype == np.float32
    assert np.array_equal(together, [keep_likely(row, *filters) for row in logits])
    ids = np.arange(9) % size
    expected = [log_probability(row, int(token)) for row, token in zip(logits, ids, strict=True)]
    assert log_probability_rows(logits, ids).tolist() == expected


def test_penalty() -> None:
    logits = random_logits(4, 30)
    recent = [[1, 2, 2, 29], [], [5], list(range(30))]
    expected = [RepeatPenalty(30, 1.7, 99, ids).weaken(row) for row, ids in zip(logits, recent, strict=True)]
    assert np.array_equal(penalise_rows(logits, recent, 1.7), expected)


@pytest.mark.parametrize("size", [3, 70])
def test_noise_of_streams(size: int) -> None:
    streams, steps = np.array([0, 7, 2**32 - 2], np.uint64), np.array([5, 0, 2**32 - 3], np.uint64)
    noise = gumbel_noise_of_streams(9, streams, steps, 6, size)
    for row in range(3):
        assert np.array_equal(noise[:, row], gumbel_noise(9, int(streams[row]), int(steps[row]), 6, size))


@pytest.mark.parametrize("size", [70, 9000])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_choices_with_rows_that_begin_at_different_times(size: int, settings: dict[str, Any]) -> None:
    options = SamplingOptions(**settings)
    noise = None if options.greedy else RowNoise(size, 3, seed=5)
    batch = BatchSampler(options, size, 3, noise)
    alone: list[Sampler] = []
    recent = [[1, 2], [3], [4, 4]]

    def start(row: int, stream: int, step: int) -> None:
        if noise:
            noise.start([row], [stream], [step])
        alone[row : row + 1] = [Sampler(options, size, seed=5, stream=stream, step=step, recent=recent[row])]

    for row in range(3):
        start(row, row, 0)
    for step in range(90 if size == 70 else 8):
        if step in (2, 40):
            start(1, 10 + step, 3 * step)
        if step == 5:  # a smaller batch, in another order
            noise = noise.keep([2, 0, 1]) if noise else None
            batch = BatchSampler(options, size, 3, noise)
            alone, recent = [alone[2], alone[0], alone[1]], [recent[2], *recent[:2]]
        logits = random_logits(3, size, step)
        expected = [sampler.choose(row) for sampler, row in zip(alone, logits, strict=True)]
        assert batch.choose(logits, recent).tolist() == expected, step
        recent = [[*ids, token][-options.repeat_window :] for ids, token in zip(recent, expected, strict=True)]


def test_logits_stay_as_they_are() -> None:
    logits = random_logits(2, 20)
    before = logits.copy()
    noise = RowNoise(20, 2, seed=1)
    noise.start([0, 1], [0, 1], [0, 0])
    sampler = BatchSampler(SamplingOptions(top_k=3, repeat_penalty=2), 20, 2, noise)
    sampler.choose(logits, [[1], [2]])
    assert np.array_equal(logits, before)


@pytest.mark.parametrize(("least", "threads"), [(1, 1), (8, 1), (8, 3)])
@pytest.mark.parametrize("size", [70, 30_000])
def test_noise_of_rows_that_wait(size: int, least: int, threads: int) -> None:
    """Taken in pieces, across blocks; a row that waits longer than a block is drawn when its turn comes."""
    noise = RowNoise(size, 3, seed=5, least=least, threads=threads)
    noise.start([0, 1, 2], [4, 5, 6], [0, 2, 2**40], [0, 3, 80])
    taken: list[NDArray[np.float32]] = []
    for count in [1, 8, 3] * 40:
        taken.extend(noise.take(count).copy())
        if len(taken) > 100:
            break
    for row, (stream, step, wait) in enumerate([(4, 0, 0), (5, 2, 3), (6, 2**40, 80)]):
        expected = gumbel_noise(5, stream, step, len(taken) - wait, size)
        assert all(np.array_equal(one[row], other) for one, other in zip(taken[wait:], expected, strict=True))
