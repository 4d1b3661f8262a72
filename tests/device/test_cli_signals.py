"""Closed pipes, Ctrl-C and terminals: what only a process of its own can show."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rnn_edge.language_model import LanguageModel
from rnn_edge.state import load_state
from tests.device.program import command, environment, rnn_edge
from tests.device.tiny import GRU


def start(*arguments: str, cwd: Path | None = None, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd=cwd,
        env=environment(),
    )


# --- closed pipes


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_reader_that_leaves_early(extra: list[str]) -> None:
    process = start("generate", "lstm", "-p", "Marta", "-n", "5000", *extra)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "gru", "-p", "a", "-n", "3"],
        ["models"],
        ["models", "--json"],
        ["show", "gru"],
        ["show", "gru", "--json"],
        ["verify", "gru"],
        ["verify", "gru", "--json"],
        ["--help"],
        ["generate", "--help"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_a_pipe_that_was_never_read(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*arguments, stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_an_error_with_a_closed_pipe_is_still_told() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("show", "absent", stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith(b"error: there is no bundle absent\nhint: ")
    assert err.count(b"\n") == 2


# --- Ctrl-C


def interrupt_after(process: subprocess.Popen[bytes], size: int) -> tuple[str, str]:
    """Send Ctrl-C once ``size`` bytes have come; all of stdout and stderr."""
    assert process.stdout is not None
    begun = b""
    while len(begun) < size:
        piece = process.stdout.read(size - len(begun))
        assert piece, "it ended by itself"
        begun += piece
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    return (begun + rest).decode(), err.decode()


def test_endless_text_until_ctrl_c(lstm: LanguageModel, tmp_path: Path) -> None:
    process = start(
        "generate",
        "lstm",
        "-p",
        "The ",
        "-n",
        "-1",
        "-s",
        "5",
        "--no-display-prompt",
        "--save-state",
        "my.state",
        cwd=tmp_path,
    )
    text, err = interrupt_after(process, 300)
    assert process.returncode == 130
    assert len(text) >= 300
    assert "Traceback" not in err
    assert f"generated {len(text)} tokens" in err
    assert len(err.splitlines()) == 1
    whole = "".join(event.text for event in lstm.generate("The ", max_tokens=len(text) + 50, seed=5))
    assert text == whole[: len(text)]
    # Nothing is lost and nothing is fed twice: what the state has read is the text as far as it was shown.
    state = load_state(tmp_path / "my.state", lstm.manifest)
    resumed, straight = lstm.graph.stepper(), lstm.graph.stepper()
    resumed.load(state)
    resumed.feed([] if state.continuation.pending is None else [state.continuation.pending])
    straight.feed(lstm.tokenizer.encode("The " + text))
    assert resumed.state().largest_difference(straight.state()) < 1e-6
    done = rnn_edge(
        "generate", "lstm", "-n", "50", "-s", "5", "-q", "--no-display-prompt", "--load-state", "my.state", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == whole[len(text) :]


def test_ctrl_c_with_json_ends_with_a_whole_line() -> None:
    process = start("generate", "gru", "-p", "The ", "-n", "-1", "--json", "-q")
    out, err = interrupt_after(process, 1000)
    assert (process.returncode, err) == (130, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[-1]["finish_reason"] == "interrupt"


_INTERRUPTED_IMPORT = """
import os, signal, sys
moment = sys.argv.pop(1)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == moment:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from rnn_edge.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "module",
    ["rnn_edge.cli", "typer", "rnn_edge.cli.generate", "rnn_edge.language_model", "numpy", "tokenizers", "onnxruntime"],
)
def test_ctrl_c_while_starting(module: str) -> None:
    """Deterministic moments: the interrupt comes when this module is about to be imported."""
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_IMPORT, module, "generate", "gru", "-p", "a", "-n", "5"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# --- terminals


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "gru", "-p", "a", "-n", "5"],
        ["models"],
        ["show", "gru"],
        ["verify", "gru"],
        ["show", "absent"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_pipes_get_no_escape_codes(arguments: list[str]) -> None:
    done = rnn_edge(*arguments, TERM="xterm-256color")
    assert done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def on_terminal(*arguments: str, **variables: str) -> str:
    """Everything that a command writes to a terminal."""
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        command(*arguments), stdin=secondary, stdout=secondary, stderr=secondary, env=environment(**variables)
    )
    os.close(secondary)
    pieces = []
    while True:
        try:
            piece = os.read(primary, 65536)
        except OSError:  # Linux answers EIO once the other side is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(primary)
    assert process.wait(60) == 0
    return b"".join(pieces).decode()


def test_a_terminal_gets_style_but_never_from_the_text(tmp_path: Path) -> None:
    assert "\x1b[" in on_terminal("show", "gru", TERM="xterm-256color")
    # A prompt that commands a terminal is shown, not obeyed; the model has never seen its first character.
    shown = on_terminal(
        "generate", "gru", "-p", "\x1b[31mMarta", "-n", "5", "-q", "--unknown", "skip", TERM="xterm-256color"
    )
    assert "\x1b" not in shown
    assert "Marta" in shown


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"TERM": "xterm-256color", "NO_COLOR": "1"}], ids=str)
def test_dumb_terminals_and_no_color(variables: dict[str, str]) -> None:
    for arguments in (["show", "gru"], ["models"], ["generate", "gru", "-p", "a", "-n", "5"]):
        shown = on_terminal(*arguments, **variables)
        assert shown
        if variables["TERM"] == "dumb":
            assert "\x1b" not in shown
        # NO_COLOR forbids colours; bold and dim are none.
        assert not re.search(r"\x1b\[(?:\d+;)*(?:3|4|9|10)\d", shown)


def test_a_bundle_in_a_folder_with_a_strange_name(tmp_path: Path) -> None:
    strange = tmp_path / "[bold]é ü\n"
    strange.symlink_to(GRU)
    done = rnn_edge("show", str(strange))
    assert done.returncode == 0
    assert "[bold]é ü" in done.stdout


def test_a_pipe_that_closes_early_still_saves_the_state(tmp_path: Path, lstm: LanguageModel) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("generate", "lstm", "-n", "50", "-s", "1", "--save-state", "my.state", stdout=writer, cwd=tmp_path)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert load_state(tmp_path / "my.state", lstm.manifest).continuation.step >= 1
