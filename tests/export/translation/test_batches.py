"""From pairs to padded batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnn_edge.text_files import Pair
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.recipe import TranslationRecipe
from rnn_edge_export.recipe_sections import PairSection
from rnn_edge_export.translation.batches import IGNORE, Batch, PairBatches, cut, pad, special_id
from rnn_edge_export.translation.data import Filtered, PairCorpus
from rnn_edge_export.translation.subwords import train_tokenizers
from rnn_edge_export.translation.task import TranslationTask

_SUBWORDS = PairSection(vocabulary_size=300, bpe_dropout=0.1, batch_tokens=256)
Both = tuple[Tokenizer, Tokenizer]


@pytest.fixture(scope="module", params=["subword", "word"])
def trained(request: pytest.FixtureRequest, pairs: list[Pair]) -> tuple[PairSection, Both]:
    """A section and its tokenizers."""
    section = replace(_SUBWORDS, tokenizer=request.param)
    return section, train_tokenizers(pairs, section)


def _texts(batches: Iterable[Batch], tokenizers: Both) -> list[Pair]:
    """The pairs of batches, read back."""
    found = []
    for batch in batches:
        for column, length in enumerate(batch.lengths.tolist()):
            source = batch.source[: length - 1, column].tolist()
            kept = batch.targets[:, column] != IGNORE
            target = batch.targets[:, column][kept][:-1].tolist()
            found.append((tokenizers[0].decode(source), tokenizers[1].decode(target)))
    return found


def test_every_pair_occurs_once_an_epoch(pairs: list[Pair], trained: tuple[PairSection, Both]) -> None:
    section, tokenizers = trained
    batches = PairBatches(pairs, tokenizers, section)
    expected = Counter(
        tuple(tokenizer.decode(tokenizer.encode(side)) for side, tokenizer in zip(pair, tokenizers, strict=True))
        for pair in pairs
    )
    for epoch in range(3):
        assert Counter(_texts(batches.epoch(epoch), tokenizers)) == expected


def test_padding_and_marks(pairs: list[Pair], trained: tuple[PairSection, Both]) -> None:
    section, tokenizers = trained
    ends, start = [special_id(tokenizer, "</s>") for tokenizer in tokenizers], special_id(tokenizers[1], "<s>")
    padded = 0
    for batch in PairBatches(pairs, tokenizers, section).epoch(0):
        assert {tensor.dtype for tensor in (batch.source, batch.lengths, batch.inputs, batch.targets)} == {torch.int64}
        assert batch.inputs.shape == batch.targets.shape
        assert len(batch.source) == batch.lengths.max()
        assert set(batch.inputs[0].tolist()) == {start}
        for column, length in enumerate(batch.lengths.tolist()):
            source, inputs = batch.source[:, column].tolist(), batch.inputs[:, column].tolist()
            targets = batch.targets[:, column].tolist()
            count = len(targets) - targets.count(IGNORE)
            # The end token closes and fills the source; inputs are targets one step later.
            assert source[length - 1 :] == [ends[0]] * (len(source) - length + 1)
            assert ends[0] not in source[: length - 1]
            assert targets[count - 1 :] == [ends[1]] + [IGNORE] * (len(targets) - count)
            assert inputs[1:count] == targets[: count - 1]
            assert inputs[count:] == [ends[1]] * (len(inputs) - count)
            padded += len(source) - length + len(targets) - count
    assert padded > 0


def test_a_batch_by_hand() -> None:
    pairs = [("a b", "x"), ("a", "y x z")]
    section = PairSection(tokenizer="word", vocabulary_size=300, batch_tokens=99)
    tokenizers = train_tokenizers(pairs, section)
    (batch,) = PairBatches(pairs, tokenizers, section).epoch(0)
    a, b = (tokenizers[0].id_of(f"Ġ{word}") for word in "ab")
    x, y, z = (tokenizers[1].id_of(f"Ġ{word}") for word in "xyz")
    assert batch.lengths.tolist() == [2, 3]  # the shorter source first
    assert batch.source.t().tolist() == [[a, 2, 2], [a, b, 2]]
    assert batch.inputs.t().tolist() == [[1, y, x, z], [1, x, 2, 2]]
    assert batch.targets.t().tolist() == [[y, x, z, 2], [x, 2, IGNORE, IGNORE]]


@pytest.mark.parametrize("budget", [16, 60, 256, 4096])
def test_the_budget_is_kept(pairs: list[Pair], trained: tuple[PairSection, Both], budget: int) -> None:
    section, tokenizers = trained
    batches = list(PairBatches(pairs, tokenizers, replace(section, batch_tokens=budget)).epoch(1))
    sizes = [batch.source.numel() + batch.inputs.numel() for batch in batches]
    assert all(size <= budget or len(batch.lengths) == 1 for size, batch in zip(sizes, batches, strict=True))
    if budget == 256:
        assert sum(sizes) / len(sizes) > 0.75 * budget  # and used
    if budget == 16:
        assert any(size > budget for size in sizes)  # a long pair stands alone


def test_little_is_padding(pairs: list[Pair], trained: tuple[PairSection, Both]) -> None:
    section, tokenizers = trained
    filled = total = 0
    for batch in PairBatches(pairs, tokenizers, section).epoch(0):
        filled += int(batch.lengths.sum() + (batch.targets != IGNORE).sum())
        total += batch.source.numel() + batch.targets.numel()
    assert filled / total > 0.8


def _equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for mine, its in zip(one, other, strict=True)
        for a, b in ((mine.source, its.source), (mine.lengths, its.lengths), (mine.inputs, its.inputs))
    )


def test_epochs_differ_and_are_functions_of_the_seed(pairs: list[Pair], trained: tuple[PairSection, Both]) -> None:
    section, tokenizers = trained
    batches = PairBatches(pairs, tokenizers, section)
    epochs = [list(batches.epoch(epoch)) for epoch in range(3)]
    assert len(epochs[0]) == batches.per_epoch
    assert not any(_equal(one, other) for one, other in pairwise(epochs))
    assert _equal(list(batches.epoch(1)), epochs[1])
    again = PairBatches(pairs, tokenizers, section)
    assert _equal(list(again.epoch(2)), epochs[2])  # without the epochs before it
    assert not _equal(list(PairBatches(pairs, tokenizers, replace(section, seed=2)).epoch(0)), epochs[0])
    # Neither the order of the batches nor the company of a pair stays.
    members = [{frozenset(_texts([batch], tokenizers)) for batch in epoch} for epoch in epochs[:2]]
    assert members[0] != members[1]
    lengths = [len(batch.source) for batch in epochs[0]]
    assert lengths != sorted(lengths)
    # Nor does a pair keep to those of its own length.
    assert any(batch.lengths.tolist() != sorted(batch.lengths.tolist()) for batch in epochs[0])


def test_batches_that_are_done_are_skipped(pairs: list[Pair], trained: tuple[PairSection, Both]) -> None:
    section, tokenizers = trained
    corpus = PairCorpus(*tokenizers, pairs, pairs[:2], Filtered(0, 0, 0, 0, 0, 0), 9, 0, "", "", "")
    task = TranslationTask(TranslationRecipe(training=section), corpus)
    whole = list(task.batches(2, 0))
    assert task.steps_per_epoch > 5
    for done in (1, 4, len(whole)):
        assert _equal(list(task.batches(2, done)), whole[done:])


@pytest.mark.parametrize(
    ("source", "target", "tokens", "expected"),
    [
        ([2, 2, 3], [2, 3, 3], 10, [(0, 2), (2, 3)]),  # (2 + 3)·2 = 10 fits, (3 + 3)·3 does not
        ([2, 2, 3], [2, 3, 3], 9, [(0, 1), (1, 2), (2, 3)]),  # nor do (3 + 3)·2 = 12
        ([2, 2, 3], [2, 3, 3], 18, [(0, 3)]),
        ([1, 9, 1], [1, 9, 1], 16, [(0, 1), (1, 2), (2, 3)]),  # 18 stand alone
        ([5, 1, 1], [1, 1, 5], 12, [(0, 2), (2, 3)]),  # the longest of each side counts
        ([4], [4], 1, [(0, 1)]),
    ],
)
def test_cuts_by_hand(source: list[int], target: list[int], tokens: int, expected: list[tuple[int, int]]) -> None:
    found = cut(np.array(source), np.array(target), tokens)
    assert [(item.start, item.stop) for item in found] == expected


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=40), st.integers(1, 200))
def test_cuts_cover_everything_within_the_budget(lengths: list[tuple[int, int]], tokens: int) -> None:
    source, target = np.array(lengths).T
    found = cut(source, target, tokens)
    assert (found[0].start, found[-1].stop) == (0, len(lengths))
    assert all(one.stop == other.start for one, other in pairwise(found))
    sizes = [(source[item].max() + target[item].max()) * (item.stop - item.start) for item in found]
    assert all(size <= tokens or item.stop - item.start == 1 for size, item in zip(sizes, found, strict=True))
    for one, other in pairwise(found):  # none is shorter than it must be
        grown = slice(one.start, other.start + 1)
        assert (source[grown].max() + target[grown].max()) * (grown.stop - grown.start) > tokens


def test_padding_by_hand() -> None:
    rows = [np.array([5]), np.array([1, 2, 3]), np.array([4, 4])]
    padded = pad(rows, -7)
    assert padded.tolist() == [[5, 1, 4], [-7, 2, 4], [-7, 3, -7]]
    assert padded.is_contiguous()
    assert padded.dtype == torch.int64
