"""An encoder, an attention and a decoder of a user's own: run as they are, and as two graphs.

The recurrent modules inside are lowered as those of our own networks are; all else is traced.
Symbols in shape comments: S source steps, T target steps, B sentences, V vocabulary, D input, P output of a layer,
M memory, K keys, Q query, W width of a state, L layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_edge.errors import InvalidValueError
from rnn_edge.manifest import Lowering
from rnn_edge_export.foreign.layers import LayerWeights, SequenceLayer, lower_weights
from rnn_edge_export.foreign.modules import embedding_table, is_recurrent, layer_count, layer_weights, private_copy
from rnn_edge_export.translation.modules import Memory

# What a decoder carries: one tensor or several, each [B, W] or [L, B, W].
DecoderState = Tensor | tuple[Tensor, ...]
Attend = Callable[[Tensor], Tensor]  # query [B, Q] → context [B, M]

_SETTINGS = (
    *("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size"),
    *("mode", "nonlinearity"),
)


@dataclass(frozen=True)
class Encoder:
    """Source tokens to vectors, and the ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` that reads them, from both ends or one.

    ``bridge`` makes of what it leaves what the decoder starts from: called with its outputs [B, S, P] and its final
    state as PyTorch gives it (h [L, B, W], of an LSTM (h, c)), it returns the memory [B, S, M] and the decoder's first
    state. Without one both are taken as they are.
    """

    embedding: nn.Embedding
    rnn: nn.RNNBase
    bridge: nn.Module | None = None


@dataclass(frozen=True)
class Layout:
    """How a decoder's state stands in flat tensors [B, W]: of each tensor its layers (0 if it has no such axis), its W.

    ``alone`` says that it is one tensor rather than a tuple.
    """

    layers: tuple[int, ...]
    widths: tuple[int, ...]
    alone: bool

    @classmethod
    def of(cls, state: object) -> "Layout":
        """The layout of a state that a bridge made.

        Raises:
            InvalidValueError: it is no such state.
        """
        tensors = state if isinstance(state, tuple | list) else (state,)
        if not tensors or not all(isinstance(item, Tensor) and item.ndim in (2, 3) for item in tensors):
            raise InvalidValueError(
                "the decoder's first state is no tensor [batch, width] or [layers, batch, width], and no tuple of such",
                "let the encoder's bridge return (memory, state)",
            )
        counts = tuple(len(item) if item.ndim == 3 else 0 for item in tensors)
        return cls(counts, tuple(item.shape[-1] for item in tensors), isinstance(state, Tensor))

    def names(self) -> list[str]:
        """Of the flat tensors."""
        stems = ["h"] if self.alone else [f"s{index}_" for index in range(len(self.layers))]
        return [
            f"{stem}{layer}" for stem, count in zip(stems, self.layers, strict=True) for layer in range(max(count, 1))
        ]

    def flat_widths(self) -> list[int]:
        """Of the flat tensors."""
        return [width for count, width in zip(self.layers, self.widths, strict=True) for _ in range(max(count, 1))]

    def flatten(self, state: DecoderState) -> list[Tensor]:
        """The state as flat tensors."""
        tensors = (state,) if isinstance(state, Tensor) else state
        return [part for item in tensors for part in (item.unbind() if item.ndim == 3 else (item,))]

    def build(self, flat: Sequence[Tensor]) -> DecoderState:
        """The inverse of ``flatten``."""
        rest, tensors = list(flat), []
        for count in self.layers:
            taken, rest = rest[: max(count, 1)], rest[max(count, 1) :]
            tensors.append(torch.stack(taken) if count else taken[0])
        return tensors[0] if self.alone else tuple(tensors)


class ModuleTranslator:
    """A user's own encoder, attention and decoder, run as they are: what the graphs are compared with."""

    def __init__(self, encoder: Encoder, attention: nn.Module, decoder: nn.Module) -> None:
        self.embedding, self.rnn = private_copy(encoder.embedding), private_copy(encoder.rnn)
        self.bridge = None if encoder.bridge is None else private_copy(encoder.bridge)
        self.attention, self.decoder = private_copy(attention), private_copy(decoder)
        memory, state = self._start(torch.zeros(3, 2, dtype=torch.int64), torch.tensor([3, 2]))
        self.memory_width = memory.shape[2]
        self.layout = Layout.of(state)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Memory, list[Tensor]]:
        """source int64 [S, B], lengths int64 [B] → memory, the decoder's first state in flat tensors."""
        memory, state = self._start(source, lengths)
        return Memory(memory, self.keys(memory), lengths), self.layout.flatten(state)

    def decode(self, tokens: Tensor, state: Sequence[Tensor], memory: Memory) -> tuple[Tensor, Tensor, list[Tensor]]:
        """tokens int64 [T, B], flat state, memory → logits [T, B, V], attention [B, T, S], flat state."""
        logits, attention, now = [], [], self.layout.build(state)
        for token in tokens:
            step, weights, now = self.step(self.decoder, token, now, memory)
            logits.append(step)
            attention.append(weights)
        return torch.stack(logits), torch.stack(attention, dim=1), self.layout.flatten(now)

    def step(
        self, decoder: nn.Module, token: Tensor, state: DecoderState, memory: Memory
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """token int64 [B] → logits [B, V], attention [B, S], next state."""
        asked: list[Tensor] = []

        def attend(query: Tensor) -> Tensor:
            scores = self.attention(query, memory.keys)  # [B, S]
            if not torch.compiler.is_exporting() and scores.shape != memory.values.shape[:2]:
                raise InvalidValueError(
                    f"the attention gives scores of shape {list(scores.shape)}, not {list(memory.values.shape[:2])}",
                    "let it return one score for each row and source token, [batch, source]",
                )
            places = torch.arange(memory.values.shape[1])
            weights = torch.where(places < memory.lengths.unsqueeze(1), scores, -torch.inf).softmax(dim=1)
            asked.append(weights)
            return (weights.unsqueeze(1) @ memory.values).squeeze(1)

        logits, new = decoder(token, state, attend)
        if not asked:
            raise InvalidValueError("the decoder never asks the attention", "call attend(query) in its forward")
        return logits, asked[0] if len(asked) == 1 else torch.stack(asked).mean(dim=0), new

    def keys(self, memory: Tensor) -> Tensor:
        """memory [B, S, M] → keys [B, S, K]: the memory itself unless the attention has ``keys`` of its own."""
        made: Tensor = self.attention.keys(memory) if self.has_keys else memory  # type: ignore[operator]  # a method
        return made

    @property
    def has_keys(self) -> bool:
        """Whether keys are another tensor than memory."""
        return hasattr(self.attention, "keys")

    def state_names(self) -> list[str]:
        """Names of the decoder's state tensors in flat order."""
        return self.layout.names()

    def state_widths(self) -> list[int]:
        """Last axis of each."""
        return self.layout.flat_widths()

    def across(self, outputs: Tensor, final: DecoderState) -> tuple[Tensor, DecoderState]:
        """What the bridge makes of outputs [B, S, P] and the final state."""
        if self.bridge is None:
            return outputs, final
        memory, state = self.bridge(outputs, final)
        return memory, state

    def _start(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, DecoderState]:
        """The user's modules over sequences without their padding."""
        embedded = self.embedding(source)  # [S, B, D]
        first = self.rnn.batch_first
        x = embedded.transpose(0, 1) if first else embedded
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=first, enforce_sorted=False)
        y, final = self.rnn(packed)
        outputs, _ = pad_packed_sequence(y, batch_first=True, total_length=len(source))
        return self.across(outputs, final)


class EncoderGraph(nn.Module):
    """source int64 [B, S], lengths int64 [B] → memory [B, S, M], perhaps keys [B, S, K], first state of the decoder."""

    def __init__(self, model: ModuleTranslator) -> None:
        super().__init__()
        self.model = model
        self.bridge, self.attention = model.bridge, model.attention  # so that their weights are part of the graph
        self.embedding = nn.Buffer(embedding_table(model.embedding).clone())
        both = [False, True][: 1 + model.rnn.bidirectional]
        self.layers = nn.ModuleList(
            SequenceLayer([layer_weights(model.rnn, layer, backward=backward) for backward in both])
            for layer in range(layer_count(model.rnn))
        )

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        x = F.embedding(source.t(), self.embedding)  # [S, B, D]
        short, finals = lengths.to(torch.int32), []
        for layer in self.layers:
            x, new = layer(x, short)
            finals.append(new)
        kinds = tuple(torch.cat(kind) for kind in zip(*finals, strict=True))
        memory, state = self.model.across(x.transpose(0, 1), kinds[0] if len(kinds) == 1 else kinds)
        keys = [self.model.keys(memory)] if self.model.has_keys else []
        return memory, *keys, *self.model.layout.flatten(state)


class DecoderStep(nn.Module):
    """token int64 [B], memory, perhaps keys, lengths, flat state → logits [B, V], attention [B, S], flat state."""

    def __init__(self, model: ModuleTranslator, lowering: Lowering) -> None:
        super().__init__()
        self.model, self.attention = model, model.attention
        self.decoder = private_copy(model.decoder)
        for module in list(self.decoder.modules()):
            for name, child in module.named_children():
                if is_recurrent(child):
                    setattr(module, name, OneStep(child, lowering))

    def forward(self, token: Tensor, memory: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        keys, (lengths, *flat) = (rest[0], rest[1:]) if self.model.has_keys else (memory, rest)
        state = self.model.layout.build(flat)
        logits, attention, new = self.model.step(self.decoder, token, state, Memory(memory, keys, lengths))
        return logits, attention, *self.model.layout.flatten(new)


class OneStep(nn.Module):
    """A recurrent module of a decoder, called for one step at a time as the module itself is, but lowered."""

    def __init__(self, module: nn.Module, lowering: Lowering) -> None:
        super().__init__()
        for name in _SETTINGS:  # which the decoder may ask for
            if hasattr(module, name):
                setattr(self, name, getattr(module, name))
        self.sequence = isinstance(module, nn.RNNBase)
        self.axis = 1 if getattr(module, "batch_first", False) else 0
        count = layer_count(module)
        self.layers = nn.ModuleList(lower_weights(layer_weights(module, index), lowering) for index in range(count))

    def flatten_parameters(self) -> None:
        """Nothing: there is no kernel that wants them in one piece."""

    def forward(self, x: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState] | DecoderState:
        if state is None:
            raise InvalidValueError(
                "the decoder calls a recurrent module without a state, which so forgets every step",
                "hand the state on: rnn(x, state)",
            )
        kinds = (state,) if isinstance(state, Tensor) else tuple(state)
        if not self.sequence:
            new = self.layers[0](x, *kinds)
            return new[0] if len(kinds) == 1 else tuple(new)
        if x.ndim != 3 or x.shape[self.axis] != 1:
            raise InvalidValueError(
                "the decoder runs a recurrent module over more than one step",
                "let it read one token: x.unsqueeze(0), or x.unsqueeze(1) with batch_first",
            )
        y, found = x.squeeze(self.axis), []
        for layer, old in zip(self.layers, zip(*(kind.unbind() for kind in kinds), strict=True), strict=True):
            new = layer(y, *old)
            y = new[0]
            found.append(tuple(new))
        stacked = tuple(torch.stack(kind) for kind in zip(*found, strict=True))
        return y.unsqueeze(self.axis), stacked[0] if len(stacked) == 1 else stacked


def decoder_layers(decoder: nn.Module) -> list[LayerWeights]:
    """The weights of all recurrent layers in a decoder."""
    found = [module for module in decoder.modules() if is_recurrent(module)]
    if any(getattr(module, "bidirectional", False) for module in found):
        raise InvalidValueError(
            "the decoder has a bidirectional module: it needs the end of a text before its beginning",
            "train it with bidirectional=False; only the encoder may read from both ends",
        )
    return [layer_weights(module, index) for module in found for index in range(layer_count(module))]
