"""Two processes train what one trains, and end cleanly when one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rnn_edge.errors import InvalidValueError, RunError
from rnn_edge_export.cli.train import session
from rnn_edge_export.distributed import World
from rnn_edge_export.language_model.data import Texts, load_corpus
from rnn_edge_export.language_model.task import LanguageModelTask
from rnn_edge_export.recipe import LanguageModelRecipe
from rnn_edge_export.recipe_sections import StreamSection

pytestmark = pytest.mark.slow

_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
_FLAGS = (
    *("--hidden", "8", "--embedding", "4", "--batch-size", "4", "--sequence-length", "8", "--precision", "fp32"),
    *("--device", "cpu", "--threads", "1", "--validation-interval", "20", "--reset-probability", "0"),
)
_STILL = ("--layer-dropout", "0", "--output-dropout", "0")  # masks differ between processes


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _start(processes: int, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rnn_edge"] if processes == 1 else [*_TORCHRUN, str(processes), "-m"]
    command += ["rnn_edge_export"] * (processes > 1)
    return subprocess.Popen(
        [*command, "train", "lm", *map(str, arguments)], text=True, stderr=subprocess.PIPE, env=_environment()
    )


def _train(processes: int, *arguments: str | Path) -> tuple[int, str]:
    process = _start(processes, *arguments)
    _, shown = process.communicate(timeout=120)
    return process.returncode, shown


def _losses(run: Path) -> list[tuple[str, int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["kind"], line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.fixture
def corpus(tmp_path: Path, text: str) -> Path:
    """A small corpus."""
    path = tmp_path / "corpus.txt"
    path.write_text(text[:3000], encoding="utf-8", newline="")
    return path


def test_two_processes_have_the_losses_of_one(tmp_path: Path, corpus: Path) -> None:
    for processes in (1, 2):
        code, shown = _train(processes, corpus, "-o", tmp_path / str(processes), *_FLAGS, *_STILL, "--epochs", "1")
        assert code == 0, shown
        assert shown.count("steps on cpu") == 1  # one of them prints
    one, two = _losses(tmp_path / "1"), _losses(tmp_path / "2")
    assert len(one) > 8
    assert [entry[:2] for entry in one] == [entry[:2] for entry in two]
    # Sums in another order, and nothing else.
    assert [entry[2] for entry in two] == pytest.approx([entry[2] for entry in one], abs=1e-4)


def test_a_killed_process_ends_the_run_and_it_resumes(tmp_path: Path, corpus: Path) -> None:
    run = tmp_path / "run"
    process = _start(2, corpus, "-o", run, *_FLAGS, "--epochs", "40")
    deadline = time.monotonic() + 60
    while not (run / "last.safetensors").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(max(map(int, children.stdout.split())), signal.SIGKILL)
    _, shown = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "--resume" in shown
    # What is left of 40 epochs would prove no more than the next ones.
    recipe = (run / "recipe.toml").read_text(encoding="utf-8")
    done = _losses(run)[-1][1]
    epochs = (done + 60) / 80
    (run / "recipe.toml").write_text(recipe.replace("epochs = 40.0", f"epochs = {epochs}"), encoding="utf-8")
    code, shown = _train(1, corpus, "-o", run, "--resume")
    assert code == 1
    assert "2 processes trained this run, and here 1 would go on" in shown
    code, shown = _train(2, corpus, "-o", run, "--resume", "--device", "cpu", "--threads", "1")
    assert code == 0, shown
    assert "resuming at step" in shown
    steps = [step for kind, step, _ in _losses(run) if kind == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] >= done


def test_what_ends_all_processes_leaves_time_to_say_why() -> None:
    several = SimpleNamespace(world=World(0, 2), scoring=False, interrupted=False)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with session._interrupts(several):
            os.kill(os.getpid(), signal.SIGTERM)
        assert several.interrupted
        assert signal.getsignal(signal.SIGTERM) == before
        with pytest.raises(RunError), session._interrupts(several):
            raise RunError("another process is gone", "go on with --resume")
        os.kill(os.getpid(), signal.SIGTERM)  # and the message is yet to be shown
    finally:
        signal.signal(signal.SIGTERM, before)


_LEAVES = """
import os, torch
from rnn_edge_export.distributed import join_world, leave_world
world = join_world()
parameter = torch.nn.Parameter(torch.ones(3))
parameter.sum().backward()
world.sum_gradients([parameter])
torch.optim.AdamW([parameter]).step()  # loads more of the engine
names = lambda: [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
assert any("gloo" in name for name in names()), names()
leave_world(world)
assert not any("gloo" in name for name in names()), names()
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux names them")
def test_no_thread_of_the_engine_is_left_when_python_ends(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text(_LEAVES, encoding="utf-8")
    command = [*_TORCHRUN, "2", str(tmp_path / "leaves.py")]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=_environment(), timeout=120)
    assert done.returncode == 0, done.stderr


def test_streams_are_shared_without_overlap(corpus: Path) -> None:
    recipe = LanguageModelRecipe(training=StreamSection(batch_size=6, sequence_length=10))
    data = load_corpus(Texts.survey([corpus]), recipe.training)
    whole = list(LanguageModelTask(recipe, data).batches(3, 1))
    parts = [list(LanguageModelTask(recipe, data, World(rank, 3)).batches(3, 1)) for rank in range(3)]
    for step, (inputs, targets) in enumerate(whole):
        for place, expected in enumerate((inputs, targets)):
            columns = [column for part in parts for column in part[step][place].t().tolist()]
            assert columns == expected.t().tolist()
    with pytest.raises(InvalidValueError, match="6, which 4 processes cannot share evenly"):
        LanguageModelTask(recipe, data, World(0, 4))
