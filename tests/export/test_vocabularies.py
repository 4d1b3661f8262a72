"""Tokenizers of language models: what they cut, what they give back, and texts that are tokenised in parts."""

import functools
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_edge.errors import DataError
from rnn_edge.tokenizer import StreamDecoder, Tokenizer
from rnn_edge_export.language_model.text_source import TextSource, survey
from rnn_edge_export.vocabularies import byte_tokenizer, train_subwords, train_words
from tests.device.tiny import DATA

_ODD = "Tabs\tand\r\nline  ends,\n\n\n  “quotes”, don't 12 ünïcode 漢字 😀\u2028x\x00 \n"
_PIECES = st.sampled_from(["\n", " ", "  ", "the", "lamp", "don't", "é", "漢", "12", ",", "\r\n", "\t", "<unk>", "😀"])


@functools.cache
def _tokenizer(kind: str) -> Tokenizer:
    text = (DATA / "corpus.txt").read_text(encoding="utf-8") + _ODD
    if kind == "byte":
        return byte_tokenizer()
    if kind == "subword":
        return train_subwords([text], 400)
    return train_words([text], 10_000, between_spaces=kind == "spaces")


def _tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_bytes[token].decode() for token in tokenizer.encode(text)]


@given(pieces=st.lists(_PIECES, max_size=30))
@pytest.mark.parametrize("kind", ["byte", "subword"])
def test_bytes_and_subwords_give_every_text_back(kind: str, pieces: list[str]) -> None:
    text, tokenizer = "".join(pieces), _tokenizer(kind)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_byte_is_its_own_id() -> None:
    assert _tokenizer("byte").encode("Aé\n") == [0x41, 0xC3, 0xA9, 0x0A]
    assert _tokenizer("byte").line_end == 10


def test_words_of_plain_text() -> None:
    tokenizer = train_words(["The cat sat.\nThe cat's mat, the end.\n"], 100)
    assert _tokens(tokenizer, "The end.\nthe cat") == ["The", " end", ".", "\n", "<unk>", " cat"]
    assert tokenizer.decode(tokenizer.encode("The cat's mat.\n")) == "The cat's mat.\n"
    assert tokenizer.id_of("<unk>") == 0
    assert tokenizer.line_end == 1


def test_words_between_spaces() -> None:
    tokenizer = train_words([" = A title = \n \n The <unk> sat @-@ down .\n"], 100, between_spaces=True)
    assert tokenizer.vocabulary_size == 10
    # As many tokens as word_language_model counts: what stands between spaces, and one for each line end.
    assert _tokens(tokenizer, " = A title = \n \n The <unk> ,\n") == [
        *(" =", " A", " title", " =", "\n", "\n", " The", " <unk>", " <unk>", "\n")
    ]
    assert tokenizer.decode(tokenizer.encode("The   title .\nThe")) == " The title .\n The"


def test_rare_words_are_left_out_the_rarest_first() -> None:
    text = "a a a b b b c c d\n"
    known = {kept.decode() for kept in train_words([text], 100, minimum_count=2).token_bytes}
    assert known == {"<unk>", "\n", " a", " b", " c"}  # the first a has no space before it, and stands alone
    assert {kept.decode() for kept in train_words([text], 4).token_bytes} == {"<unk>", "\n", " b", " a"}
    with pytest.raises(DataError, match="no word occurs 9 times") as caught:
        train_words([text], 100, minimum_count=9)
    assert "--minimum-count" in caught.value.hint


@pytest.mark.parametrize("kind", ["byte", "subword", "text", "spaces"])
def test_streaming_is_decoding(kind: str) -> None:
    tokenizer = _tokenizer(kind)
    ids = tokenizer.encode(_ODD + "zzyzx the lamp") * 2
    stream = StreamDecoder(tokenizer)
    assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids)


@given(pieces=st.lists(_PIECES, min_size=1, max_size=40), read=st.integers(1, 9))
@pytest.mark.parametrize("kind", ["byte", "subword", "text", "spaces"])
def test_a_text_in_chunks_has_the_tokens_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, kind: str, pieces: list[str], read: int
) -> None:
    text, tokenizer = "".join(pieces), _tokenizer(kind)
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_text(text, encoding="utf-8", newline="")
    chunks = list(survey([path], "utf-8").chunks(read=read))
    assert "".join(chunks) == text
    assert list(itertools.chain.from_iterable(map(tokenizer.encode, chunks))) == tokenizer.encode(text)


def test_chunks_are_cut_near_what_is_asked_for(tmp_path: Path) -> None:
    source = _source(tmp_path, "some words\nmore words\n" * 500)
    sizes = [len(chunk) for chunk in source.chunks(read=100)]
    assert sum(sizes) == source.characters
    assert max(sizes) < 130
    assert "".join(source.chunks(5000, 7000, read=64)) == ("some words\nmore words\n" * 500)[5000:7000]


def _source(folder: Path, text: str) -> TextSource:
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8", newline="")
    return survey([path], "utf-8")
