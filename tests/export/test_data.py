"""From text files to tokens and windows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from rnn_edge.errors import DataError, InvalidValueError
from rnn_edge.text_files import read_text
from rnn_edge_export.language_model.data import load_corpus, windows, windows_per_epoch
from rnn_edge_export.recipe import StreamSection

_SMALL = StreamSection(batch_size=2, sequence_length=4)


def _file(folder: Path, content: bytes, name: str = "text.txt") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("length", [100, 101, 109, 999, 1003])
def test_the_last_tenth_is_validation(tmp_path: Path, length: int) -> None:
    text = ("an ünusual ☃ line\n" * 60)[:length]
    corpus = load_corpus(_file(tmp_path, text.encode()), None, _SMALL)
    split = int(length * 0.9)  # characters, not bytes
    assert corpus.tokenizer.decode(corpus.train.tolist()) == text[:split]
    assert corpus.tokenizer.decode(corpus.valid.tolist()) == text[split:]
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert corpus.valid_sha256 == ""
    assert corpus.valid_source == "the last 10% of text.txt"


def test_another_share_for_validation(tmp_path: Path) -> None:
    corpus = load_corpus(
        _file(tmp_path, b"abcd" * 50), None, StreamSection(batch_size=2, sequence_length=4, validation_fraction=0.25)
    )
    assert (len(corpus.train), len(corpus.valid)) == (150, 50)
    assert "25%" in corpus.valid_source


def test_a_validation_file_leaves_the_corpus_whole(tmp_path: Path) -> None:
    train, valid = _file(tmp_path, b"abc" * 20), _file(tmp_path, b"cab!", "held.txt")
    corpus = load_corpus(train, valid, _SMALL)
    assert corpus.tokenizer.decode(corpus.train.tolist()) == "abc" * 20
    assert corpus.tokenizer.decode(corpus.valid.tolist()) == "cab!"  # its "!" is in the vocabulary
    assert corpus.valid_source == "held.txt"
    assert corpus.valid_sha256 == hashlib.sha256(b"cab!").hexdigest()


def test_the_table_gives_the_tokenizers_ids(tmp_path: Path) -> None:
    text = 'tabs\tand\r\nline ends, "quotes", ünïcode, 漢字, 😀 and \u2028 and \x00.\n' * 9
    corpus = load_corpus(_file(tmp_path, text.encode()), None, _SMALL)
    ids = torch.cat([corpus.train, corpus.valid])
    assert ids.dtype == torch.int64
    assert ids.tolist() == corpus.tokenizer.encode(text)
    assert corpus.tokenizer.decode(ids.tolist()) == text  # \r\n has not become \n


@pytest.mark.parametrize(("count", "batch", "length"), [(101, 4, 5), (100, 4, 5), (37, 3, 4), (9, 2, 4), (50, 1, 7)])
def test_streams_are_contiguous_and_do_not_overlap(count: int, batch: int, length: int) -> None:
    tokens = torch.arange(count)
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
    tokens = torch.arange(21)
    pairs = list(windows(tokens, 2, 5, offset=17))
    streams = torch.cat([inputs for inputs, _ in pairs])
    assert streams[:, 0].tolist() == [17, 18, 19, 20, 0, 1, 2, 3, 4, 5]
    assert streams[:, 1].tolist() == list(range(6, 16))
    for inputs, targets in pairs:
        assert torch.equal(targets, (inputs + 1) % 21)


def test_a_text_just_long_enough(tmp_path: Path) -> None:
    valid = _file(tmp_path, b"ab", "valid.txt")
    assert len(load_corpus(_file(tmp_path, b"abababab" + b"a"), valid, _SMALL).train) == 9
    with pytest.raises(DataError, match="has 8 training tokens; 2 streams of 4 steps need 9"):
        load_corpus(_file(tmp_path, b"abababab"), valid, _SMALL)


def test_too_little_for_validation(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"validation text .*has 1 tokens"):
        load_corpus(_file(tmp_path, b"abcdefghijklmno"), None, _SMALL_FRACTION)
    with pytest.raises(DataError, match=r"validation text \(one.txt\) has 1 tokens"):
        load_corpus(_file(tmp_path, b"ab" * 20), _file(tmp_path, b"a", "one.txt"), _SMALL)


_SMALL_FRACTION = StreamSection(batch_size=2, sequence_length=4, validation_fraction=0.01)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path / "missing.txt", "cannot read"),
        (tmp_path, "is a folder"),
        (_file(tmp_path, b""), "is empty"),
    ]:
        for corpus, valid in [(path, None), (_file(tmp_path, b"ab" * 20, "good.txt"), path)]:
            with pytest.raises(DataError, match=message) as caught:
                load_corpus(corpus, valid, _SMALL)
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


@pytest.mark.parametrize("encoding", ["klingon", "", "rot13"])
def test_an_unknown_encoding(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(InvalidValueError, match="--encoding"):
        read_text(_file(tmp_path, b"abc"), encoding)
