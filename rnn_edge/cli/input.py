"""What a command gets from outside: text that is given, in a file, or piped; and Ctrl-C."""

import contextlib
import io
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from rnn_edge.errors import DataError

_BLOCK = 2**16  # bytes that are read at once


def read_input(text: str | None, file: Path | None, what: str) -> str:
    """``text``, else the content of ``file``, else what is piped in, else nothing; ``what`` names it in errors.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        if text is not None:
            return text.encode("utf-8", "surrogateescape").decode("utf-8")  # bytes that are none stand so in arguments
        if file is not None:
            return file.read_bytes().decode("utf-8")
        if sys.stdin is not None and not sys.stdin.isatty():
            return sys.stdin.buffer.read().decode("utf-8")
    except OSError as error:
        raise DataError(
            f"cannot read {file or 'standard input'}: {error.strerror or error}", "check the path"
        ) from error
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise DataError(f"{what} is not UTF-8: byte {error.start}", "convert it to UTF-8") from error
    return ""


def line_chunks(file: Path | None, at_most: int = _BLOCK) -> Iterator[list[str]]:
    """Lines with their line feeds, from a file or standard input: what is there, up to ``at_most`` at once.

    A line that is piped in is passed on as soon as it has come.

    Raises:
        DataError: it cannot be read, or is not UTF-8; the line is named.
    """
    return filter(None, LineReader(file, at_most))


class LineReader(Iterator[list[str]]):
    """The same, but each turn reads once at most: what comes without the end of its line brings no lines, yet."""

    def __init__(self, file: Path | None, at_most: int = _BLOCK) -> None:
        self._where, self._file, self._at_most = file or "standard input", file, at_most
        self._stream: io.BufferedReader | None = None
        self._chunks = self._read()

    def __next__(self) -> list[str]:
        return next(self._chunks)

    def is_due(self) -> bool:
        """Whether a turn would wait for nobody; True where that cannot be known."""
        try:
            return bool(select.select([self._opened()], [], [], 0)[0])
        except (OSError, ValueError):  # no pipe, or a system that asks so of sockets alone
            return True

    def _opened(self) -> io.BufferedReader:
        if self._stream is None:
            if self._file:
                self._stream = self._file.open("rb")
            elif sys.stdin is not None:
                self._stream = cast(io.BufferedReader, sys.stdin.buffer)
            else:
                raise DataError("standard input is closed", "pipe something in, or name a file")
        return self._stream

    def _read(self) -> Iterator[list[str]]:
        number, rest = 0, b""
        try:
            with self._opened() if self._file else contextlib.nullcontext(self._opened()) as stream:
                while True:
                    block = stream.read1(_BLOCK)
                    lines = (rest + block).split(b"\n")
                    rest = lines.pop() if block else b""
                    whole = [line + b"\n" for line in lines] if block else lines[: bool(lines[0])]
                    for first in range(0, max(1, len(whole)), self._at_most):
                        some: list[str] = []
                        for line in whole[first : first + self._at_most]:
                            number += 1
                            try:
                                some.append(_decode(line, f"{self._where}, line {number}"))
                            except DataError:
                                if some:
                                    yield some  # what stands before it is not lost
                                raise
                        yield some
                    if not block:
                        return
        except OSError as error:
            raise DataError(f"cannot read {self._where}: {error.strerror or error}", "check the path") from error


def count_lines(file: Path | None) -> int:
    """Lines of a file, without keeping them; 0 where nobody knows."""
    if file is None or not file.is_file():
        return 0
    with file.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(2**20), b""))


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8: byte {error.start} of it", "convert it to UTF-8") from error


def typed_lines() -> Iterator[str]:
    """Lines that a person types, until Ctrl-D.

    Raises:
        DataError: one is not UTF-8.
    """
    from rnn_edge.render import note

    note("type a text and press Enter; Ctrl-D ends")
    for number, line in enumerate(sys.stdin.buffer, 1):
        yield _decode(line, f"line {number}")


@contextlib.contextmanager
def ended_as_by_interrupt() -> Iterator[None]:
    """A terminal that closes, and SIGTERM, end what is within as Ctrl-C does: nothing that it started goes on alone."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    old = {name: signal.signal(getattr(signal, name), signal.default_int_handler) for name in names}
    try:
        yield
    finally:
        for name, handler in old.items():
            signal.signal(getattr(signal, name), handler)


@contextlib.contextmanager
def cancel_on_interrupt(cancel: Callable[[], None]) -> Iterator[None]:
    """First Ctrl-C: ``cancel``, which ends after this token with everything kept. Second: stop at once."""

    def handle(_signal: int, _frame: object) -> None:
        cancel()
        signal.signal(signal.SIGINT, old)

    old = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
