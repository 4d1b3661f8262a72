"""A bundle as one file: a reproducible .tar.gz with what a device needs but Python, and unpacking that trusts nothing.

::

    NAME/SHA256SUMS         of all that follows; first, and readable for ``sha256sum -c``
    NAME/models/NAME/…      the bundle
    NAME/INSTALL.txt        the commands for a device
    NAME/requirements.txt   the versions that were proven where it was packed
    NAME/wheels/…           the device side of rnn-edge
"""

import contextlib
import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from rnn_edge.bundle import Bundle, read_bundle
from rnn_edge.device_install import device_wheel, requirements
from rnn_edge.errors import BundleError, RnnEdgeError
from rnn_edge.files import new_folder, write_bytes
from rnn_edge.manifest import MANIFEST_NAME

SUFFIXES = (".tar.gz", ".tgz")
SUMS = "SHA256SUMS"
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 2**20
# What is not listed in a manifest has limits of its own.
_LARGEST_SUMS, _LARGEST_MANIFEST, _LARGEST_OTHER = 2**20, 16 * 2**20, 64 * 2**20
_MOST_FILES = 1000
_LONGEST_END = 2**20  # of zeros behind the last file
# Weights hardly shrink, and text to a tenth; deflate can reach a thousandth.
_MOST_GROWTH, _GROWTH_ALLOWED = 50, 16 * 2**20
_MEND = "get the archive again from where it was packed"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")

_INSTALL = """\
{name} for rnn-edge. On a device with Python 3.11 or later:

    sha256sum -c {sums}
    python3 -m venv environment
    environment/bin/pip install -r requirements.txt wheels/{wheel}
    environment/bin/rnn-edge verify {name}
    environment/bin/rnn-edge {command} {name}

Run them in this folder: the bundle is found in models/ by its name.
"""


@dataclass(frozen=True)
class Packed:
    """What was written: where, how large, and its SHA-256."""

    path: Path
    size: int
    sha256: str


def pack(bundle: Bundle, path: Path) -> Packed:
    """Write a bundle as an archive. The same bundle, package and versions give the same bytes.

    Raises:
        BundleError: a file of the bundle is not what the manifest says.
        RnnEdgeError: the archive cannot be written.
    """
    name = _plain_name(bundle.path.resolve().name)
    wheel, content = device_wheel()
    command = "translate" if bundle.manifest.task == "translation" else "generate"
    files = {f"models/{name}/{MANIFEST_NAME}": _manifest_bytes(bundle)}
    files |= {f"models/{name}/{entry}": bundle.read(entry) for entry in sorted(bundle.manifest.files)}
    files["INSTALL.txt"] = _INSTALL.format(name=name, sums=SUMS, wheel=wheel, command=command).encode()
    files["requirements.txt"] = "".join(f"{line}\n" for line in requirements()).encode()
    files[f"wheels/{wheel}"] = content
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {inside}\n" for inside, data in files.items())
    out = io.BytesIO()
    # No time and no file name in gzip's header; level 6 is what all zlib versions agree best on.
    with (
        gzip.GzipFile("", "wb", 6, out, mtime=0) as stream,
        tarfile.open(None, "w", stream, format=tarfile.USTAR_FORMAT) as tar,
    ):
        for inside, data in {SUMS: sums.encode(), **files}.items():
            member = tarfile.TarInfo(f"{name}/{inside}")
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    write_bytes(path, out.getvalue())
    return Packed(path, len(out.getvalue()), hashlib.sha256(out.getvalue()).hexdigest())


def unpack(path: Path, output: Path, *, force: bool = False) -> Bundle:
    """Unpack an archive into a new folder, all of it or nothing, and open its bundle.

    Only plain files are taken, each named once, inside the archive's one folder, listed in its checksums and of the
    size that the manifest says, all together no more than an archive's size explains; so links, devices, ``..``,
    absolute names, duplicates and bombs are refused.

    Raises:
        BundleError: the archive is damaged, or holds what none of ours holds.
        RnnEdgeError: it cannot be read, or the folder cannot be written.
    """
    with _open(path) as file, new_folder(output, force=force) as folder:
        name = _extract(path, file, folder)
    return read_bundle(output / "models" / name)


def cached(path: Path, cache: Path) -> Path:
    """The folder of an archive's bundle: below ``cache`` under the archive's SHA-256, unpacked if it is not there."""
    with _open(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = cache / "archives" / digest
    found = _bundle_below(target)
    if found is None:
        try:
            found = unpack(path, target, force=target.exists()).path
        except RnnEdgeError:
            found = _bundle_below(target)
            if found is None:  # else another process was faster, with the same bytes
                raise
    return found


def _bundle_below(target: Path) -> Path | None:
    manifest = next((target / "models").glob(f"*/{MANIFEST_NAME}"), None)
    return manifest.parent if manifest else None


@contextlib.contextmanager
def _open(path: Path) -> Iterator[io.BufferedReader]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        if error.filename not in (None, str(path), path):
            raise
        raise BundleError(
            f"cannot read {path}: {error.strerror or error}", "check the path and its permissions"
        ) from error


def _extract(path: Path, file: BinaryIO, folder: Path) -> str:
    """Write all files of an archive below ``folder``; the name of its bundle."""
    name = ""
    sums: dict[str, str] = {}
    sizes: dict[str, int] = {}
    seen: set[str] = set()
    room = _MOST_GROWTH * os.fstat(file.fileno()).st_size + _GROWTH_ALLOWED
    for top, inside, size, content in _members(path, file):
        if not seen:
            if inside != SUMS:
                raise BundleError(f"{path} is no archive of a bundle: it does not begin with {SUMS}", _MEND)
            name = top
        if top != name or inside in seen or (seen and inside not in sums):
            what = "twice" if inside in seen else "which its checksums do not list"
            raise BundleError(f"{path} holds {top}/{inside}, {what}", _MEND)
        if size > sizes.get(inside, _limit(name, inside)):
            raise BundleError(f"{path} holds {inside} with {size:,} bytes: more than it may have", _MEND)
        room -= size
        if room < 0:
            raise BundleError(f"{path} unpacks to more than {_MOST_GROWTH} times its size", _MEND)
        if inside in sizes and size != sizes[inside]:
            raise BundleError(f"{path} holds {inside} with {size:,} bytes, not {sizes[inside]:,}", _MEND)
        target = folder / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with target.open("xb") as out:
            for chunk in content:
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if not seen:
            sums = _read_sums(path, name, target.read_bytes())
        elif digest.hexdigest() != sums[inside]:
            raise BundleError(f"{path}: {inside} is not what the archive's checksums say", _MEND)
        if inside == f"models/{name}/{MANIFEST_NAME}":
            files = read_bundle(target.parent).manifest.files
            sizes = {f"models/{name}/{entry}": found.size for entry, found in files.items()}
        seen.add(inside)
    missing = sorted((set(sums) | set(sizes)) - seen)
    if not seen or missing:
        raise BundleError(f"{path} ends early: it lacks {missing[0] if missing else 'everything'}", _MEND)
    return name


def _members(path: Path, file: BinaryIO) -> Iterator[tuple[str, str, int, Iterator[bytes]]]:
    """Folder, name in it, size and content of each member; the content is read before the next member is asked for.

    Headers are read one by one, and nothing but plain files with short names is understood: extended headers, which may
    themselves be bombs, are never read.
    """
    try:
        with gzip.open(file) as stream:
            for _ in range(_MOST_FILES + 1):
                header = _exactly(path, stream, _BLOCK)
                if not header.strip(b"\0"):
                    _check_end(path, stream)
                    return
                member = tarfile.TarInfo.frombuf(header, "ascii", "strict")
                if member.type != tarfile.REGTYPE or member.size < 0:
                    raise BundleError(f"{path} holds {member.name!r}, which is not a plain file", _MEND)
                yield *_split(path, member.name), member.size, _content(path, stream, member.size)
            raise BundleError(f"{path} holds more than {_MOST_FILES:,} files", _MEND)
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is no archive of a bundle: {error}", _MEND) from error


def _split(path: Path, name: str) -> tuple[str, str]:
    """Folder and the rest of a name whose parts are plain.

    Raises:
        BundleError: it is absolute, has ``..``, or could mean something else on another system.
    """
    parts = name.split("/")
    if len(parts) < 2 or not all(_NAME.fullmatch(part) for part in parts):
        raise BundleError(f"{path} holds {name!r}, which is not a name inside its folder", _MEND)
    return parts[0], "/".join(parts[1:])


def _content(path: Path, stream: gzip.GzipFile, size: int) -> Iterator[bytes]:
    left = size
    while left:
        chunk = _exactly(path, stream, min(left, _CHUNK))
        left -= len(chunk)
        yield chunk
    _exactly(path, stream, -size % _BLOCK)


def _exactly(path: Path, stream: gzip.GzipFile, size: int) -> bytes:
    content = _read(path, stream, size)
    if len(content) != size:
        raise BundleError(f"{path} is truncated", _MEND)
    return content


def _read(path: Path, stream: gzip.GzipFile, size: int) -> bytes:
    try:
        return stream.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BundleError(f"{path} is truncated or damaged: {error}", _MEND) from error


def _check_end(path: Path, stream: gzip.GzipFile) -> None:
    end = _read(path, stream, _LONGEST_END)  # to the end of the stream, where gzip's own sum is checked
    if end.strip(b"\0") or _read(path, stream, 1):
        raise BundleError(f"{path} goes on behind its end", _MEND)


def _read_sums(path: Path, name: str, content: bytes) -> dict[str, str]:
    lines = content.decode("ascii", "replace").splitlines()
    found = [_LINE.fullmatch(line) for line in lines]
    sums = {match[2]: match[1] for match in found if match}
    if len(sums) != len(lines) or f"models/{name}/{MANIFEST_NAME}" not in sums:
        raise BundleError(f"{path}: {SUMS} is not a list of checksums with the bundle's manifest", _MEND)
    return sums


def _limit(name: str, inside: str) -> int:
    """Bytes that a file may have that no manifest gives a size."""
    if inside == SUMS:
        return _LARGEST_SUMS
    if inside == f"models/{name}/{MANIFEST_NAME}":
        return _LARGEST_MANIFEST
    # In the bundle's folder, only what the manifest lists; and the manifest comes first.
    return -1 if PurePosixPath(inside).parts[0] == "models" else _LARGEST_OTHER


def _manifest_bytes(bundle: Bundle) -> bytes:
    try:
        return (bundle.path / MANIFEST_NAME).read_bytes()
    except OSError as error:
        raise BundleError(
            f"cannot read {bundle.path / MANIFEST_NAME}: {error.strerror}", "copy the bundle again"
        ) from error


def _plain_name(name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > 60:
        raise BundleError(f"a bundle named {name!r} cannot be packed", "rename its folder: letters, digits, - and _")
    return name
