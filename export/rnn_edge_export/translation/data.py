"""From files of sentence pairs to token ids: reading, splitting, filtering, with a report of what was left out."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rnn_edge.errors import DataError
from rnn_edge.text_files import Pair, read_pairs
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.recipe_sections import PairSection
from rnn_edge_export.translation.subwords import train_tokenizers

_SHORT = 10  # tokens: ratios of shorter sides say nothing


@dataclass(frozen=True)
class Filtered:
    """What was left out of the training pairs, and why."""

    read: int
    empty: int
    duplicate: int
    shared: int
    long: int
    ratio: int

    @property
    def kept(self) -> int:
        """Pairs that are trained on."""
        return self.read - self.empty - self.duplicate - self.shared - self.long - self.ratio

    def __str__(self) -> str:
        """One line for people."""
        reasons = {
            "with an empty side": self.empty,
            "seen before": self.duplicate,
            "with a side that validation has": self.shared,
            "too long": self.long,
            "with sides of too different length": self.ratio,
        }
        left_out = [f"{count:,} {reason}" for reason, count in reasons.items() if count]
        return f"{self.kept:,} of {self.read:,} pairs" + (f"; left out: {', '.join(left_out)}" if left_out else "")


@dataclass(frozen=True)
class PairCorpus:
    """Training and validation pairs as text, and the tokenizers of both sides (one object where they share one).

    ``sha256`` is that of the training file (of both, where the sides are in two files); ``valid_sha256`` that of
    --valid, or empty; ``valid_source`` says in words where the validation pairs are from; ``leaked`` counts
    validation pairs from --valid with a side that training has too; ``longest`` is the longest source in tokens.
    """

    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    train: list[Pair]
    valid: list[Pair]
    filtered: Filtered
    longest: int
    leaked: int
    sha256: str
    valid_sha256: str
    valid_source: str


def load_pairs(
    paths: list[Path],
    valid: list[Path],
    training: PairSection,
    encoding: str = "utf-8",
    tokenizers: tuple[Tokenizer, Tokenizer] | None = None,
) -> PairCorpus:
    """Read, split, train the tokenizers (unless a resumed run has them) and filter.

    Raises:
        DataError: a file cannot be used, sides differ in length, or too little remains.
    """
    read, sha256 = read_pairs(paths, encoding)
    names = " and ".join(path.name for path in paths)
    pairs = [pair for pair in read if all(pair)]
    empty = len(read) - len(pairs)
    unique = list(dict.fromkeys(pairs))
    leaked, shared, valid_sha256 = 0, 0, ""
    if valid:
        chosen, valid_sha256 = read_pairs(valid, encoding)
        chosen = [pair for pair in chosen if all(pair)]
        source = " and ".join(path.name for path in valid)
        sides = [{pair[side] for pair in unique} for side in range(2)]
        if not chosen:
            raise DataError(f"{source} has no pair with two sides", "give validation pairs, or leave --valid out")
        leaked = sum(pair[0] in sides[0] or pair[1] in sides[1] for pair in chosen)
        train = unique
    else:
        train, chosen = split_pairs(unique, training.validation_pairs, training.seed)
        shared = len(unique) - len(train) - len(chosen)
        source = f"{len(chosen):,} pairs of {names}, drawn with seed {training.seed}"
    if not train or not chosen:
        raise DataError(
            f"{names} has {len(unique):,} pairs: too few to train on and to validate",
            "give more pairs, or lower --validation-pairs, or give --valid",
        )
    if tokenizers is None:
        tokenizers = train_tokenizers(train, training)
    kept, longest, long, ratio = _filter(train, tokenizers, training)
    if not kept:
        raise DataError(
            f"no pair of {names} is left: {long:,} too long, {ratio:,} of too different length",
            "raise --maximum-length or --maximum-ratio",
        )
    filtered = Filtered(len(read) - len(chosen) * (not valid), empty, len(pairs) - len(unique), shared, long, ratio)
    return PairCorpus(*tokenizers, kept, chosen, filtered, longest, leaked, sha256, valid_sha256, source)


def split_pairs(pairs: list[Pair], count: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and ``count`` validation pairs that share no side; pairs that would are left out of training."""
    order = np.random.default_rng((seed, 0)).permutation(len(pairs))
    chosen = [pairs[index] for index in order[: min(count, len(pairs) // 2)]]
    sides = [{pair[side] for pair in chosen} for side in range(2)]
    return [pair for pair in pairs if pair[0] not in sides[0] and pair[1] not in sides[1]], chosen


def _filter(
    pairs: list[Pair], tokenizers: tuple[Tokenizer, Tokenizer], training: PairSection
) -> tuple[list[Pair], int, int, int]:
    """Pairs within the limits, their longest source, and how many were too long or of too different length."""
    lengths = [
        [len(ids) for ids in tokenizer.encode_batch([pair[side] for pair in pairs])]
        for side, tokenizer in enumerate(tokenizers)
    ]
    kept, longest, reasons = [], 0, Counter[str]()
    for pair, a, b in zip(pairs, *lengths, strict=True):
        if max(a, b) > training.maximum_length:
            reasons["long"] += 1
        elif max(a, b) > _SHORT and max(a, b) > training.maximum_ratio * max(1, min(a, b)):
            reasons["ratio"] += 1
        else:
            kept.append(pair)
            longest = max(longest, a)
    return kept, longest, reasons["long"], reasons["ratio"]
