"""From text files to tokens and windows."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from rnn_edge.errors import DataError, InvalidValueError
from rnn_edge.text_files import read_text
from rnn_edge.tokenizer import character_tokenizer
from rnn_edge_export.language_model import text_source
from rnn_edge_export.language_model.data import (
    Corpus,
    Part,
    Texts,
    load_corpus,
    random_lengths,
    windows,
    windows_per_epoch,
)
from rnn_edge_export.recipe_sections import StreamSection

_SMALL = StreamSection(batch_size=2, sequence_length=4)


def _text(corpus: Corpus, part: Part) -> str:
    return corpus.tokenizer.decode(part.tokens.tolist())


def _file(folder: Path, content: bytes, name: str = "text.txt") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("length", [100, 101, 109, 999, 1003])
def test_the_last_tenth_is_validation(tmp_path: Path, length: int) -> None:
    text = ("an ünusual ☃ line\n" * 60)[:length]
    texts = Texts.survey([_file(tmp_path, text.encode())])
    corpus = load_corpus(texts, _SMALL)
    split = int(length * 0.9)  # characters, not bytes
    assert _text(corpus, corpus.train) == text[:split]
    assert _text(corpus, corpus.valid) == text[split:]
    assert (corpus.train.characters, corpus.valid.characters) == (split, length - split)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    assert texts.hashes == {"sha256": sha256, "valid_sha256": "", "test_sha256": ""}
    assert corpus.valid.source == "the last 10% of text.txt"
    assert corpus.test is None


def test_fractions_for_validation_and_test(tmp_path: Path) -> None:
    text = "abcdefghij" * 20
    texts = Texts.survey([_file(tmp_path, text.encode())])
    corpus = load_corpus(texts, replace(_SMALL, validation_fraction=0.25))
    assert (_text(corpus, corpus.train), _text(corpus, corpus.valid)) == (text[:150], text[150:])
    assert corpus.valid.source == "the last 25% of text.txt"
    corpus = load_corpus(texts, replace(_SMALL, validation_fraction=0.2, test_fraction=0.3))
    assert corpus.test is not None
    parts = [_text(corpus, part) for part in (corpus.train, corpus.valid, corpus.test)]
    assert parts == [text[:100], text[100:140], text[140:]]
    assert corpus.valid.source == "the last 20% of text.txt before the test's 30%"
    assert corpus.test.source == "the last 30% of text.txt"


def test_files_of_their_own_leave_the_corpus_whole(tmp_path: Path) -> None:
    train, valid, test = (
        _file(tmp_path, content, name)
        for content, name in [(b"abc" * 20, "a.txt"), (b"cab!", "held.txt"), (b"b?", "last.txt")]
    )
    texts = Texts.survey([train], [valid], [test])
    corpus = load_corpus(texts, _SMALL)
    assert corpus.test is not None
    parts = [_text(corpus, part) for part in (corpus.train, corpus.valid, corpus.test)]
    assert parts == ["abc" * 20, "cab!", "b?"]  # the vocabulary has "!" and "?"
    assert (corpus.valid.source, corpus.test.source) == ("held.txt", "last.txt")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (train, valid, test)]
    assert list(texts.hashes.values()) == digests


def test_many_files_are_one_text(tmp_path: Path) -> None:
    for name, content in [("b.txt", "ü\n"), ("a.txt", "abc " * 9), ("c.md", "no")]:
        _file(tmp_path, content.encode(), name)
    whole = Texts.survey([_file(tmp_path, ("abc " * 9 + "ü\n").encode(), "whole")])
    parts = Texts.survey([tmp_path / "*.txt"])
    assert [path.name for path in parts.corpus.paths] == ["a.txt", "b.txt"]
    assert parts.hashes == whole.hashes
    assert parts.corpus.alphabet == whole.corpus.alphabet == set("abc ü\n")
    assert "".join(parts.corpus.chunks()) == "".join(whole.corpus.chunks())
    assert parts.corpus.name == "a.txt and 1 more files"
    with pytest.raises(DataError, match="no file matches"):
        Texts.survey([tmp_path / "*.html"])


def test_characters_of_all_kinds(tmp_path: Path) -> None:
    text = 'tabs\tand\r\nline ends, "quotes", ünïcode, 漢字, 😀 and \u2028 and \x00.\n' * 9
    corpus = load_corpus(Texts.survey([_file(tmp_path, text.encode())]), _SMALL)
    ids = np.concatenate([corpus.train.tokens, corpus.valid.tokens])
    assert ids.dtype == np.uint16
    assert ids.tolist() == corpus.tokenizer.encode(text)
    assert corpus.tokenizer.decode(ids.tolist()) == text  # \r\n has not become \n


@pytest.mark.parametrize(("count", "batch", "length"), [(101, 4, 5), (100, 4, 5), (37, 3, 4), (9, 2, 4), (50, 1, 7)])
def test_streams_are_contiguous_and_do_not_overlap(count: int, batch: int, length: int) -> None:
    tokens = np.arange(count, dtype=np.uint16)
    pairs = list(windows(tokens, batch, length))
    assert len(pairs) == windows_per_epoch(count, batch, length) == (count - 1) // batch // length
    for inputs, targets in pairs:
        assert inputs.shape == targets.shape == (length, batch)
        assert torch.equal(targets, inputs + 1)  # the tokens are their own positions
    streams = torch.cat([inputs for inputs, _ in pairs])  # [T, B]
    span = (count - 1) // batch
    for column in range(batch):
        start = column * span
        assert streams[:, column].tolist() == list(range(start, start + len(pairs) * length))
    assert streams.unique().numel() == streams.numel()


def test_an_offset_reads_the_text_as_a_ring() -> None:
    tokens = np.arange(21, dtype=np.uint16)
    pairs = list(windows(tokens, 2, 5, offset=17))
    streams = torch.cat([inputs for inputs, _ in pairs])
    assert streams[:, 0].tolist() == [17, 18, 19, 20, 0, 1, 2, 3, 4, 5]
    assert streams[:, 1].tolist() == list(range(6, 16))
    for inputs, targets in pairs:
        assert torch.equal(targets, (inputs + 1) % 21)


def test_a_text_just_long_enough(tmp_path: Path) -> None:
    valid = _file(tmp_path, b"ab", "valid.txt")
    assert len(load_corpus(Texts.survey([_file(tmp_path, b"abababab" + b"a")], [valid]), _SMALL).train.tokens) == 9
    with pytest.raises(DataError, match="has 8 training tokens; 2 streams of 4 steps need 9"):
        load_corpus(Texts.survey([_file(tmp_path, b"abababab")], [valid]), _SMALL)


def test_windows_of_drawn_lengths_have_a_least_length(tmp_path: Path) -> None:
    drawn = replace(_SMALL, random_lengths=True)
    valid = _file(tmp_path, b"ab", "valid.txt")
    with pytest.raises(DataError, match="has 10 training tokens; 2 streams of 5 steps need 11"):
        load_corpus(Texts.survey([_file(tmp_path, b"ab" * 5)], [valid]), drawn)
    assert random_lengths(5, 4, np.random.default_rng(1)) == [5]


@pytest.mark.parametrize("kind", ["character", "word"])
def test_a_corpus_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Literal["character", "word"]
) -> None:
    """What is remembered under the hash of one text must not be another's."""
    monkeypatch.setenv("RNN_EDGE_CACHE", str(tmp_path / "cache"))
    section = replace(_SMALL, tokenizer=kind, minimum_count=1)
    path, text = tmp_path / "text.txt", b"one two three " * 20
    texts = Texts.survey([_file(tmp_path, text)])
    path.write_bytes(b"two one three " * 20)
    with pytest.raises(DataError, match="changed while it was read"):
        load_corpus(texts, section)
    path.write_bytes(text)
    corpus = load_corpus(Texts.survey([path]), section)
    assert _text(corpus, corpus.train).strip().startswith("one two three")
    for remembered in (tmp_path / "cache" / "tokens").glob("*.json"):
        remembered.write_bytes(b"{}")  # damaged: made again
    assert load_corpus(Texts.survey([path]), section).tokenizer.content == corpus.tokenizer.content


def test_a_mark_of_the_byte_order_is_no_text(tmp_path: Path) -> None:
    path = _file(tmp_path, b"\xef\xbb\xbfabababab\xef\xbb\xbfa")
    assert read_text(path, "utf-8")[0] == "abababab\ufeffa"
    found = text_source.survey([path], "utf-8")
    assert (found.characters, "".join(found.chunks())) == (10, "abababab\ufeffa")
    assert "".join(found.chunks(2, 5, read=3)) == "aba"


def test_too_little_for_validation(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"validation text .*has 1 tokens"):
        load_corpus(Texts.survey([_file(tmp_path, b"abcdefghijklmno")]), _SMALL_FRACTION)
    with pytest.raises(DataError, match=r"validation text \(one.txt\) has 1 tokens"):
        load_corpus(Texts.survey([_file(tmp_path, b"ab" * 20)], [_file(tmp_path, b"a", "one.txt")]), _SMALL)


_SMALL_FRACTION = StreamSection(batch_size=2, sequence_length=4, validation_fraction=0.01)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    good = _file(tmp_path, b"ab" * 20, "good.txt")
    for path, message in [
        (tmp_path / "missing.txt", "cannot read"),
        (tmp_path, "is a folder"),
        (_file(tmp_path, b""), "is empty"),
    ]:
        for corpus, valid, test in ([path], [], []), ([good, path], [], []), ([good], [path], []), ([good], [], [path]):
            with pytest.raises(DataError, match=message) as caught:
                Texts.survey(corpus, valid, test)
            assert str(path) in caught.value.message


def test_bytes_that_are_not_text_are_named(tmp_path: Path) -> None:
    content = "naïve ".encode() + "café\n".encode("latin-1")
    path = _file(tmp_path, content * 10)
    with pytest.raises(DataError, match="is not utf-8: byte 10 is 0xe9") as caught:
        read_text(path, "utf-8")
    assert "--encoding" in caught.value.hint
    text, sha256 = read_text(path, "latin-1")
    assert text == (content * 10).decode("latin-1")
    assert sha256 == hashlib.sha256(content * 10).hexdigest()
    with pytest.raises(DataError, match="byte 7 is 0xe2"):  # a character cut off by the end
        read_text(_file(tmp_path, b"1234567\xe2\x98"), "utf-8")


@pytest.mark.parametrize("read", [1, 2, 3, 7, 100])
def test_a_bad_byte_has_the_same_place_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: int) -> None:
    monkeypatch.setattr(text_source, "_READ", read)
    for content, place in [("naïve ☃ ".encode() + b"\xe9t\xe9", 11), ("ab☃".encode() + b"\xe2\x98", 5)]:
        path = _file(tmp_path, content)
        with pytest.raises(DataError) as whole:
            read_text(path, "utf-8")
        with pytest.raises(DataError) as pieces:
            Texts.survey([path])
        assert pieces.value.message == whole.value.message
        assert f"byte {place} is" in whole.value.message


@pytest.mark.parametrize("encoding", ["klingon", "", "rot13"])
def test_an_unknown_encoding(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(InvalidValueError, match="--encoding"):
        read_text(_file(tmp_path, b"abc"), encoding)
    with pytest.raises(InvalidValueError, match="--encoding"):
        Texts.survey([_file(tmp_path, b"abc")], encoding=encoding)


def test_what_the_given_vocabulary_lacks_is_named(tmp_path: Path) -> None:
    texts = Texts.survey([_file(tmp_path, "abc ☃".encode() * 20)])
    with pytest.raises(DataError, match="the model has never seen '☃'"):
        load_corpus(texts, _SMALL, tokenizer=character_tokenizer("abc "))
