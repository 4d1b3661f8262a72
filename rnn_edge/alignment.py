"""From the attention of tokens to that of words, and to word alignments. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Word:
    """A word, and the indices of the tokens that spell it."""

    text: str
    tokens: tuple[int, ...]


def words(token_bytes: Sequence[bytes]) -> list[Word]:
    """The words that tokens spell, by the bytes of each: the first begins one, and so does each with a space in front.

    A space in a token of its own belongs to the word after it. A token without bytes, such as the end of a sentence,
    belongs to no word. Where spaces stand only in front of tokens, these are the words that ``bytes.split`` finds.
    """
    groups: list[list[int]] = []
    for index, piece in enumerate(token_bytes):
        if not piece:
            continue
        # What is blank so far waits for its word.
        if not groups or (piece[:1].isspace() and _spelling(token_bytes, groups[-1])):
            groups.append([])
        groups[-1].append(index)
    spelled = ((_spelling(token_bytes, group), group) for group in groups)
    return [Word(text.decode("utf-8", errors="replace"), tuple(group)) for text, group in spelled if text]


def word_attention(attention: Weights, source_words: Sequence[Word], target_words: Sequence[Word]) -> Weights:
    """Attention of tokens, float32 [target_tokens, source_tokens] → of words, float32 [target_words, source_words].

    The sum over the tokens of a source word, since attention is shared out among them, and the mean over the tokens of
    a target word, since each of them attends anew. Rows are not scaled to a sum of one: what a row lacks is what the
    word attends to tokens that belong to no word, such as the end of the sentence.
    """
    # Not as products with matrices: fast kernels for small ones now and then report an invalid value that is none.
    sums = np.zeros((len(attention), len(source_words)), np.float32)
    for column, word in enumerate(source_words):
        sums[:, column] = attention[:, list(word.tokens)].sum(axis=1)
    means = np.zeros((len(target_words), len(source_words)), np.float32)
    for row, word in zip(means, target_words, strict=True):
        row[:] = sums[list(word.tokens)].mean(axis=0)
    return means


def align(weights: Weights) -> list[tuple[int, int]]:
    """Attention of words [target_words, source_words] → pairs (source, target), one for each target word.

    A target word goes with the source word that it attends to most, the first of equals; without source words there
    are no pairs.
    """
    if weights.shape[1] == 0:
        return []
    return [(int(source), target) for target, source in enumerate(weights.argmax(axis=1))]


def pharaoh(pairs: Iterable[tuple[int, int]]) -> str:
    """Pairs (source, target) as the line ``0-0 1-2`` that Moses and fast_align write: sorted, counted from zero."""
    return " ".join(f"{source}-{target}" for source, target in sorted(pairs))


def _spelling(token_bytes: Sequence[bytes], tokens: Sequence[int]) -> bytes:
    return b"".join([token_bytes[token] for token in tokens]).strip()
