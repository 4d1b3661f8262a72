"""The network: embedding → stacked LSTM, GRU or tanh RNN → output layer, with the state explicit.

Symbols in shape comments: T steps, B streams, V vocabulary, E embedding, H hidden, G gates per cell.
"""

from torch import Tensor, nn

from rnn_edge_export import layers
from rnn_edge_export.embedding import Embedding
from rnn_edge_export.layers import STATE_KINDS, LayerState
from rnn_edge_export.recipe import LanguageModelSection

State = list[LayerState]


class RecurrentLanguageModel(nn.Module):
    """A language model that carries its state from call to call."""

    def __init__(self, recipe: LanguageModelSection, vocabulary_size: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.embedding = Embedding(vocabulary_size, recipe.embedding, recipe.vector_width)
        widths = [recipe.embedding] + [recipe.hidden] * (recipe.layers - 1)
        stack = [layers.CELLS[recipe.cell](width, recipe.hidden) for width in widths]
        self.layers = nn.ModuleList(stack)
        self.output = nn.Linear(recipe.hidden, vocabulary_size)
        # Unit inputs learn far faster than small ones; a tied matrix is also the output layer and starts small.
        self.embedding.initialise(recipe.embedding**-0.5 if recipe.tie_weights else 1.0)
        nn.init.zeros_(self.output.bias)
        for layer in stack:  # after all else: a seed draws what it drew for the models that are published
            layers.initialise(layer, recipe.cell)
        if recipe.tie_weights:
            self.output.weight = self.embedding.weight  # of its own width: ``back`` stands before it

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Run T steps. tokens int64 [T, B]; state as ``zero_state`` makes it → logits [T, B, V], next state."""
        recipe = self.recipe
        x = self._drop(self.embedding(tokens), recipe.input_dropout)  # [T, B, E]
        next_state: State = []
        for index, (layer, old) in enumerate(zip(self.layers, state, strict=True)):
            x, new = layers.run_layer(layer, x, old, recipe.weight_drop)  # [T, B, H]
            next_state.append(new)
            last = index == len(self.layers) - 1
            x = self._drop(x, recipe.output_dropout if last else recipe.layer_dropout)
        return self.output(self.embedding.back(x) if recipe.tie_weights else x), next_state

    def output_matrix(self) -> Tensor:
        """The output layer's weights [V, H] on what the layers leave, whatever it is tied to."""
        return self.embedding.folded() if self.recipe.tie_weights else self.output.weight

    def zero_state(self, batch: int) -> State:
        """Zeros for B streams."""
        zeros = self.output.weight.new_zeros(batch, self.recipe.hidden)
        return [tuple(zeros for _ in STATE_KINDS[self.recipe.cell]) for _ in self.layers]

    def state_names(self) -> list[str]:
        """Names of the state tensors in flat order: h0, c0, h1, c1, …"""
        return layers.state_names(self.recipe.cell, self.recipe.layers)

    def state_widths(self) -> list[int]:
        """Their widths."""
        return [self.recipe.hidden] * len(self.state_names())

    def _drop(self, x: Tensor, chance: float) -> Tensor:
        return layers.drop(x, chance, training=self.training, locked=self.recipe.locked_dropout)


def detach(state: State) -> State:
    """Cut the graph between two windows: truncated back-propagation through time (Williams & Peng 1990)."""
    return [tuple(tensor.detach() for tensor in layer) for layer in state]
