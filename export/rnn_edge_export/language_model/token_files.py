"""Tokenised text as files that are mapped into memory rather than read: made once, by all processors, and kept.

A file is a safetensors file with one tensor, ``tokens`` (U16 or U32), and metadata: the SHA-256 of the tensor and the
characters that it stands for. It gets its name when it is whole.
"""

import hashlib
import json
import multiprocessing
import os
import secrets
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import RnnEdgeError
from rnn_edge.files import raise_cannot_write
from rnn_edge.tokenizer import Tokenizer

Tokens = NDArray[np.unsignedinteger[Any]]
Progress = Callable[[int, int], None]  # characters done, of how many

_HEADER = 512  # bytes, padded with spaces as the format allows: what it says is known only at the end
_ALONE = 2**23  # characters that one process tokenises before others would have started
_KINDS: dict[str, np.dtype[Any]] = {"U16": np.dtype("<u2"), "U32": np.dtype("<u4")}


@dataclass(frozen=True)
class TokenFile:
    """``tokens`` [N] mapped from a file, and the characters that they stand for."""

    tokens: Tokens
    characters: int


def open_tokens(path: Path) -> TokenFile | None:
    """A file that ``write_tokens`` wrote; None where there is none, or one that is damaged."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 2 * _HEADER)))
        entry, facts = header["tokens"], header["__metadata__"]
        kind = _KINDS[entry["dtype"]]
        count = int(entry["shape"][0])
        if path.stat().st_size != 8 + length + count * kind.itemsize:
            return None
        mapped = np.memmap(path, kind, "r", 8 + length, (count,)) if count else np.empty(0, kind)
        digest = hashlib.sha256()
        for first in range(0, count, 2**22):
            digest.update(mapped[first : first + 2**22].tobytes())
        return TokenFile(mapped, int(facts["characters"])) if digest.hexdigest() == facts["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def write_tokens(path: Path, chunks: Iterable[str], characters: int, tokenizer: Tokenizer, progress: Progress) -> None:
    """Tokenise ``chunks``, of so many characters together, into a file. Memory does not grow with the text.

    Raises:
        UnknownTokenError: the vocabulary lacks characters.
        RnnEdgeError: the file cannot be written; nothing stands at ``path`` then that did not before.
    """
    name = "U16" if tokenizer.vocabulary_size <= 2**16 else "U32"
    kind, digest, count, done = _KINDS[name], hashlib.sha256(), 0, 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as file:
                file.write(bytes(8 + _HEADER))
                for ids, length in _encode(tokenizer, chunks, characters, kind):
                    file.write(ids)
                    digest.update(ids)
                    count += len(ids) // kind.itemsize
                    done += length
                    progress(done, characters)
                entry = {"dtype": name, "shape": [count], "data_offsets": [0, count * kind.itemsize]}
                facts = {"sha256": digest.hexdigest(), "characters": str(characters)}
                header = json.dumps({"__metadata__": facts, "tokens": entry}).encode()
                file.seek(0)
                file.write(_HEADER.to_bytes(8, "little") + header.ljust(_HEADER))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise_cannot_write(path, error)


def _encode(
    tokenizer: Tokenizer, chunks: Iterable[str], characters: int, kind: np.dtype[Any]
) -> Iterator[tuple[bytes, int]]:
    """The ids of each chunk in order, as bytes, and its characters."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if characters <= _ALONE or processors == 1:
        for chunk in chunks:
            yield np.array(tokenizer.encode(chunk), kind).tobytes(), len(chunk)
        return
    waiting: deque[tuple[Future[bytes], int]] = deque()
    context = multiprocessing.get_context("spawn")  # a fork would copy whatever PyTorch's threads hold
    with ProcessPoolExecutor(processors, context, _start_worker, (tokenizer.content, kind.str)) as pool:
        try:
            for chunk in chunks:
                waiting.append((pool.submit(_encode_chunk, chunk), len(chunk)))
                if len(waiting) > 2 * processors:  # so many chunks are in memory at most
                    future, length = waiting.popleft()
                    yield future.result(), length
            for future, length in waiting:
                yield future.result(), length
        except BrokenProcessPool as error:
            raise RnnEdgeError("a process that tokenises was killed", "free memory, then run it again") from error
        finally:
            pool.shutdown(cancel_futures=True)


_worker: tuple[Tokenizer, np.dtype[Any]]


def _start_worker(content: bytes, kind: str) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker = Tokenizer(content), np.dtype(kind)


def _encode_chunk(chunk: str) -> bytes:
    tokenizer, kind = _worker
    return np.array(tokenizer.encode(chunk), kind).tobytes()
