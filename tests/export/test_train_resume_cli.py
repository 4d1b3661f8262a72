"""``rnn-edge train lm`` that is interrupted, runs out of disk, and goes on with --resume."""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from rnn_edge_export.checkpoint import Progress, load_checkpoint, save_checkpoint
from rnn_edge_export.cli.screen import TrainingScreen
from rnn_edge_export.training import Trainer
from rnn_edge_export.training_events import StepEvent, TrainingEvent
from tests.export.conftest import contents

if TYPE_CHECKING:
    from tests.export.conftest import Cli, CliError


def _interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C when the screen shows the losses of a step."""
    show = TrainingScreen.show

    def press(self: TrainingScreen, event: TrainingEvent) -> None:
        if isinstance(event, StepEvent) and event.step == step:
            signal.raise_signal(signal.SIGINT)
        show(self, event)

    monkeypatch.setattr(TrainingScreen, "show", press)


def test_resume_takes_no_flags(finished: Path, cli_error: CliError) -> None:
    arguments = ("train", "lm", finished / "corpus.txt", "-o", finished / "run", "--resume")
    before = contents(finished / "run")
    for flags in (("--hidden", "16"), ("--epochs", "3"), ("--force",), ("--no-tie-weights",)):
        error, _ = cli_error(*arguments, *flags, code=2)
        assert flags[0] in error or "--tie-weights" in error
    recipe = finished / "run" / "recipe.toml"
    assert "--recipe" in cli_error(*arguments, "--recipe", recipe, code=2)[0]
    assert contents(finished / "run") == before


def test_resume_needs_the_same_texts(finished: Path, cli_error: CliError, text: str) -> None:
    before = contents(finished / "run")
    other = finished / "other.txt"
    other.write_text(text.replace("moon", "noon"), encoding="utf-8", newline="")
    assert "SHA-256 differs" in cli_error("train", "lm", other, "-o", finished / "run", "--resume")[0]
    arguments = ("train", "lm", finished / "corpus.txt", "-o", finished / "run", "--resume")
    assert "SHA-256 differs" in cli_error(*arguments, "--valid", other)[0]
    assert contents(finished / "run") == before


def test_resume_without_a_run_or_a_checkpoint(finished: Path, cli_error: CliError) -> None:
    assert (
        "is not a training run"
        in cli_error("train", "lm", finished / "corpus.txt", "-o", finished / "no", "--resume")[0]
    )
    assert not (finished / "no").exists()
    last = finished / "run" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-4])
    arguments = ("train", "lm", finished / "corpus.txt", "-o", finished / "run", "--resume")
    assert "is not a checkpoint" in cli_error(*arguments)[0]
    last.unlink()
    assert "has no checkpoint" in cli_error(*arguments)[0]


def test_a_checkpoint_without_a_tensor_is_refused(finished: Path, cli_error: CliError) -> None:
    """Written by other means, or for another network: an error, not a traceback."""
    last = finished / "run" / "last.safetensors"
    good, progress = load_checkpoint(last, Progress)
    for missing in ("random", "state.h0", "state.c0", "model.output.bias"):
        save_checkpoint(last, {name: tensor for name, tensor in good.items() if name != missing}, progress)
        assert missing in cli_error("train", "lm", finished / "corpus.txt", "-o", finished / "run", "--resume")[0]


def test_the_command_printed_after_ctrl_c_goes_on(
    tmp_path: Path, text: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, train_flags: tuple[str, ...]
) -> None:
    corpus, held, run = tmp_path / "my corpus.txt", tmp_path / "held out.txt", tmp_path / "my run"
    corpus.write_bytes(text.replace("moth", "möth").encode("latin-1"))
    held.write_bytes("the möth hums to the moon.\n".encode("latin-1") * 12)
    arguments = ["--valid", held, "--encoding", "latin-1", *train_flags]
    assert cli("train", "lm", corpus, "-o", tmp_path / "straight", *arguments).code == 0

    _interrupt_at(monkeypatch, 10)
    answer = cli("train", "lm", corpus, "-o", run, *arguments)
    assert answer.code == 130
    assert "not recorded" in answer.err
    monkeypatch.undo()
    (command,) = re.findall(r"go on with: rnn-edge (.*)", answer.err)
    answer = cli(*shlex.split(command))
    assert answer.code == 0, answer.err
    assert "resuming at step 10" in answer.err
    assert (run / "best.safetensors").read_bytes() == (tmp_path / "straight" / "best.safetensors").read_bytes()


@pytest.mark.parametrize("moment", ["_validate", "_save"])
@pytest.mark.parametrize("place", ["fsync", "replace", "open"])
def test_a_disk_that_is_full_while_training(
    tmp_path: Path,
    corpus_file: Path,
    cli: Cli,
    cli_error: CliError,
    monkeypatch: pytest.MonkeyPatch,
    train_flags: tuple[str, ...],
    place: str,
    moment: str,
) -> None:
    """The error is clear, the last checkpoint stays, and with room again the run goes on to the same end."""
    assert cli("train", "lm", corpus_file, "-o", tmp_path / "straight", *train_flags).code == 0
    original, opened = getattr(Trainer, moment), Path.open

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_none_to_append(self: Path, mode: str = "r", **options: Any) -> Any:
        return full() if mode == "ab" else opened(self, mode, **options)

    def fill(self: Trainer[Any, Any]) -> Any:
        if self.state.progress.step == 20:
            if place == "fsync":
                monkeypatch.setattr(os, "fsync", full)
            else:
                monkeypatch.setattr(Path, place, full if place == "replace" else open_none_to_append)
        return original(self)

    monkeypatch.setattr(Trainer, moment, fill)
    error, hint = cli_error("train", "lm", corpus_file, "-o", tmp_path / "run", *train_flags)
    monkeypatch.undo()
    assert "cannot write" in error
    assert "disk is full" in hint
    kept = load_checkpoint(tmp_path / "run" / "last.safetensors", Progress)[1].step
    assert kept == (20 if (place, moment) == ("open", "_save") else 10)  # saving appends nothing; the next line does
    answer = cli("train", "lm", corpus_file, "-o", tmp_path / "run", "--resume", "--device", "cpu", "--threads", 1)
    assert answer.code == 0, answer.err
    best = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("run", "straight")]
    assert best[0] == best[1]


def test_ctrl_c_at_the_last_step_ends_as_usual(
    tmp_path: Path, corpus_file: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, train_flags: tuple[str, ...]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    _interrupt_at(monkeypatch, 21)
    answer = cli("train", "lm", corpus_file, "-o", tmp_path / "run", *train_flags)
    assert "finished at step 21" in answer.err
    assert "go on with" not in answer.err  # there is nothing to go on with
    assert '"kind": "finished"' in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    assert signal.getsignal(signal.SIGINT) is handler
