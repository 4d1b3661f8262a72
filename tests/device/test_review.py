"""What filters would have chosen, seen behind a burst: bit for bit the choices of a ``Sampler``."""

from typing import Any

import numpy as np
import pytest

from rnn_edge.noise import gumbel_noise
from rnn_edge.review import Review
from rnn_edge.sampling import Sampler, SamplingOptions

OPTIONS: list[dict[str, Any]] = [
    {"top_k": 3},
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.95, "min_p": 0.02},
    {"top_k": 10**6, "top_p": 0.8},
]


@pytest.mark.parametrize("barred", [None, 1])
@pytest.mark.parametrize("size", [5, 65, 3000])
@pytest.mark.parametrize("flags", OPTIONS, ids=str)
def test_choices_up_to_the_first_that_differs(size: int, flags: dict[str, Any], barred: int | None) -> None:
    options = SamplingOptions(temperature=0.7, **flags)
    random, steps, rejected = np.random.default_rng(size), 8, 0
    for seed in range(25):
        logits = (random.standard_normal((steps, size)) * random.choice([0.1, 1, 5])).astype(np.float32)
        logits[:, random.integers(0, size, 2)] = logits.max(axis=1)[:, None]  # ties
        logits[:, 1] = logits.max() + 1  # what is barred would be the likeliest
        noise = gumbel_noise(seed, 0, 0, steps, size)
        if barred is not None:
            noise[:, barred] = -np.inf
        tokens = (logits / np.float32(0.7) + noise).argmax(axis=1).tolist()
        sampler = Sampler(options, size, seed=seed, barred=barred)
        expected = [sampler.choose(row) for row in logits]
        differing = next((step for step in range(steps) if tokens[step] != expected[step]), steps - 1)
        rejected += tokens != expected
        assert Review(options, barred).look(logits, noise, tokens) == expected[: differing + 1]
    assert rejected > 0


def review(logits: list[float], times: int) -> Review:
    result, rows = Review(SamplingOptions(temperature=1, top_k=1), None), np.array([logits] * 8, np.float32)
    noise = np.zeros((8, 2), np.float32)
    noise[:, 1] = 1
    for _ in range(times):
        result.look(rows, noise, (rows + noise).argmax(axis=1).tolist())
    return result


def test_bursts_are_as_long_as_few_are_rejected() -> None:
    first, none, all_of_them = (review([values, 0], times) for values, times in ((2.0, 0), (2.0, 50), (0.5, 80)))
    assert first.length(1e-4) == 1  # with nothing known yet
    assert none.length(1e-5) > none.length(1e-4) >= 1
    assert all_of_them.length(1e-4) == 0
