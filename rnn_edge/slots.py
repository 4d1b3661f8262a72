"""The sentences that a decoder has in work: as soon as one ends, the next takes its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rnn_edge.encoder_decoder import Encoded, EncoderDecoderGraphs

Rows = NDArray[np.int64]
_SHRINK_BELOW = 0.7  # of the length of the memory: when all sentences in work are shorter, it is made anew for them


class Slots:
    """``width`` rows of the stepper for each sentence in work, one below the other.

    The longest sources come first. So whatever comes next fits into the memory that is there, neighbours are about
    equally long, and what is left for the end takes few steps. Sources are encoded ahead, ``batch`` at a time.
    """

    def __init__(
        self, graphs: EncoderDecoderGraphs, sources: Sequence[Sequence[int]], batch: int = 32, width: int = 1
    ) -> None:
        """``sources`` are token ids, at least one sentence, the end token last in each."""
        self.graphs, self.sources, self.width = graphs, sources, width
        self._coming = self._encode(batch)
        self._ahead, self._encoded = next(self._coming)
        self._used = len(self._ahead)  # rows of those encoded that are in work already
        self.sentences = list(self._ahead)  # by their indices, that of each slot
        self.stepper = graphs.stepper(self._encoded.take(np.repeat(np.arange(self._used), width)))

    def rows(self, slots: Sequence[int] | Rows) -> Rows:
        """The rows of these slots [slots, width]."""
        return np.asarray(slots, np.int64)[:, None] * self.width + np.arange(self.width)

    def go_on(self, ended: Sequence[int], parents: Rows | None = None) -> list[int]:
        """Give these slots to the next sentences; without any left they fall away. Row i goes on from ``parents[i]``.

        Returns the slots that are left, each named by where it stood, in the order in which they now stand.
        """
        if parents is not None and not np.array_equal(parents, np.arange(len(parents))):
            self.stepper.reorder(parents)
        filled = 0
        while filled < len(ended) and self._more():
            some = ended[filled : filled + len(self._ahead) - self._used]
            new = range(self._used, self._used + len(some))
            taken = self._encoded.take(slice(new.start, new.stop))
            self.stepper.replace(self.rows(some), taken.state, taken.memory)
            for slot, row in zip(some, new, strict=True):
                self.sentences[slot] = self._ahead[row]
            self._used += len(some)
            filled += len(some)
        kept = [slot for slot in range(len(self.sentences)) if slot not in ended[filled:]]
        self.sentences = [self.sentences[slot] for slot in kept]
        if self.sentences:
            longest = max(len(self.sources[sentence]) for sentence in self.sentences)
            if filled < len(ended) or longest < _SHRINK_BELOW * self.stepper.attention.shape[1]:
                present = Encoded(self.stepper.memory, self.stepper.state())
                self.stepper = self.graphs.stepper(present.take(self.rows(kept).ravel()))
        return kept

    def _more(self) -> bool:
        """Whether an encoded sentence waits, if need be after encoding some."""
        if self._used == len(self._ahead):
            self._ahead, self._encoded = next(self._coming, ([], self._encoded))
            self._used = 0
        return bool(self._ahead)

    def _encode(self, batch: int) -> Iterator[tuple[list[int], Encoded]]:
        order = sorted(range(len(self.sources)), key=lambda sentence: -len(self.sources[sentence]))
        for first in range(0, len(order), batch):
            some = order[first : first + batch]
            yield some, self.graphs.encode([self.sources[sentence] for sentence in some])
