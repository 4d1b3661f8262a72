"""The network: padding, both directions, attention by hand, single steps, gradients, dropout, shared weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_edge.errors import InvalidValueError
from rnn_edge.manifest import AttentionKind
from rnn_edge_export.layers import parameter_count, reverse
from rnn_edge_export.recipe import TranslationRecipe
from rnn_edge_export.recipe_sections import TranslationSection
from rnn_edge_export.translation.modules import (
    BahdanauAttention,
    DotAttention,
    EncoderDecoder,
    GeneralAttention,
    Memory,
    State,
)
from rnn_edge_export.translation.steps import DecoderStep, has_keys, step_scores
from rnn_edge_export.translation.task import greedy
from tests.export.translation.conftest import DROPOUTS, PLAIN

ATTENTIONS: tuple[AttentionKind, ...] = get_args(AttentionKind)
_SOURCE, _TARGET = 13, 11  # vocabularies

Make = Callable[..., EncoderDecoder]


@pytest.fixture(
    params=list(itertools.product(("lstm", "gru"), ATTENTIONS, (1, 2), (False, True))),
    ids=lambda p: f"{p[0]}-{p[1]}-{p[2]}{'-feeding' if p[3] else ''}",
)
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    """One combination of the grid."""
    cell, attention, layers, feeding = request.param
    return _model(cell=cell, attention=attention, layers=layers, encoder_layers=layers, input_feeding=feeding)


def _model(vocabularies: tuple[int, int] = (_SOURCE, _TARGET), joint: bool = False, **changes: Any) -> EncoderDecoder:
    """Random weights and biases everywhere: zeros would hide mistakes."""
    torch.manual_seed(0)
    made = EncoderDecoder(replace(PLAIN, **changes), *vocabularies, joint=joint).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return made


@pytest.mark.parametrize("locked", [True, False])
def test_steps_one_after_another_share_what_is_dropped(locked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With input feeding, where each step is a call: one mask and one dropped matrix for a sentence."""
    chances: dict[str, Any] = {
        "layer_dropout": 0.3,
        "output_dropout": 0.3,
        "weight_drop": 0.3,
        "locked_dropout": locked,
    }
    made = _model(input_feeding=True, layers=2, **chances).train()
    source, lengths, tokens = _batch()
    memory, state = made.encode(source, lengths)
    calls: list[float] = []
    dropout = F.dropout

    def counted(x: Tensor, chance: float, *others: bool) -> Tensor:
        calls.append(chance)
        return dropout(x, chance, *others)

    monkeypatch.setattr(F, "dropout", counted)
    counts = []
    for steps in (1, 6):
        calls.clear()
        made.decode(tokens[:steps], state, memory)
        counts.append(len(calls))
    assert (counts[0] == counts[1]) == locked


def _batch(lengths: tuple[int, ...] = (4, 1, 7, 2), steps: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Source padded with random ids, lengths, and target tokens."""
    generator = torch.Generator().manual_seed(5)
    source = torch.randint(_SOURCE, (max(lengths), len(lengths)), generator=generator)
    return source, torch.tensor(lengths), torch.randint(_TARGET, (steps, len(lengths)), generator=generator)


def _assert_close(mine: Tensor, other: Tensor, tolerance: float = 1e-6) -> None:
    assert mine.shape == other.shape
    assert (mine - other).abs().max().item() <= tolerance * max(1.0, other.abs().max().item())


@torch.no_grad()
def test_a_padded_batch_is_each_sentence_alone(model: EncoderDecoder) -> None:
    source, lengths, tokens = _batch()
    memory, state = model.encode(source, lengths)
    logits, attention, last = model.decode(tokens, state, memory)
    assert torch.equal(model(source, lengths, tokens), logits)
    assert logits.shape == (6, 4, _TARGET)
    assert attention.shape == (4, 6, 7)
    for row, length in enumerate(lengths.tolist()):
        column = slice(row, row + 1)
        alone, first = model.encode(source[:length, column], lengths[column])
        _assert_close(memory.values[column, :length], alone.values)
        _assert_close(memory.keys[column, :length], alone.keys)
        for together, single in zip(state, first, strict=True):
            _assert_close(together[column], single)
        expected, weights, end = model.decode(tokens[:, column], first, alone)
        _assert_close(logits[:, column], expected)
        _assert_close(attention[column, :, :length], weights)
        assert not attention[row, :, length:].any()  # nothing looks at padding
        for together, single in zip(last, end, strict=True):
            _assert_close(together[column], single)
    _assert_close(attention.sum(dim=2), torch.ones(4, 6))


@torch.no_grad()
def test_what_fills_the_padding_does_not_matter(model: EncoderDecoder) -> None:
    source, lengths, tokens = _batch()
    logits = model(source, lengths, tokens)
    padding = torch.arange(len(source)).unsqueeze(1) >= lengths
    assert padding.any()
    other = torch.where(padding, (source + 1) % _SOURCE, source)
    _assert_close(model(other, lengths, tokens), logits)
    assert not torch.allclose(model((source + 1) % _SOURCE, lengths, tokens), logits, atol=1e-3)


@torch.no_grad()
def test_single_steps_are_the_whole_run(model: EncoderDecoder) -> None:
    source, lengths, tokens = _batch()
    memory, first = model.encode(source, lengths)
    logits, attention, last = model.decode(tokens, first, memory)
    assert [tensor.shape for tensor in first] == [(4, width) for width in model.state_widths()]
    assert len(first) == len(model.state_names())
    state: State = first
    for step, row in enumerate(tokens):
        one, weights, state = model.decode(row.unsqueeze(0), state, memory)
        _assert_close(one[0], logits[step])
        _assert_close(weights[:, 0], attention[:, step])
    for mine, other in zip(state, last, strict=True):
        _assert_close(mine, other)
    cold, _, _ = model.decode(tokens[3:], first, memory)
    assert not torch.allclose(cold, logits[3:], atol=1e-4)  # the state matters


@torch.no_grad()
def test_the_step_of_the_cell_lowering_is_a_step(model: EncoderDecoder) -> None:
    """Operators of the other lowering run in an exported graph only."""
    source, lengths, tokens = _batch()
    memory, state = model.encode(source, lengths)
    logits, attention, _ = model.decode(tokens, state, memory)
    step = DecoderStep(model, "cell")
    keys = [memory.keys] if has_keys(model) else []
    for index, row in enumerate(tokens):
        one, weights, *state = step(row, memory.values, *keys, lengths, *state)
        _assert_close(one, logits[index], 1e-5)
        _assert_close(weights, attention[:, index], 1e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@torch.no_grad()
def test_the_encoder_is_a_packed_bidirectional_network(cell: str) -> None:
    made = _model(cell=cell, encoder_layers=3)
    kind = {"lstm": nn.LSTM, "gru": nn.GRU}[cell]
    reference = kind(PLAIN.embedding, PLAIN.encoder_hidden, num_layers=3, bidirectional=True)
    for index, pair in enumerate(made.encoder_pairs()):
        for layer, suffix in zip(pair, ("", "_reverse"), strict=True):
            for name, parameter in layer.named_parameters():
                getattr(reference, name.replace("_l0", f"_l{index}{suffix}")).copy_(parameter)
    source, lengths, _ = _batch()
    x = made.source_embedding(source) * PLAIN.embedding**0.5
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, final = reference(packed)
    expected, _ = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
    h = final[0] if cell == "lstm" else final

    memory, state = made.encode(source, lengths)
    assert torch.equal(memory.lengths, lengths)
    for row, length in enumerate(lengths.tolist()):
        _assert_close(memory.values[row, :length], expected[row, :length])
    # The bridges read both directions' last states of the top layer.
    for mine, other in zip(state, made.first_state(torch.cat([h[-2], h[-1]], dim=1)), strict=True):
        _assert_close(mine, other)


def test_the_first_state_by_hand() -> None:
    summary = torch.linspace(-1, 1, 12).unsqueeze(0)
    for cell in ("lstm", "gru"):
        made = _model(cell=cell, input_feeding=True)
        state = made.first_state(summary)
        assert made.state_names() == {"lstm": ["h0", "c0", "h1", "c1", "feed"], "gru": ["h0", "h1", "feed"]}[cell]
        for index, bridge in enumerate(made.bridge):
            assert isinstance(bridge, nn.Linear)
            raw = summary @ bridge.weight.t() + bridge.bias
            kinds = state[2 * index : 2 * index + 2] if cell == "lstm" else state[index : index + 1]
            for mine, other in zip(kinds, (raw.tanh(), raw), strict=False):
                _assert_close(mine, other)
        assert torch.equal(state[-1], torch.zeros(1, PLAIN.embedding))


def test_reversal_by_hand() -> None:
    x = torch.arange(12.0).view(4, 3, 1)  # columns 0 3 6 9, 1 4 7 10 and 2 5 8 11
    found = reverse(x, torch.tensor([4, 1, 3])).squeeze(2)
    assert found.t().tolist() == [[9, 6, 3, 0], [1, 4, 7, 10], [8, 5, 2, 11]]
    wide = torch.randn(5, 2, 3)
    lengths = torch.tensor([2, 5])
    assert torch.equal(reverse(reverse(wide, lengths), lengths), wide)
    assert torch.equal(reverse(wide, lengths)[:, 1], wide[:, 1].flip(0))


def test_dot_attention_by_hand() -> None:
    made = _model(attention="dot", encoder_hidden=1, hidden=2)
    values = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [50.0, 50.0]]])  # [1, S, M]; the last step is padding
    query = torch.tensor([[[1.0, 0.0]], [[0.0, 0.5]], [[0.0, 0.0]]]) * 2**0.5  # [T, 1, H], which √H scales back
    _assert_close(DotAttention(2, 2)(query.transpose(0, 1), values)[0, :, :2], torch.tensor([[1.0, 0], [0, 1], [0, 0]]))
    context, attention = made._attend(query, Memory(values, values, torch.tensor([2])))
    e = 0.7310586  # e / (e + 1)
    assert attention[0].flatten().tolist() == pytest.approx([e, 1 - e, 0, 1 - e, e, 0, 0.5, 0.5, 0])
    assert context[:, 0].flatten().tolist() == pytest.approx([e, 2 - 2 * e, 1 - e, 2 * e, 0.5, 1.0])


@torch.no_grad()
def test_general_attention_by_hand() -> None:
    attention = GeneralAttention(hidden=2, memory=3)
    attention.key.weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.0]]))
    keys = attention.keys(torch.tensor([[[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]]))
    assert keys.tolist() == [[[7, -2], [0, -1]]]
    _assert_close(attention(torch.tensor([[[1.0, 10.0]]]), keys), torch.tensor([[[-13.0, -10.0]]]) / 2**0.5)


@torch.no_grad()
def test_bahdanau_attention_by_hand() -> None:
    attention = BahdanauAttention(hidden=2, memory=1)
    attention.key.weight.copy_(torch.tensor([[1.0], [2.0]]))
    attention.query.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    attention.query.bias.copy_(torch.tensor([0.5, 0.0]))
    attention.score.weight.copy_(torch.tensor([[3.0, -1.0]]))
    keys = attention.keys(torch.tensor([[[0.25], [-1.0]]]))  # [1, S, 1] → (0.25, 0.5) and (-1, -2)
    query = torch.tensor([[[2.0, -0.75]]])  # → (-0.25, 2)
    expected = [3 * 0.0 - 0.9866143, 3 * -0.8482836 - 0.0]  # tanh of (0, 2.5), and of (-1.25, 0)
    assert attention(query, keys)[0, 0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ATTENTIONS)
@torch.no_grad()
def test_scores_of_one_step(kind: AttentionKind) -> None:
    made = _model(attention=kind)
    query, values = torch.randn(3, 12), torch.randn(3, 5, 12)
    keys = made.attention.keys(values)
    _assert_close(step_scores(made.attention, query, keys), made.attention(query.unsqueeze(1), keys).squeeze(1))


def test_gradients_reach_every_parameter(model: EncoderDecoder) -> None:
    source, lengths, tokens = _batch()
    loss = model.train()(source, lengths, tokens).log_softmax(dim=2)[..., 0].sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        gates = {"lstm": 4, "gru": 3}[model.recipe.cell] if "_l0" in name else 1
        assert all(part.any() for part in parameter.grad.chunk(gates)), name


@pytest.mark.parametrize("kind", DROPOUTS)
@pytest.mark.parametrize("feeding", [False, True])
@torch.no_grad()
def test_every_dropout_acts_in_training_alone(kind: str, feeding: bool) -> None:
    changes: dict[str, Any] = {kind: 0.5}
    made, plain = _model(input_feeding=feeding, **changes), _model(input_feeding=feeding)
    batch = source, lengths, tokens = _batch()
    first, second = (made.train().encode(source, lengths)[0].values for _ in range(2))
    assert torch.allclose(first, second, atol=1e-4) == (kind == "output_dropout")
    memory, state = plain.encode(source, lengths)
    first, second = (made.decode(tokens, state, memory)[0] for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-4)
    torch.manual_seed(1)
    one = made(*batch)
    torch.manual_seed(1)
    assert torch.equal(made(*batch), one)
    assert torch.equal(made.eval()(*batch), plain(*batch))
    assert torch.equal(plain.train()(*batch), plain.eval()(*batch))


@torch.no_grad()
def test_locked_dropout_has_one_mask_for_all_steps() -> None:
    ones = torch.ones(20, 2, 8)
    for locked in (True, False):
        made = _model(locked_dropout=locked).train()
        dropped = made._drop(ones, 0.5)
        assert set(dropped.unique().tolist()) == {0.0, 2.0}
        assert bool((dropped == dropped[0]).all()) is locked
        assert not torch.equal(dropped[:, 0], dropped[:, 1])


@torch.no_grad()
def test_word_dropout_leaves_out_whole_tokens() -> None:
    made = _model(word_dropout=0.25).train()
    plain = _model()._embed(made.source_embedding, torch.full((40, 5), 2))
    dropped = made._embed(made.source_embedding, torch.full((40, 5), 2))
    gone = (dropped == 0).all(dim=2)
    assert 0.1 < gone.float().mean() < 0.4
    assert torch.allclose(dropped[~gone], plain[~gone] / 0.75)


def test_shared_parameters_are_one_tensor() -> None:
    joint = _model((_TARGET, _TARGET), joint=True)
    asked = _model((_TARGET, _TARGET), joint=True, share_embeddings=False)
    words = _model((_TARGET, _TARGET))  # two vocabularies of one size have nothing in common
    for made in (joint, asked, words):
        assert made.output.weight is made.target_embedding.weight
    assert joint.source_embedding is joint.target_embedding
    for made in (asked, words):
        assert made.source_embedding.weight is not made.target_embedding.weight
        assert parameter_count(made) - parameter_count(joint) == _TARGET * PLAIN.embedding
    assert _model().source_embedding.num_embeddings == _SOURCE


def test_parameter_count_by_hand() -> None:
    def lstm(width: int, hidden: int) -> int:
        return 4 * hidden * (width + hidden + 2)

    made = _model(attention="bahdanau", encoder_layers=2, layers=3, input_feeding=True)
    encoder = 2 * lstm(8, 6) + 2 * lstm(12, 6)
    # Below, token and readout; above, the layer below and the context; then the layer below alone.
    decoder = lstm(8 + 8, 12) + lstm(12 + 12, 12) + lstm(12, 12)
    attention = 12 * 12 + (12 * 12 + 12) + 12
    rest = 3 * (12 * 12 + 12) + (24 * 8 + 8) + _TARGET
    assert parameter_count(made) == (_SOURCE + _TARGET) * 8 + encoder + decoder + attention + rest


@pytest.mark.parametrize(("hidden", "encoder_hidden"), [(12, 5), (6, 6), (13, 6)])
def test_dot_attention_needs_equal_widths(hidden: int, encoder_hidden: int) -> None:
    section = TranslationSection(attention="dot", hidden=hidden, encoder_hidden=encoder_hidden)
    with pytest.raises(InvalidValueError, match=f"--hidden {hidden} and --encoder-hidden {encoder_hidden}") as caught:
        TranslationRecipe(model=section).check()
    assert "--attention general" in caught.value.hint
    for good in (replace(section, attention="general"), replace(section, hidden=2 * encoder_hidden)):
        TranslationRecipe(model=good).check()
        torch.manual_seed(0)
        assert EncoderDecoder(good, _SOURCE, _TARGET, joint=False)(*_batch()).shape == (6, 4, _TARGET)


@torch.no_grad()
def test_greedy_ids_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _model()
    script = torch.tensor([[3, 5], [9, 5], [4, 5], [9, 9]])  # the end is 9; the first sentence ends at once
    fed: list[list[int]] = []

    def decode(tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor, State]:
        fed.append(tokens[0].tolist())
        return nn.functional.one_hot(script[len(fed) - 1 : len(fed)], _TARGET).float(), tokens, state

    monkeypatch.setattr(made, "decode", decode)
    memory, state = made.encode(*_batch((2, 3))[:2])
    assert greedy(made, memory, state, start=1, end=9, limit=30) == [[3], [5, 5, 5]]
    assert fed == [[1, 1], [3, 5], [9, 5], [4, 5]]
    fed.clear()
    assert greedy(made, memory, state, start=1, end=9, limit=2) == [[3], [5, 5]]
