"""docs/importing.md is what the code does: its programs and commands run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.export.conftest import Cli
from tests.export.foreign.keras_files import VOCABULARY, dense, embedding, random_weights, recurrent, sequential
from tests.export.foreign.keras_files import write_archive as write_keras
from tests.export.foreign.test_word_language_model import TEST, TRAIN, VALID, RNNModel

PAGE = (Path(__file__).parents[3] / "docs" / "importing.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("index", [0, 1])
def test_programs_and_what_is_done_with_their_bundles(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(blocks("python")[index], {"__name__": "__page__"})
    (line,) = blocks("console")[index].splitlines()
    command = [sys.executable, "-m", "rnn_edge", *shlex.split(line.removeprefix("$ rnn-edge "))]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("load ")


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wikitext-2").mkdir()
    for name, text in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        Path(f"wikitext-2/{name}.txt").write_text(text, encoding="utf-8")
    save_file(RNNModel("GRU").state_dict(), "model.safetensors")
    model = sequential(embedding(), recurrent("GRU", "a"), dense())
    write_keras(Path("model.keras"), model, random_weights(model))
    Path("vocabulary.json").write_text(json.dumps(VOCABULARY), encoding="utf-8")
    for line in blocks("console")[2].splitlines():
        answer = cli(*shlex.split(line.removeprefix("$ rnn-edge ")))
        assert answer.code == 0, answer.err
        assert "verified against" in answer.err
