"""Tokenised text as files that are mapped into memory rather than read: made once, by all processors, and kept.

A file is a safetensors file with one tensor, ``tokens`` (U16 or U32), and metadata: the SHA-256 of the tensor and the
characters that it stands for. It gets its name when it is whole.
"""

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import RnnEdgeError
from rnn_edge.files import CACHE_VARIABLE, raise_cannot_write
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.language_model.token_workers import encode, encode_chunks

Tokens = NDArray[np.unsignedinteger[Any]]
Progress = Callable[[int, int], None]  # characters done, of how many

_HEADER = 512  # bytes, padded with spaces as the format allows: what it says is known only at the end
_ALONE = 2**23  # characters that one process tokenises before others would have started
_FORSAKEN = 3600.0  # seconds since anything was written
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


def write_tokens(
    path: Path,
    chunks: Iterable[str],
    characters: int,
    tokenizer: Tokenizer,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Tokenise ``chunks``, of so many characters together, into a file. Memory does not grow with the text.

    ``check`` is called before the file stands at ``path``, and what it raises keeps it from there.

    Raises:
        UnknownTokenError: the vocabulary lacks characters.
        RnnEdgeError: the file cannot be written; nothing stands at ``path`` then that did not before.
    """
    name = "U16" if tokenizer.vocabulary_size <= 2**16 else "U32"
    kind, digest, count, done = _KINDS[name], hashlib.sha256(), 0, 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_forsaken(path.parent)
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
            check()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        try:
            raise_cannot_write(path, error)
        except RnnEdgeError as found:  # nobody chose this path
            hint = f"make room in {path.parent}, or name another folder in ${CACHE_VARIABLE}"
            raise RnnEdgeError(found.message, hint) from error


def _remove_forsaken(folder: Path) -> None:
    """What a process that was killed has left half-written: a living one writes again within a second or so."""
    for path in folder.glob(".*.safetensors.*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _FORSAKEN:
                path.unlink()


def _encode(
    tokenizer: Tokenizer, chunks: Iterable[str], characters: int, kind: np.dtype[Any]
) -> Iterator[tuple[bytes, int]]:
    """The ids of each chunk in order, as bytes, and its characters."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if characters > _ALONE and processors > 1:
        yield from encode_chunks(tokenizer, chunks, kind, processors)
        return
    for chunk in chunks:
        yield encode(tokenizer, chunk, kind), len(chunk)
