"""The network as PyTorch modules of one step, for PyTorch itself and for everything that converts from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.peers.network import Layer, Network


class CellStep(nn.Module):
    """The cell written out in linear layers: token [B], state [B, H]… → logits [B, V], next state in the same order."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.kinds = len(network.shape.kinds)
        self.embedding = nn.Embedding.from_pretrained(torch.from_numpy(network.embedding))
        kind = CellLSTM if network.shape.cell == "lstm" else CellGRU
        self.layers = nn.ModuleList([kind(layer) for layer in network.layers])
        self.output = _linear(torch.from_numpy(network.output), torch.from_numpy(network.bias))

    def forward(self, token: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        x = self.embedding(token)
        following: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            new = layer(x, *state[index * self.kinds : (index + 1) * self.kinds])
            x = new[0]
            following.extend(new)
        return self.output(x), *following


class CellLSTM(nn.Module):
    """All gates in one product."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        weight = torch.cat([torch.from_numpy(layer.w), torch.from_numpy(layer.u)], dim=1)
        self.gates = _linear(weight, torch.from_numpy(layer.b + layer.d))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = self.gates(torch.cat([x, h], dim=1)).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class CellGRU(nn.Module):
    """Two products: the reset gate acts on what the second one gives."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.input = _linear(torch.from_numpy(layer.w), torch.from_numpy(layer.b))
        self.hidden = _linear(torch.from_numpy(layer.u), torch.from_numpy(layer.d))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor]:
        input_r, input_z, input_n = self.input(x).chunk(3, dim=1)
        hidden_r, hidden_z, hidden_n = self.hidden(h).chunk(3, dim=1)
        z = (input_z + hidden_z).sigmoid()
        n = (input_n + (input_r + hidden_r).sigmoid() * hidden_n).tanh()
        return (n + z * (h - n),)


class ModuleStep(nn.Module):
    """``nn.LSTM`` or ``nn.GRU`` over a sequence of one step, as a tutorial has it; state h, c stacked [L, B, H]."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        shape, width = network.shape, network.embedding.shape[1]
        self.embedding = nn.Embedding.from_pretrained(torch.from_numpy(network.embedding))
        self.layers = {"lstm": nn.LSTM, "gru": nn.GRU}[shape.cell](width, shape.hidden, shape.layers)
        names = {"weight_ih": "w", "weight_hh": "u", "bias_ih": "b", "bias_hh": "d"}
        for index, layer in enumerate(network.layers):
            for name, ours in names.items():
                getattr(self.layers, f"{name}_l{index}").data = torch.from_numpy(getattr(layer, ours))
        self.layers.flatten_parameters()
        self.output = _linear(torch.from_numpy(network.output), torch.from_numpy(network.bias))

    def forward(self, token: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        x = self.embedding(token).unsqueeze(0)
        y, following = self.layers(x, state if len(state) == 2 else state[0])
        return self.output(y[0]), *(following if isinstance(following, tuple) else (following,))


def cell_example(network: Network, token: torch.dtype = torch.int64) -> tuple[Tensor, ...]:
    """Inputs of a ``CellStep`` at a zero state."""
    return torch.zeros(network.shape.batch, dtype=token), *map(torch.from_numpy, network.zero_state())


def module_example(network: Network) -> tuple[Tensor, ...]:
    """Inputs of a ``ModuleStep`` at a zero state."""
    shape = network.shape
    state = [torch.zeros(shape.layers, shape.batch, shape.hidden) for _ in shape.kinds]
    return torch.zeros(shape.batch, dtype=torch.int64), *state


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.data, linear.bias.data = weight, bias
    return linear
