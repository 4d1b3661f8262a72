"""Beam search: the beams of all sentences in work advance together, one call a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rnn_edge.search import Hypothesis, Scoring, log_normalisers
from rnn_edge.slots import Rows, Slots
from rnn_edge.stepper import Logits

_BLOCKS = range(64, 31, -1)  # how many logits may be looked at together when the best are searched for


def beam_search(
    slots: Slots, limits: Sequence[int], *, n_best: int, scoring: Scoring, prefix: Sequence[int] = ()
) -> list[list[Hypothesis]]:
    """The ``n_best`` best-scored hypotheses of each sentence, best first; the beam is as wide as the slots.

    In each step the best unfinished continuations of a sentence, as many as the beam is wide, go on; a continuation by
    the end token is finished if it is among as many best of all. A sentence ends as soon as no unfinished hypothesis
    can come before its ``n_best`` best finished ones: log probabilities only fall, the length penalty divides them by
    no more than that of the longest text allowed, and coverage only subtracts. So the result is the same as of going on
    to the maximum length. Unfinished hypotheses count only where fewer than ``n_best`` are finished at that length.
    """
    search = _BeamSearch(slots, limits, n_best, scoring, prefix)
    while slots.sentences:
        search.advance()
    return search.found


class _BeamSearch:
    """What the slots hold beside their state: for each slot an item, for each of its rows a number."""

    def __init__(
        self, slots: Slots, limits: Sequence[int], n_best: int, scoring: Scoring, prefix: Sequence[int]
    ) -> None:
        ids = slots.graphs.manifest.special_ids
        assert ids.start is not None
        assert ids.end is not None
        self._slots, self._limits, self._n_best, self._scoring, self._prefix = slots, limits, n_best, scoring, prefix
        self._start, self._end = ids.start, ids.end
        self.found: list[list[Hypothesis]] = [[] for _ in limits]
        count, beam = len(slots.sentences), slots.width
        self._tokens = np.full((count, beam), ids.start)
        # At first all rows of a sentence are the same: only the first one counts.
        self._first = np.where(np.arange(beam) == 0, 0, -np.inf)
        self._scores = np.tile(self._first, (count, 1))
        # For each step of the sentence: every row's token, the row it continues, and the attention of those rows.
        self._trails: list[list[tuple[Rows, Rows, Logits]]] = [[] for _ in range(count)]

    def advance(self) -> None:
        slots, (count, beam) = self._slots, self._tokens.shape
        logits = slots.stepper.step(self._tokens.ravel())
        attention = slots.stepper.attention.reshape(count, beam, -1).copy()
        # What is added to a row's logits to make them log probabilities of whole hypotheses.
        offsets = (self._scores.ravel() - log_normalisers(logits)).astype(np.float32)
        best, places = largest(logits, offsets, count, 2 * beam)
        parents, tokens = np.divmod(places, logits.shape[1])
        for slot, trail in enumerate(self._trails):
            if len(trail) < len(self._prefix):
                row, forced = slot * beam, self._prefix[len(trail)]
                best[slot], parents[slot], tokens[slot] = -np.inf, 0, forced
                best[slot, 0] = logits[row, forced] + offsets[row]
        finished = tokens == self._end
        for slot, rank in np.argwhere(finished[:, :beam] & (best[:, :beam] > -np.inf)).tolist():
            self._finish(slot, float(best[slot, rank]), int(parents[slot, rank]), attention[slot])
        # The first that are not finished, in their order.
        going = np.argsort(finished, axis=1, kind="stable")[:, :beam]
        best, parents, tokens, finished = (
            np.take_along_axis(item, going, axis=1) for item in (best, parents, tokens, finished)
        )
        scores = np.where(finished, -np.inf, best).astype(np.float64)  # where there are fewer than the beam is wide
        ended = []
        for slot, sentence in enumerate(slots.sentences):
            if len(self._trails[slot]) + 1 == self._limits[sentence]:
                self._cut_off(slot, scores[slot], parents[slot], tokens[slot], attention[slot])
                ended.append(slot)
            elif self._is_decided(sentence, scores[slot, 0]):
                ended.append(slot)
            self._trails[slot].append((tokens[slot], parents[slot], attention[slot]))
        tokens[ended], scores[ended] = self._start, self._first
        for slot in ended:
            self._trails[slot] = []
        kept = slots.go_on(ended, (parents + beam * np.arange(count)[:, None]).ravel())
        self._tokens, self._scores = tokens[kept], scores[kept]
        self._trails = [self._trails[slot] for slot in kept]

    def _finish(self, slot: int, value: float, parent: int, attention: Logits) -> None:
        """Keep a hypothesis that ends now if it is among the best."""
        found = self.found[self._slots.sentences[slot]]
        bound = value / self._scoring.normaliser(len(self._trails[slot]) + 1)
        if len(found) < self._n_best or bound > found[-1].score:
            found.append(self._hypothesis(slot, value, parent, self._end, attention))
            found.sort(key=lambda item: -item.score)
            del found[self._n_best :]

    def _cut_off(self, slot: int, scores: Logits, parents: Rows, tokens: Rows, attention: Logits) -> None:
        """Fill up with hypotheses that are as long as allowed and not finished."""
        found = self.found[self._slots.sentences[slot]]
        unfinished = [
            self._hypothesis(slot, value, parent, token, attention)
            for value, parent, token in zip(scores.tolist(), parents.tolist(), tokens.tolist(), strict=True)
            if value > -np.inf
        ]
        unfinished.sort(key=lambda item: -item.score)
        found += unfinished[: self._n_best - len(found)]

    def _is_decided(self, sentence: int, best: float) -> bool:
        """Whether no unfinished hypothesis can still come before those found; ``best`` has the best log probability."""
        found = self.found[sentence]
        return len(found) >= self._n_best and (
            best / self._scoring.normaliser(self._limits[sentence]) <= found[-1].score
        )

    def _hypothesis(self, slot: int, value: float, parent: int, token: int, last: Logits) -> Hypothesis:
        """The one whose last token continues row ``parent``, whose attention is in ``last``: walk back to the start."""
        rows = [last[parent]]
        tokens = [token]
        for chosen, parents, attention in reversed(self._trails[slot]):
            tokens.append(int(chosen[parent]))
            parent = int(parents[parent])
            rows.append(attention[parent])
        length = len(self._slots.sources[self._slots.sentences[slot]])
        weights = np.stack([row[:length] for row in reversed(rows)])
        finished = token == self._end
        score = self._scoring.score(value, len(tokens), weights.sum(axis=0))
        return Hypothesis(tuple(tokens[:0:-1] if finished else tokens[::-1]), value, score, finished, weights)


def largest(values: Logits, offsets: Logits, groups: int, count: int) -> tuple[Logits, Rows]:
    """The ``count`` largest of each group of rows in falling order, and where they stand in the group laid flat.

    ``values`` are [rows, N] in ``groups`` groups of rows below one another; ``offsets`` [rows] are added to their rows.
    Of equal ones the first comes first. Each row is cut into blocks: the count-th largest of their maxima is a bound
    from below, and only blocks that reach it are looked into.
    """
    rows, size = values.shape
    per_group = rows // groups
    count = min(count, per_group * size)
    # A number of blocks that leaves no rest spares a copy of everything. A block takes every so-manyth value: the
    # maxima of all blocks are then one pass over neighbours in memory.
    width = next((width for width in _BLOCKS if size % width == 0), 1 if size < _BLOCKS[0] else _BLOCKS[0])
    blocks = -(-size // width)
    if blocks * width > size:
        filler = np.full((rows, blocks * width - size), -np.inf, np.float32)
        values = np.concatenate([values, filler], axis=1)
    cut = values.reshape(rows, width, blocks)
    maxima = (cut.max(axis=1) + offsets[:, None]).reshape(groups, per_group * blocks)
    bound = np.full(groups, -np.inf, np.float32)
    if per_group * blocks >= count:
        bound = np.partition(maxima, -count, axis=1)[:, -count]
    group, place = np.nonzero(maxima >= bound[:, None])
    inner, block = place // blocks, place % blocks
    row = group * per_group + inner
    near = cut[row, :, block] + offsets[row, None]  # [blocks that reach the bound, width]
    item, within = np.nonzero(near >= bound[group, None])
    found, column = near[item, within], within * blocks + block[item]
    place = inner[item] * size + column
    order = np.lexsort((place, -found, group[item]))
    first = np.searchsorted(group[item], np.arange(groups))
    picked = order[first[:, None] + np.arange(count)]
    return found[picked], place[picked]
