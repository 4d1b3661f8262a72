"""One time step as a module with flat state inputs and outputs, in both lowerings.

Symbols in shape comments: B streams, V vocabulary, E embedding, D input of a layer, H hidden, G gates per cell.
Weights are folded, reordered and transposed here, once, so that the graph holds nothing but the step.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rnn_edge.manifest import Cell, Lowering
from rnn_edge_export.modules import RecurrentLanguageModel

# PyTorch's gate order → ONNX's: LSTM i, f, g, o → i, o, f, c; GRU r, z, n → z, r, h.
_ONNX_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}

# What each lowering may use, all of the standard domain: onnx.checker accepts unknown operators of other domains.
ALLOWED_OPERATORS: dict[Lowering, frozenset[str]] = {
    "operator": frozenset({"Gather", "Unsqueeze", "Squeeze", "LSTM", "GRU", "RNN", "MatMul", "Add"}),
    "cell": frozenset({"Gather", "Concat", "MatMul", "Add", "Sub", "Mul", "Sigmoid", "Tanh", "Split"}),
}


def make_step(model: RecurrentLanguageModel, lowering: Lowering) -> "Step":
    """The step of a trained model."""
    layers = [_LAYERS[lowering, model.recipe.cell](cast(nn.RNNBase, layer)) for layer in model.layers]
    return Step(model, layers)


class Step(nn.Module):
    """token int64 [B], state tensors [B, H] in flat order → logits [B, V], next state in the same order."""

    def __init__(self, model: RecurrentLanguageModel, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.tensors_per_layer = len(model.state_names()) // len(layers)
        self.embedding = nn.Buffer(model.embedding.weight.detach().clone())  # [V, E]
        # x @ W + b rather than a linear layer: Gemm is not what the quantisers look for.
        self.output_weight = nn.Buffer(model.output.weight.detach().t().contiguous())  # [H, V]
        self.output_bias = nn.Buffer(model.output.bias.detach().clone())

    def forward(self, token: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        x = torch.nn.functional.embedding(token, self.embedding)  # [B, E]
        next_state: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            start = index * self.tensors_per_layer
            new = layer(x, *state[start : start + self.tensors_per_layer])
            x = new[0]  # [B, H]
            next_state.extend(new)
        return x @ self.output_weight + self.output_bias, *next_state


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
        order = _ONNX_GATES[layer.mode.split("_")[0].lower()]
        weights = {name: parameter.detach() for name, parameter in layer.named_parameters()}
        self.w = nn.Buffer(_reorder(weights["weight_ih_l0"], order).unsqueeze(0))  # [1, G·H, D]
        self.r = nn.Buffer(_reorder(weights["weight_hh_l0"], order).unsqueeze(0))  # [1, G·H, H]
        biases = [_reorder(weights[name], order) for name in ("bias_ih_l0", "bias_hh_l0")]
        self.b = nn.Buffer(torch.cat(biases).unsqueeze(0))  # [1, 2·G·H]

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


_LAYERS: dict[tuple[Lowering, Cell], Callable[[nn.RNNBase], nn.Module]] = {
    ("operator", "lstm"): OperatorLSTM,
    ("operator", "gru"): OperatorGRU,
    ("operator", "rnn"): OperatorRNN,
    ("cell", "lstm"): CellLSTM,
    ("cell", "gru"): CellGRU,
    ("cell", "rnn"): CellRNN,
}


def _reorder(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """Reorder the gates along the first axis."""
    gates = tensor.chunk(len(order))
    return torch.cat([gates[index] for index in order])
