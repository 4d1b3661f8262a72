"""From tokens to words, and from weights to pairs, against examples worked out by hand."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_edge.alignment import Word, align, pharaoh, word_attention, words


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"Das", b" H", b"aus", b".", b""], [("Das", (0,)), ("Haus.", (1, 2, 3))]),
        ([b" The", b" house", b""], [("The", (0,)), ("house", (1,))]),
        ([b"B", b"\xc3", b"\xbc", b"ro", b" ", b"\xe6\x97", b"\xa5", b""], [("Büro", (0, 1, 2, 3)), ("日", (4, 5, 6))]),
        ([b"a", b" \xc3", b" b", b""], [("a", (0,)), ("\ufffd", (1,)), ("b", (2,))]),  # half a character
        ([b" ", b" ", b" a", b" ", b""], [("a", (0, 1, 2))]),  # spaces go with the word after them
        ([b"a", b"", b"b", b" c"], [("ab", (0, 2)), ("c", (3,))]),
        ([b"", b"a", b""], [("a", (1,))]),
        ([b"a", b"\n", b"b", b"\tc"], [("a", (0,)), ("b", (1, 2)), ("c", (3,))]),
        ([b"", b""], []),
        ([b" ", b""], []),
        ([], []),
    ],
)
def test_words(pieces: list[bytes], expected: list[tuple[str, tuple[int, ...]]]) -> None:
    assert words(pieces) == [Word(text, tokens) for text, tokens in expected]


@given(st.text("aß日 ", max_size=20), st.sets(st.integers(1, 40)))
def test_words_are_those_of_split_however_tokens_cut_them(text: str, cuts: set[int]) -> None:
    content = text.encode()
    spaces = {index for index, byte in enumerate(content) if byte == ord(" ")}
    edges = [0, *sorted(edge for edge in cuts | spaces if 0 < edge < len(content)), len(content)]
    pieces = [content[start:end] for start, end in pairwise(edges)]
    found = words([*pieces, b""])
    assert [word.text for word in found] == text.split()
    for word in found:
        assert b"".join(pieces[token] for token in word.tokens).decode().strip() == word.text


# Tokens: Das | Ha us | end, and The | hou se | end. Every number is exact in binary.
SOURCE = words([b"Das", b" Ha", b"us", b""])
TARGET = words([b"The", b" hou", b"se", b""])
ATTENTION = np.array(
    [
        [0.75, 0.125, 0.0625, 0.0625],
        [0.25, 0.5, 0.125, 0.125],
        [0.0, 0.25, 0.5, 0.25],
        [0.0, 0.0, 0.0, 1.0],
    ],
    np.float32,
)


def test_word_attention_sums_over_the_source_and_averages_over_the_target() -> None:
    weights = word_attention(ATTENTION, SOURCE, TARGET)
    assert weights.dtype == np.float32
    assert weights.tolist() == [[0.75, 0.1875], [0.125, 0.6875]]


def test_rows_lack_what_went_to_the_end_of_the_source() -> None:
    lacking = 1 - word_attention(ATTENTION, SOURCE, TARGET).sum(axis=1)
    assert lacking.tolist() == [ATTENTION[0, 3], ATTENTION[1:3, 3].mean()]


@pytest.mark.parametrize(("source", "target"), [([], TARGET), (SOURCE, []), ([], [])])
def test_without_words_there_is_nothing_to_align(source: list[Word], target: list[Word]) -> None:
    weights = word_attention(ATTENTION, source, target)
    assert weights.shape == (len(target), len(source))
    assert weights.dtype == np.float32
    assert align(weights) == []


def test_each_target_word_goes_with_what_it_attends_to_most() -> None:
    weights = np.array([[0.1, 0.6, 0.2], [0.5, 0.1, 0.1], [0.3, 0.0, 0.4], [0.2, 0.4, 0.4]], np.float32)
    assert align(weights) == [(1, 0), (0, 1), (2, 2), (1, 3)]


def test_pharaoh_counts_as_numbers_do() -> None:
    assert pharaoh([(10, 0), (1, 2), (1, 1), (2, 10), (0, 0)]) == "0-0 1-1 1-2 2-10 10-0"
    assert pharaoh([]) == ""
    assert pharaoh(align(word_attention(ATTENTION, SOURCE, TARGET))) == "0-0 1-1"
