"""Files of word vectors: every format, gzipped or not, in little memory; and everything that can be wrong with one."""

from __future__ import annotations

import gzip
import hashlib
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from rnn_edge.errors import DataError, InvalidValueError
from rnn_edge_export.vector_files import read_vectors

WORDS: dict[str, tuple[float, ...]] = {
    "the": (0.5, -1.25, 3.0),
    "élan": (1e-3, 2.0, -4.5),
    "The": (7.0, 8.0, 9.0),
    ",": (0.0, 0.25, 0.0),
}


def _text(words: dict[str, tuple[float, ...]], *, header: bool = False, end: str = "\n", between: str = " ") -> bytes:
    lines = [between.join((word, *map(str, values))) for word, values in words.items()]
    return "".join(line + end for line in [f"{len(words)} 3"] * header + lines).encode()


def _binary(words: dict[str, tuple[float, ...]], end: bytes = b"\n") -> bytes:
    rows = (word.encode() + b" " + struct.pack("<3f", *values) + end for word, values in words.items())
    return f"{len(words)} 3\n".encode() + b"".join(rows)


FORMATS = {
    "glove": _text(WORDS),
    "glove without a last line end": _text(WORDS)[:-1],
    "glove with windows' line ends": _text(WORDS, end="\r\n"),
    "glove with tabs": _text(WORDS, between="\t"),
    "glove with a byte order mark": b"\xef\xbb\xbf" + _text(WORDS),
    "word2vec text": _text(WORDS, header=True),
    "fasttext": _text(WORDS, header=True, end=" \n"),
    "word2vec binary": _binary(WORDS),
    "word2vec binary without line ends": _binary(WORDS, b""),
}


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_told_by_its_content(tmp_path: Path, name: str, zipped: bool) -> None:
    path = tmp_path / "vectors.png"  # its name says nothing
    content = gzip.compress(FORMATS[name]) if zipped else FORMATS[name]
    path.write_bytes(content)
    seen: list[tuple[int, int]] = []
    found = read_vectors(path, ["élan", "the", "absent", ","], progress=lambda done, total: seen.append((done, total)))
    assert {word: tuple(found.vectors[row].tolist()) for word, row in found.rows.items()} == {
        word: tuple(np.array(WORDS[word], np.float32).tolist()) for word in ("the", "élan", ",")
    }
    assert found.vectors.dtype == np.float32
    assert found.vectors.shape == (3, 3)
    assert found.words == 4
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert seen[-1] == (len(content), len(content))


def _write(folder: Path, content: bytes) -> Path:
    path = folder / "some.vec"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["text", "binary"])
def test_only_the_words_asked_for_are_in_memory(tmp_path: Path, kind: str) -> None:
    width, count = 250, 20_000
    random = np.random.default_rng(0)
    if kind == "binary":
        row = random.normal(size=width).astype("<f4").tobytes()
        lines = (f"w{number} ".encode() + row for number in range(count))
        content = f"{count} {width}\n".encode() + b"".join(lines)
    else:
        row = " ".join(f"{value:.3f}" for value in random.normal(size=width)).encode()
        content = b"".join(f"w{number} ".encode() + row + b"\n" for number in range(count))
    path = tmp_path / "large.gz"
    path.write_bytes(gzip.compress(content, 1))
    size = len(content)
    del content
    read_vectors(_write(tmp_path, FORMATS["glove"]), ["the"])
    tracemalloc.start()
    found = read_vectors(path, [f"w{number}" for number in range(0, count, 1000)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.vectors.shape == (20, width)
    assert found.words == count
    assert size > 20_000_000
    assert peak < 6_000_000


def test_the_first_of_a_word_counts(tmp_path: Path) -> None:
    content = b"a 1 2\nb 3 4\na 5 6\n"
    found = read_vectors(_write(tmp_path, content), ["a"])
    assert found.vectors.tolist() == [[1.0, 2.0]]
    assert found.words == 3


def test_words_with_spaces_and_numbers(tmp_path: Path) -> None:
    """GloVe 840B has such lines."""
    lines = [". . . 0.5 1e-3 -2", "at name@domain.com 1 2 3", "1 4 5 6", "\u2022 name 7 8 9", "a\u00a0b 1 1 1"]
    found = read_vectors(_write(tmp_path, "\n".join(lines).encode()), [". . .", "at name@domain.com", "1", "a\u00a0b"])
    rows = {word: found.vectors[row].tolist() for word, row in found.rows.items()}
    assert rows[". . ."] == pytest.approx([0.5, 0.001, -2.0])
    assert rows["at name@domain.com"] == [1.0, 2.0, 3.0]
    assert rows["1"] == [4.0, 5.0, 6.0]
    assert rows["a\u00a0b"] == [1.0, 1.0, 1.0]
    assert found.words == 5


def test_words_of_odd_bytes_are_passed_over(tmp_path: Path) -> None:
    content = "é 1 2\nè 3 4\n".encode() + b"caf\xc3 5 6\n\xff\x00 7 8\n\n 9 9\nb 5 5\n"
    found = read_vectors(_write(tmp_path, content), ["è", "b", "caf"])
    assert {word: found.vectors[row].tolist() for word, row in found.rows.items()} == {"è": [3, 4], "b": [5, 5]}


def test_another_encoding(tmp_path: Path) -> None:
    latin = "the 1 2\ndéjà 3 4\nété 5 6\n".encode("latin-1")
    for content in (latin, b"3 2\n" + latin, b"2 1\nd\xe9j\xe0 \x00\x00\x80\x3f\nthe \x00\x00\x80\x3f\n"):
        with pytest.raises(DataError, match=r"is not utf-8: byte 2 of (line|word) \d is 0xe9") as caught:
            read_vectors(_write(tmp_path, content), ["the"])
        assert "--embeddings-encoding" in caught.value.hint
        found = read_vectors(tmp_path / "some.vec", ["déjà", "the", "日"], "latin-1")
        assert set(found.rows) == {"déjà", "the"}
    for encoding in ("klingon", "rot13", "a\0b"):
        with pytest.raises(InvalidValueError, match="is unknown"):
            read_vectors(tmp_path / "some.vec", ["the"], encoding)
    for encoding in ("utf-16", "cp037"):
        with pytest.raises(InvalidValueError, match="does not keep ASCII"):
            read_vectors(tmp_path / "some.vec", ["the"], encoding)


LARGE = "".join(f"w{number} {' '.join(['0.5'] * 100)}\n" for number in range(1233))
BAD: dict[str, tuple[bytes, str]] = {
    "short": ((LARGE + f"x{' 0.5' * 99}\n").encode(), r"line 1,234 has 99 values, not 100$"),
    "long": ((LARGE + f"x{' 0.5' * 101}\n").encode(), r"line 1,234 has 101 values, not 100$"),
    "word2vec short": (b"3 2\na 1 2\nb 1\nc 1 2\n", "line 3 has 1 value, not 2"),
    "another header": (b"3 4\na 1 2\nb 1 2\n", "line 2 has 2 values, not 4"),
    "no number": (b"a 1 2 3\nb 1 two 3\n", "line 2 has 'two' among its values"),
    "no number in the first line": (b"a 1 x.5 3\nb 1 2 3\n", r"line 1 has 'x\.5' among its values"),
    "no number after a header": (b"2 3\na 1 x 3\nb 1 2 3\n", "line 2 has 'x' among its values"),
    "two points": (b"b 1 2 3\nthe 1 2.2.2 3\n", r"line 2 has a value that is not a number \('the'\)"),
    "underscore": (b"b 1 2 3\nthe 1 2_2 3\n", "line 2 has '2_2' among its values"),
    "nan": (b"b 1 2 3\nthe 1 nan 3\n", r"line 2 has a value that is not finite \('the'\)"),
    "infinite": (b"the 1 -inf 3\n", "line 1 has a value that is not finite"),
    "too large": (b"the 1 1e39 3\n", "line 1 has a value that is not finite"),
    "binary nan": (_binary({"a": (1, 2, 3), "the": (1, float("nan"), 3)}), "word 2 has a value that is not finite"),
    "cut in a vector": (_binary(WORDS)[:-6], "is cut off in word 4 of 4"),
    "cut in a word": (_binary(WORDS)[:-16], "is cut off in word 4 of 4"),
    "cut after a word": (_binary(WORDS).replace(b"4 3", b"5 3", 1), "is cut off in word 5 of 5"),
    "too much": (_binary(WORDS) + b"more", "goes on after the 4 words of 3 values"),
    "another width": (_binary(WORDS).replace(b"4 3", b"4 2", 1), "goes on after the 4 words of 2 values"),
    "a text": (b"It was a dark and stormy night.\nThe rain fell.\n", "line 1 is not a word and its vector"),
    "one word": (b"word\n", "line 1 is not a word and its vector"),
    "nothing": (b"", "is empty"),
    "only a mark": (b"\xef\xbb\xbf", "is empty"),
    "only a header": (b"0 100\n", "has no words"),
    "only a line end": (b"\n\n", "line 1 is not a word"),
    "wide": (b"2 1000000\na 1 2\n", "vectors of 1,000,000 values"),
    "no width": (b"2 0\na\nb\n", "vectors of 0 values"),
    "wide without a header": (b"a" + b" 1" * 10_001 + b"\n", "vectors of 10,001 values"),
    "endless": (b"a" * 3_000_000, "line 1 is not a word and its vector"),
    "endless after a line": (b"a 1 2\n" + b"b" * 3_000_000, "line 2 is longer than 1,048,576 bytes"),
    "endless word": (_binary(WORDS).replace(b"4 3", b"5 3", 1) + b"\x01" * 3_000_000, "word 5 is longer than"),
    "zip": (b"PK\x03\x04rest", "is a zip archive"),
    "fasttext model": (struct.pack("<i", 793712314) + b"rest", "is a model of fastText"),
    "pickle": (b"\x80\x04\x95rest", "is a pickle, which is never opened"),
    "xz": (b"\xfd7zXZ\x00", "is compressed by xz"),
    "utf-16": ("the 1 2\n".encode("utf-16"), "is in UTF-16"),
    "gzip cut off": (gzip.compress(LARGE.encode())[:-500], "is a damaged gzip file"),
    "gzip cut off in its end": (gzip.compress(_binary(WORDS))[:-5], "is a damaged gzip file"),
    "gzip of nothing": (gzip.compress(b""), "is empty"),
    "gzip with another sum": (gzip.compress(_text(WORDS))[:-8] + b"\x01" * 8, "is a damaged gzip file"),
    "gzip magic": (b"\x1f\x8b\x08 and text", "is a damaged gzip file"),
    "gzip with damage": (b"\x1f\x8b\x08" + b"\x00" * 7 + b"\xff" * 50, "is a damaged gzip file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    with pytest.raises(DataError, match=message) as caught:
        read_vectors(_write(tmp_path, content), ["the", "a", "b"])
    assert "some.vec" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("values", ["nan 1", "inf 1", "1e39 2"])
def test_words_not_asked_for_may_be_what_they_are(tmp_path: Path, values: str) -> None:
    found = read_vectors(_write(tmp_path, f"the 1 2\nrare {values}\n".encode()), ["the"])
    assert found.words == 2


def test_a_text_may_have_fewer_words_than_its_header_says(tmp_path: Path) -> None:
    """People cut such files with ``head``."""
    assert read_vectors(_write(tmp_path, b"2000000 2\nthe 1 2\n"), ["the"]).words == 1


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*missing\.vec: No such file"):
        read_vectors(tmp_path / "missing.vec", ["the"])
    with pytest.raises(DataError, match="is a folder"):
        read_vectors(tmp_path, ["the"])


@pytest.mark.parametrize("seed", range(40))
def test_damage_anywhere_is_an_error_or_nothing(tmp_path: Path, seed: int) -> None:
    """Bytes changed, cut out or put in: never another exception, and never a value that is not finite."""
    random = np.random.default_rng(seed)
    for content in (*FORMATS.values(), gzip.compress(FORMATS["glove"]), gzip.compress(FORMATS["word2vec binary"])):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), int(random.integers(1, 4))).tolist():
            kind = random.integers(3)
            damaged[place : place + (kind != 2) * int(random.integers(1, 9))] = random.bytes(int(kind != 1) * 3)
        try:
            found = read_vectors(_write(tmp_path, bytes(damaged)), WORDS)
        except DataError:
            continue
        assert np.isfinite(found.vectors).all()
        assert len(found.rows) == len(found.vectors)
