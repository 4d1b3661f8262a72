"""Fixtures for the tests of the device side."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rnn_edge.cli import run
from rnn_edge.translator import Translator
from tests.device.tiny import DATA, TRANSLATOR, WORDS

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cli]:
    """Run a command in this process, in an empty folder, with the tiny bundles → exit code, stdout, stderr."""
    monkeypatch.setenv("RNN_EDGE_MODELS", str(DATA))
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGINT)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield call
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="session")
def translator() -> Translator:
    """Subwords that both sides share, LSTM in the operator lowering, two layers in the decoder, general attention."""
    return Translator.load(TRANSLATOR, device="cpu")


@pytest.fixture(scope="session")
def words() -> Translator:
    """Words, a vocabulary for each side that lacks some, GRU in the cell lowering, Bahdanau's attention."""
    return Translator.load(WORDS, device="cpu")


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A pipe as standard input; the end that is written to."""
    reader, writer = os.pipe()
    with os.fdopen(reader, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield writer
