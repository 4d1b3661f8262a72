"""A recurrent layer of any origin as plain weights, and those weights as one step in ONNX.

What PyTorch's own one-layer modules can hold goes the way of every other layer (``lowering.lower``). The rest has a
cell of its own here, of the ``cell`` lowering alone: the standard operators lack it, or runtimes lack it in them.

Symbols in shape comments: B streams, D input, H hidden, P output (H unless projected), G gates per cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rnn_edge.errors import InvalidValueError
from rnn_edge.manifest import Cell, Lowering
from rnn_edge_export.layers import CELLS
from rnn_edge_export.lowering import (
    LAYER_OPERATORS,
    OperatorGRU,
    OperatorLayer,
    OperatorLSTM,
    OperatorRNN,
    lower,
    onnx_weights,
)
from rnn_edge_export.onnx_export import DEFAULT_LOWERING

# What each lowering may use in a step of layers from elsewhere.
STEP_OPERATORS: dict[Lowering, frozenset[str]] = {
    "operator": LAYER_OPERATORS["operator"] | {"Gather", "MatMul", "Add"},
    "cell": LAYER_OPERATORS["cell"] | {"Gather", "Relu", "Clip"},
}

_OPERATORS: dict[Cell, type[OperatorLayer]] = {"lstm": OperatorLSTM, "gru": OperatorGRU, "rnn": OperatorRNN}


@dataclass(frozen=True)
class LayerWeights:
    """One layer: input [G·H, D], recurrent [G·H, P], biases [G·H], gates as PyTorch has them (i, f, g, o; r, z, n)."""

    cell: Cell
    input: Tensor
    recurrent: Tensor
    input_bias: Tensor
    recurrent_bias: Tensor
    projection: Tensor | None = None  # [P, H], of an LSTM whose h is another width than its c (Sak et al. 2014)
    relu: bool = False  # of a plain RNN, instead of tanh
    reset_before: bool = False  # of a GRU: the reset gate acts on h, not on its product (Cho et al. 2014)
    hard_slope: float = 0.0  # of gates that are clip(slope · x + ½) to [0, 1] instead of sigmoids

    @property
    def width(self) -> int:
        """D."""
        return self.input.shape[1]

    @property
    def output(self) -> int:
        """P."""
        return self.recurrent.shape[1]

    @property
    def hidden(self) -> int:
        """H."""
        return self.input.shape[0] // {"lstm": 4, "gru": 3, "rnn": 1}[self.cell]

    @property
    def state_widths(self) -> list[int]:
        """Of h, and of an LSTM's c."""
        return [self.output, self.hidden] if self.cell == "lstm" else [self.output]

    @property
    def peculiarity(self) -> str:
        """What the standard operators do not express, empty if they express it all."""
        found = {
            "a projection": self.projection is not None,
            "ReLU for its nonlinearity": self.relu,
            "a reset gate before the product": self.reset_before,
            "hard sigmoids for its gates": self.hard_slope,
        }
        return " and ".join(name for name, there in found.items() if there)


def choose_lowering(layers: Sequence[LayerWeights], asked: Lowering | None) -> Lowering:
    """The lowering asked for; without one the default, or ``cell`` where a layer needs it.

    Raises:
        InvalidValueError: unknown, or ``operator`` cannot express a layer.
    """
    if asked not in ("operator", "cell", None):
        raise InvalidValueError(f"lowering {asked!r} is unknown", "use operator or cell, or leave it out")
    peculiar = [(index, layer.peculiarity) for index, layer in enumerate(layers) if layer.peculiarity]
    if peculiar and asked == "operator":
        index, what = peculiar[0]
        raise InvalidValueError(
            f"layer {index} has {what}, which the operator lowering lacks", "use the cell lowering, or leave it out"
        )
    return asked or ("cell" if peculiar else DEFAULT_LOWERING)


def lower_weights(weights: LayerWeights, lowering: Lowering) -> nn.Module:
    """One step: x [B, D], state… → next state, whose first tensor is h."""
    if weights.peculiarity:
        return _VARIANTS[weights.cell](weights)
    return lower(_module(weights), lowering, weights.cell)


def _module(weights: LayerWeights) -> nn.RNNBase:
    """PyTorch's module of one layer with these weights."""
    module = CELLS[weights.cell](weights.width, weights.hidden)
    tensors = (weights.input, weights.recurrent, weights.input_bias, weights.recurrent_bias)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    module.load_state_dict(dict(zip(names, tensors, strict=True)))
    return module.requires_grad_(False)


class SequenceLayer(nn.Module):
    """A layer over a padded batch of sequences as the standard operator, in one direction or both."""

    def __init__(self, directions: Sequence[LayerWeights]) -> None:
        super().__init__()
        first = directions[0]
        if first.projection is not None:
            raise InvalidValueError(
                "the encoder has a projection, which no operator over a sequence has",
                "train it with proj_size=0; the decoder may have one",
            )
        kind = _OPERATORS[first.cell]
        self.hidden, self.operator, self.states = first.hidden, kind.operator, kind.states
        self.attributes: dict[str, Any] = {"hidden_size": first.hidden, **kind.attributes}
        self.attributes["direction"] = "bidirectional" if len(directions) == 2 else "forward"
        if first.relu:
            self.attributes["activations"] = ["Relu"] * len(directions)
        self.count = len(directions)
        parts = zip(*(onnx_weights(_module(weights)) for weights in directions), strict=True)
        self.w, self.r, self.b = (nn.Buffer(torch.stack(part)) for part in parts)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x [S, B, D], lengths int32 [B] → y [S, B, directions · H], final h (and c) [directions, B, H]."""
        steps, batch, _ = x.shape
        final = [self.count, batch, self.hidden]
        y, *new = torch.onnx.ops.symbolic_multi_out(
            self.operator,
            [x, self.w, self.r, self.b, lengths],
            attrs=self.attributes,
            dtypes=[x.dtype] * (1 + self.states),
            shapes=[[steps, self.count, batch, self.hidden], *[final] * self.states],
            version=14,
        )
        return torch.cat([part.squeeze(1) for part in y.split(1, dim=1)], dim=2), list(new)


class _Variant(nn.Module):
    def __init__(self, weights: LayerWeights) -> None:
        super().__init__()
        self.hidden, self.slope = weights.hidden, weights.hard_slope

    def _gate(self, x: Tensor) -> Tensor:
        return (x * self.slope + 0.5).clamp(0, 1) if self.slope else x.sigmoid()


class _LSTM(_Variant):
    """LSTM; with a projection h = W (o · tanh(c)). Gates stand in the order i, f, o, g, as in ``CellLSTM``."""

    def __init__(self, weights: LayerWeights) -> None:
        super().__init__(weights)
        i, f, g, o = torch.cat([weights.input, weights.recurrent], dim=1).chunk(4)
        self.weight = nn.Buffer(torch.cat([i, f, o, g]).t().contiguous())  # [D + P, 4·H]
        i, f, g, o = (weights.input_bias + weights.recurrent_bias).chunk(4)
        self.bias = nn.Buffer(torch.cat([i, f, o, g]))
        self.projection = None if weights.projection is None else nn.Buffer(weights.projection.t().contiguous())

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = torch.cat([x, h], dim=1) @ self.weight + self.bias  # [B, 4·H]
        three, candidate = gates.split([3 * self.hidden, self.hidden], dim=1)
        i, f, o = self._gate(three).split(self.hidden, dim=1)
        c = f * c + i * candidate.tanh()
        y = o * c.tanh()
        return (y if self.projection is None else y @ self.projection), c


class _GRU(_Variant):
    """GRU with the reset on either side of the product: n = tanh(W x + b + U (r · h) + d) where it is before."""

    def __init__(self, weights: LayerWeights) -> None:
        super().__init__(weights)
        self.before = weights.reset_before
        self.input_weight = nn.Buffer(weights.input.t().contiguous())  # [D, 3·H], gates r, z, n
        gates, candidate = weights.recurrent.split([2 * self.hidden, self.hidden])
        self.gate_weight = nn.Buffer(gates.t().contiguous())  # [H, 2·H]
        self.candidate_weight = nn.Buffer(candidate.t().contiguous())  # [H, H]
        self.input_bias = nn.Buffer(weights.input_bias.clone())
        gates, candidate = weights.recurrent_bias.split([2 * self.hidden, self.hidden])
        self.gate_bias, self.candidate_bias = nn.Buffer(gates.clone()), nn.Buffer(candidate.clone())

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor]:
        widths = [2 * self.hidden, self.hidden]
        gates, candidate = (x @ self.input_weight + self.input_bias).split(widths, dim=1)
        r, z = self._gate(gates + (h @ self.gate_weight + self.gate_bias)).split(self.hidden, dim=1)
        if self.before:
            own = (r * h) @ self.candidate_weight + self.candidate_bias
        else:
            own = r * (h @ self.candidate_weight + self.candidate_bias)
        n = (candidate + own).tanh()
        return (n + z * (h - n),)


class _RNN(_Variant):
    """h' = relu(W x + U h + b)."""

    def __init__(self, weights: LayerWeights) -> None:
        super().__init__(weights)
        self.weight = nn.Buffer(torch.cat([weights.input, weights.recurrent], dim=1).t().contiguous())  # [D + H, H]
        self.bias = nn.Buffer(weights.input_bias + weights.recurrent_bias)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor]:
        return ((torch.cat([x, h], dim=1) @ self.weight + self.bias).relu(),)


_VARIANTS: dict[Cell, type[_Variant]] = {"lstm": _LSTM, "gru": _GRU, "rnn": _RNN}
