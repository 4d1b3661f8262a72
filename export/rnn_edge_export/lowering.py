"""How recurrent layers become ONNX: one step in both lowerings, and whole sequences in both directions.

Symbols in shape comments: B streams, S source steps, D input of a layer, H hidden, G gates per cell.
Weights are folded, reordered and transposed here, once, so that the graph holds nothing but the computation.
"""

import copy
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rnn_edge.errors import InvalidValueError
from rnn_edge.manifest import Cell, Lowering
from rnn_edge_export.layers import NormalisedLayer

# PyTorch's gate order → ONNX's: LSTM i, f, g, o → i, o, f, c; GRU r, z, n → z, r, h.
_ONNX_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}

# What each lowering may use, all of the standard domain: onnx.checker accepts unknown operators of other domains.
LAYER_OPERATORS: dict[Lowering, frozenset[str]] = {
    "operator": frozenset({"Unsqueeze", "Squeeze", "LSTM", "GRU", "RNN"}),
    "cell": frozenset({"Concat", "MatMul", "Add", "Sub", "Mul", "Sigmoid", "Tanh", "Split", "LayerNormalization"}),
}


def lower(layer: nn.Module, lowering: Lowering, cell: Cell) -> nn.Module:
    """A trained layer as a module of one step: x [B, D], state [B, H]… → next state, whose first tensor is h.

    Raises:
        InvalidValueError: no operator computes this layer.
    """
    if isinstance(layer, NormalisedLayer):
        if lowering != "cell":
            raise InvalidValueError(
                "the standard operators have no layer normalisation inside", "export with --lowering cell"
            )
        return CellNormalised(layer)
    return _LAYERS[lowering, cell](cast(nn.RNNBase, layer))


class OperatorLayer(nn.Module):
    """A layer as the standard LSTM, GRU or RNN operator over a sequence of one step.

    Eager mode cannot run the operator: only the exported graph computes.
    """

    operator: str
    states: int
    attributes: dict[str, int]

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.hidden = layer.hidden_size
        w, r, b = onnx_weights(layer)
        self.w, self.r, self.b = (nn.Buffer(tensor.unsqueeze(0)) for tensor in (w, r, b))

    def forward(self, x: Tensor, *state: Tensor) -> list[Tensor]:
        batch = x.shape[0]
        final = [1, batch, self.hidden]
        _, *new = torch.onnx.ops.symbolic_multi_out(
            self.operator,
            [x.unsqueeze(0), self.w, self.r, self.b, None, *(tensor.unsqueeze(0) for tensor in state)],
            attrs={"hidden_size": self.hidden, **self.attributes},
            dtypes=[x.dtype] * (1 + self.states),
            shapes=[[1, 1, batch, self.hidden], *[final] * self.states],
            version=14,
        )
        return [tensor.squeeze(0) for tensor in new]


class BidirectionalLayer(nn.Module):
    """A pair of layers as one LSTM or GRU operator over a padded batch of sequences, read from both ends."""

    def __init__(self, forward: nn.RNNBase, backward: nn.RNNBase, cell: Cell) -> None:
        super().__init__()
        self.hidden = forward.hidden_size
        kind = _OPERATORS[cell]
        self.operator, self.states, self.attributes = kind.operator, kind.states, kind.attributes
        pairs = zip(onnx_weights(forward), onnx_weights(backward), strict=True)
        self.w, self.r, self.b = (nn.Buffer(torch.stack(pair)) for pair in pairs)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x [S, B, D], lengths int32 [B] → y [S, B, 2·H], final h of both directions [B, 2·H]."""
        steps, batch, _ = x.shape
        final = [2, batch, self.hidden]
        y, h, *_ = torch.onnx.ops.symbolic_multi_out(
            self.operator,
            [x, self.w, self.r, self.b, lengths],
            attrs={"hidden_size": self.hidden, "direction": "bidirectional", **self.attributes},
            dtypes=[x.dtype] * (1 + self.states),
            shapes=[[steps, 2, batch, self.hidden], *[final] * self.states],
            version=14,
        )
        ahead, behind = y.split(1, dim=1)
        last, first = h.split(1, dim=0)
        both = torch.cat([ahead.squeeze(1), behind.squeeze(1)], dim=2)
        return both, torch.cat([last.squeeze(0), first.squeeze(0)], dim=1)


class OperatorLSTM(OperatorLayer):
    operator, states, attributes = "LSTM", 2, {}


class OperatorGRU(OperatorLayer):
    # PyTorch resets after the hidden product (Cho et al. 2014 before it).
    operator, states, attributes = "GRU", 1, {"linear_before_reset": 1}


class OperatorRNN(OperatorLayer):
    operator, states, attributes = "RNN", 1, {}


class CellLSTM(nn.Module):
    """LSTM (Hochreiter & Schmidhuber 1997; forget gate of Gers et al. 2000) as one product and element-wise operators.

    Gates stand in the order i, f, o, g, so that one Sigmoid serves three of them.
    """

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        order = (0, 1, 3, 2)  # PyTorch has i, f, g, o
        self.hidden = layer.hidden_size
        weights = {name: _reorder(parameter.detach(), order) for name, parameter in layer.named_parameters()}
        stacked = torch.cat([weights["weight_ih_l0"], weights["weight_hh_l0"]], dim=1)
        self.weight = nn.Buffer(stacked.t().contiguous())  # [D + H, 4·H]
        self.bias = nn.Buffer(weights["bias_ih_l0"] + weights["bias_hh_l0"])

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = torch.cat([x, h], dim=1) @ self.weight + self.bias  # [B, 4·H]
        sigmoids, candidate = gates.split([3 * self.hidden, self.hidden], dim=1)
        i, f, o = sigmoids.sigmoid().split(self.hidden, dim=1)
        c = f * c + i * candidate.tanh()
        return o * c.tanh(), c


class CellGRU(nn.Module):
    """GRU (Cho et al. 2014) with the reset after the hidden product, as PyTorch and cuDNN have it.

    h' = n + z · (h − n), with n = tanh(W x + b + r · (U h + d)).
    """

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.hidden = layer.hidden_size
        weights = {name: parameter.detach() for name, parameter in layer.named_parameters()}
        self.input_weight = nn.Buffer(weights["weight_ih_l0"].t().contiguous())  # [D, 3·H], gates r, z, n
        self.hidden_weight = nn.Buffer(weights["weight_hh_l0"].t().contiguous())  # [H, 3·H]
        self.input_bias = nn.Buffer(weights["bias_ih_l0"].clone())
        self.hidden_bias = nn.Buffer(weights["bias_hh_l0"].clone())

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor]:
        widths = [2 * self.hidden, self.hidden]
        input_gates, input_candidate = (x @ self.input_weight + self.input_bias).split(widths, dim=1)
        hidden_gates, hidden_candidate = (h @ self.hidden_weight + self.hidden_bias).split(widths, dim=1)
        r, z = (input_gates + hidden_gates).sigmoid().split(self.hidden, dim=1)
        n = (input_candidate + r * hidden_candidate).tanh()
        return (n + z * (h - n),)


class CellRNN(nn.Module):
    """The plain recurrent network of Elman (1990): h' = tanh(W x + U h + b)."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        weights = {name: parameter.detach() for name, parameter in layer.named_parameters()}
        stacked = torch.cat([weights["weight_ih_l0"], weights["weight_hh_l0"]], dim=1)
        self.weight = nn.Buffer(stacked.t().contiguous())  # [D + H, H]
        self.bias = nn.Buffer(weights["bias_ih_l0"] + weights["bias_hh_l0"])

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor]:
        return ((torch.cat([x, h], dim=1) @ self.weight + self.bias).tanh(),)


class CellNormalised(nn.Module):
    """A layer with normalisation inside its cell, for one step."""

    def __init__(self, layer: NormalisedLayer) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).requires_grad_(False)
        self.input_weight = nn.Buffer(layer.weight_ih_l0.detach().t().contiguous())  # [D, G·H]
        self.hidden_weight = nn.Buffer(layer.weight_hh_l0.detach().t().contiguous())  # [H, G·H]

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        inputs = x @ self.input_weight
        if self.layer.hidden_norm is not None:
            inputs = self.layer.input_norm(inputs)
        return self.layer.step(inputs, state[0] @ self.hidden_weight, state)


_LAYERS: dict[tuple[Lowering, Cell], Callable[[nn.RNNBase], nn.Module]] = {
    ("operator", "lstm"): OperatorLSTM,
    ("operator", "gru"): OperatorGRU,
    ("operator", "rnn"): OperatorRNN,
    ("cell", "lstm"): CellLSTM,
    ("cell", "gru"): CellGRU,
    ("cell", "rnn"): CellRNN,
}


_OPERATORS: dict[Cell, type[OperatorLayer]] = {"lstm": OperatorLSTM, "gru": OperatorGRU, "rnn": OperatorRNN}


def onnx_weights(layer: nn.RNNBase) -> tuple[Tensor, Tensor, Tensor]:
    """Weights in the operators' gate order: W [G·H, D], R [G·H, H], B [2·G·H]."""
    order = _ONNX_GATES[layer.mode.split("_")[0].lower()]
    weights = {name: _reorder(parameter.detach(), order) for name, parameter in layer.named_parameters()}
    biases = torch.cat([weights["bias_ih_l0"], weights["bias_hh_l0"]])
    return weights["weight_ih_l0"], weights["weight_hh_l0"], biases


def _reorder(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """Reorder the gates along the first axis."""
    gates = tensor.chunk(len(order))
    return torch.cat([gates[index] for index in order])
