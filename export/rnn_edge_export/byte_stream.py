"""Reading bytes of unknown make in little memory: with a look ahead, up to a mark, hashed on the way."""

import hashlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

READ = 2**20  # bytes at a time
LONGEST = 2**20  # bytes without the mark that is looked for
Progress = Callable[[int, int], None]


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class HashedFile:
    """A file whose bytes are counted and hashed as they pass."""

    def __init__(self, file: BinaryIO, size: int, progress: Progress) -> None:
        self._file, self._size, self._progress = file, size, progress
        self._done, self._digest = 0, hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        """As files do."""
        content = self._file.read(size)
        self._digest.update(content)
        self._done += len(content)
        self._progress(self._done, self._size)
        return content

    @property
    def sha256(self) -> str:
        """Of all that was read."""
        return self._digest.hexdigest()


class ByteStream:
    """Bytes with a look ahead, of which a few ``READ`` are held."""

    def __init__(self, file: _Readable) -> None:
        self._file, self._buffer, self._place = file, b"", 0

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay; fewer at the end."""
        while len(self._buffer) - self._place < size and self._grow():
            pass
        return self._buffer[self._place : self._place + size]

    def read(self, size: int, /) -> bytes:
        """The next bytes; fewer at the end."""
        found = self.peek(size)
        self._place += len(found)
        return found

    def until(self, mark: bytes) -> bytes | None:
        """All up to ``mark`` and with it, or to the end of the file; None where that is too long."""
        searched = self._place
        while (end := self._buffer.find(mark, searched)) < 0:
            held = len(self._buffer) - self._place
            if held > LONGEST:
                return None
            if not self._grow():
                return self.read(held)
            searched = held
        return self.read(end + 1 - self._place)

    def _grow(self) -> bool:
        more = self._file.read(READ)
        self._buffer, self._place = self._buffer[self._place :] + more, 0
        return bool(more)
