"""Beam search: the beams of all sentences of a batch advance together, one call a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnn_edge.encoder_decoder import Encoded, EncoderDecoderGraphs
from rnn_edge.search import SHRINK_BELOW, Hypothesis, Rows, Scoring, log_normalisers, shrink
from rnn_edge.stepper import Logits

_BLOCKS = range(64, 31, -1)  # how many logits may be looked at together when the best are searched for


def beam_search(
    graphs: EncoderDecoderGraphs,
    encoded: Encoded,
    limits: Sequence[int],
    *,
    beam: int,
    n_best: int,
    scoring: Scoring,
    prefix: Sequence[int] = (),
) -> list[list[Hypothesis]]:
    """The ``n_best`` best-scored hypotheses of each sentence, best first; all beams of all sentences in one call.

    In each step the best ``beam`` unfinished continuations of a sentence go on; a continuation by the end token is
    finished if it is among the best ``beam`` of all. A sentence ends as soon as no unfinished hypothesis can come
    before its ``n_best`` best finished ones: log probabilities only fall, the length penalty divides them by no more
    than that of the longest text allowed, and coverage only subtracts. So the result is the same as of going on to the
    maximum length. Unfinished hypotheses count only where fewer than ``n_best`` are finished at that length.
    """
    return _BeamSearch(graphs, encoded, limits, beam, n_best, scoring).run(prefix)


@dataclass(frozen=True)
class _Finished:
    """A hypothesis whose last token, chosen in ``step``, continues row ``parent``.

    ``attention`` is that of the last token, which is ``cut``, or the end token where that is None.
    """

    score: float
    log_probability: float
    step: int
    parent: int
    attention: Logits
    cut: int | None = None


class _BeamSearch:
    """``beam`` rows of the stepper for each sentence, one below the other."""

    def __init__(
        self,
        graphs: EncoderDecoderGraphs,
        encoded: Encoded,
        limits: Sequence[int],
        beam: int,
        n_best: int,
        scoring: Scoring,
    ) -> None:
        ids = graphs.manifest.special_ids
        assert ids.start is not None
        assert ids.end is not None
        self._graphs, self._encoded, self._limits = graphs, encoded, limits
        self._beam, self._n_best, self._scoring, self._end = beam, n_best, scoring, ids.end
        self._slots = list(range(len(limits)))  # the sentence of each group of rows; finished ones stay a while
        self._alive = list(range(len(limits)))  # slots that go on
        self._finished: list[list[_Finished]] = [[] for _ in limits]
        self._stepper = graphs.stepper(encoded.take(np.repeat(np.arange(len(limits)), beam)))
        self._tokens = np.full(self._stepper.batch, ids.start)
        # At first all rows of a sentence are the same: only the first one counts.
        self._scores = np.full((len(limits), beam), -np.inf)
        self._scores[:, 0] = 0
        self._coverage = np.zeros((self._stepper.batch, int(encoded.lengths.max())), np.float32)
        # For each step: every row's token, the row it continues, and its attention.
        self._trail: list[tuple[Rows, Rows, Logits]] = []

    def run(self, prefix: Sequence[int]) -> list[list[Hypothesis]]:
        """Advance until every sentence has ended."""
        for step in range(max(self._limits)):
            logits = self._stepper.step(self._tokens)
            self._advance(logits, step, prefix[step] if step < len(prefix) else None)
            if not self._alive:
                break
        return [self._read(sentence, found) for sentence, found in enumerate(self._finished)]

    def _advance(self, logits: Logits, step: int, forced: int | None) -> None:
        beam, size = self._beam, logits.shape[1]
        attention = self._stepper.attention.copy()
        coverage = self._coverage[:, : attention.shape[1]] + attention
        alive = np.array(self._alive)
        rows = (alive[:, None] * beam + np.arange(beam)).ravel()
        values = logits if len(rows) == len(logits) else logits[rows]
        # What is added to a row's logits to make them log probabilities of whole hypotheses.
        offsets = (self._scores[alive].ravel() - log_normalisers(values)).astype(np.float32)
        if forced is None:
            best, places = largest(values, offsets, len(alive), 2 * beam)
        else:
            best = (values[:, forced] + offsets).reshape(len(alive), beam)
            places = np.tile(np.arange(beam) * size + forced, (len(alive), 1))
        parents, tokens = np.arange(len(attention)), self._tokens.copy()
        still: list[int] = []
        for index, slot in enumerate(self._alive):
            sentence = self._slots[slot]
            going: list[tuple[float, int, int]] = []  # log probability, parent row, token
            for rank, (value, place) in enumerate(zip(best[index].tolist(), places[index].tolist(), strict=True)):
                parent, token = slot * beam + place // size, place % size
                if token != self._end:
                    going.append((value, parent, token))
                elif rank < beam and value > -np.inf:
                    self._finish(sentence, value, step, parent, coverage[parent], attention[parent])
                if len(going) == beam:
                    break
            going += [(-np.inf, slot * beam, 0)] * (beam - len(going))  # a vocabulary smaller than the beam
            first = slot * beam
            self._scores[slot] = [value for value, _, _ in going]
            parents[first : first + beam] = [parent for _, parent, _ in going]
            tokens[first : first + beam] = [token for _, _, token in going]
            if step + 1 == self._limits[sentence]:
                self._cut_off(sentence, step, going, coverage, attention)
            elif not self._is_decided(sentence, going[0][0]):
                still.append(slot)
        self._go_on(still, parents, tokens, attention, coverage)

    def _go_on(self, still: list[int], parents: Rows, tokens: Rows, attention: Logits, coverage: Logits) -> None:
        """Move to the next step; the one place where the state is reordered."""
        beam = self._beam
        self._alive = still
        if still and len(still) < SHRINK_BELOW * len(self._slots):
            kept = (np.array(still)[:, None] * beam + np.arange(beam)).ravel()
            parents, tokens = parents[kept], tokens[kept]
            self._scores = self._scores[still]
            self._slots = [self._slots[slot] for slot in still]
            self._alive = list(range(len(still)))
            self._stepper = shrink(
                self._graphs, self._stepper, self._encoded, parents, np.repeat(self._slots, beam).tolist()
            )
        elif beam > 1 and not np.array_equal(parents, np.arange(len(parents))):
            self._stepper.reorder(parents)
        self._coverage = coverage[parents]
        self._tokens = tokens
        self._trail.append((tokens, parents, attention[parents]))

    def _finish(self, sentence: int, value: float, step: int, parent: int, coverage: Logits, attention: Logits) -> None:
        length = self._encoded.lengths[sentence]
        score = self._scoring.score(value, step + 1, coverage[:length])
        self._finished[sentence].append(_Finished(score, value, step, parent, attention))
        self._finished[sentence].sort(key=lambda item: -item.score)
        del self._finished[sentence][self._n_best :]

    def _cut_off(
        self, sentence: int, step: int, going: list[tuple[float, int, int]], coverage: Logits, attention: Logits
    ) -> None:
        """Fill up with hypotheses that are as long as allowed and not finished."""
        found, length = self._finished[sentence], self._encoded.lengths[sentence]
        unfinished = [
            _Finished(
                self._scoring.score(value, step + 1, coverage[parent, :length]),
                value,
                step,
                parent,
                attention[parent],
                token,
            )
            for value, parent, token in going
            if value > -np.inf
        ]
        unfinished.sort(key=lambda item: -item.score)
        found += unfinished[: self._n_best - len(found)]

    def _is_decided(self, sentence: int, best: float) -> bool:
        """Whether no unfinished hypothesis can still come before those found; ``best`` has the best log probability."""
        found = self._finished[sentence]
        bound = best / self._scoring.normaliser(self._limits[sentence])
        return len(found) >= self._n_best and bound <= found[-1].score

    def _read(self, sentence: int, found: list[_Finished]) -> list[Hypothesis]:
        """Walk back from each end to the start."""
        length = self._encoded.lengths[sentence]
        hypotheses = []
        for item in found:
            tokens = [] if item.cut is None else [item.cut]
            attention = [item.attention[:length]]
            row = item.parent
            for token, parent, weights in reversed(self._trail[: item.step]):
                tokens.append(int(token[row]))
                attention.append(weights[row, :length])
                row = int(parent[row])
            hypotheses.append(
                Hypothesis(
                    tuple(reversed(tokens)),
                    item.log_probability,
                    item.score,
                    item.cut is None,
                    np.stack(attention[::-1]),
                )
            )
        return hypotheses


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
