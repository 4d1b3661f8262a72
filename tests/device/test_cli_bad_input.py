"""Every mistake of the device side: one clear line, one hint, the right exit code, nothing lost."""

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from tests.device.conftest import Cli
from tests.device.program import command, environment, rnn_edge, rnn_edge_without
from tests.device.tiny import GRU, LSTM, copy_bundle, replace_file

Fails = Callable[..., tuple[str, str]]


def two_lines(err: str) -> tuple[str, str]:
    lines = err.splitlines()
    assert len(lines) == 2, err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    assert "Traceback" not in err
    return lines[0].removeprefix("error: "), lines[1].removeprefix("hint: ")


@pytest.fixture
def fails(cli: Cli) -> Fails:
    """Run a command that must fail with this code → its error and hint."""

    def call(code: int, *arguments: str) -> tuple[str, str]:
        found, out, err = cli(*arguments)
        assert (found, out) == (code, "")
        return two_lines(err)

    return call


COMMANDS = [["generate", "-p", "a"], ["show"], ["verify"]]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_missing_bundle_lists_those_that_exist(fails: Fails, words: list[str]) -> None:
    error, hint = fails(1, *words, "shakspere")
    assert error == "there is no bundle shakspere"
    assert "gru, lstm" in hint


def test_a_name_cannot_break_the_lines(fails: Fails) -> None:
    error, _ = fails(1, "show", "no\nsuch\x1b[31m")
    assert "\x1b" not in error


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda manifest: manifest.update(format_version=99), "format version 99"),
        (lambda manifest: manifest.pop("tokenizer"), "tokenizer is missing"),
        (lambda manifest: manifest["graphs"].update(step="../step.onnx"), "not a plain file name"),
    ],
)
def test_manifests(
    fails: Fails, tmp_path: Path, words: list[str], change: Callable[[dict[str, Any]], None], expected: str
) -> None:
    assert expected in fails(1, *words, str(copy_bundle(LSTM, tmp_path / "b", change)))[0]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_manifest_that_is_not_json(fails: Fails, tmp_path: Path, words: list[str]) -> None:
    path = copy_bundle(LSTM, tmp_path / "b")
    (path / "manifest.json").write_bytes(b"\x89PNG")
    assert "is not JSON" in fails(1, *words, str(path))[0]


def test_damaged_graphs(fails: Fails, tmp_path: Path) -> None:
    path, whole = copy_bundle(LSTM, tmp_path / "b"), (LSTM / "step.onnx").read_bytes()
    line = ["generate", "-p", "a", str(path)]
    (path / "step.onnx").write_bytes(whole[:-1] + b"?")
    assert "its SHA-256 is not the manifest's" in fails(1, *line)[0]
    (path / "step.onnx").write_bytes(whole[:1000])
    assert "truncated or changed" in fails(1, *line)[0]
    replace_file(path, "step.onnx", whole[:1000])
    assert "step.onnx is not an ONNX model" in fails(1, *line)[0]
    replace_file(path, "step.onnx", (GRU / "step.onnx").read_bytes())
    assert "is not what the manifest says" in fails(1, *line)[0]
    replace_file(path, "tokenizer.json", b"{}")
    replace_file(path, "step.onnx", whole)
    assert "tokenizer.json is not a tokenizer" in fails(1, *line)[0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--temperature", "nan"], "temperature is nan"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--temperature", "inf"], "temperature is inf"),
        (["--top-p", "0"], "top-p is 0.0"),
        (["--top-p", "1.5"], "top-p is 1.5"),
        (["--top-p", "nan"], "top-p is nan"),
        (["--min-p", "2"], "min-p is 2.0"),
        (["--top-k", "-1"], "top-k is -1"),
        (["--repeat-penalty", "0"], "repeat-penalty is 0.0"),
        (["--repeat-window", "-1"], "repeat-window is -1"),
        (["-n", "0"], "max-tokens is 0"),
        (["-n", "-2"], "max-tokens is -2"),
        (["-s", "-1"], "seed is -1"),
        (["-t", "0"], "threads is 0"),
        (["--stop", ""], "a stop text is empty"),
        (["--unknown", "maybe"], "unknown is 'maybe'"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["-f", "prompt.txt"], "--prompt and --file exclude each other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_out_of_range_exit_2(fails: Fails, arguments: list[str], error: str) -> None:
    assert fails(2, "generate", "gru", "-p", "a", *arguments)[0] == error


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["generate", "gru", "--nonsense"], "--nonsense"),
        (["generate", "gru", "-n", "many"], "'many'"),
        (["generate", "gru", "-n"], "-n"),
        (["generate"], "BUNDLE"),
        (["show", "gru", "extra"], "extra"),
        (["nonsense"], "nonsense"),
        (["--nonsense"], "--nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_exit_2(fails: Fails, arguments: list[str], error: str) -> None:
    message, hint = fails(2, *arguments)
    assert error in message
    assert hint.startswith("see rnn-edge")
    assert hint.endswith("--help")


def test_characters_that_the_model_has_never_seen(fails: Fails) -> None:
    error, hint = fails(1, "generate", "gru", "-p", "a€b§")
    assert error == "the model has never seen '§' '€'"
    assert "--unknown skip" in hint


def test_prompt_files(fails: Fails, tmp_path: Path) -> None:
    assert fails(1, "generate", "gru", "-f", "absent.txt")[0] == "cannot read absent.txt: No such file or directory"
    assert fails(1, "generate", "gru", "-f", ".")[0] == "cannot read .: Is a directory"
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 x")
    error, hint = fails(1, "generate", "gru", "-f", "latin.txt")
    assert error.endswith("not UTF-8: byte 3")
    assert "UTF-8" in hint


def test_stdin_that_is_not_utf8() -> None:
    done = rnn_edge("generate", "gru", input_bytes=b"ab\xff")
    assert (done.returncode, done.stdout) == (1, "")
    assert two_lines(done.stderr)[0] == "the prompt is not UTF-8: byte 2"


def test_an_argument_that_is_not_utf8() -> None:
    # Bytes of the command line that are none are kept as surrogates, which stdout refuses to write.
    for options in ((), ("--unknown", "skip")):
        done = rnn_edge("generate", "gru", *options, "-p", b"ab\xff", PYTHONIOENCODING="utf-8:strict")
        assert (done.returncode, done.stdout) == (1, "")
        assert two_lines(done.stderr)[0] == "the prompt is not UTF-8: byte 2"


def test_a_terminal_that_cannot_show_a_character() -> None:
    done = rnn_edge("generate", "gru", "-n", "5", "-q", "-p", "café – ", PYTHONIOENCODING="ascii")
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("caf")


def test_state_files(fails: Fails, cli: Cli, tmp_path: Path) -> None:
    line = ["generate", "gru", "-p", "a", "-n", "3", "-q"]
    assert fails(1, *line, "--load-state", "absent")[0] == "there is no state file absent"
    (tmp_path / "text").write_bytes(b"no state")
    assert fails(1, *line, "--load-state", "text")[0] == "text is not a state file"
    assert cli(*line, "--save-state", "gru.state")[0] == 0
    error, hint = fails(1, "generate", "lstm", "-p", "a", "--load-state", "gru.state")
    assert "belongs to tiny-gru" in error
    assert "--load-state" in hint
    (tmp_path / "file").write_bytes(b"")
    assert fails(1, *line, "--save-state", "file/state")[0] == "file is a file, not a folder"


def test_a_full_disk_keeps_the_text_and_names_the_mend(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, out, err = cli("generate", "gru", "-p", "Marta", "-n", "10", "-q", "--save-state", "my.state")
    assert code == 1
    assert out.startswith("Marta")
    error, hint = two_lines(err)
    assert error == "cannot write my.state: No space left on device"
    assert "the disk is full" in hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "arguments", [["generate", "gru", "-p", "a", "-n", "5"], ["show", "gru"], ["models", "--json"], ["--help"]]
)
def test_standard_output_on_a_full_disk(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            check=False,
        )
    assert done.returncode == 1
    assert "No space left" in two_lines(done.stderr.decode())[0]


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is there")
def test_cuda_asked_for_and_absent(fails: Fails, cli: Cli) -> None:
    error, hint = fails(1, "generate", "gru", "-p", "a", "--device", "cuda")
    assert error.startswith("--device cuda: ")
    assert "rnn-edge[cuda]" in hint
    assert "--device cpu" in hint
    code, out, err = cli("verify", "gru", "--device", "cuda")
    assert code == 1
    assert "--device cuda: " in out + err


def test_onnx_runtime_is_not_installed() -> None:
    done = rnn_edge_without(["onnxruntime"], "generate", "gru", "-p", "a")
    assert (done.returncode, done.stdout) == (1, "")
    *lines, wanted = done.stderr.splitlines()
    error, hint = two_lines("\n".join(lines))
    assert error == "ONNX Runtime is not installed"
    assert "pip install 'rnn-edge[cpu]'" in hint
    assert "rnn-edge[cuda]" in hint
    assert wanted == "WANTED onnxruntime"
    # What needs no runtime works without one.
    assert rnn_edge_without(["onnxruntime"], "show", "gru").returncode == 0
    assert rnn_edge_without(["onnxruntime"], "models").returncode == 0
