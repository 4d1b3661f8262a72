"""Writing files so that no reader ever sees a half-written one."""

import contextlib
import errno
import os
import platform
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from rnn_edge.errors import RnnEdgeError

CACHE_VARIABLE = "RNN_EDGE_CACHE"


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step: temporary file, fsync, rename.

    Raises:
        RnnEdgeError: the folder is read-only, full or cannot be made; what stood at ``path`` is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise_cannot_write(path, error)


def write_text(path: Path, content: str) -> None:
    """``write_bytes`` with UTF-8."""
    write_bytes(path, content.encode())


@contextlib.contextmanager
def new_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """Fill a folder out of sight and move it to ``path`` only when the block ends well.

    Yields a temporary folder beside ``path``. An existing ``path`` is refused without ``force``, also one that another
    process has made meanwhile; with it, the old folder is kept until the new one stands.
    """
    check_output(path, force=force, folder=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir()
            yield fresh
            old = Path(scratch) / "old"
            if force and path.exists():
                path.rename(old)
            try:
                fresh.rename(path)
            except BaseException:
                if old.exists():
                    old.rename(path)
                raise
            _sync_folder(path.parent)
    except OSError as error:
        raise_cannot_write(path, error)


def cache_folder() -> Path:
    """Where what can be made again is kept: $RNN_EDGE_CACHE, or the user's own folder for such files."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Caches" / "rnn-edge"
    base = os.environ.get("LOCALAPPDATA" if platform.system() == "Windows" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rnn-edge"


def check_output(path: Path, *, force: bool, folder: bool) -> None:
    """Refuse an output path that exists, unless ``force``; ``folder`` says what is to be written.

    Raises:
        RnnEdgeError: the path exists and ``force`` is not given, or it can never be written.
    """
    if path.exists() and not force:
        raise RnnEdgeError(f"{path} exists already", "choose another output path, or replace it with --force")
    if path.exists() and not (path.is_dir() if folder else path.is_file()):
        raise RnnEdgeError(f"{path} is not a {'folder' if folder else 'plain file'}", "choose another output path")
    for parent in (path, *path.parents):
        if parent.exists():
            if parent is not path and not parent.is_dir():
                raise RnnEdgeError(f"{parent} is a file, not a folder", "choose another output path")
            if not os.access(parent, os.W_OK):
                raise RnnEdgeError(f"{parent} is read-only", "choose an output path that you may write to")
            return


def raise_cannot_write(path: Path, error: OSError) -> NoReturn:
    """Turn an operating system's refusal to write into an error with a mend."""
    hint = "choose another output path"
    if error.errno == errno.ENOSPC:
        hint = "the disk is full: make room, then run the command again"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "choose an output path that you may write to"
    raise RnnEdgeError(f"cannot write {path}: {error.strerror or error}", hint) from error


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
