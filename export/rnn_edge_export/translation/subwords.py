"""Vocabularies for sentence pairs, and segmentations that vary while training (BPE-dropout)."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Encoder
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.recipe_sections import PairSection

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
_SEGMENTATIONS = 64  # of a frequent word


def train_tokenizers(pairs: Sequence[tuple[str, str]], training: PairSection) -> tuple[Tokenizer, Tokenizer]:
    """Source and target tokenizer: one byte-level BPE for both sides, or one vocabulary of words each."""
    sides = [[pair[side] for pair in pairs] for side in range(2)]
    if training.tokenizer == "subword":
        joint = _train(models.BPE(), trainers.BpeTrainer, [*sides[0], *sides[1]], training, [START, END])
        return joint, joint
    source, target = (
        _train(models.WordLevel(unk_token=UNKNOWN), trainers.WordLevelTrainer, side, training, [UNKNOWN, START, END])
        for side in sides
    )
    return source, target


def _train(
    model: models.Model, trainer: type, texts: list[str], training: PairSection, special: list[str]
) -> Tokenizer:
    encoder = Encoder(model)
    # Typographic variants of one character are noise here: spaces of all widths, and curly apostrophes.
    steps = [
        normalizers.NFC(),
        normalizers.Replace("\u2019", "'"),
        *(normalizers.Replace(space, " ") for space in "\u00a0\u202f\u2009"),
        *([normalizers.Lowercase()] if training.lowercase else []),
    ]
    encoder.normalizer = normalizers.Sequence(steps)
    # Words carry the space before them, the first one too, so that it is the same word everywhere.
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    encoder.decoder = decoders.ByteLevel()
    options = {"vocab_size": training.vocabulary_size, "special_tokens": special, "show_progress": False}
    if trainer is trainers.BpeTrainer:
        options["initial_alphabet"] = sorted(pre_tokenizers.ByteLevel.alphabet())
    encoder.train_from_iterator(texts, trainer(**options))
    return Tokenizer((encoder.to_str(pretty=True) + "\n").encode())


class Segmenter:
    """Texts as ids, segmented anew each epoch with BPE-dropout (Provilkov et al. 2020).

    The library's own dropout cannot be seeded, and a run must resume to the same batches. So a word's segmentations
    are drawn once, up to 64 for a frequent one, and each occurrence picks one of them.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], dropout: float, seed: int) -> None:
        description = json.loads(tokenizer.content)
        encoder = Encoder.from_str(tokenizer.content.decode())
        words, self._offsets = _split_words(encoder, texts)
        index = {word: number for number, word in enumerate(dict.fromkeys(words))}
        counts = Counter(words)
        self._words = np.array([index[word] for word in words], dtype=np.int64)
        variants = [[[token.id for token in encoder.model.tokenize(word)]] for word in index]
        if dropout > 0 and description["model"]["type"] == "BPE":
            ranks = {(left, right): rank for rank, (left, right) in enumerate(description["model"]["merges"])}
            vocabulary = description["model"]["vocab"]
            random = np.random.default_rng((seed, 1))
            for known, word in zip(variants, index, strict=True):
                known[:] = [
                    [vocabulary[piece] for piece in _merge(word, ranks, dropout, random)]
                    for _ in range(min(_SEGMENTATIONS, max(4, counts[word])))
                ]
        lengths = [len(known) for known in variants]
        self._first = np.cumsum([0, *lengths[:-1]])
        self._choices = np.array(lengths)
        flat = [np.array(ids, dtype=np.int64) for known in variants for ids in known]
        self._sizes = np.array([len(ids) for ids in flat])
        self._starts = np.cumsum([0, *self._sizes[:-1]])
        self._ids = np.concatenate(flat) if flat else np.empty(0, np.int64)

    def epoch(self, random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All ids one after another, and where each text ends: int64 [tokens], [texts]."""
        segmentation = self._first[self._words] + random.integers(0, self._choices[self._words])
        sizes = self._sizes[segmentation]
        ends = sizes.cumsum()
        # For each token the place of its word's first id, and how far it is into the word.
        within = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
        ids = self._ids[np.repeat(self._starts[segmentation], sizes) + within]
        return ids, np.concatenate([[0], ends])[self._offsets[1:]]


def _split_words(encoder: Encoder, texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Words of all texts as the pre-tokenizer cuts them, and how many there are before each text."""
    words: list[str] = []
    offsets = [0]
    for text in texts:
        words += [word for word, _ in encoder.pre_tokenizer.pre_tokenize_str(encoder.normalizer.normalize_str(text))]
        offsets.append(len(words))
    return words, np.array(offsets)


def _merge(word: str, ranks: dict[tuple[str, str], int], dropout: float, random: np.random.Generator) -> list[str]:
    """Merge the best-ranked pair until none is left; each time every pair is left out with chance ``dropout``."""
    pieces = list(word)
    while len(pieces) > 1:
        found = [ranks.get(pair) for pair in pairwise(pieces)]
        kept = random.random(len(found)) >= dropout
        best = min(
            ((rank, place) for place, rank in enumerate(found) if rank is not None and kept[place]), default=None
        )
        if best is None:
            break
        place = best[1]
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces
