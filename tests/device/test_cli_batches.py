"""``rnn-edge generate`` with several texts: samples of one prompt, and a file of prompts."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, cast

import pytest

from rnn_edge.batch_generation import GeneratedText
from rnn_edge.cli.batches import SEPARATOR, Prompts, escape, show_lines, unescape
from rnn_edge.errors import DataError
from rnn_edge.events import Timings
from rnn_edge.language_model import LanguageModel
from tests.device.conftest import Cli
from tests.device.program import command, environment, rnn_edge
from tests.device.test_cli_bad_input import two_lines
from tests.device.test_cli_signals import on_terminal

LINE = ["generate", "gru", "-n", "20", "-s", "1"]


def expected(model: LanguageModel, prompt: str, stream: int, count: int = 20, temperature: float | None = None) -> str:
    events = model.generate(prompt, stream=stream, max_tokens=count, seed=1, temperature=temperature)
    return "".join(event.text for event in events)


def one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


# --- samples


def test_samples_in_a_pipe(cli: Cli, gru: LanguageModel) -> None:
    samples = [expected(gru, "The ", stream) for stream in range(3)]
    code, out, err = cli(*LINE, "-p", "The ", "-N", "3")
    assert code == 0
    assert out.split(SEPARATOR) == ["The " + text for text in samples]
    for part in ("load ", "3 texts from prompts of 12 tokens", "generated 60 tokens", "tokens/s", "seed 1"):
        assert part in err
    flags = ("-p", "The ", "--samples", "3", "--no-display-prompt", "-q", "--batch-size", "2")
    assert cli(*LINE, *flags) == (0, SEPARATOR.join(samples), "")
    assert cli(*LINE, "-p", "The ", "-N", "1", "-q") == (0, "The " + samples[0], "")


def test_samples_on_a_terminal(gru: LanguageModel) -> None:
    out = on_terminal(*LINE, "-p", "The ", "-N", "2", "-q", TERM="dumb").replace("\r\n", "\n")
    first, second = ("The " + expected(gru, "The ", stream) for stream in range(2))
    assert out == f"── 1 of 2 ──\n{first}\n── 2 of 2 ──\n{second}\n"


def test_samples_as_json(cli: Cli, gru: LanguageModel) -> None:
    code, out, err = cli(*LINE, "-p", "The ", "-N", "3", "--json", "-q")
    assert (code, err) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    order = [event["index"] for event in events]
    assert order[:3] == [0, 1, 2]
    assert order[3:] != sorted(order[3:])  # side by side, some tokens of each at a time
    for index in range(3):
        own = [event for event in events if event["index"] == index]
        assert "".join(event["text"] for event in own) == expected(gru, "The ", index)
        assert all(set(event) == {"index", "text", "token", "log_probability"} for event in own[:-1])
        assert own[-1]["finish_reason"] == "length"
        assert own[-1]["timings"]["generated_tokens"] == 20


def test_samples_of_a_state(cli: Cli, gru: LanguageModel) -> None:
    base = ["generate", "gru", "-q", "--no-display-prompt"]
    assert cli(*base, "-s", "1", "-p", "The ", "-n", "20", "--save-state", "a.state")[0] == 0
    _, out, _ = cli(*base, "-p", "", "-n", "20", "--load-state", "a.state", "-N", "2")
    first, second = out.split(SEPARATOR)
    assert first == expected(gru, "The ", 0, 40)[20:]
    assert second != first


# --- a file of prompts


def test_a_line_for_each_line(cli: Cli, gru: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("The \n\r\n\nThe café\\n\\tTob\nMarta".encode())
    prompts = ["The ", "", "", "The café\n\tTob", "Marta"]
    line = ["generate", "gru", "-n", "80", "-s", "1", "--temperature", "3"]
    texts = [expected(gru, prompt, index, 80, 3.0) for index, prompt in enumerate(prompts)]
    assert any("\n" in text for text in texts)
    code, out, err = cli(*line, "--input", "prompts.txt", "--batch-size", "2")
    assert code == 0
    assert out == "".join(one_line(text) + "\n" for text in texts)
    assert "5 texts" in err
    _, out, _ = cli(*line, "--input", "prompts.txt", "--display-prompt", "-q")
    assert [unescape(line) for line in out.splitlines()] == [a + b for a, b in zip(prompts, texts, strict=True)]
    _, out, _ = cli(*line, "--input", "prompts.txt", "--json", "-q")
    assert [json.loads(line) for line in out.splitlines()] == [
        {"index": index, "prompt": prompt, "text": text, "finish_reason": "length", "tokens": 80}
        for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]


def test_prompts_from_a_pipe(gru: LanguageModel) -> None:
    done = rnn_edge(*LINE, "--input", "-", "-q", input_bytes=b"The \nMarta\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [one_line(expected(gru, p, i)) for i, p in enumerate(("The ", "Marta"))]


class Asked:
    """A program that answers the prompts of a pipe, and whoever asks it."""

    def __init__(self, process: "subprocess.Popen[bytes]", prompts: IO[bytes]) -> None:
        self.process, self.prompts = process, prompts

    def say(self, text: str) -> None:
        self.prompts.write(text.encode())
        self.prompts.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], 60)
        assert readable, "no answer"
        return self.process.stdout.readline().decode()

    def end(self) -> tuple[int, str, str]:
        """Exit code and what else is written, with the prompts still open."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        code = self.process.wait(timeout=60)
        return code, self.process.stdout.read().decode(), self.process.stderr.read().decode()


@pytest.fixture(params=["-", "fifo"])
def ask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Asked]]:
    """Start it, with prompts from standard input or from a named pipe."""
    stack, path = ExitStack(), tmp_path / "fifo"

    def start(*arguments: str) -> Asked:
        pipe, named = subprocess.PIPE, request.param == "fifo"
        line = command(*LINE, "--input", str(path) if named else "-", *arguments)
        process = subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, env=environment(), bufsize=0)
        stack.enter_context(process)
        stack.callback(process.kill)
        assert process.stdin is not None
        if not named:
            return Asked(process, process.stdin)
        writer = os.open(path, os.O_RDWR)  # which waits for no reader
        return Asked(process, stack.enter_context(os.fdopen(writer, "wb", buffering=0)))

    if request.param == "fifo":
        os.mkfifo(path)
    with stack:
        yield start


def test_each_prompt_of_a_pipe_is_answered_before_the_next_comes(gru: LanguageModel, ask: Callable[..., Asked]) -> None:
    """As a program asks that waits for each answer."""
    asked, place = ask("-q"), 0
    for prompts in (["The "], ["Marta", "a"], ["x"]):
        asked.say("".join(prompt + "\n" for prompt in prompts))
        for prompt in prompts:
            assert asked.answer() == one_line(expected(gru, prompt, place)) + "\n"
            place += 1
    asked.prompts.close()
    assert asked.end() == (0, "", "")


def test_a_line_that_has_no_end_yet_keeps_nobody_waiting(gru: LanguageModel, ask: Callable[..., Asked]) -> None:
    asked = ask("-q")
    asked.say("The \nMar")
    assert asked.answer() == one_line(expected(gru, "The ", 0)) + "\n"
    asked.say("ta\na")
    assert asked.answer() == one_line(expected(gru, "Marta", 1)) + "\n"
    asked.prompts.close()
    assert asked.end() == (0, one_line(expected(gru, "a", 2)) + "\n", "")


def test_one_interrupt_ends_a_wait_for_prompts(gru: LanguageModel, ask: Callable[..., Asked]) -> None:
    """Whether the wait has begun, or is about to."""
    for wait in (0, 0, 0, 0.3):
        asked = ask()
        asked.say("The \n")
        assert asked.answer() == one_line(expected(gru, "The ", 0)) + "\n"
        time.sleep(wait)
        asked.process.send_signal(signal.SIGINT)
        code, out, err = asked.end()
        assert (code, out) == (130, "")
        assert err.count("\n") == 1
        assert "1 text from prompts of 4 tokens" in err


def test_what_of_a_pipe_is_there(piped: int) -> None:
    prompts = Prompts(Path("-"))
    os.write(piped, b"one\ntw")
    lines = iter(prompts)
    assert prompts.ready()
    assert next(lines) == "one"
    assert not prompts.ready()
    os.write(piped, b"o\n\xff\n")
    assert prompts.ready()
    assert next(lines) == "two"
    with pytest.raises(DataError, match="line 3 is not UTF-8"):
        next(lines)
    prompts = Prompts(Path("-"))
    assert not prompts.ready()
    prompts.is_over = True
    assert list(prompts) == []  # and nobody waits for the pipe


def test_each_line_is_shown_when_it_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    """Also two in the time in which an eye sees one picture."""
    shown: list[str] = []

    class Batch:
        cancelled, seed = False, 1

        def cancel(self) -> None: ...

        def texts(self) -> Iterator[GeneratedText]:
            for index in range(3):
                yield GeneratedText(index, "text", "length", Timings(1, 0.0, 4, 0.1, 0.1))
                shown.append(capfd.readouterr().out)

    prompts = Prompts(Path("-"))
    prompts.waiting.extend("abc")
    show_lines(cast("Any", Batch()), prompts, 0.0, "cpu", display_prompt=False, json_lines=False, quiet=True)
    assert shown == ["text\n"] * 3


def test_no_prompts(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "none.txt").touch()
    assert cli(*LINE, "--input", "none.txt", "-q") == (0, "", "")


@pytest.mark.parametrize("text", ["", "a\nb", "\\n", "\\\\n\r\n", "end\\", "\t\\x"])
def test_escapes(text: str) -> None:
    assert "\n" not in escape(text)
    assert unescape(escape(text)) == text


def test_other_backslashes_are_themselves() -> None:
    assert unescape(r"\alpha \n \\n \t \ ") == "\\alpha \n \\n \t \\ "


@pytest.mark.parametrize(
    ("bad", "message"),
    [("c€".encode(), "prompt 3: the model has never seen '€'"), (b"\xff", "prompts.txt, line 3 is not UTF-8")],
)
def test_lines_before_a_bad_one_are_not_lost(
    cli: Cli, gru: LanguageModel, tmp_path: Path, bad: bytes, message: str
) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"a\nb\n" + bad + b"\nd\n")
    code, out, err = cli(*LINE, "--input", "prompts.txt")
    assert code == 1
    assert out.splitlines() == [one_line(expected(gru, prompt, index)) for index, prompt in enumerate("ab")]
    assert two_lines(err)[0].startswith(message)


# --- values that do not go together


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["-N", "0"], "samples is 0"),
        (["-N", "-3"], "samples is -3"),
        (["--batch-size", "0", "-N", "2"], "batch-size is 0"),
        (["--input", "p.txt", "-p", "a"], "--input and --prompt exclude each other"),
        (["--input", "p.txt", "-f", "p.txt"], "--input and --file exclude each other"),
        (["--input", "p.txt", "-N", "2"], "--input and --samples exclude each other"),
        (["-p", "a", "-N", "2", "--save-state", "s"], "--save-state has room for one text, and several are asked for"),
        (["--input", "p.txt", "--save-state", "s"], "--save-state has room for one text, and several are asked for"),
        (
            ["-p", "a", "-N", "2", "-n", "-1"],
            "max-tokens is -1: texts without an end cannot be shown one after another",
        ),
        (["--input", "p.txt", "-n", "-1", "--json"], "max-tokens is -1: texts without an end"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_values(cli: Cli, tmp_path: Path, arguments: list[str], error: str) -> None:
    (tmp_path / "p.txt").write_text("a\n", encoding="utf-8")
    code, out, err = cli("generate", "gru", *arguments)
    assert (code, out) == (2, "")
    assert two_lines(err)[0].startswith(error)
    assert not (tmp_path / "s").exists()


def test_a_batch_that_memory_does_not_hold(cli: Cli) -> None:
    code, out, err = cli("generate", "gru", "-p", "a", "-N", "100000000000", "--batch-size", "100000000000")
    assert (code, out) == (2, "")
    assert two_lines(err)[0].startswith("a batch of 100,000,000,000 with tiny-gru needs ")


def test_a_closed_input() -> None:
    line = ["sh", "-c", 'exec "$@" <&-', "sh", *command(*LINE, "--input", "-")]
    done = subprocess.run(line, capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stdout) == (1, "")
    assert two_lines(done.stderr)[0] == "standard input is closed"


def test_a_missing_file(cli: Cli) -> None:
    code, out, err = cli(*LINE, "--input", "absent.txt")
    assert (code, out) == (1, "")
    assert two_lines(err)[0] == "cannot read absent.txt: No such file or directory"


# --- Ctrl-C


@pytest.mark.parametrize("extra", [["-N", "3"], ["-N", "3", "--json"], ["--input", "p.txt"]], ids=" ".join)
def test_ctrl_c_keeps_what_was_made(gru: LanguageModel, tmp_path: Path, extra: list[str]) -> None:
    (tmp_path / "p.txt").write_text("The \nThe \nThe \n" * 40, encoding="utf-8")
    line = [
        "generate",
        "gru",
        "-n",
        "2000000" if "-N" in extra else "700",
        "-s",
        "1",
        "--batch-size",
        "3",
        "-q",
        *extra,
    ]
    line += ["-p", "The ", "--no-display-prompt"] if "-N" in extra else []
    process = subprocess.Popen(
        command(*line),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment(),
    )
    assert process.stdout is not None
    begun = os.read(process.stdout.fileno(), 300)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    out = (begun + rest).decode()
    if "--json" in extra:
        events = [json.loads(text) for text in out.splitlines()]
        texts = ["".join(event["text"] for event in events if event["index"] == index) for index in range(3)]
        assert [event.get("finish_reason") for event in events[-3:]] == ["interrupt"] * 3
    else:
        texts = out.split(SEPARATOR) if "-N" in extra else [unescape(text) for text in out.splitlines()]
    assert len(texts) >= 3
    for index, text in enumerate(texts):
        assert text == expected(gru, "The ", index, max(1, len(text)))[: len(text)]
    assert len(texts[0]) == len(texts[1]) == len(texts[2])
