"""One time step of a language model as a module with flat state inputs and outputs.

Symbols in shape comments: B streams, V vocabulary, E embedding, H hidden.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rnn_edge.manifest import Lowering
from rnn_edge_export.language_model.modules import RecurrentLanguageModel
from rnn_edge_export.lowering import LAYER_OPERATORS, lower

ALLOWED_OPERATORS = {
    lowering: operators | {"Gather", "MatMul", "Add"} for lowering, operators in LAYER_OPERATORS.items()
}


def make_step(model: RecurrentLanguageModel, lowering: Lowering) -> "Step":
    """The step of a trained model."""
    layers = [lower(layer, lowering, model.recipe.cell) for layer in model.layers]
    return Step(model, layers)


class Step(nn.Module):
    """token int64 [B], state tensors [B, H] in flat order → logits [B, V], next state in the same order."""

    def __init__(self, model: RecurrentLanguageModel, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.tensors_per_layer = len(model.state_names()) // len(layers)
        self.embedding = nn.Buffer(model.embedding.folded().detach().clone())  # [V, E]
        # x @ W + b rather than a linear layer: Gemm is not what the quantisers look for.
        self.output_weight = nn.Buffer(model.output_matrix().detach().t().contiguous())  # [H, V]
        self.output_bias = nn.Buffer(model.output.bias.detach().clone())
        projection = model.projection
        self.projection = None if projection is None else nn.Buffer(projection.weight.detach().t().contiguous())
        self.adds_input = [model.recipe.adds_input(index) for index in range(len(layers))]

    def forward(self, token: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        x = F.embedding(token, self.embedding)  # [B, E]
        next_state: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            start = index * self.tensors_per_layer
            new = layer(x, *state[start : start + self.tensors_per_layer])
            x = new[0] + x if self.adds_input[index] else new[0]  # [B, H]
            next_state.extend(new)
        if self.projection is not None:
            x = x @ self.projection  # [B, E]
        return x @ self.output_weight + self.output_bias, *next_state
