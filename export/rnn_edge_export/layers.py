"""What all recurrent networks here are made of: fused one-layer modules, dropout around them, and their first weights.

Layers are separate one-layer modules, so that each is a fused kernel and dropout stands between them.
Symbols in shape comments: T steps, B streams, H hidden.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from rnn_edge.manifest import Cell

# One layer's state: (h, c) for LSTM, (h,) otherwise, each [B, H].
LayerState = tuple[Tensor, ...]

CELLS: dict[Cell, Callable[[int, int], nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
STATE_KINDS: dict[Cell, tuple[str, ...]] = {"lstm": ("h", "c"), "gru": ("h",), "rnn": ("h",)}


def state_names(cell: Cell, layers: int) -> list[str]:
    """Names of the state tensors in flat order: h0, c0, h1, c1, …"""
    return [f"{kind}{index}" for index in range(layers) for kind in STATE_KINDS[cell]]


class NormalisedLayer(nn.Module):
    """A recurrent layer with layer normalisation inside its cell (Ba et al. 2016).

    With LN over all gates of a product at once, and a = LN(W x):

        LSTM  i, f, g, o = a + LN(U h);  c' = σ(f) c + σ(i) tanh(g);  h' = σ(o) tanh(LN(c'))
        GRU   r, z, n from a, u from LN(U h);  candidate = tanh(a_n + σ(r) u_n);  h' = candidate + σ(z) (h − candidate)
        RNN   h' = tanh(LN(W x + U h))

    No fused kernel computes it: the products with x are made for all steps at once, the rest step by step.
    """

    def __init__(self, cell: Cell, width: int, hidden: int) -> None:
        super().__init__()
        self.cell, self.hidden_size = cell, hidden
        rows = hidden * {"lstm": 4, "gru": 3, "rnn": 1}[cell]
        self.weight_ih_l0 = nn.Parameter(torch.empty(rows, width))
        self.weight_hh_l0 = nn.Parameter(torch.empty(rows, hidden))
        self.input_norm = nn.LayerNorm(rows)
        self.hidden_norm = nn.LayerNorm(rows, bias=cell == "gru") if cell != "rnn" else None
        self.cell_norm = nn.LayerNorm(hidden) if cell == "lstm" else None

    def forward(self, x: Tensor, state: LayerState | None, recurrent: Tensor) -> tuple[Tensor, LayerState]:
        """x [T, B, D], state (None for zeros), U [G·H, H] → y [T, B, H], next state."""
        inputs = F.linear(x, self.weight_ih_l0)  # [T, B, G·H]
        if self.hidden_norm is not None:
            inputs = self.input_norm(inputs)
        if state is None:
            state = tuple(x.new_zeros(x.shape[1], self.hidden_size) for _ in STATE_KINDS[self.cell])
        outputs = []
        for step in inputs:
            state = self.step(step, F.linear(state[0], recurrent), state)
            outputs.append(state[0])
        return torch.stack(outputs), state

    def step(self, inputs: Tensor, product: Tensor, state: LayerState) -> LayerState:
        """LN(W x) (of an RNN W x), U h, each [B, G·H], and the state → the next state."""
        if self.hidden_norm is None:
            return (self.input_norm(inputs + product).tanh(),)
        product = self.hidden_norm(product)
        if self.cell_norm is None:
            widths = [2 * self.hidden_size, self.hidden_size]
            gates, candidate = inputs.split(widths, dim=1)
            hidden_gates, hidden_candidate = product.split(widths, dim=1)
            r, z = (gates + hidden_gates).sigmoid().split(self.hidden_size, dim=1)
            n = (candidate + r * hidden_candidate).tanh()
            return (n + z * (state[0] - n),)
        i, f, g, o = (inputs + product).split(self.hidden_size, dim=1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.cell_norm(c).tanh(), c


RecurrentLayer = nn.RNNBase | NormalisedLayer


def new_layer(cell: Cell, width: int, hidden: int) -> nn.RNNBase:
    """One layer with orthogonal recurrent matrices, and forget gates that are open at first."""
    layer = CELLS[cell](width, hidden)
    initialise(layer, cell)
    return layer


def initialise(layer: RecurrentLayer, cell: Cell) -> None:
    """The first weights of ``new_layer``; what normalises has its own already."""
    hidden = layer.hidden_size
    for name, parameter in layer.named_parameters():
        if name.startswith("weight_hh"):
            for gate in parameter.data.split(hidden):
                nn.init.orthogonal_(gate)
        elif name.startswith("weight_ih"):
            nn.init.xavier_uniform_(parameter)
        elif name.startswith("bias"):
            nn.init.zeros_(parameter)
    if cell == "lstm":
        # Forget bias 1 (Gers et al. 2000; Jozefowicz et al. 2015). PyTorch orders gates i, f, g, o.
        bias = layer.input_norm.bias if isinstance(layer, NormalisedLayer) else layer.bias_ih_l0
        assert isinstance(bias, Tensor)
        nn.init.ones_(bias.data[hidden : 2 * hidden])


def dropped_weight(layer: nn.Module, chance: float) -> Tensor | None:
    """The hidden-to-hidden matrix with weight-drop (Merity et al. 2017), in training; None where it is as it is."""
    if not layer.training or chance == 0:
        return None
    return F.dropout(layer.get_parameter("weight_hh_l0"), chance)


def run_layer(
    layer: nn.Module, x: Tensor, state: LayerState | None, recurrent: Tensor | None = None
) -> tuple[Tensor, LayerState]:
    """x [T, B, width], state (None for zeros) → y [T, B, H], next state.

    ``recurrent`` stands in for the hidden-to-hidden matrix: the fused kernel sees plain weights.
    """
    weights = {} if recurrent is None else {"weight_hh_l0": recurrent}
    if isinstance(layer, NormalisedLayer):
        found: tuple[Tensor, LayerState] = layer(x, state, weights.get("weight_hh_l0", layer.weight_hh_l0))
        return found
    arguments: tuple[Tensor | tuple[Tensor, ...], ...] = (x,)
    if state is not None:
        stacked = tuple(tensor.unsqueeze(0) for tensor in state)  # the fused kernels want [1, B, H]
        arguments = (x, stacked if len(stacked) == 2 else stacked[0])
    with warnings.catch_warnings() if weights else nullcontext():
        if weights:  # that cuDNN copies the weights into one block at every call is what new ones at every call cost
            warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
        y, new = functional_call(layer, weights, arguments)
    return y, tuple(tensor.squeeze(0) for tensor in (new if isinstance(new, tuple) else (new,)))


def drop(
    x: Tensor, chance: float, *, training: bool, locked: bool, masks: dict[str, Tensor] | None = None, name: str = ""
) -> Tensor:
    """Dropout on x [T, B, width], with one mask for all T steps (Gal & Ghahramani 2016) or one for each.

    ``masks`` keeps the one for all under a ``name`` where the steps come one call after another.
    """
    if not training or chance == 0 or not locked:
        return F.dropout(x, chance, training)
    mask = F.dropout(x.new_ones(1, *x.shape[1:]), chance) if masks is None or name not in masks else masks[name]
    if masks is not None:
        masks[name] = mask
    return x * mask


def drop_tokens(x: Tensor, chance: float, *, training: bool) -> Tensor:
    """Word dropout on x [T, B, width]: whole tokens become zero, the others grow to make up for it."""
    if not training or chance == 0:
        return x
    return x * F.dropout(x.new_ones(*x.shape[:2], 1), chance)


def drop_rows(x: Tensor, tokens: Tensor, embedding: nn.Embedding, chance: float) -> Tensor:
    """Embedding dropout on x [T, B, E], the rows of ``tokens`` [T, B]: whole rows of the table are left out.

    One mask a call for the whole vocabulary, so that a token is gone wherever it occurs (Gal & Ghahramani 2016).
    """
    if not embedding.training or chance == 0:
        return x
    kept = F.dropout(x.new_ones(embedding.num_embeddings, 1), chance)
    return x * F.embedding(tokens, kept)


def reverse(x: Tensor, lengths: Tensor) -> Tensor:
    """Each column's first ``lengths`` [B] steps of x [T, B, width] in reverse order; padding stays where it is."""
    steps = torch.arange(len(x), device=x.device).unsqueeze(1)  # [T, 1]
    index = torch.where(steps < lengths, lengths - 1 - steps, steps)  # [T, B]
    return x.gather(0, index.unsqueeze(2).expand_as(x))


def parameter_count(model: nn.Module) -> int:
    """Number of distinct parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
