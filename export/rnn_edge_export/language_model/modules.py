"""The network: embedding → stacked LSTM, GRU or tanh RNN → output layer, with the state explicit.

Symbols in shape comments: T steps, B streams, V vocabulary, E embedding, H hidden, G gates per cell.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from rnn_edge_export import layers
from rnn_edge_export.embedding import Embedding
from rnn_edge_export.layers import STATE_KINDS, LayerState
from rnn_edge_export.recipe_sections import LanguageModelSection

State = list[LayerState]


class RecurrentLanguageModel(nn.Module):
    """A language model that carries its state from call to call."""

    def __init__(self, recipe: LanguageModelSection, vocabulary_size: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.embedding = Embedding(vocabulary_size, recipe.embedding, recipe.vector_width)
        new = partial(layers.NormalisedLayer, recipe.cell) if recipe.layer_norm else layers.CELLS[recipe.cell]
        stack = [new(below, width) for below, width in pairwise([recipe.embedding, *recipe.widths])]
        self.layers = nn.ModuleList(stack)
        last = recipe.widths[-1]
        self.output = nn.Linear(recipe.embedding if recipe.tie_weights else last, vocabulary_size)
        project = recipe.tie_weights and last != recipe.embedding
        self.projection = nn.Linear(last, recipe.embedding, bias=False) if project else None
        # Unit inputs learn far faster than small ones; a tied matrix is also the output layer and starts small.
        self.embedding.initialise(recipe.embedding**-0.5 if recipe.tie_weights else 1.0)
        nn.init.zeros_(self.output.bias)
        for layer in stack:  # after all else: a seed draws what it drew for the models that are published
            layers.initialise(layer, recipe.cell)
        if recipe.tie_weights:
            self.output.weight = self.embedding.weight  # of its own width: ``back`` stands before it

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Run T steps. tokens int64 [T, B]; state as ``zero_state`` makes it → logits [T, B, V], next state."""
        found = self.features(tokens, state)
        return self.logits(found.dropped), found.state

    def features(self, tokens: Tensor, state: State) -> "Features":
        """What the last recurrent layer gives for T steps, as ``forward`` takes them."""
        recipe = self.recipe
        x = layers.drop_rows(self.embedding(tokens), tokens, self.embedding, recipe.embedding_dropout)
        x = self._drop(x, recipe.input_dropout)  # [T, B, E]
        raw, next_state = x, []
        for index, (layer, old) in enumerate(zip(self.layers, state, strict=True)):
            recurrent = layers.dropped_weight(layer, recipe.weight_drop)
            raw, new = layers.run_layer(layer, x, old, recurrent)  # [T, B, H]
            next_state.append(new)
            if recipe.adds_input(index):
                raw = raw + x
            last = index == len(self.layers) - 1
            x = self._drop(raw, recipe.output_dropout if last else recipe.layer_dropout)
        return Features(raw, x, next_state)

    def logits(self, features: Tensor) -> Tensor:
        """[T, B, H] → [T, B, V]."""
        x = features if self.projection is None else self.projection(features)
        result: Tensor = self.output(self.embedding.back(x) if self.recipe.tie_weights else x)
        return result

    def output_matrix(self) -> Tensor:
        """The output layer's weights [V, E or H] on what the layers leave, whatever it is tied to."""
        return self.embedding.folded() if self.recipe.tie_weights else self.output.weight

    def zero_state(self, batch: int) -> State:
        """Zeros for B streams."""
        kinds = STATE_KINDS[self.recipe.cell]
        zeros = [self.output.weight.new_zeros(batch, width) for width in self.recipe.widths]
        return [tuple(zero for _ in kinds) for zero in zeros]

    def state_names(self) -> list[str]:
        """Names of the state tensors in flat order: h0, c0, h1, c1, …"""
        return layers.state_names(self.recipe.cell, self.recipe.layers)

    def state_widths(self) -> list[int]:
        """Their widths."""
        kinds = STATE_KINDS[self.recipe.cell]
        return [width for width in self.recipe.widths for _ in kinds]

    def _drop(self, x: Tensor, chance: float) -> Tensor:
        return layers.drop(x, chance, training=self.training, locked=self.recipe.locked_dropout)


@dataclass(frozen=True)
class Features:
    """Outputs of the last recurrent layer, each [T, B, H], before and after dropout, and the next state."""

    raw: Tensor
    dropped: Tensor
    state: State


def detach(state: State) -> State:
    """Cut the graph between two windows: truncated back-propagation through time (Williams & Peng 1990)."""
    return [tuple(tensor.detach() for tensor in layer) for layer in state]
