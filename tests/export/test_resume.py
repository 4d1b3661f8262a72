"""Kill a training process, go on, and get exactly what an uninterrupted run gets."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from rnn_edge_export.checkpoint import Best, Progress, load_checkpoint

# Everything that draws random numbers is on, and the run crosses the border of an epoch.
_FLAGS = [
    *("--embedding", "6", "--hidden", "16", "--layers", "2", "--batch-size", "4", "--sequence-length", "12"),
    *("--input-dropout", "0.1", "--layer-dropout", "0.2", "--output-dropout", "0.2", "--weight-drop", "0.2"),
    *("--reset-probability", "0.1", "--epochs", "1.6", "--validation-interval", "35", "--seed", "6"),
]
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400"}

# Kills its own process, as kill -9 does, when the third checkpoint is about to replace the second.
_KILLED_WHILE_SAVING = """
import os, pathlib, signal
replace, count = pathlib.Path.replace, 0
def deadly(self, target):
    global count
    count += pathlib.Path(target).name == "last.safetensors"
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
pathlib.Path.replace = deadly
from rnn_edge.__main__ import main
main()
"""


def _start(*arguments: object, program: tuple[str, ...] = ("-m", "rnn_edge")) -> subprocess.Popen[str]:
    command = [sys.executable, *program, "train", "lm", *map(str, arguments)]
    return subprocess.Popen(command, env=_ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _train(*arguments: object) -> tuple[int, str]:
    process = _start(*arguments, "--threads", 1)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def _records(run: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().decode().rstrip("\n").split("\n")]
    return [{key: line[key] for key in line.keys() - {"tokens_per_second", "seconds_left"}} for line in lines]


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    last, _ = load_checkpoint(run / "last.safetensors", Progress)
    best, _ = load_checkpoint(run / "best.safetensors", Best)
    return {**last, **{f"best {name}": tensor for name, tensor in best.items()}}


def _assert_same_run(run: Path, other: Path) -> None:
    assert _records(run) == _records(other)
    mine, others = _tensors(run), _tensors(other)
    assert mine.keys() == others.keys()
    assert [name for name in mine if not torch.equal(mine[name], others[name])] == []


def _wait_for(process: subprocess.Popen[str], condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _last_logged(run: Path) -> int:
    found = re.findall(r'"kind": "train", "step": (\d+)', (run / "metrics.jsonl").read_text(encoding="utf-8"))
    return int(found[-1]) if found else 0


class Straight(NamedTuple):
    """A corpus, a run over it that nothing interrupted, and the flags that made it."""

    corpus: Path
    run: Path
    flags: list[str]


@pytest.fixture(scope="module")
def straight_runs(tmp_path_factory: pytest.TempPathFactory, text: str) -> Callable[[str], Straight]:
    """Such a run in a precision; each is made once."""

    @functools.cache
    def make(precision: str) -> Straight:
        folder = tmp_path_factory.mktemp("straight")
        corpus, run, flags = folder / "corpus.txt", folder / "run", [*_FLAGS, "--precision", precision]
        corpus.write_text(text[:6000], encoding="utf-8", newline="")
        code, errors = _train(corpus, "-o", run, *flags)
        assert code == 0, errors
        assert _records(run)[-1]["kind"] == "finished"
        return Straight(corpus, run, flags)

    return make


@pytest.fixture
def straight(straight_runs: Callable[[str], Straight]) -> Straight:
    """The one in fp32."""
    return straight_runs("fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kill_9_and_resume(straight_runs: Callable[[str], Straight], tmp_path: Path, precision: str) -> None:
    corpus, expected, flags = straight_runs(precision)
    run = tmp_path / "run"
    process = _start(corpus, "-o", run, *flags, "--threads", 1)
    _wait_for(process, lambda: (run / "last.safetensors").exists() and _last_logged(run) >= 80)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    progress = load_checkpoint(run / "last.safetensors", Progress)[1]
    assert 0 < progress.step < _records(expected)[-1]["step"]

    code, errors = _train(corpus, "-o", run, "--resume")
    assert code == 0, errors
    assert f"resuming at step {progress.step}" in errors
    _assert_same_run(run, expected)


def test_kill_9_while_a_checkpoint_is_written(straight: Straight, tmp_path: Path) -> None:
    corpus, expected, flags = straight
    run = tmp_path / "run"
    process = _start(corpus, "-o", run, *flags, "--threads", 1, program=("-c", _KILLED_WHILE_SAVING))
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    progress = load_checkpoint(run / "last.safetensors", Progress)[1]
    assert progress.step == 70
    # Lines that this checkpoint does not count: they must not stand there twice.
    assert (run / "metrics.jsonl").stat().st_size > progress.metrics_bytes
    assert _records(run)[-1]["step"] == 105
    code, errors = _train(corpus, "-o", run, "--resume")
    assert code == 0, errors
    _assert_same_run(run, expected)


def test_ctrl_c_and_resume(straight: Straight, tmp_path: Path) -> None:
    corpus, expected, flags = straight
    run = tmp_path / "my run"  # a space, which the command that it prints must keep together
    process = _start(corpus, "-o", run, *flags, "--threads", 1)
    _wait_for(process, lambda: (run / "metrics.jsonl").exists() and _last_logged(run) >= 50)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in errors

    stopped = load_checkpoint(run / "last.safetensors", Progress)[1].step
    records = _records(run)
    assert stopped >= 50
    assert re.search(rf"step {stopped} .*validation \d\.\d+ nats.*not recorded", errors)
    assert all(line["step"] <= stopped for line in records)
    assert [line["step"] for line in records if line["kind"] == "validation"] == list(range(35, stopped + 1, 35))
    assert all(line["kind"] != "finished" for line in records)

    command = shlex.split(re.findall(r"go on with: rnn-edge train lm (.*)", errors)[-1])
    assert str(run) in command
    code, errors = _train(*command)
    assert code == 0, errors
    _assert_same_run(run, expected)
