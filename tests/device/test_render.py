"""How often a stream is flushed, by a clock that the test turns; what a table shows."""

import io
import json
import re
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from rnn_edge import render
from rnn_edge.events import Event, Timings
from rnn_edge.render import StreamWriter, event_line, note, summary


class Screen(io.StringIO):
    """Remembers what was visible after each flush."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[str] = []

    def flush(self) -> None:
        super().flush()
        self.flushed.append(self.getvalue())


class Clock:
    """Stands where it is put."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("rnn_edge.render.time", SimpleNamespace(perf_counter=made.perf_counter))
    return made


def test_slow_pieces_are_shown_at_once(clock: Clock) -> None:
    screen = Screen()
    out = StreamWriter(screen)
    for count, piece in enumerate("abcde", 1):
        out.write(piece)
        assert screen.flushed[-1] == "abcde"[:count]
        clock.now += 0.05
    assert len(screen.flushed) == 5


def test_fast_pieces_are_shown_at_most_sixty_times_a_second(clock: Clock) -> None:
    screen = Screen()
    out = StreamWriter(screen)
    for _ in range(20_000):  # two seconds at 10,000 pieces a second
        out.write("x")
        clock.now += 1e-4
    assert 100 <= len(screen.flushed) <= 121
    out.flush()
    assert screen.getvalue() == "x" * 20_000


def test_the_first_piece_is_shown_at_once_and_the_next_soon(clock: Clock) -> None:
    screen = Screen()
    out = StreamWriter(screen)
    out.write("a")
    assert screen.getvalue() == "a"
    out.write("b")
    assert screen.getvalue() == "a"
    clock.now += 0.017
    out.write("c")
    assert screen.getvalue() == "abc"


@pytest.mark.parametrize(("text", "ending"), [("a", "\n"), ("a\n", ""), ("", "")])
def test_only_a_terminal_gets_a_closing_line_break(
    text: str, ending: str, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    for is_terminal in (True, False):
        screen = Screen()
        monkeypatch.setattr(screen, "isatty", lambda answer=is_terminal: answer)
        out = StreamWriter(screen)
        out.write(text)
        out.write("")
        out.close()
        assert screen.getvalue() == text + (ending if is_terminal else "")


def test_no_text_commands_a_terminal(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    for is_terminal, shown in ((True, "␛[2Jé\t\n␍␡\ufffd"), (False, "\x1b[2Jé\t\n\r\x7f\x9b")):
        screen = Screen()
        monkeypatch.setattr(screen, "isatty", lambda answer=is_terminal: answer)
        out = StreamWriter(screen)
        out.write("\x1b[2Jé\t\n\r\x7f\x9b\n")
        out.close()
        assert screen.getvalue() == shown + "\n"


def test_event_lines() -> None:
    assert json.loads(event_line(Event("é\n", 3, -0.5))) == {"text": "é\n", "token": 3, "log_probability": -0.5}
    line = event_line(Event("", None, finish_reason="stop", timings=Timings(1, 0.1, 2, 0.2, 0.15)))
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "text": "",
        "finish_reason": "stop",
        "timings": {
            "prompt_tokens": 1,
            "prompt_seconds": 0.1,
            "generated_tokens": 2,
            "generation_seconds": 0.2,
            "first_token_seconds": 0.15,
        },
    }


def test_summary() -> None:
    assert summary(Timings(10, 0.5, 300, 2.0, 0.51), 0.0123, "cpu", 42) == (
        "load 12 ms on cpu · prompt 10 tokens, 20 tokens/s · generated 300 tokens, 150 tokens/s · "
        "first token after 510.0 ms · seed 42"
    )
    assert "– tokens/s" in summary(Timings(0, 0.0, 0, 0.0, 0.0), 0.0, "cpu", 1)


def test_a_terminal_breaks_notes_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "source 12,345 tokens, read in 1.0 ms · translation 5,140 tokens/s"
    note(line)
    assert capsys.readouterr().err == f"{line}\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    note(line)
    shown = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().err)
    assert [piece.rstrip() for piece in shown.splitlines()] == [
        "source 12,345 tokens, read in",
        "1.0 ms · translation 5,140",
        "tokens/s",
    ]


@pytest.mark.parametrize(
    ("width", "shown"),
    [(80, ["name", "figure", "much", "more"]), (33, ["name", "figure", "more"]), (22, ["name", "figure"])],
)
def test_a_narrow_terminal_leaves_columns_out(
    width: int, shown: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render, "console", lambda *, stderr: Console(width=width, stderr=stderr, highlight=False))
    row = {"name": "ü\x1b" * 3, "figure": "1,234,567", "much": "x" * 15, "more": "12.5 %"}
    render.show_table(list(row), [list(row.values())], spare=("much", "more", "none"))
    heading, _, cells = capsys.readouterr().out.splitlines()
    assert heading.split() == shown
    assert cells.split("   ") == [f"{'ü␛' * 3}", *(row[name] for name in shown[1:])]
