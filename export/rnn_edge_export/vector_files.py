"""Files of word vectors, read as a stream: of any size, only the words asked for are ever in memory.

GloVe's text, word2vec's text and binary, fastText's ``.vec``, gzipped or not, told apart by their content. gensim's
``KeyedVectors.load_word2vec_format`` makes room for as many words as a header claims, keeps them all, must be told the
format, fails at words with spaces, and needs scipy; so the reader is our own.
"""

import codecs
import contextlib
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import DataError, InvalidValueError
from rnn_edge_export.byte_stream import LONGEST, READ, ByteStream, HashedFile, Progress

_WIDEST = 10_000
_NUMERIC = b"0123456789.+-eE "
_AGAIN = "write or download it again"
_FOREIGN = {  # what other files begin with
    b"PK\x03\x04": ("is a zip archive", "unpack it, and give the text file that is inside"),
    b"BZh": ("is compressed by bzip2", "unpack it, or compress it by gzip"),
    b"\xfd7zXZ": ("is compressed by xz", "unpack it, or compress it by gzip"),
    b"\xba\x16\x4f\x2f": ("is a model of fastText", "give its vectors, the file that ends in .vec"),
    **{
        bytes([0x80, protocol]): ("is a pickle, which is never opened", "write it by gensim's save_word2vec_format")
        for protocol in range(2, 6)
    },
    b"\xff\xfe": ("is in UTF-16", "convert it to UTF-8"),
    b"\xfe\xff": ("is in UTF-16", "convert it to UTF-8"),
}


@dataclass(frozen=True)
class WordVectors:
    """Vectors float32 [N, width] and the row of each word; the words in the whole file, and its SHA-256."""

    rows: dict[str, int]
    vectors: NDArray[np.float32]
    words: int
    sha256: str


def read_vectors(
    path: Path, wanted: Iterable[str], encoding: str = "utf-8", progress: Progress = lambda done, total: None
) -> WordVectors:
    """The vectors of those of the ``wanted`` words that the file has; of a word that it has twice, the first.

    ``progress`` is called with the bytes that are read and the size of the file.

    Raises:
        DataError: missing, empty, damaged, cut off, not in ``encoding``, of mixed widths, or a line is no vector.
        InvalidValueError: ``encoding`` is unknown, or not one in which ASCII is ASCII.
    """
    _check_encoding(encoding)
    kept = _Kept(path, _encoded(wanted, encoding), encoding)
    with _mending(path), path.open("rb") as opened:
        file = HashedFile(opened, path.stat().st_size, progress)
        stream = ByteStream(file)
        if stream.peek(2) == b"\x1f\x8b":
            stream = ByteStream(cast(BinaryIO, gzip.GzipFile(fileobj=cast(BinaryIO, stream))))
        form = _open(path, stream)
        for number, word, values in form.entries:
            kept.add(form, number, word, values)
        while file.read(READ):  # for the hash
            pass
    if not kept.words:
        raise DataError(f"{path} has no words", _AGAIN)
    kept.check_encoding()
    return WordVectors(kept.rows, kept.vectors(), kept.words, file.sha256)


def check_file(path: Path) -> None:
    """Open a file, so that it is not missed only when everything else is prepared.

    Raises:
        DataError: it cannot be read.
    """
    with _mending(path):
        if not path.is_fifo():  # which opens once
            path.open("rb").close()


@contextlib.contextmanager
def _mending(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file: {error}", _AGAIN) from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder", "give one file of word vectors") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check the path") from error


class _Form(NamedTuple):
    """What a file is made of: the unit that its entries are counted in, how values are read, and the entries.

    An entry is its number, the word and the values.
    """

    unit: str
    parse: Callable[[bytes], NDArray[np.float32]]
    entries: Iterator[tuple[int, bytes, bytes]]


class _Kept:
    """The words asked for, as they turn up, and what all words say of the encoding."""

    def __init__(self, path: Path, wanted: dict[bytes, str], encoding: str) -> None:
        self._path, self._wanted, self._encoding = path, wanted, encoding
        self._vectors: list[NDArray[np.float32]] = []
        self.rows: dict[str, int] = {}
        self.words = self._decoded = self._odd = 0
        self._first_odd = ""

    def add(self, form: _Form, number: int, word: bytes, values: bytes) -> None:
        """One entry of the file."""
        self.words += 1
        known = self._wanted.get(word)
        if known is not None and known not in self.rows:
            try:
                vector = form.parse(values)
            except ValueError:
                _refuse(self._path, form.unit, number, f"has a value that is not a number ({known!r})")
            if not np.isfinite(vector).all():
                _refuse(self._path, form.unit, number, f"has a value that is not finite ({known!r})")
            self.rows[known] = len(self._vectors)
            self._vectors.append(vector)
        if not word.isascii():
            try:
                word.decode(self._encoding)
                self._decoded += 1
            except UnicodeDecodeError as error:
                self._odd += 1
                place = f"byte {error.start + 1} of {form.unit} {number:,} is 0x{word[error.start]:02x}"
                self._first_odd = self._first_odd or place

    def vectors(self) -> NDArray[np.float32]:
        """All that were kept: float32 [N, width]."""
        return np.stack(self._vectors) if self._vectors else np.empty((0, 0), np.float32)

    def check_encoding(self) -> None:
        """A few words that are cut in the middle of a character are in every large file; more is another encoding."""
        if self._odd > self._decoded:
            raise DataError(
                f"{self._path} is not {self._encoding}: {self._first_odd}",
                "convert it, or name its encoding with --embeddings-encoding (for example latin-1)",
            )


def _open(path: Path, stream: ByteStream) -> _Form:
    """Tell the format by the first line and the one behind it."""
    if stream.peek(3) == codecs.BOM_UTF8:
        stream.read(3)
    for magic, (what, mend) in _FOREIGN.items():
        if stream.peek(len(magic)) == magic:
            raise DataError(f"{path} {what}", mend)
    if not stream.peek(1):
        raise DataError(f"{path} is empty", "give a file of word vectors")
    first = stream.until(b"\n")
    header = first.split() if first else []
    if len(header) != 2 or not all(field.isdigit() and len(field) < 12 for field in header):
        width = _first_width(path, first or b"", stream.peek(LONGEST))
        return _Form("line", _parse_text, _text_entries(path, stream, first, width))
    count, width = map(int, header)
    _check_width(path, width)
    after = stream.peek(LONGEST).split(b"\n", 1)[0].split()
    if after and not _is_number(after[-1]) and _is_binary(stream.peek(LONGEST), width):
        return _Form("word", _parse_binary, _binary_entries(path, stream, count, width))
    return _Form("line", _parse_text, _text_entries(path, stream, stream.until(b"\n"), width, 2))


def _is_binary(content: bytes, width: int) -> bool:
    """Whether what follows the first word has bytes that no text has."""
    values = content.partition(b" ")[2][: 4 * width]
    return any(byte < 0x20 and byte not in b"\t\r\n" for byte in values)


def _first_width(path: Path, first: bytes, behind: bytes) -> int:
    """The width of a file without a header: that of its first line, or of the second where the first is not plain."""
    fields = first.split()
    width = _numbers(fields)
    if width < len(fields) - 1:
        width = _numbers(behind.split(b"\n", 1)[0].split()) or width
    if width == 0:
        raise DataError(f"{path}, line 1 is not a word and its vector", "give a file of word vectors")
    _check_width(path, width)
    return width


def _text_entries(
    path: Path, stream: ByteStream, line: bytes | None, width: int, number: int = 1
) -> Iterator[tuple[int, bytes, bytes]]:
    """Lines of a word and ``width`` values, from ``line`` on, which has this number."""
    while line != b"":
        if line is None:
            raise DataError(f"{path}, line {number:,} is longer than {LONGEST:,} bytes", "give a file of word vectors")
        line = line.rstrip()
        if line:
            word, _, values = line.partition(b" ")
            plain = values.count(b" ") == width - 1 and not values.translate(None, _NUMERIC)
            yield number, *((word, values) if plain else _split(path, number, line.split(), width))
        line = stream.until(b"\n")
        number += 1


def _split(path: Path, number: int, fields: list[bytes], width: int) -> tuple[bytes, bytes]:
    """Word and values of a line that is not plain: the word has spaces, tabs divide, or something is wrong."""
    if _numbers(fields) == width:
        return b" ".join(fields[:-width]), b" ".join(fields[-width:])
    count = len(fields) - 1
    strange = [field for field in fields[1:][-width:] if not _is_number(field)]
    if strange and count >= width:
        _refuse(path, "line", number, f"has {strange[-1][:20].decode(errors='replace')!r} among its values")
    return _refuse(path, "line", number, f"has {count:,} value{'s' * (count != 1)}, not {width:,}")


def _numbers(fields: list[bytes]) -> int:
    """How many fields at the end are numbers; the first is a word."""
    count = 0
    while count < len(fields) - 1 and _is_number(fields[-1 - count]):
        count += 1
    return count


def _binary_entries(path: Path, stream: ByteStream, count: int, width: int) -> Iterator[tuple[int, bytes, bytes]]:
    """``count`` words, each with a space and ``width`` floats behind it; after them there may be a line end."""
    for number in range(1, count + 1):
        word, values = stream.until(b" "), stream.read(4 * width)
        if word is None:
            _refuse(path, "word", number, f"is longer than {LONGEST:,} bytes")
        if len(values) < 4 * width:
            raise DataError(f"{path} is cut off in word {number:,} of {count:,}", _AGAIN)
        yield number, word[:-1].lstrip(b"\n"), values
    if stream.peek(2).strip():
        raise DataError(f"{path} goes on after the {count:,} words of {width:,} values that it announces", _AGAIN)


def _parse_text(values: bytes) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.array([float(field) for field in values.split()]).astype(np.float32)


def _parse_binary(values: bytes) -> NDArray[np.float32]:
    return np.frombuffer(values, "<f4").astype(np.float32)


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return b"_" not in field


def _check_width(path: Path, width: int) -> None:
    if not 0 < width <= _WIDEST:
        raise DataError(f"{path} has vectors of {width:,} values", f"give a file with 1 to {_WIDEST:,} values a word")


def _check_encoding(encoding: str) -> None:
    try:
        plain = "a 1\n".encode(encoding) == b"a 1\n"
    except (LookupError, ValueError) as error:
        raise InvalidValueError(
            f"--embeddings-encoding {encoding} is unknown", "use a name like utf-8 or latin-1"
        ) from error
    if not plain:
        raise InvalidValueError(
            f"--embeddings-encoding {encoding} does not keep ASCII as it is", "convert the file to UTF-8"
        )


def _encoded(words: Iterable[str], encoding: str) -> dict[bytes, str]:
    """The words by their bytes; a file cannot have those that its encoding cannot write."""
    found = {}
    for word in words:
        with contextlib.suppress(UnicodeEncodeError):
            found[word.encode(encoding)] = word
    return found


def _refuse(path: Path, unit: str, number: int, why: str) -> NoReturn:
    raise DataError(f"{path}, {unit} {number:,} {why}", f"mend or remove that {unit}, or download the file again")
