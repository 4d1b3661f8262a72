"""Text files that need not fit into memory: read in chunks that are cut where no token is."""

import codecs
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rnn_edge.errors import DataError
from rnn_edge.text_files import BOM, raise_empty, raise_not_text

_PATTERN = re.compile(r"[*?\[]")
_READ = 2**20  # bytes
_WHOLE = 2**24  # characters without a place to cut: so long a line is cut anywhere


@dataclass(frozen=True)
class TextSource:
    """Some files, one behind the other, surveyed: hash of all their bytes, characters, and which ones occur."""

    paths: tuple[Path, ...]
    encoding: str
    sha256: str
    size: int
    characters: int
    alphabet: frozenset[str]
    stamps: tuple[tuple[int, int], ...]  # size and time of each file

    def check_unchanged(self) -> None:
        """Raises DataError where a file is another than that which was surveyed."""
        for path, stamp in zip(self.paths, self.stamps, strict=True):
            if _stamp(path) != stamp:
                raise DataError(f"{path} changed while it was read", "run it again when nothing writes to it")

    @property
    def name(self) -> str:
        """For people."""
        first = self.paths[0].name
        return first if len(self.paths) == 1 else f"{first} and {len(self.paths) - 1} more files"

    def chunks(self, start: int = 0, stop: int | None = None, read: int = _READ) -> Iterator[str]:
        """The characters from ``start`` to ``stop``, in chunks.

        A cut is behind a line end that no other follows, or before a space that a word follows: no token reaches past
        such places (``vocabularies``). About ``read`` characters each, more where lines are longer.
        """
        held = ""
        for piece in self._pieces(start, self.characters if stop is None else stop, read):
            held += piece
            cut = _last_cut(held) or (len(held) if len(held) > _WHOLE else 0)
            if cut:
                yield held[:cut]
                held = held[cut:]
        if held:
            yield held

    def _pieces(self, start: int, stop: int, read: int) -> Iterator[str]:
        place = 0
        for path in self.paths:
            for piece in _decode(path, self.encoding, None, read):
                if place + len(piece) > start:
                    yield piece[max(0, start - place) : stop - place]
                place += len(piece)
                if place >= stop:
                    return


def survey(paths: Sequence[Path], encoding: str) -> TextSource:
    """Read all files once. A path that is not there may be a pattern such as ``texts/*.txt``.

    Raises:
        DataError: a file is missing, a folder, empty, or not text in ``encoding``; the byte offset is named.
    """
    files = tuple(path for pattern in paths for path in _expand(pattern))
    stamps = tuple(map(_stamp, files))
    digest = hashlib.sha256()
    alphabet: set[str] = set()
    size = characters = 0
    for path in files:
        before = characters
        for piece in _decode(path, encoding, digest, _READ):
            characters += len(piece)
            alphabet.update(piece)
        if characters == before:
            raise_empty(path)
        size += path.stat().st_size
    return TextSource(files, encoding, digest.hexdigest(), size, characters, frozenset(alphabet), stamps)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _expand(path: Path) -> list[Path]:
    if path.exists() or not _PATTERN.search(str(path)):
        return [path]
    root = Path(path.anchor or ".")
    found = sorted(item for item in root.glob(str(path.relative_to(path.anchor))) if not item.is_dir())
    if not found:
        raise DataError(f"no file matches {path}", "check the pattern")
    return found


def _decode(path: Path, encoding: str, digest: "hashlib._Hash | None", read: int) -> Iterator[str]:
    """The characters of a file, line ends untouched."""
    try:
        b"a".decode(encoding)  # refuses codecs that are not for text
        decoder = codecs.getincrementaldecoder(encoding)()
    except LookupError as error:
        raise_not_text(path, encoding, error)
    done = 0
    try:
        with path.open("rb") as file:
            while True:
                content = file.read(read)
                if digest is not None:
                    digest.update(content)
                pending = len(decoder.getstate()[0])
                try:
                    piece = decoder.decode(content, final=not content)
                except UnicodeError as error:
                    raise_not_text(path, encoding, error, done - pending)
                if piece:
                    yield piece.removeprefix(BOM) if not done else piece
                if not content:
                    return
                done += len(content)
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder", "give text files, or a pattern such as 'texts/*.txt'") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check the path") from error


def _last_cut(text: str) -> int:
    """The last place where no token is, or 0."""
    place = len(text) - 1
    while (place := text.rfind("\n", 0, place)) >= 0:
        if text[place + 1] != "\n":
            return place + 1
    place = len(text) - 1
    while (place := text.rfind(" ", 1, place)) >= 0:
        if not text[place + 1].isspace():
            return place
    return 0
