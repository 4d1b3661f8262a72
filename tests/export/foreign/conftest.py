"""Fixtures of the tests of models from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from rnn_edge.language_model import LanguageModel

if find_spec("torch") is None:  # a device: nothing here applies
    collect_ignore_glob = ["test_*.py"]

LETTERS = list("\n abcdefghij")


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(3)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """PyTorch warns once a process of the slower kernel of projections, when a test runs one itself."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections")
        yield


def randomise(*modules: nn.Module) -> None:
    """All weights and biases random and large enough that each matters."""
    import torch

    generator = torch.Generator().manual_seed(11)
    for module in modules:
        for parameter in module.parameters():
            parameter.data.copy_(torch.empty(parameter.shape).normal_(std=0.4, generator=generator))


def runtime_logits(model: LanguageModel, ids: list[int]) -> np.ndarray:
    """Logits after each token, from a zero state."""
    import numpy as np

    stepper = model.graph.stepper()
    return np.stack([stepper.step(token)[0].copy() for token in ids])
