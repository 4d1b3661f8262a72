"""``--tensorboard``: what training writes for TensorBoard, read back by TensorBoard."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from rnn_edge.errors import RnnEdgeError
from rnn_edge_export.cli.screen import TrainingScreen
from rnn_edge_export.cli.tensorboard import TensorBoardLog
from rnn_edge_export.run import read_metrics
from rnn_edge_export.training_events import FinishedEvent, StepEvent, TrainingEvent, ValidationEvent
from tests.device.program import environment
from tests.export.conftest import names

if TYPE_CHECKING:
    from tests.export.conftest import Cli, CliError

pytest.importorskip("tensorboard")


class Events:
    """What TensorBoard shows of a run."""

    def __init__(self, run: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        self._found = EventAccumulator(str(run / "tensorboard"))
        self._found.Reload()

    def scalars(self, name: str) -> list[Any]:
        return [(event.step, event.value) for event in self._found.Scalars(name)]

    def texts(self) -> dict[int, str]:
        events = self._found.Tensors("sample/text_summary")
        return {event.step: event.tensor_proto.string_val[0].decode() for event in events}

    @property
    def names(self) -> set[str]:
        return set(self._found.Tags()["scalars"])


def test_a_run_is_what_its_metrics_say(
    tmp_path: Path, corpus_file: Path, cli: Cli, train_flags: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    assert cli("train", "lm", corpus_file, "-o", run, *train_flags, "--tensorboard").code == 0
    metrics, events = read_metrics(run), Events(run)
    assert events.names == {
        "loss/training",
        "loss/validation",
        "optimiser/learning rate",
        "optimiser/gradient norm",
        "speed/tokens per second",
    }
    losses = [(line.step, pytest.approx(line.loss)) for line in metrics.steps]
    assert events.scalars("loss/training") == losses
    speeds = [(line.step, pytest.approx(line.tokens_per_second)) for line in metrics.steps]
    assert events.scalars("speed/tokens per second") == speeds
    validations = [(line.step, pytest.approx(line.loss)) for line in metrics.validations]
    assert events.scalars("loss/validation") == validations
    texts = {line.step: textwrap.indent(line.sample, "    ", lambda _: True) for line in metrics.validations}
    assert events.texts() == texts


def test_resuming_goes_on_at_the_right_step(
    tmp_path: Path, corpus_file: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, train_flags: tuple[str, ...]
) -> None:
    """Killed at step 20, after its last checkpoint at step 10: what came after that is written anew, and shown once."""
    run, show = tmp_path / "run", TrainingScreen.show

    class Killed(BaseException):
        pass

    def kill(self: TrainingScreen, event: TrainingEvent) -> None:
        show(self, event)
        if isinstance(event, ValidationEvent) and event.step == 20:
            raise Killed

    monkeypatch.setattr(TrainingScreen, "show", kill)
    with pytest.raises(Killed):
        cli("train", "lm", corpus_file, "-o", run, *train_flags, "--tensorboard")
    monkeypatch.undo()
    assert [step for step, _ in Events(run).scalars("loss/training")] == [10, 20]
    answer = cli("train", "lm", corpus_file, "-o", run, "--resume", "--tensorboard", "--device", "cpu", "--threads", 1)
    assert answer.code == 0, answer.err
    assert "resuming at step 10" in answer.err
    events = Events(run)
    assert [step for step, _ in events.scalars("loss/training")] == [10, 20, 21]
    assert [step for step, _ in events.scalars("loss/validation")] == [10, 20, 21]
    assert set(events.texts()) == {10, 20, 21}


def test_the_command_after_ctrl_c_logs_too(
    tmp_path: Path, corpus_file: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, train_flags: tuple[str, ...]
) -> None:
    run, show = tmp_path / "run", TrainingScreen.show

    def press(self: TrainingScreen, event: TrainingEvent) -> None:
        if isinstance(event, StepEvent) and event.step == 10:
            signal.raise_signal(signal.SIGINT)
        show(self, event)

    monkeypatch.setattr(TrainingScreen, "show", press)
    answer = cli("train", "lm", corpus_file, "-o", run, *train_flags, "--validation-interval", 15, "--tensorboard")
    monkeypatch.undo()
    assert answer.code == 130
    assert "loss/validation" not in Events(run).names  # not recorded, as in the metrics
    command = answer.err.rsplit("go on with: rnn-edge ", 1)[1].strip()
    assert command.endswith(" --tensorboard")
    assert cli(*shlex.split(command)).code == 0
    assert [step for step, _ in Events(run).scalars("loss/training")] == [10, 20, 21]


def test_a_run_that_is_replaced_leaves_nothing(
    tmp_path: Path, corpus_file: Path, cli: Cli, train_flags: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    arguments = ("train", "lm", corpus_file, "-o", run, *train_flags)
    for _ in range(2):
        assert cli(*arguments, "--tensorboard", "--force").code == 0
        assert [step for step, _ in Events(run).scalars("loss/validation")] == [10, 20, 21]
        assert len(names(run / "tensorboard")) == 1
    (run / "tensorboard" / "notes.txt").write_text("mine", encoding="utf-8")
    assert cli(*arguments, "--force").code == 0
    assert names(run / "tensorboard") == ["notes.txt"]


def test_bleu_is_logged_where_there_is_some(tmp_path: Path) -> None:
    with TensorBoardLog(tmp_path, 0) as log:
        log.show(ValidationEvent(5, 1.5, True, "# no\n* list\n", 12.5))
        log.show(ValidationEvent(7, 1.25, True, "not recorded", 13.5, recorded=False))
        log.show(FinishedEvent("complete", 7, 5))
        assert Events(tmp_path).scalars("BLEU/validation") == [(5, 12.5)]  # at the end all is on the disk
    assert Events(tmp_path).texts() == {5: "    # no\n    * list\n"}


def test_nothing_is_imported_unless_asked_for(tmp_path: Path, corpus_file: Path, train_flags: tuple[str, ...]) -> None:
    """And where it is, every warning is an error."""
    program = (
        "import sys\nfrom rnn_edge.cli import run\n"
        "assert run(sys.argv[1:]) == 0\n"
        "print(any(name.partition('.')[0] == 'tensorboard' for name in sys.modules))\n"
    )
    for index, (flags, expected) in enumerate((((), "False\n"), (("--tensorboard",), "True\n"))):
        command = [sys.executable, "-W", "error", "-c", program, "train", "lm", str(corpus_file)]
        command += ["-o", str(tmp_path / f"run{index}"), *train_flags, *flags]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
        assert (done.returncode, done.stdout) == (0, expected), done.stderr
        assert "Traceback" not in done.stderr


def test_tensorboard_is_not_installed(
    tmp_path: Path, corpus_file: Path, cli_error: CliError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for task in ("lm", "translation"):
        error, hint = cli_error("train", task, corpus_file, "-o", tmp_path / "run", "--tensorboard")
        assert error == "tensorboard is not installed; --tensorboard needs it"
        assert hint == "run: pip install 'rnn-edge[tensorboard]'"
    assert not (tmp_path / "run").exists()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RnnEdgeError, match="cannot write") as caught, TensorBoardLog(tmp_path, 0) as log:
        monkeypatch.setattr(SummaryWriter, "flush", full)
        log.show(FinishedEvent("complete", 7, 5))
    assert "disk is full" in caught.value.hint
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tensorboard").write_text("in the way", encoding="utf-8")
    with pytest.raises(RnnEdgeError, match="cannot write"):
        TensorBoardLog(tmp_path / "other", 0)
