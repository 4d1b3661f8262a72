"""Validation losses against loops written out."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rnn_edge_export.language_model import scoring
from rnn_edge_export.language_model.modules import RecurrentLanguageModel
from rnn_edge_export.language_model.scoring import carried_loss, cold_block_loss
from rnn_edge_export.recipe_sections import LanguageModelSection

_TOKENS = torch.randint(9, (2307,), generator=torch.Generator().manual_seed(3))
_ARRAY = _TOKENS.numpy().astype(np.uint16)


@pytest.fixture
def model() -> RecurrentLanguageModel:
    torch.manual_seed(5)
    recipe = LanguageModelSection(embedding=6, hidden=10, layers=2)  # with dropout, which must not act
    model = RecurrentLanguageModel(recipe, 9).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def _losses(model: RecurrentLanguageModel, tokens: Tensor) -> list[float]:
    """The loss of each token but the first, one step at a time from a zero state, in float64."""
    model.eval()
    state, losses = model.zero_state(1), []
    with torch.no_grad():
        for token, target in itertools.pairwise(tokens):
            logits, state = model(token.view(1, 1), state)
            losses.append(-logits[0, 0].double().log_softmax(0)[target].item())
    model.train()
    return losses


@pytest.mark.parametrize("window", [1000, 10])
def test_one_stream_scores_every_token_with_all_before_it(
    model: RecurrentLanguageModel, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(scoring, "_WINDOW", window)  # the shorter, the more a state that is not carried would show
    losses = _losses(model, _TOKENS)
    assert len(losses) == 2306
    assert carried_loss(model, _ARRAY) == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert carried_loss(model, _ARRAY[:2]) == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize("window", [1000, 10])
def test_many_streams_score_their_parts_from_zero(
    model: RecurrentLanguageModel, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(scoring, "_WINDOW", window)
    span = 2306 // 7
    parts = [_losses(model, _TOKENS[row * span : (row + 1) * span + 1]) for row in range(7)]
    expected = sum(map(sum, parts)) / (7 * span)
    assert carried_loss(model, _ARRAY, streams=7) == pytest.approx(expected, abs=1e-5)


def test_cold_blocks_start_from_zero(model: RecurrentLanguageModel) -> None:
    blocks = [_losses(model, _TOKENS[start : start + 257]) for start in range(0, 2306 - 255, 256)]
    assert [len(block) for block in blocks] == [256] * 9
    expected = sum(map(sum, blocks)) / (9 * 256)
    assert cold_block_loss(model, _ARRAY) == pytest.approx(expected, abs=1e-5)
    small = [_losses(model, _TOKENS[start : start + 11]) for start in range(0, 2300, 10)]
    expected = sum(map(sum, small)) / 2300
    assert cold_block_loss(model, _ARRAY, block=10) == pytest.approx(expected, abs=1e-5)
    assert abs(expected - carried_loss(model, _ARRAY)) > 1e-4  # or the two could be mixed up unseen


def test_a_model_that_knows_nothing_scores_the_vocabulary(model: RecurrentLanguageModel) -> None:
    for parameter in model.output.parameters():
        torch.nn.init.zeros_(parameter)
    for loss in (carried_loss(model, _ARRAY), carried_loss(model, _ARRAY, 5), cold_block_loss(model, _ARRAY)):
        assert loss == pytest.approx(math.log(9), abs=1e-6)
    assert not model.training
