"""What a command gets from outside: lines as they come, a prompt, and Ctrl-C."""

import io
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_edge.cli.input import cancel_on_interrupt, line_chunks, read_input, typed_lines
from rnn_edge.errors import DataError

BLOCK = 2**16  # bytes that are read at once


def chunks_of(path: Path, content: bytes, at_most: int = 100) -> list[list[str]]:
    path.write_bytes(content)
    return list(line_chunks(path, at_most))


def lines_of(path: Path, content: bytes) -> list[str]:
    return [line for chunk in chunks_of(path, content) for line in chunk]


# --- lines


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", ["\n"]),
        (b"a", ["a"]),
        (b"a\n", ["a\n"]),
        (b"a\nb", ["a\n", "b"]),
        (b"\n\n a\n\n", ["\n", "\n", " a\n", "\n"]),
        (b"a\r\nb\rc\r\n", ["a\r\n", "b\rc\r\n"]),
        ("é\u2028\x85ü\x0c\n日".encode(), ["é\u2028\x85ü\x0c\n", "日"]),  # only line feeds end lines
        (b"\xef\xbb\xbfa\n\x00\n", ["\ufeffa\n", "\x00\n"]),
    ],
)
def test_lines_end_with_line_feeds(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    assert lines_of(tmp_path / "file", content) == lines


@given(st.text(st.sampled_from("aé日\n\r ")), st.integers(1, 5))
def test_chunks_joined_are_the_file(tmp_path_factory: pytest.TempPathFactory, text: str, at_most: int) -> None:
    chunks = chunks_of(tmp_path_factory.getbasetemp() / "lines", text.encode(), at_most)
    lines = [line for chunk in chunks for line in chunk]
    assert "".join(lines) == text
    assert all(1 <= len(chunk) <= at_most for chunk in chunks)
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines[:-1])


def test_lines_and_letters_across_blocks(tmp_path: Path) -> None:
    """A letter of three bytes over the border of two blocks, and lines longer than a block."""
    for shift in range(3):
        lines = ["x" * shift + "日" * BLOCK + "\n", "\n", "b" * (BLOCK - 1) + "\n", "é" * 10]
        assert lines_of(tmp_path / "file", "".join(lines).encode()) == lines


def test_a_line_that_is_not_utf8_is_named_and_those_before_are_given(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one\ntwo\ncaf\xe9\nfour\n")
    chunks = line_chunks(tmp_path / "file", 2)
    assert next(chunks) == ["one\n", "two\n"]
    with pytest.raises(DataError) as caught:
        next(chunks)
    assert caught.value.message == f"{tmp_path / 'file'}, line 3 is not UTF-8: byte 3 of it"
    assert caught.value.hint == "convert it to UTF-8"
    for content, line in ((b"\xff", 1), (b"a\n" * 70_000 + b"\xc3\n", 70_001), (b"a\n\xc3", 2)):
        with pytest.raises(DataError, match=f", line {line} is not UTF-8"):
            chunks_of(tmp_path / "file", content)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*absent: No such file") as caught:
        list(line_chunks(tmp_path / "absent", 1))
    assert caught.value.hint == "check the path"
    with pytest.raises(DataError, match="Is a directory"):
        list(line_chunks(tmp_path, 1))


def test_a_piped_line_comes_before_the_next_is_written(piped: int) -> None:
    chunks = line_chunks(None, 100)
    os.write(piped, b"one\n")
    assert next(chunks) == ["one\n"]
    os.write(piped, b"two\nthree\nfo")
    assert next(chunks) == ["two\n", "three\n"]
    os.write(piped, b"ur\n\xff")
    assert next(chunks) == ["four\n"]
    os.close(piped)
    with pytest.raises(DataError, match="standard input, line 5 is not UTF-8: byte 0 of it"):
        next(chunks)


# --- a whole text


def test_a_text_wins_over_a_file_and_a_file_over_standard_input(tmp_path: Path, piped: int) -> None:
    path = tmp_path / "file"
    path.write_bytes("é\r\n".encode())
    os.write(piped, b" piped\n")
    os.close(piped)
    assert read_input("text", path, "it") == "text"
    assert read_input("", path, "it") == ""
    assert read_input(None, path, "it") == "é\r\n"
    assert read_input(None, None, "it") == " piped\n"


def test_a_text_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"ab\xff")
    with pytest.raises(DataError, match="the letter is not UTF-8: byte 2"):
        read_input(None, path, "the letter")
    with pytest.raises(DataError, match=r"cannot read .*absent: No such file"):
        read_input(None, tmp_path / "absent", "the letter")


def test_no_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert read_input(None, None, "it") == ""


def test_typed_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\xc3\xa9\n"), "utf-8"))
    assert list(typed_lines()) == ["one\n", "é\n"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "type a text and press Enter; Ctrl-D ends\n"


def test_a_typed_line_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\xff\n"), "utf-8"))
    lines = typed_lines()
    assert next(lines) == "one\n"
    with pytest.raises(DataError, match="line 2 is not UTF-8"):
        next(lines)


# --- Ctrl-C


def test_the_first_interrupt_cancels_and_the_second_stops() -> None:
    before, asked = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), cancel_on_interrupt(lambda: asked.append(True)):
        signal.raise_signal(signal.SIGINT)
        assert asked == [True]
        signal.raise_signal(signal.SIGINT)
    assert asked == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_interrupt_nothing_is_left_behind() -> None:
    before, asked = signal.getsignal(signal.SIGINT), []
    with cancel_on_interrupt(lambda: asked.append(True)):
        pass
    assert asked == []
    assert signal.getsignal(signal.SIGINT) is before
