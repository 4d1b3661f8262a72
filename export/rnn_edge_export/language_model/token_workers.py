"""Processes that tokenise. Each reads chunks of text from its standard input and writes their ids to its output.

They are programs of their own rather than ``multiprocessing``'s, which runs the caller's main module again in each.
That fails for a script without ``if __name__ == "__main__"`` and for one read from standard input, and where a large
tokenizer is sent to a process that has failed so, it waits for ever. They end when this process does, however it ends.
"""

import os
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from rnn_edge.errors import RnnEdgeError
from rnn_edge.tokenizer import Tokenizer

_LENGTH = struct.Struct("<q")
_READY, _FAILED = b"ready", -1
_PROGRAM = "import sys; sys.path = {path!r}; from {module} import serve; serve()"


def encode_chunks(
    tokenizer: Tokenizer, chunks: Iterable[str], kind: np.dtype[Any], processes: int
) -> Iterator[tuple[bytes, int]]:
    """The ids of each chunk in order, as bytes of ``kind``, and its characters.

    Where processes cannot be started, this one does their work.

    Raises:
        UnknownTokenError: the vocabulary lacks characters.
        RnnEdgeError: a process was killed.
    """
    with ExitStack() as stack:
        workers: deque[_Worker] = deque()
        with suppress(OSError):  # of starting; the first one tells whether others would
            while len(workers) < processes:
                worker = stack.enter_context(_Worker())
                worker.prepare(tokenizer, kind)
                workers.append(worker)
        free, busy = deque(workers), deque[tuple[_Worker, str]]()
        for chunk in chunks:
            if not workers:
                yield encode(tokenizer, chunk, kind), len(chunk)
                continue
            if not free:
                worker, sent = busy.popleft()
                yield worker.receive(tokenizer, sent), len(sent)
                free.append(worker)
            worker = free.popleft()
            worker.send(chunk)
            busy.append((worker, chunk))
        for worker, sent in busy:
            yield worker.receive(tokenizer, sent), len(sent)


def encode(tokenizer: Tokenizer, chunk: str, kind: np.dtype[Any]) -> bytes:
    """The ids of a chunk, as bytes of ``kind``."""
    return np.array(tokenizer.encode(chunk), kind).tobytes()


class _Worker:
    """One process, which has at most one chunk at a time: so neither side writes while the other does."""

    def __init__(self) -> None:
        program = _PROGRAM.format(path=sys.path, module=__name__)
        # Its complaints are not the user's: what fails there is done again here, where it can be named.
        self._process = subprocess.Popen(
            [sys.executable or "", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},  # the processes are the parallelism
        )
        assert self._process.stdin
        assert self._process.stdout
        self._to, self._from = self._process.stdin, self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        with suppress(OSError):  # what was not sent
            self._to.close()
        self._from.close()
        self._process.wait()

    def prepare(self, tokenizer: Tokenizer, kind: np.dtype[Any]) -> None:
        """Raises OSError where the process did not start."""
        if _receive(self._from) != _READY:
            raise OSError("no answer")
        self._type = kind
        _send(self._to, kind.str.encode())
        _send(self._to, tokenizer.content)

    def send(self, chunk: str) -> None:
        """Its answer is ``receive``'s."""
        with suppress(OSError):  # said there
            _send(self._to, chunk.encode("utf-8", errors="surrogatepass"))

    def receive(self, tokenizer: Tokenizer, chunk: str) -> bytes:
        """The ids of the ``chunk`` that it was sent."""
        with suppress(OSError):
            found = _receive(self._from)
            return encode(tokenizer, chunk, self._type) if found is None else found
        raise RnnEdgeError("a process that tokenises was killed", "free memory, then run it again")


def serve() -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    source, target = sys.stdin.buffer, sys.stdout.buffer
    with suppress(OSError):  # the parent is gone
        _send(target, _READY)
        kind = np.dtype((_receive(source) or b"").decode())
        tokenizer = Tokenizer(_receive(source) or b"")
        while True:
            chunk = (_receive(source) or b"").decode("utf-8", errors="surrogatepass")
            try:
                _send(target, encode(tokenizer, chunk, kind))
            except RnnEdgeError:
                target.write(_LENGTH.pack(_FAILED))
                target.flush()


def _send(file: IO[bytes], content: bytes) -> None:
    file.write(_LENGTH.pack(len(content)))
    file.write(content)
    file.flush()


def _receive(file: IO[bytes]) -> bytes | None:
    """What ``_send`` sent; None for a failure. Raises OSError where the other side is gone."""
    header = file.read(_LENGTH.size)
    length = _LENGTH.unpack(header)[0] if len(header) == _LENGTH.size else 0
    content = file.read(max(0, length))
    if len(header) < _LENGTH.size or len(content) < length:
        raise OSError("the other side is gone")
    return None if length == _FAILED else content
