"""The network: initialisation, explicit state, dropout, tied weights."""

from __future__ import annotations

from dataclasses import replace
from typing import cast, get_args

import pytest
import torch
from torch import Tensor, nn

from rnn_edge.manifest import Cell
from rnn_edge_export.language_model.modules import RecurrentLanguageModel, State
from rnn_edge_export.layers import parameter_count
from rnn_edge_export.recipe_sections import LanguageModelSection

CELLS: tuple[Cell, ...] = get_args(Cell)
_GATES = {"lstm": 4, "gru": 3, "rnn": 1}
_PLAIN = LanguageModelSection(embedding=5, hidden=8, layers=2, layer_dropout=0.0, output_dropout=0.0)


def _model(recipe: LanguageModelSection, vocabulary: int = 11, seed: int = 0) -> RecurrentLanguageModel:
    torch.manual_seed(seed)
    return RecurrentLanguageModel(recipe, vocabulary)


def _flat(state: State) -> list[Tensor]:
    return [tensor for layer in state for tensor in layer]


def _layers(model: RecurrentLanguageModel) -> list[nn.RNNBase]:
    return [cast(nn.RNNBase, layer) for layer in model.layers]


def test_the_forget_bias_is_one_and_other_biases_zero() -> None:
    for layer in _layers(_model(_PLAIN)):
        bias = dict(layer.named_parameters())["bias_ih_l0"] + dict(layer.named_parameters())["bias_hh_l0"]
        assert bias.tolist() == [0.0] * 8 + [1.0] * 8 + [0.0] * 16  # gates i, f, g, o
    # What it means: with all weights zero the cell keeps sigmoid(1) of its memory.
    layer = _layers(_model(_PLAIN))[0]
    for name, parameter in layer.named_parameters():
        if name.startswith("weight"):
            nn.init.zeros_(parameter)
    _, (_, c) = layer(torch.zeros(1, 1, 5), (torch.zeros(1, 1, 8), torch.ones(1, 1, 8)))
    assert torch.allclose(c, torch.tensor(1.0).sigmoid())


@pytest.mark.parametrize("cell", CELLS)
def test_each_recurrent_gate_is_orthogonal(cell: Cell) -> None:
    for layer in _layers(_model(replace(_PLAIN, cell=cell))):
        weight = dict(layer.named_parameters())["weight_hh_l0"].detach()
        gates = weight.split(8)
        assert len(gates) == _GATES[cell]
        for gate in gates:
            assert torch.allclose(gate @ gate.t(), torch.eye(8), atol=1e-5)
        assert len(gates) == 1 or not torch.allclose(gates[0], gates[1])


@pytest.mark.parametrize("cell", CELLS)
def test_two_windows_equal_one_long(cell: Cell) -> None:
    model = _model(replace(_PLAIN, cell=cell)).eval()
    tokens = torch.randint(11, (20, 3))
    whole, end = model(tokens, model.zero_state(3))
    first, state = model(tokens[:7], model.zero_state(3))
    second, state = model(tokens[7:], state)
    assert whole.shape == (20, 3, 11)
    assert torch.allclose(torch.cat([first, second]), whole, atol=1e-6)
    for mine, other in zip(_flat(state), _flat(end), strict=True):
        assert mine.shape == (3, 8)
        assert torch.allclose(mine, other, atol=1e-6)
    cold, _ = model(tokens[7:], model.zero_state(3))
    assert not torch.allclose(cold, second, atol=1e-3)  # the state matters


@pytest.mark.parametrize("cell", CELLS)
def test_layers_follow_the_equations(cell: Cell) -> None:
    """One step by hand, so that gate orders and the place of the reset are known and not assumed."""
    model = _model(replace(_PLAIN, cell=cell, layers=1)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    weights = {name: value.detach() for name, value in _layers(model)[0].named_parameters()}
    token, h, c = torch.tensor([[3, 9]]), torch.randn(2, 8), torch.randn(2, 8)
    x = model.embedding.weight[token[0]]
    inputs = (x @ weights["weight_ih_l0"].t() + weights["bias_ih_l0"]).chunk(_GATES[cell], dim=1)
    hiddens = (h @ weights["weight_hh_l0"].t() + weights["bias_hh_l0"]).chunk(_GATES[cell], dim=1)
    expected: tuple[Tensor, ...]
    if cell == "lstm":
        i, f, g, o = (a + b for a, b in zip(inputs, hiddens, strict=True))
        c_next = f.sigmoid() * c + i.sigmoid() * g.tanh()
        expected = (o.sigmoid() * c_next.tanh(), c_next)
    elif cell == "gru":
        r, z = (inputs[0] + hiddens[0]).sigmoid(), (inputs[1] + hiddens[1]).sigmoid()
        expected = ((1 - z) * (inputs[2] + r * hiddens[2]).tanh() + z * h,)
    else:
        expected = ((inputs[0] + hiddens[0]).tanh(),)
    logits, state = model(token, [(h, c) if cell == "lstm" else (h,)])
    for mine, other in zip(state[0], expected, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)
    assert torch.allclose(logits[0], expected[0] @ model.output.weight.t() + model.output.bias, atol=1e-6)


def test_state_names_are_in_flat_order() -> None:
    assert _model(_PLAIN).state_names() == ["h0", "c0", "h1", "c1"]
    assert _model(replace(_PLAIN, cell="gru", layers=3)).state_names() == ["h0", "h1", "h2"]


@pytest.mark.parametrize("cell", CELLS)
def test_weight_drop_reaches_the_kernel_and_its_gradient_the_raw_weights(cell: Cell) -> None:
    model = _model(replace(_PLAIN, cell=cell, layers=1, weight_drop=0.5)).train()
    raw = dict(_layers(model)[0].named_parameters())["weight_hh_l0"]
    before = raw.detach().clone()
    tokens = torch.randint(11, (6, 2))

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        logits, _ = model(tokens, model.zero_state(2))
        return cast(Tensor, logits)

    one, same, other = run(1), run(1), run(2)
    assert torch.equal(one, same)
    assert torch.allclose(one[0], other[0], atol=1e-6)  # from a zero state no recurrent weight counts yet
    assert not torch.allclose(one[1:], other[1:], atol=1e-4)

    # By hand: the same mask on the matrix, scaled, and the layer as it is.
    torch.manual_seed(1)
    dropped = torch.nn.functional.dropout(raw.detach(), 0.5)
    plain = _model(replace(_PLAIN, cell=cell, layers=1)).eval()
    plain.load_state_dict(model.state_dict())
    dict(_layers(plain)[0].named_parameters())["weight_hh_l0"].data.copy_(dropped)
    assert torch.allclose(plain(tokens, plain.zero_state(2))[0], one, atol=1e-6)

    one.square().sum().backward()
    assert raw.grad is not None
    assert torch.equal(raw.grad == 0, dropped == 0)  # what was dropped learns nothing, the rest does
    assert torch.equal(raw.detach(), before)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]


@pytest.mark.parametrize("kind", ["input_dropout", "layer_dropout", "output_dropout", "weight_drop"])
def test_every_dropout_acts_in_training_alone(kind: str) -> None:
    model = _model(replace(_PLAIN, **{kind: 0.5}))  # type: ignore[arg-type]
    tokens = torch.randint(11, (5, 2))
    one, other = (model.train()(tokens, model.zero_state(2))[0] for _ in range(2))
    assert not torch.allclose(one, other, atol=1e-4)
    one, other = (model.eval()(tokens, model.zero_state(2))[0] for _ in range(2))
    assert torch.equal(one, other)
    plain = _model(_PLAIN).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(one, plain(tokens, plain.zero_state(2))[0])


def test_tied_weights_are_one_matrix_and_count_once() -> None:
    recipe = LanguageModelSection(embedding=8, hidden=8, layers=1, tie_weights=True)
    tied, free = _model(recipe), _model(replace(recipe, tie_weights=False))
    assert tied.output.weight is tied.embedding.weight
    assert parameter_count(free) - parameter_count(tied) == 11 * 8
    assert parameter_count(tied) == 11 * 8 + 4 * 8 * (8 + 8 + 2) + 11
    names = [name for name, _ in tied.named_parameters()]
    assert ("embedding.weight" in names) != ("output.weight" in names)
    logits, _ = tied.eval()(torch.tensor([[1]]), tied.zero_state(1))
    logits.sum().backward()
    gradient = tied.embedding.weight.grad
    assert gradient is not None
    assert (gradient[[0, 2, 3]] != 0).any()  # rows that were not read learn as the output layer


@pytest.mark.parametrize("cell", CELLS)
def test_parameter_count_by_hand(cell: Cell) -> None:
    gates = _GATES[cell]
    layers = gates * 8 * (5 + 8 + 2) + gates * 8 * (8 + 8 + 2)
    assert parameter_count(_model(replace(_PLAIN, cell=cell))) == 11 * 5 + layers + 8 * 11 + 11


def test_locked_dropout_has_one_mask_for_all_steps() -> None:
    ones = torch.ones(20, 2, 8)
    for locked in (True, False):
        model = _model(replace(_PLAIN, locked_dropout=locked)).train()
        torch.manual_seed(0)
        dropped = model._drop(ones, 0.5)
        assert set(dropped.unique().tolist()) == {0.0, 2.0}
        assert bool((dropped == dropped[0]).all()) is locked
        assert not torch.equal(dropped[0, 0], dropped[0, 1])  # every stream has its own
        assert torch.equal(model.eval()._drop(ones, 0.5), ones)
