"""The network: embedding → stacked LSTM, GRU or tanh RNN → output layer, with the state explicit.

Symbols in shape comments: T steps, B streams, V vocabulary, E embedding, H hidden, G gates per cell.
"""

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from rnn_edge.manifest import Cell
from rnn_edge_export.recipe import ModelRecipe

# One entry a layer: (h, c) for LSTM, (h,) otherwise, each [B, H].
State = list[tuple[Tensor, ...]]

_CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
STATE_KINDS: dict[Cell, tuple[str, ...]] = {"lstm": ("h", "c"), "gru": ("h",), "rnn": ("h",)}


class RecurrentLanguageModel(nn.Module):
    """A language model that carries its state from call to call.

    Layers are separate one-layer modules, so that each is a fused kernel and dropout stands between them.
    """

    def __init__(self, recipe: ModelRecipe, vocabulary_size: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.embedding = nn.Embedding(vocabulary_size, recipe.embedding)
        widths = [recipe.embedding] + [recipe.hidden] * (recipe.layers - 1)
        self.layers = nn.ModuleList(_CELLS[recipe.cell](width, recipe.hidden) for width in widths)
        self.output = nn.Linear(recipe.hidden, vocabulary_size)
        self._initialise()
        if recipe.tie_weights:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Run T steps. tokens int64 [T, B]; state as ``zero_state`` makes it → logits [T, B, V], next state."""
        recipe = self.recipe
        x = self._drop(self.embedding(tokens), recipe.input_dropout)  # [T, B, E]
        next_state: State = []
        for index, (layer, old) in enumerate(zip(self.layers, state, strict=True)):
            x, new = self._run_layer(layer, x, old)  # [T, B, H]
            next_state.append(new)
            last = index == len(self.layers) - 1
            x = self._drop(x, recipe.output_dropout if last else recipe.layer_dropout)
        return self.output(x), next_state

    def zero_state(self, batch: int) -> State:
        """Zeros for B streams."""
        zeros = self.output.weight.new_zeros(batch, self.recipe.hidden)
        return [tuple(zeros for _ in STATE_KINDS[self.recipe.cell]) for _ in self.layers]

    def state_names(self) -> list[str]:
        """Names of the state tensors in flat order: h0, c0, h1, c1, …"""
        return [f"{kind}{index}" for index in range(len(self.layers)) for kind in STATE_KINDS[self.recipe.cell]]

    def _drop(self, x: Tensor, chance: float) -> Tensor:
        """Dropout on x [T, B, width], with one mask for all T steps or one for each."""
        if not self.training or chance == 0 or not self.recipe.locked_dropout:
            return F.dropout(x, chance, self.training)
        return x * F.dropout(x.new_ones(1, *x.shape[1:]), chance)

    def _run_layer(self, layer: nn.Module, x: Tensor, old: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        weights = {}
        if self.training and self.recipe.weight_drop > 0:
            # One mask a window, on the hidden-to-hidden matrix only: the fused kernel sees plain weights.
            raw: Tensor = layer.weight_hh_l0  # type: ignore[assignment]
            weights["weight_hh_l0"] = F.dropout(raw, self.recipe.weight_drop)
        stacked = tuple(tensor.unsqueeze(0) for tensor in old)  # the fused kernels want [1, B, H]
        y, new = functional_call(layer, weights, (x, stacked if len(stacked) == 2 else stacked[0]))
        return y, tuple(tensor.squeeze(0) for tensor in (new if isinstance(new, tuple) else (new,)))

    def _initialise(self) -> None:
        # Unit inputs learn far faster than small ones; a tied matrix is also the output layer and starts small.
        std = self.recipe.embedding**-0.5 if self.recipe.tie_weights else 1.0
        nn.init.normal_(self.embedding.weight, std=std)
        nn.init.zeros_(self.output.bias)
        for layer in self.layers:
            for name, parameter in layer.named_parameters():
                if name.startswith("weight_hh"):
                    for gate in parameter.data.split(self.recipe.hidden):
                        nn.init.orthogonal_(gate)
                elif name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(parameter)
                else:
                    nn.init.zeros_(parameter)
            if self.recipe.cell == "lstm":
                # Forget bias 1 (Gers et al. 2000; Jozefowicz et al. 2015). PyTorch orders gates i, f, g, o.
                bias: Tensor = layer.bias_ih_l0  # type: ignore[assignment]
                nn.init.ones_(bias.data[self.recipe.hidden : 2 * self.recipe.hidden])


def detach(state: State) -> State:
    """Cut the graph between two windows: truncated back-propagation through time (Williams & Peng 1990)."""
    return [tuple(tensor.detach() for tensor in layer) for layer in state]


def parameter_count(model: nn.Module) -> int:
    """Number of distinct parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
