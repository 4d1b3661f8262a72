"""``rnn-edge bench``: what it prints, and what it refuses."""

import csv
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rnn_edge import bench, workloads
from tests.device.conftest import Cli
from tests.device.test_cli_bad_input import two_lines
from tests.device.tiny import GRU, copy_bundle

QUICK = ("-p", "2", "-n", "3", "-r", "2", "--device", "cpu")
LANGUAGE_MODEL = ["prompt", "generate", "step", "of limit", "first token", "cold start", "memory"]
TRANSLATOR = ["encode", "translate", "translate", "step", "of limit", "first token", "cold start", "memory"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes and no probes: other tests have them."""
    monkeypatch.setattr(workloads, "_process", lambda line, path: (0.5, 40.0))
    monkeypatch.setattr(bench, "read_bandwidth", lambda size: 1e15)


def measured(cli: Cli, *arguments: str) -> dict[str, Any]:
    code, out, err = cli("bench", *arguments, "--format", "json")
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def test_json_has_everything(cli: Cli) -> None:
    found = measured(cli, "lstm", "translator", *QUICK)
    assert set(found["machine"]) == {"cpu", "cores", "os", "versions"}
    assert set(found["machine"]["versions"]) == {"python", "rnn-edge", "numpy", "onnxruntime"}
    results = found["results"]
    assert [row["test"] for row in results] == LANGUAGE_MODEL + TRANSLATOR
    assert {row["bundle"] for row in results} == {"lstm", "translator"}
    for row in results:
        if row["test"] != "of limit":
            assert len(row["values"]) == 2
            assert row["value"] == pytest.approx(sum(row["values"]) / 2)


def test_every_combination_of_the_lists(cli: Cli) -> None:
    results = measured(cli, "gru", "-p", "2,4", "-n", "3", "-b", "1, 2,1", "-r", "1")["results"]
    found = {(row["test"], row["tokens"], row["batch"]) for row in results}
    for batch in (1, 2):
        assert {("prompt", 2, batch), ("prompt", 4, batch), ("generate", 3, batch), ("step", 3, batch)} <= found
    assert len(found) == len(results) == 2 * 4 + 1 + 2 + 2


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="this machine has one core")
def test_threads_are_compared(cli: Cli) -> None:
    results = measured(cli, "gru", *QUICK, "-t", "1,2")["results"]
    assert [row["test"] for row in results if row["threads"] == 1] == LANGUAGE_MODEL
    # What one thread can read is no limit for two.
    assert [row["test"] for row in results if row["threads"] == 2] == [x for x in LANGUAGE_MODEL if x != "of limit"]


def test_bundles_of_one_name_are_told_apart(cli: Cli, tmp_path: Path) -> None:
    copy_bundle(GRU, tmp_path / "other" / "gru")
    results = measured(cli, "gru", "other/gru", "gru", *QUICK)["results"]
    assert list(dict.fromkeys(row["bundle"] for row in results)) == [str(GRU), "other/gru"]


def test_the_table(cli: Cli) -> None:
    code, out, err = cli("bench", "lstm", *QUICK, "-b", "1,32")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["bundle", "batch", "test", "result"]
    (memory,) = (line for line in lines if " memory " in line)
    assert memory.split() == ["lstm", "1", "memory", "40.0", "±", "0.00", "MB"]
    assert "everywhere: type fp32, on 1 cpu" in lines
    assert any(line.startswith("cold start: ") and "`rnn-edge generate -n 64 -s 0`" in line for line in lines)
    assert any("core" in line for line in lines)
    assert lines[-1].startswith("python ")
    assert "onnxruntime" in lines[-1]


def test_a_failed_probe_shows_no_figure(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "read_bandwidth", lambda size: 1.0)
    _, out, _ = cli("bench", "lstm", *QUICK)
    (line,) = (line for line in out.splitlines() if line.startswith("lstm ") and "of limit" in line)
    assert line.split() == ["lstm", "of", "limit", "failed", "%"]
    assert "lstm, of limit: the probe failed" in out


def test_markdown(cli: Cli, tmp_path: Path) -> None:
    copy_bundle(GRU, tmp_path / "a|b")
    code, out, _ = cli("bench", "a|b", *QUICK, "--format", "md")
    assert code == 0
    table, notes = out.split("\n\n")
    rows = [line.replace("\\|", "").split(" | ") for line in table.splitlines()]
    assert len(rows) == 2 + len(LANGUAGE_MODEL)
    assert {len(row) for row in rows} == {3}
    assert "a\\|b" in table
    assert all(line.startswith("- ") for line in notes.splitlines())


def test_csv(cli: Cli) -> None:
    code, out, _ = cli("bench", "translator", *QUICK, "--format", "csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["test"] for row in rows] == TRANSLATOR
    assert len(rows[0]["values"].split()) == 2
    assert float(rows[-1]["value"]) == 40
    assert all(row["cpu"] and row["onnxruntime"] for row in rows)


def test_sentences_of_a_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "news.en").write_text("The keeper. Marta?\n\nShe sells the house.\n", encoding="utf-8")
    results = measured(cli, "translator", "-n", "3", "-r", "1", "-f", "news.en")["results"]
    (row,) = (row for row in results if row["unit"] == "sentences/s")
    assert row["tokens"] == 0
    assert row["method"].startswith("3 sentences of the file")


def test_ctrl_c_shows_what_is_complete(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def process(line: list[str], path: Path) -> tuple[float, float]:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return 0.5, 40.0

    monkeypatch.setattr(workloads, "_process", process)
    code, out, err = cli("bench", "gru", "-p", "2", "-n", "3", "-r", "1000", "--format", "json")
    assert (code, err) == (130, "")
    counts = [len(row["values"]) for row in json.loads(out)["results"] if row["test"] != "of limit"]
    assert counts == [2, 2, 2, 2, 1, 1]


def test_ctrl_c_before_anything_is_complete(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "_process", lambda line, path: os.kill(os.getpid(), signal.SIGINT))
    assert cli("bench", "gru", *QUICK) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["-t", "0"], "threads is 0"),
        (["-t", "1,100000"], "threads is 100000"),
        (["-b", "1,,2"], "--batch is '1,,2'"),
        (["-b", "two"], "--batch is 'two'"),
        (["-b", "0"], "batch is 0"),
        (["-p", ""], "--prompt-tokens is ''"),
        (["-p", "-4"], "--prompt-tokens is '-4'"),
        (["-n", "²"], "--tokens is '²'"),
        (["-n", "8,2000000"], "tokens is 2000000"),
        (["-r", "0"], "repetitions is 0"),
        (["--format", "xml"], "--format xml is unknown"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["-f", "news.en"], "--file is for translators, and there is none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_out_of_range(cli: Cli, arguments: list[str], error: str) -> None:
    code, out, err = cli("bench", "gru", *arguments)
    assert (code, out) == (2, "")
    assert two_lines(err)[0] == error


def test_a_batch_that_memory_cannot_hold(cli: Cli) -> None:
    code, out, err = cli("bench", "gru", "-b", "1,1000000000000")
    assert (code, out) == (2, "")
    error, hint = two_lines(err)
    assert error.startswith("a batch of 1,000,000,000,000 with tiny-gru needs ")
    assert error.endswith(" MB are free")
    assert hint.startswith("use at most ")


def test_files_of_sentences(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n", encoding="utf-8")
    for arguments, code, error in (
        (["-f", "absent"], 1, "cannot read absent: No such file or directory"),
        (["-f", "empty"], 1, "empty has no sentences"),
        (["-f", "empty", "-p", "3"], 2, "--file and --prompt-tokens exclude each other"),
    ):
        found, out, err = cli("bench", "translator", *arguments)
        assert (found, out) == (code, "")
        assert two_lines(err)[0] == error
