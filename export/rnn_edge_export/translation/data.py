"""From files of sentence pairs to token ids: reading, splitting, filtering, with a report of what was left out."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rnn_edge.errors import DataError
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.files import read_text
from rnn_edge_export.recipe import PairSection
from rnn_edge_export.translation.subwords import train_tokenizers

Pair = tuple[str, str]
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
            "an empty side": self.empty,
            "seen before": self.duplicate,
            "a side that validation has": self.shared,
            "too long": self.long,
            "sides of too different length": self.ratio,
        }
        left_out = [f"{count:,} {reason}" for reason, count in reasons.items() if count]
        return f"{self.kept:,} of {self.read:,} pairs" + (f"; left out: {', '.join(left_out)}" if left_out else "")


@dataclass(frozen=True)
class PairCorpus:
    """Training and validation pairs as text, and the tokenizers of both sides (one object where they share one).

    ``sha256`` is that of the training file (of both, where the sides are in two files); ``valid_sha256`` that of
    --valid, or empty; ``valid_source`` says in words where the validation pairs are from; ``leaked`` counts
    validation pairs from --valid with a side that training has too.
    """

    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    train: list[Pair]
    valid: list[Pair]
    filtered: Filtered
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
    kept, long, ratio = _filter(train, tokenizers, training)
    if not kept:
        raise DataError(
            f"no pair of {names} is left: {long:,} too long, {ratio:,} of too different length",
            "raise --maximum-length or --maximum-ratio",
        )
    filtered = Filtered(len(read) - len(chosen) * (not valid), empty, len(pairs) - len(unique), shared, long, ratio)
    return PairCorpus(*tokenizers, kept, chosen, filtered, leaked, sha256, valid_sha256, source)


def read_pairs(paths: list[Path], encoding: str = "utf-8") -> tuple[list[Pair], str]:
    """Pairs from one TSV file, or from two aligned files; and a SHA-256 over the content.

    Sides are stripped. Of a TSV line the first two columns count, so that files with notes behind them can be used.

    Raises:
        DataError: a line without a tab, or files of different length; the line is named.
    """
    texts = [read_text(path, encoding) for path in paths]
    if len(paths) == 1:
        lines = _lines(texts[0][0])
        pairs = []
        for number, line in enumerate(lines, 1):
            columns = line.split("\t")
            if len(columns) < 2:
                if not line.strip():
                    continue
                raise DataError(
                    f"{paths[0]}, line {number} has no tab: {_excerpt(line)}",
                    "put the two sides on one line with a tab between them, or give two files",
                )
            pairs.append((columns[0].strip(), columns[1].strip()))
        return pairs, texts[0][1]
    sides = [_lines(text) for text, _ in texts]
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"{paths[0]} has {len(sides[0]):,} lines, {paths[1]} has {len(sides[1]):,}; "
            f"the first suspicious line is {_suspicious(*sides)}",
            "give files whose lines belong together",
        )
    together = hashlib.sha256("\n".join(sha256 for _, sha256 in texts).encode()).hexdigest()
    return [(a.strip(), b.strip()) for a, b in zip(*sides, strict=True)], together


def split_pairs(pairs: list[Pair], count: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and ``count`` validation pairs that share no side; pairs that would are left out of training."""
    order = np.random.default_rng((seed, 0)).permutation(len(pairs))
    chosen = [pairs[index] for index in order[: min(count, len(pairs) // 2)]]
    sides = [{pair[side] for pair in chosen} for side in range(2)]
    return [pair for pair in pairs if pair[0] not in sides[0] and pair[1] not in sides[1]], chosen


def _filter(
    pairs: list[Pair], tokenizers: tuple[Tokenizer, Tokenizer], training: PairSection
) -> tuple[list[Pair], int, int]:
    """Pairs within the limits, and how many were too long or of too different length."""
    lengths = [
        [len(ids) for ids in tokenizer.encode_batch([pair[side] for pair in pairs])]
        for side, tokenizer in enumerate(tokenizers)
    ]
    kept, reasons = [], Counter[str]()
    for pair, a, b in zip(pairs, *lengths, strict=True):
        if max(a, b) > training.maximum_length:
            reasons["long"] += 1
        elif max(a, b) > _SHORT and max(a, b) > training.maximum_ratio * max(1, min(a, b)):
            reasons["ratio"] += 1
        else:
            kept.append(pair)
    return kept, reasons["long"], reasons["ratio"]


def _lines(text: str) -> list[str]:
    """Lines ended by line feeds; other line separators of Unicode may stand inside a sentence."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _suspicious(source: list[str], target: list[str]) -> int:
    """The first line whose sides differ most unlikely in length: there a line was probably lost or split."""
    for number, (a, b) in enumerate(zip(source, target, strict=False), 1):
        if (not a.strip()) != (not b.strip()) or max(len(a), len(b)) > 40 + 3 * min(len(a), len(b)):
            return number
    return min(len(source), len(target)) + 1


def _excerpt(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:57] + "…")
