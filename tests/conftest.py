"""Fixtures that the tests of both sides share. Nothing here imports torch or onnx."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from rnn_edge.language_model import LanguageModel
from tests.device.tiny import GRU, LSTM

# The same examples on every run, and no deadline: how fast a machine is says nothing about these tests.
settings.register_profile("rnn-edge", deadline=None, derandomize=True)
settings.load_profile("rnn-edge")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing is remembered in the user's own folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNN_EDGE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def lstm() -> LanguageModel:
    """Two LSTM layers in the operator lowering."""
    return LanguageModel.load(LSTM, device="cpu")


@pytest.fixture(scope="session")
def gru() -> LanguageModel:
    """One GRU layer in the cell lowering."""
    return LanguageModel.load(GRU, device="cpu")
