"""Vocabularies for pairs, and segmentations that vary while training."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer as Encoder

from rnn_edge.text_files import Pair
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.recipe_sections import PairSection
from rnn_edge_export.translation.subwords import END, START, UNKNOWN, Segmenter, _merge, train_tokenizers
from tests.export.translation.conftest import PAIRS, Kind

if TYPE_CHECKING:
    from tests.export.translation.conftest import Tokenizers

_KINDS: tuple[Kind, ...] = get_args(Kind)
# What the sentences are written in, and what the normaliser changes.
_ALPHABET = "".join(sorted(set(PAIRS.read_text(encoding="utf-8")) - set("\t\n"))) + "\u00a0\u202f\u2009\u2019\u0301<>s/"
_TEXTS = st.lists(st.text(_ALPHABET, min_size=1, max_size=12), min_size=1, max_size=5)
_RANDOM = np.random.default_rng(0)


def _sides(pairs: list[Pair]) -> list[str]:
    return [text for pair in pairs for text in pair]


def _rows(found: tuple[NDArray[np.int64], NDArray[np.int64]]) -> list[list[int]]:
    """The ids of each text."""
    ids, ends = found
    return [part.tolist() for part in np.split(ids, ends[:-1])]


def _segment(tokenizer: Tokenizer, texts: list[str], dropout: float, seed: int, epoch: int) -> list[list[int]]:
    return _rows(Segmenter(tokenizer, texts, dropout, seed).epoch(np.random.default_rng(epoch)))


def test_both_sides_share_one_subword_vocabulary(pairs: list[Pair], tokenizers: Tokenizers) -> None:
    source, target = tokenizers("subword")
    assert source is target
    assert source.vocabulary_size == 400  # as asked for
    assert (source.id_of(START), source.id_of(END), source.id_of(UNKNOWN)) == (0, 1, None)
    # Both languages taught it: a common word of each is one token.
    assert len(source.encode("The")) == 1
    assert len(source.encode("est")) == 1


@pytest.mark.parametrize("kind", _KINDS)
def test_training_again_gives_the_same_vocabularies(pairs: list[Pair], tokenizers: Tokenizers, kind: Kind) -> None:
    again = train_tokenizers(pairs, PairSection(tokenizer=kind, vocabulary_size=400))
    assert [tokenizer.content for tokenizer in again] == [tokenizer.content for tokenizer in tokenizers(kind)]


def test_subwords_come_back_as_the_text_with_a_space_before_it(pairs: list[Pair], tokenizers: Tokenizers) -> None:
    tokenizer, _ = tokenizers("subword")
    for text in [*_sides(pairs), "Two  spaces, then\ta tab ", "Ünknown: 漢字, 😀, \x00, \u2028 ſ"]:
        assert tokenizer.decode(tokenizer.encode(text)) == " " + text
    assert tokenizer.decode(tokenizer.encode(" a space is there")) == " a space is there"
    assert tokenizer.encode("cat")[0] == tokenizer.encode("the cat")[1] != tokenizer.encode("bobcat")[-1]


@given(st.text())
def test_no_character_is_unknown_to_bytes(tokenizers: Tokenizers, text: str) -> None:
    tokenizer, _ = tokenizers("subword")
    plain = unicodedata.normalize("NFC", text)
    for before, after in (("\u2019", "'"), *((space, " ") for space in "\u00a0\u202f\u2009")):
        plain = plain.replace(before, after)
    lead = "" if plain.startswith(" ") or not plain else " "
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes[token] for token in ids) == (lead + plain).encode()
    assert not {0, 1} & set(ids)


def test_typographic_variants_are_one(tokenizers: Tokenizers) -> None:
    for kind in _KINDS:
        tokenizer = tokenizers(kind)[1]
        expected = tokenizer.encode("J'aime l'été ?")
        for variant in ("J\u2019aime l\u2019été\u00a0?", "J'aime l'e\u0301te\u0301\u202f?", "J'aime\u2009l'été ?"):
            assert tokenizer.encode(variant) == expected


def test_words_have_a_vocabulary_for_each_side(pairs: list[Pair], tokenizers: Tokenizers) -> None:
    source, target = tokenizers("word")
    assert source is not target
    assert [source.id_of(token) for token in (UNKNOWN, START, END)] == [0, 1, 2]
    assert (source.id_of("Ġcat"), target.id_of("Ġcat")) == (source.encode("cat")[0], None)
    assert source.encode("The cat likes cheese.") == [
        *(source.id_of(word) for word in ("ĠThe", "Ġcat", "Ġlikes", "Ġcheese", "."))
    ]
    assert source.encode("The catfish likes 漢字.")[1::2] == [0, 0]
    assert target.decode(target.encode("Le chat aime l'été.")) == " Le chat aime l'été."


def test_the_commonest_words_are_kept(pairs: list[Pair]) -> None:
    _, target = train_tokenizers(pairs, PairSection(tokenizer="word", vocabulary_size=260))
    assert target.vocabulary_size == 260
    words = Counter(word for _, text in pairs for word in text.replace("'", " ").split())
    assert {f"Ġ{word}" for word in ("Le", "est", "pas", "maison")} <= set(json.loads(target.content)["model"]["vocab"])
    rare = [word for word, count in words.items() if count == 1 and word.isalpha()]
    assert any(target.id_of(f"Ġ{word}") is None for word in rare)


@pytest.mark.parametrize("kind", _KINDS)
def test_lower_case(pairs: list[Pair], kind: Kind) -> None:
    for tokenizer in train_tokenizers(pairs, PairSection(tokenizer=kind, vocabulary_size=300, lowercase=True)):
        assert tokenizer.encode("ÎLE ÉTÉ") == tokenizer.encode("île été")
        assert tokenizer.decode(tokenizer.encode("THE")) == " the" or kind == "word"


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("text", ["</s>", "a </s> b", "<s>", "<unk>x", "x</s>"])
def test_a_text_that_spells_a_special_token_is_only_a_text(tokenizers: Tokenizers, kind: Kind, text: str) -> None:
    for tokenizer in tokenizers(kind):
        special = {tokenizer.id_of(START), tokenizer.id_of(END)}
        assert not special & set(tokenizer.encode(text))
        assert not special & set(tokenizer.encode_batch([text])[0])
        (row,) = _segment(tokenizer, [text], 0.3, 0, 0)
        assert not special & set(row)
        if kind == "subword":
            assert tokenizer.decode(row) == f" {text}"


@pytest.mark.parametrize("kind", _KINDS)
@given(texts=_TEXTS, epoch=st.integers(0, 3))
def test_without_dropout_a_segmenter_is_the_tokenizer(
    tokenizers: Tokenizers, kind: Kind, texts: list[str], epoch: int
) -> None:
    for tokenizer in tokenizers(kind):
        assert _segment(tokenizer, texts, 0.0, 1, epoch) == [tokenizer.encode(text) for text in texts]


def test_words_are_never_segmented_at_random(pairs: list[Pair], tokenizers: Tokenizers) -> None:
    for tokenizer in tokenizers("word"):
        assert _segment(tokenizer, _sides(pairs), 0.5, 1, 0) == [tokenizer.encode(text) for text in _sides(pairs)]


@given(texts=_TEXTS, seed=st.integers(0, 3))
def test_every_segmentation_spells_the_text(tokenizers: Tokenizers, texts: list[str], seed: int) -> None:
    tokenizer, _ = tokenizers("subword")
    segmenter = Segmenter(tokenizer, texts, 0.4, seed)
    for epoch in range(4):
        rows = _rows(segmenter.epoch(np.random.default_rng(epoch)))
        assert [tokenizer.decode(row) for row in rows] == [tokenizer.decode(tokenizer.encode(text)) for text in texts]


def test_segmentations_vary_by_epoch_and_seed_alone(pairs: list[Pair], tokenizers: Tokenizers) -> None:
    tokenizer, _ = tokenizers("subword")
    texts = _sides(pairs)
    first = _segment(tokenizer, texts, 0.1, 1, 0)
    assert _segment(tokenizer, texts, 0.1, 1, 0) == first
    assert _segment(tokenizer, texts, 0.1, 1, 1) != first
    assert _segment(tokenizer, texts, 0.1, 2, 0) != first
    segmenter = Segmenter(tokenizer, texts, 0.1, 1)
    segmenter.epoch(np.random.default_rng(9))
    assert _rows(segmenter.epoch(np.random.default_rng(0))) == first  # what came before does not matter
    more = sum(map(len, first)) / sum(len(tokenizer.encode(text)) for text in texts)
    assert 1.03 < more < 1.3  # some words are cut up, most are not


def test_a_frequent_word_is_seldom_cut_up(tokenizers: Tokenizers) -> None:
    """Two merges make ␣le, the first with a rival: it stays whole with chance 0.9² = 0.81, and 0.4² = 0.16."""
    tokenizer, _ = tokenizers("subword")
    (le,) = tokenizer.encode("le")
    for dropout, low, high in ((0.1, 0.6, 0.98), (0.6, 0.01, 0.39)):  # of 64 draws, five standard deviations
        segmenter = Segmenter(tokenizer, ["le"] * 500, dropout, 3)
        rows = _rows(segmenter.epoch(np.random.default_rng(0)))
        assert low < rows.count([le]) / 500 < high
        found = {tuple(tokenizer.token_bytes[token] for token in row) for row in rows}
        assert found <= {(b" le",), (b" l", b"e"), (b" ", b"le"), (b" ", b"l", b"e")}
        assert len(found) >= 3


def test_the_chances_of_merges_by_hand() -> None:
    """With a·b first and b·c second: abc, ab+c, a+bc and a+b+c have chances q·q, q·p, p·q and p·p."""
    ranks = {("a", "b"): 0, ("b", "c"): 1, ("ab", "c"): 2}
    random = np.random.default_rng(0)
    found = Counter(tuple(_merge("abc", ranks, 0.3, random)) for _ in range(4000))
    expected = {("abc",): 0.49, ("ab", "c"): 0.21, ("a", "bc"): 0.21, ("a", "b", "c"): 0.09}
    assert {pieces: count / 4000 for pieces, count in found.items()} == pytest.approx(expected, abs=0.03)


def test_merges_by_hand() -> None:
    ranks = {("a", "b"): 1, ("b", "a"): 0, ("ba", "ba"): 2}
    assert _merge("", ranks, 0.0, _RANDOM) == []
    assert _merge("c", ranks, 0.0, _RANDOM) == ["c"]
    assert _merge("ab", ranks, 0.0, _RANDOM) == ["ab"]
    assert _merge("aba", ranks, 0.0, _RANDOM) == ["a", "ba"]  # the better rank, not the first place
    assert _merge("babac", ranks, 0.0, _RANDOM) == ["baba", "c"]


@given(st.text(_ALPHABET, max_size=20))
def test_merging_without_dropout_is_what_the_library_does(tokenizers: Tokenizers, text: str) -> None:
    content = tokenizers("subword")[0].content
    encoder = Encoder.from_str(content.decode())
    ranks = {(a, b): rank for rank, (a, b) in enumerate(json.loads(content)["model"]["merges"])}
    assert len(ranks) == 400 - 256 - 2
    for word, _ in encoder.pre_tokenizer.pre_tokenize_str(encoder.normalizer.normalize_str(text)):
        assert _merge(word, ranks, 0.0, _RANDOM) == [token.value for token in encoder.model.tokenize(word)]


def test_every_word_of_the_sentences_merges_as_the_library_does(pairs: list[Pair]) -> None:
    """With a vocabulary so large that merges compete."""
    tokenizer, _ = train_tokenizers(pairs, PairSection(vocabulary_size=700))
    encoder = Encoder.from_str(tokenizer.content.decode())
    ranks = {(a, b): rank for rank, (a, b) in enumerate(json.loads(tokenizer.content)["model"]["merges"])}
    words = {word for text in _sides(pairs) for word, _ in encoder.pre_tokenizer.pre_tokenize_str(text)}
    assert len(words) > 500
    for word in words:
        assert _merge(word, ranks, 0.0, _RANDOM) == [token.value for token in encoder.model.tokenize(word)]
