"""``rnn-edge runs``: the list of runs, damaged ones too."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rnn_edge_export.overview import find_runs, look_at
from rnn_edge_export.recipe import LanguageModelRecipe
from rnn_edge_export.run import StepRecord, read_metrics
from tests.device.program import environment
from tests.export.conftest import load_best

if TYPE_CHECKING:
    from tests.export.conftest import Cli, CliError


def _copy(finished: Path, name: str, **changes: Any) -> Path:
    """A run like ``finished / "run"`` whose best validation has other figures."""
    run = Path(shutil.copytree(finished / "run", finished / "runs" / name))
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line | (changes if line["kind"] == "validation" else {}) for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return run


def _listed(cli: Cli, *arguments: object) -> tuple[list[dict[str, Any]], str]:
    answer = cli("runs", *arguments, "--json")
    assert answer.code == 0, answer.err
    return [json.loads(line) for line in answer.out.splitlines()], answer.err


def test_a_finished_run(finished: Path, cli: Cli) -> None:
    ((found,), err) = _listed(cli, finished)
    best = [line for line in read_metrics(finished / "run").validations if line.best][-1]
    model = load_best(finished / "run").model
    seconds = found.pop("seconds")
    assert err == ""
    assert found == {
        "path": str(finished / "run"),
        "task": "language-model",
        "network": "LSTM 1 × 8",
        "tokenizer": "character",
        "data": "corpus.txt",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "step": 21,
        "total_steps": 21,
        "epoch": pytest.approx(0.34, abs=0.01),
        "epochs": 0.34,
        "loss": best.loss,
        "bits": best.loss / math.log(2),
        "bleu": None,
        "best_step": best.step,
        "state": "finished",
        "problems": [],
    }
    assert 0 < seconds < 600


def test_time_is_tokens_by_their_speed(finished: Path) -> None:
    metrics = read_metrics(finished / "run")
    counts = [record.tokens for record in metrics.steps]
    assert counts == [10 * 8 * 24, 20 * 8 * 24, 21 * 8 * 24]
    by_hand = sum(
        steps * 8 * 24 / record.tokens_per_second for steps, record in zip((10, 10, 1), metrics.steps, strict=True)
    )
    assert metrics.seconds == pytest.approx(by_hand)


def test_the_best_comes_first_within_what_compares(finished: Path, cli: Cli) -> None:
    _copy(finished, "worse", loss=2.5, best=True)
    _copy(finished, "better", loss=1.5, best=True)
    words = _copy(finished, "words", loss=1.0, best=True)
    recipe = words / "recipe.toml"
    content = recipe.read_text(encoding="utf-8").replace('tokenizer = "character"', 'tokenizer = "word"')
    recipe.write_text(content, encoding="utf-8")
    shutil.copytree(finished / "runs" / "worse", finished / "runs" / "deep" / "unvalidated")
    path = finished / "runs" / "deep" / "unvalidated" / "metrics.jsonl"
    path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n")
    shutil.copytree(finished / "runs" / "worse", finished / "runs" / ".hidden" / "run")
    found, _ = _listed(cli, finished / "runs", finished / "runs" / "worse")
    assert [Path(row["path"]).name for row in found] == ["better", "worse", "unvalidated", "words"]
    answer = cli("runs", finished / "runs")
    lines = [line.split() for line in answer.out.splitlines()]
    assert lines[0] == ["language-model,", "character", "tokens"]
    assert lines[1][:3] == ["run", "network", "parameters"]
    assert "BLEU" not in lines[1]  # a column that would be empty
    assert [line[0] for line in lines[3:6]] == ["better", "worse", "unvalidated"]
    assert f"{1.5 / math.log(2):.4f}" in lines[3]
    assert "10/21" in lines[5]
    assert ["language-model,", "word", "tokens"] in lines


def test_translators_are_sorted_by_bleu(finished: Path, cli: Cli) -> None:
    _copy(finished, "low", loss=1.0, bleu=20.0, best=True)
    _copy(finished, "high", loss=2.0, bleu=30.5, best=True)
    for name in ("low", "high"):
        (finished / "runs" / name / "recipe.toml").write_text(
            'task = "translation"\n[model]\nencoder_hidden = 128\n', encoding="utf-8"
        )
    found, _ = _listed(cli, finished / "runs")
    assert [(Path(row["path"]).name, row["bleu"], row["tokenizer"]) for row in found] == [
        ("high", 30.5, "subword"),
        ("low", 20.0, "subword"),
    ]
    assert found[0]["network"] == "LSTM 2 × 2 × 128 → 1 × 512"
    assert "30.50" in cli("runs", finished / "runs").out


def test_states(finished: Path) -> None:
    run = finished / "run"
    path = run / "metrics.jsonl"
    content = path.read_text(encoding="utf-8")
    assert look_at(run).state == "finished"
    path.write_text(content.replace('"complete"', '"early-stop"'), encoding="utf-8")
    assert look_at(run).state == "early stop"
    path.write_text("".join(content.splitlines(keepends=True)[:3]) + '{"kind": "tra', encoding="utf-8")
    assert look_at(run).state == "can resume"
    assert look_at(run).step == 20
    (run / "best.safetensors").unlink()
    assert (look_at(run).state, look_at(run).problems) == ("can resume", ())
    assert look_at(run).parameters  # told from the last checkpoint
    (run / "last.safetensors").unlink()
    assert look_at(run).state == "no checkpoint"
    path.unlink()
    begun = look_at(run)
    assert (begun.step, begun.total_steps, begun.loss, begun.seconds, begun.problems) == (0, None, None, None, ())


def test_damaged_runs_are_named_and_stop_nothing(finished: Path, cli: Cli) -> None:
    shutil.copytree(finished / "run", finished / "whole")
    for name, file, content in (
        ("metrics", "metrics.jsonl", b'{"kind": "train"}\n'),
        ("best", "best.safetensors", b"\xff" * 40),
        ("last", "last.safetensors", b""),
        ("recipe", "recipe.toml", b"[model\n"),
        ("newer", "recipe.toml", b"[model]\nheads = 8\n"),
        ("bytes", "recipe.toml", b"\xff\xfe"),
    ):
        (Path(shutil.copytree(finished / "run", finished / name)) / file).write_bytes(content)
    gone = Path(shutil.copytree(finished / "run", finished / "gone"))
    (gone / "best.safetensors").unlink()
    (finished / "metrics" / "best.safetensors").unlink()
    (finished / "metrics" / "best.safetensors").mkdir()
    answer = cli("runs", finished)
    assert answer.code == 0
    rows = {line.split()[0] for line in answer.out.splitlines()[3:]}
    assert rows == {"run", "whole", "metrics", "best", "last", "gone"}
    for words in (
        f"{finished / 'best'}: best.safetensors is damaged",
        f"{finished / 'last'}: last.safetensors is damaged",
        f"{finished / 'gone'}: best.safetensors is missing",
        "metrics.jsonl is damaged in line 1",
        f"{finished / 'recipe'} cannot be read",
        "model.heads is not a known key",
        f"{finished / 'bytes'} cannot be read",
    ):
        assert words in answer.err, words
    assert "whole" not in answer.err
    found, _ = _listed(cli, finished)
    problems = {Path(row["path"]).name: row["problems"] for row in found}
    assert problems["whole"] == []
    assert all(problems[name] for name in ("best", "last", "gone", "metrics", "recipe", "newer", "bytes"))


def test_folders_without_runs(tmp_path: Path, cli: Cli, cli_error: CliError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error, hint = cli_error("runs")
    assert error == "there is no folder runs"
    assert "training runs below" in hint
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "there is no folder file" in cli_error("runs", "file")[0]
    (tmp_path / "runs").mkdir()
    answer = cli("runs")
    assert (answer.code, answer.out) == (0, "")
    assert "no runs found" in answer.err


def test_runs_below_runs_and_loops_of_links(finished: Path) -> None:
    (finished / "run" / "inner").mkdir()
    (finished / "run" / "inner" / "recipe.toml").write_text(LanguageModelRecipe().to_toml(), encoding="utf-8")
    (finished / "loop").symlink_to(finished)
    assert list(find_runs(finished)) == [finished / "run"]
    assert list(find_runs(finished / "run")) == [finished / "run"]


def test_older_metrics_count_no_tokens(finished: Path) -> None:
    path = finished / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line.pop("tokens", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert isinstance(read_metrics(finished / "run").steps[0], StepRecord)
    assert look_at(finished / "run").seconds is None


def test_neither_listing_nor_drawing_needs_torch(finished: Path) -> None:
    pytest.importorskip("matplotlib")
    program = (
        "import sys\nfrom rnn_edge.cli import run\n"
        f"assert run(['runs', {str(finished)!r}]) == 0\n"
        f"assert run(['plot', {str(finished / 'run')!r}, '-o', {str(finished / 'a.png')!r}]) == 0\n"
        "print({'torch', 'matplotlib.pyplot'} & set(sys.modules))\n"  # pyplot would look for a screen
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"
    assert done.stderr == ""
