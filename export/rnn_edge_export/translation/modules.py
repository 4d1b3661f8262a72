"""The network: bidirectional encoder → memory; decoder with attention over it, the state explicit.

    memory, keys, first state = encode(source, lengths)
    logits, attention, state  = decode(tokens, state, memory)      whole targets in training, one token on a device

The first layer of the decoder reads the target; the attention is asked with its output; the layers above and the
output read both (Luong et al. 2015, with the attention below the upper layers as in Wu et al. 2016). So no step waits
for the attention of the step before it, and training runs whole sentences through the fused kernels. With input
feeding the first layer also reads what the step before ended with, and sentences are trained on step by step.

Symbols in shape comments: S source steps, T target steps, B sentences, V vocabulary, E embedding, H decoder,
M memory (both directions of the encoder), K keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from rnn_edge_export import layers
from rnn_edge_export.embedding import Embedding
from rnn_edge_export.recipe_sections import TranslationSection

# Flat, in the order of ``state_names``: each layer's tensors [B, H], then the readout [B, E] with input feeding.
State = list[Tensor]


@dataclass(frozen=True)
class Memory:
    """What the encoder leaves to the decoder: values [B, S, M], keys [B, S, K], lengths int64 [B]."""

    values: Tensor
    keys: Tensor
    lengths: Tensor


class EncoderDecoder(nn.Module):
    """Translates token ids to logits of the next target token.

    ``joint`` says that both sides have one vocabulary, and so may share one embedding. Equal sizes say nothing: two
    vocabularies of words are cut to the same size.
    """

    def __init__(
        self, recipe: TranslationSection, source_vocabulary: int, target_vocabulary: int, *, joint: bool
    ) -> None:
        super().__init__()
        self.recipe = recipe
        e, h, m = recipe.embedding, recipe.hidden, 2 * recipe.encoder_hidden
        self.target_embedding = Embedding(target_vocabulary, e, recipe.target_vector_width)
        shared = recipe.share_embeddings and joint
        self.source_embedding = (
            self.target_embedding if shared else Embedding(source_vocabulary, e, recipe.source_vector_width)
        )
        self.encoder = nn.ModuleList(
            nn.ModuleList(layers.new_layer(recipe.cell, width, recipe.encoder_hidden) for _ in range(2))
            for width in [e] + [m] * (recipe.encoder_layers - 1)
        )
        self.bridge = nn.ModuleList(nn.Linear(m, h) for _ in range(recipe.layers))
        first = 2 * e if recipe.input_feeding else e
        widths = [first, h + m, *[h] * recipe.layers][: recipe.layers]
        self.decoder = nn.ModuleList(layers.new_layer(recipe.cell, width, h) for width in widths)
        self.attention = _ATTENTIONS[recipe.attention](h, m)
        self.combine = nn.Linear(h + m, e)
        self.output = nn.Linear(self.target_embedding.embedding_dim, target_vocabulary)
        self._initialise()
        self.output.weight = self.target_embedding.weight  # Press & Wolf 2017

    def forward(self, source: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        """Teacher forcing: source [S, B], lengths [B], target tokens [T, B] → logits [T, B, V]."""
        memory, state = self.encode(source, lengths)
        return self.decode(tokens, state, memory)[0]

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Memory, State]:
        """source int64 [S, B], padded with any ids after ``lengths`` int64 [B] → memory, the decoder's first state."""
        recipe = self.recipe
        x = self._embed(self.source_embedding, source)  # [S, B, E]
        for index, (forward, backward) in enumerate(self.encoder_pairs()):
            if index:
                x = self._drop(x, recipe.layer_dropout)
            ahead, _ = layers.run_layer(forward, x, None, self._weight(forward))
            behind, _ = layers.run_layer(backward, layers.reverse(x, lengths), None, self._weight(backward))
            x = torch.cat([ahead, layers.reverse(behind, lengths)], dim=2)  # [S, B, M]
        last = (lengths - 1).view(1, -1, 1).expand(1, -1, recipe.encoder_hidden)
        summary = torch.cat([ahead.gather(0, last)[0], behind.gather(0, last)[0]], dim=1)  # [B, M]
        values = self._drop(x, recipe.layer_dropout).transpose(0, 1)  # [B, S, M]
        return Memory(values, self.attention.keys(values), lengths), self.first_state(summary)

    def encoder_pairs(self) -> list[tuple[nn.RNNBase, nn.RNNBase]]:
        """The encoder's layers that read from the start and from the end, from the bottom up."""
        return [cast("tuple[nn.RNNBase, nn.RNNBase]", tuple(cast(nn.ModuleList, pair))) for pair in self.encoder]

    def decode(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor, State]:
        """tokens int64 [T, B], state, memory → logits [T, B, V], attention [B, T, S], next state."""
        x = self._embed(self.target_embedding, tokens)  # [T, B, E]
        recurrent = [self._weight(layer) for layer in self.decoder]
        if not self.recipe.input_feeding:
            return self._advance(x, state, memory, recurrent)
        logits, attention = [], []
        masks: dict[str, Tensor] = {}  # of all steps
        for step in x.split(1):
            given = torch.cat([step, state[-1].unsqueeze(0)], dim=2)
            one, weights, state = self._advance(given, state, memory, recurrent, masks)
            logits.append(one)
            attention.append(weights)
        return torch.cat(logits), torch.cat(attention, dim=1), state

    def state_names(self) -> list[str]:
        """Names of the decoder's state tensors in flat order: h0, c0, h1, …, and ``feed`` with input feeding."""
        return layers.state_names(self.recipe.cell, self.recipe.layers) + ["feed"] * self.recipe.input_feeding

    def state_widths(self) -> list[int]:
        """Last axis of each state tensor."""
        kinds = len(layers.STATE_KINDS[self.recipe.cell])
        return [self.recipe.hidden] * kinds * self.recipe.layers + [self.recipe.embedding] * self.recipe.input_feeding

    def _advance(
        self,
        x: Tensor,
        state: State,
        memory: Memory,
        recurrent: Sequence[Tensor | None],
        masks: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, State]:
        recipe, kinds = self.recipe, len(layers.STATE_KINDS[self.recipe.cell])
        next_state: State = []
        context = attention = x.new_zeros(())
        for index, layer in enumerate(self.decoder):
            if index:
                x = self._drop(x, recipe.layer_dropout, masks, f"layer {index}")
            if index == 1:
                x = torch.cat([x, context], dim=2)
            old = tuple(state[index * kinds : (index + 1) * kinds])
            x, new = layers.run_layer(layer, x, old, recurrent[index])  # [T, B, H]
            next_state.extend(new)
            if index == 0:
                context, attention = self._attend(x, memory)
        readout = self.combine(torch.cat([x, context], dim=2)).tanh()  # [T, B, E]
        if recipe.input_feeding:
            next_state.append(readout[-1])
        readout = self._drop(readout, recipe.output_dropout, masks, "readout")
        return self.output(self.target_embedding.back(readout)), attention, next_state

    def _attend(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """query [T, B, H] → context [T, B, M], attention [B, T, S]."""
        scores = self.attention(query.transpose(0, 1), memory.keys).float()  # [B, T, S]
        places = torch.arange(scores.shape[2], device=scores.device)
        padding = places >= memory.lengths.unsqueeze(1)  # [B, S]
        attention = scores.masked_fill(padding.unsqueeze(1), -torch.inf).softmax(dim=2)
        return (attention.to(memory.values.dtype) @ memory.values).transpose(0, 1), attention

    def first_state(self, summary: Tensor) -> State:
        """summary [B, M] → the decoder's first state. An LSTM's h is the tanh of its c, as with open output gates."""
        state: State = []
        for bridge in self.bridge:
            c = bridge(summary)
            state += [c.tanh(), c] if self.recipe.cell == "lstm" else [c.tanh()]
        if self.recipe.input_feeding:
            state.append(summary.new_zeros(summary.shape[0], self.recipe.embedding))
        return state

    def _embed(self, embedding: nn.Module, tokens: Tensor) -> Tensor:
        # The matrix is also the output layer and small; inputs of unit size learn far faster.
        x: Tensor = embedding(tokens) * self.recipe.embedding**0.5
        return self._drop(
            layers.drop_tokens(x, self.recipe.word_dropout, training=self.training), self.recipe.input_dropout
        )

    def _drop(self, x: Tensor, chance: float, masks: dict[str, Tensor] | None = None, name: str = "") -> Tensor:
        locked = self.recipe.locked_dropout
        return layers.drop(x, chance, training=self.training, locked=locked, masks=masks, name=name)

    def _weight(self, layer: nn.Module) -> Tensor | None:
        return layers.dropped_weight(layer, self.recipe.weight_drop)

    def _initialise(self) -> None:
        self.target_embedding.initialise(self.recipe.embedding**-0.5)
        if self.source_embedding is not self.target_embedding:
            self.source_embedding.initialise(self.recipe.embedding**-0.5)
        for linear in cast("list[nn.Linear]", [*self.bridge, self.combine]):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.output.bias)


class DotAttention(nn.Module):
    """score = query · value / √H (Luong et al. 2015, "dot"; scaled as in Vaswani et al. 2017). Needs H = M.

    Without the scale the softmax is saturated from the start and learns markedly worse (docs/quality.md).
    """

    def __init__(self, hidden: int, memory: int) -> None:
        super().__init__()
        self.scale = hidden**-0.5

    def keys(self, values: Tensor) -> Tensor:
        """values [B, S, M] → keys [B, S, M]."""
        return values

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """query [B, T, H], keys [B, S, K] → scores [B, T, S]."""
        scores: Tensor = (query * self.scale) @ keys.transpose(1, 2)
        return scores


class GeneralAttention(DotAttention):
    """score = query · W value / √H (Luong et al. 2015, "general"). W value is computed once a sentence."""

    def __init__(self, hidden: int, memory: int) -> None:
        super().__init__(hidden, memory)
        self.key = nn.Linear(memory, hidden, bias=False)
        nn.init.xavier_uniform_(self.key.weight)

    def keys(self, values: Tensor) -> Tensor:
        """values [B, S, M] → keys [B, S, H]."""
        projected: Tensor = self.key(values)
        return projected


class BahdanauAttention(GeneralAttention):
    """score = v · tanh(U query + W value) (Bahdanau et al. 2015)."""

    def __init__(self, hidden: int, memory: int) -> None:
        super().__init__(hidden, memory)
        self.query = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)
        for linear in (self.query, self.score):
            nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(self.query.bias)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """query [B, T, H], keys [B, S, H] → scores [B, T, S]."""
        mixed = (self.query(query).unsqueeze(2) + keys.unsqueeze(1)).tanh()  # [B, T, S, H]
        scores: Tensor = self.score(mixed).squeeze(3)
        return scores


_ATTENTIONS: dict[str, type[DotAttention]] = {
    "dot": DotAttention,
    "general": GeneralAttention,
    "bahdanau": BahdanauAttention,
}
