"""From sentence pairs to padded batches of about equal numbers of tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnn_edge.text_files import Pair
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.recipe_sections import PairSection
from rnn_edge_export.translation.subwords import END, START, Segmenter

IGNORE = -100  # PyTorch's mark for targets that do not count
_JITTER = 2.0  # tokens: neighbours in the order of length change places from epoch to epoch


@dataclass(frozen=True)
class Batch:
    """source int64 [S, B] and its ``lengths`` [B]; ``inputs`` and ``targets`` [T, B], shifted by one."""

    source: Tensor
    lengths: Tensor
    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(*(tensor.to(device) for tensor in (self.source, self.lengths, self.inputs, self.targets)))


class PairBatches:
    """The training pairs, segmented, sorted into batches and shuffled anew each epoch, as a function of the seed."""

    def __init__(self, pairs: list[Pair], tokenizers: tuple[Tokenizer, Tokenizer], training: PairSection) -> None:
        self._training = training
        self._ends = [special_id(tokenizer, END) for tokenizer in tokenizers]
        self._start = special_id(tokenizers[1], START)
        self._sides = [
            Segmenter(tokenizer, [pair[side] for pair in pairs], training.bpe_dropout, training.seed + side)
            for side, tokenizer in enumerate(tokenizers)
        ]
        self.per_epoch = len(self._plan(0)[1])

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Batches of at most ``batch_tokens`` tokens of both sides, padding included."""
        sides, groups = self._plan(epoch)
        (source, source_ends), (target, target_ends) = sides
        for group in groups:
            yield self._batch(
                [source[_span(source_ends, index)] for index in group],
                [target[_span(target_ends, index)] for index in group],
            )

    def _plan(self, epoch: int) -> tuple[list[tuple[NDArray[np.int64], NDArray[np.int64]]], list[NDArray[np.int64]]]:
        random = np.random.default_rng((self._training.seed, 2, epoch))
        sides = [side.epoch(random) for side in self._sides]
        lengths = [np.diff(ends, prepend=0) + 1 for _, ends in sides]  # each side gets its end, or start, token
        jitter = random.uniform(0, _JITTER, len(lengths[0]))
        # Target lengths in the order of the source's vary little: padding stays small on both sides.
        order = np.lexsort((lengths[1] + jitter, np.floor(lengths[0] + jitter)))
        groups = cut(lengths[0][order], lengths[1][order], self._training.batch_tokens)
        return sides, [order[groups[index]] for index in random.permutation(len(groups))]

    def _batch(self, source: list[NDArray[np.int64]], target: list[NDArray[np.int64]]) -> Batch:
        ended = [np.append(ids, self._ends[0]) for ids in source]
        return Batch(
            pad(ended, self._ends[0]),
            torch.tensor([len(ids) for ids in ended]),
            pad([np.insert(ids, 0, self._start) for ids in target], self._ends[1]),
            pad([np.append(ids, self._ends[1]) for ids in target], IGNORE),
        )


def cut(source: NDArray[np.int64], target: NDArray[np.int64], tokens: int) -> list[slice]:
    """Cut sorted pairs into slices of at most ``tokens`` padded tokens each; a longer pair stands alone."""
    slices, start, longest = [], 0, [0, 0]
    for index, lengths in enumerate(zip(source, target, strict=True)):
        grown = [max(a, b) for a, b in zip(longest, lengths, strict=True)]
        if index > start and sum(grown) * (index + 1 - start) > tokens:
            slices.append(slice(start, index))
            start, grown = index, list(lengths)
        longest = grown
    return [*slices, slice(start, len(source))]


def pad(rows: list[NDArray[np.int64]], filler: int) -> Tensor:
    """Rows of ids → int64 [longest, rows], filled at the end."""
    padded = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(padded).t().contiguous()


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token that every vocabulary for translation has."""
    found = tokenizer.id_of(token)
    assert found is not None, token
    return found


def _span(ends: NDArray[np.int64], index: int) -> slice:
    return slice(int(ends[index - 1]) if index else 0, int(ends[index]))
