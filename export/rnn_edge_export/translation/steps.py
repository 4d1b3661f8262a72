"""Encoder, and one time step of the decoder, as modules with flat inputs and outputs.

Symbols in shape comments: B sentences, S source steps, V vocabulary, E embedding, H decoder, M memory, K keys.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_edge.manifest import Lowering
from rnn_edge_export.layers import STATE_KINDS
from rnn_edge_export.lowering import LAYER_OPERATORS, BidirectionalLayer, lower
from rnn_edge_export.translation.modules import BahdanauAttention, DotAttention, EncoderDecoder, GeneralAttention

_COMMON = frozenset({"Gather", "Mul", "MatMul", "Add", "Concat", "Tanh", "Squeeze", "Unsqueeze"})
ENCODER_OPERATORS = _COMMON | {
    *("Gemm", "Transpose", "Cast", "LSTM", "GRU", "Split", "Shape", "Expand", "Identity"),
    "ConstantOfShape",  # the first state of input feeding
}
DECODER_OPERATORS: dict[Lowering, frozenset[str]] = {
    lowering: _COMMON | {"Gemm", "Shape", "Range", "Less", "Where", "Softmax", "Cast"} | operators
    for lowering, operators in LAYER_OPERATORS.items()
}


class EncoderGraph(nn.Module):
    """source int64 [B, S], lengths int64 [B] → memory [B, S, M], keys [B, S, K], first state of the decoder.

    Without keys of their own (dot attention) memory stands alone.
    """

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model
        self.scale = model.recipe.embedding**0.5
        self.embedding = nn.Buffer(model.source_embedding.folded().detach().clone())
        self.layers = nn.ModuleList(
            BidirectionalLayer(forward, backward, model.recipe.cell) for forward, backward in model.encoder_pairs()
        )

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        x = F.embedding(source.t(), self.embedding) * self.scale  # [S, B, E]
        short = lengths.to(torch.int32)
        summary = x
        for layer in self.layers:
            x, summary = layer(x, short)
        values = x.transpose(0, 1)  # [B, S, M]
        attention = self.model.attention
        keys = [attention.keys(values)] if has_keys(self.model) else []
        return values, *keys, *self.model.first_state(summary)


class DecoderStep(nn.Module):
    """token int64 [B], memory, keys, lengths, state → logits [B, V], attention [B, S], next state."""

    def __init__(self, model: EncoderDecoder, lowering: Lowering) -> None:
        super().__init__()
        self.model = model
        self.feeding = model.recipe.input_feeding
        self.scale = model.recipe.embedding**0.5
        self.kinds = len(STATE_KINDS[model.recipe.cell])
        self.layers = nn.ModuleList(lower(layer, lowering, model.recipe.cell) for layer in model.decoder)
        self.embedding = nn.Buffer(model.target_embedding.folded().detach().clone())  # [V, E], also the output layer
        self.combine_weight = nn.Buffer(model.combine.weight.detach().t().contiguous())  # [H + M, E]
        self.combine_bias = nn.Buffer(model.combine.bias.detach().clone())
        self.output_bias = nn.Buffer(model.output.bias.detach().clone())

    def forward(self, token: Tensor, memory: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        keys, (lengths, *state) = (rest[0], rest[1:]) if has_keys(self.model) else (memory, rest)
        x = F.embedding(token, self.embedding) * self.scale  # [B, E]
        if self.feeding:
            x = torch.cat([x, state[-1]], dim=1)
        next_state: list[Tensor] = []
        context = attention = x
        for index, layer in enumerate(self.layers):
            if index == 1:
                x = torch.cat([x, context], dim=1)
            new = layer(x, *state[index * self.kinds : (index + 1) * self.kinds])
            x = new[0]  # [B, H]
            next_state.extend(new)
            if index == 0:
                context, attention = self._attend(x, memory, keys, lengths)
        readout = (torch.cat([x, context], dim=1) @ self.combine_weight + self.combine_bias).tanh()  # [B, E]
        if self.feeding:
            next_state.append(readout)
        # A Gemm with a transposed matrix: embedding and output layer are one tensor in the file.
        return F.linear(readout, self.embedding, self.output_bias), attention, *next_state

    def _attend(self, query: Tensor, memory: Tensor, keys: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """query [B, H] → context [B, M], attention [B, S]."""
        scores = step_scores(self.model.attention, query, keys)  # [B, S]
        places = torch.arange(memory.shape[1])
        scores = torch.where(places < lengths.unsqueeze(1), scores, -torch.inf)
        attention = scores.softmax(dim=1)
        return (attention.unsqueeze(1) @ memory).squeeze(1), attention


def step_scores(attention: nn.Module, query: Tensor, keys: Tensor) -> Tensor:
    """Scores of one step: query [B, H], keys [B, S, K] → [B, S]."""
    if isinstance(attention, BahdanauAttention):
        asked = query @ attention.query.weight.t() + attention.query.bias
        return ((asked.unsqueeze(1) + keys).tanh() @ attention.score.weight.t()).squeeze(2)
    assert isinstance(attention, DotAttention)
    scaled: Tensor = query * attention.scale
    return (keys @ scaled.unsqueeze(2)).squeeze(2)


def has_keys(model: EncoderDecoder) -> bool:
    """Whether keys are another tensor than memory."""
    return isinstance(model.attention, GeneralAttention)
