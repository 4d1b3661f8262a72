"""Translators as people write them: modules of the usual tutorials, called as ``export_translator`` calls them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnn_edge_export.foreign.encoder_decoder import Attend, DecoderState

WORDS = ["<pad>", "<unk>", "<s>", "</s>", *(f"w{index}" for index in range(20))]
V = len(WORDS)
START, END = 2, 3


class Dot(nn.Module):
    """Luong's plain product."""

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        return torch.bmm(keys, query.unsqueeze(2)).squeeze(2)


class General(Dot):
    """Luong's product through a matrix, applied to the memory once a sentence."""

    def __init__(self, query: int, memory: int) -> None:
        super().__init__()
        self.key = nn.Linear(memory, query, bias=False)

    def keys(self, memory: Tensor) -> Tensor:
        found: Tensor = self.key(memory)
        return found


class Additive(nn.Module):
    """Bahdanau's network."""

    def __init__(self, query: int, memory: int, width: int = 7) -> None:
        super().__init__()
        self.mix, self.score = nn.Linear(query + memory, width), nn.Linear(width, 1, bias=False)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        repeated = query.unsqueeze(1).expand(-1, keys.shape[1], -1)
        found: Tensor = self.score(torch.tanh(self.mix(torch.cat([repeated, keys], dim=2)))).squeeze(2)
        return found


class TopBridge(nn.Module):
    """A tanh of the last layer's two ends, for every layer of the decoder."""

    def __init__(self, encoder: int, decoder: int, layers: int, lstm: bool = False) -> None:
        super().__init__()
        self.linear, self.layers, self.lstm = nn.Linear(2 * encoder, decoder), layers, lstm

    def forward(self, outputs: Tensor, final: DecoderState) -> tuple[Tensor, DecoderState]:
        h = final if isinstance(final, Tensor) else final[0]
        first = torch.tanh(self.linear(torch.cat([h[-2], h[-1]], dim=1))).expand(self.layers, -1, -1)
        return outputs, ((first, 2 * first) if self.lstm else first)


class SumBridge(nn.Module):
    """Both directions added; the decoder goes on from the forward ends."""

    def forward(self, outputs: Tensor, final: Tensor) -> tuple[Tensor, Tensor]:
        ahead, behind = outputs.chunk(2, dim=2)
        return ahead + behind, final[0::2]


class LuongDecoder(nn.Module):
    """Attention after the last layer (Luong et al. 2015)."""

    def __init__(self, rnn: nn.RNNBase, hidden: int, memory: int, width: int = 5, tied: bool = False) -> None:
        super().__init__()
        self.embedding, self.dropout, self.rnn = nn.Embedding(V, width), nn.Dropout(0.3), rnn
        self.combine, self.output = nn.Linear(hidden + memory, width), nn.Linear(width, V)
        if tied:
            self.output.weight = self.embedding.weight

    def forward(self, token: Tensor, state: DecoderState, attend: Attend) -> tuple[Tensor, DecoderState]:
        axis = 1 if self.rnn.batch_first else 0
        y, state = self.rnn(self.dropout(self.embedding(token)).unsqueeze(axis), state)
        y = y.squeeze(axis)
        return self.output(torch.tanh(self.combine(torch.cat([y, attend(y)], dim=1)))), state


class BahdanauDecoder(nn.Module):
    """Attention asked with the last state, before the cell (Bahdanau et al. 2015)."""

    def __init__(self, hidden: int, memory: int, width: int = 5) -> None:
        super().__init__()
        self.embedding, self.cell = nn.Embedding(V, width), nn.GRUCell(width + memory, hidden)
        self.output = nn.Linear(hidden + memory + width, V)

    def forward(self, token: Tensor, state: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        x, context = self.embedding(token), attend(state[0])
        h = self.cell(torch.cat([x, context], dim=1), state[0])
        return self.output(torch.cat([h, context, x], dim=1)), h.unsqueeze(0)


class FeedingDecoder(nn.Module):
    """Input feeding: the attentional vector is read by the next step. Two states of other shapes."""

    def __init__(self, hidden: int, memory: int, width: int = 5) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(V, width), nn.GRU(2 * width, hidden)
        self.combine, self.output = nn.Linear(hidden + memory, width), nn.Linear(width, V)

    def forward(
        self, token: Tensor, state: tuple[Tensor, Tensor], attend: Attend
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, feed = state
        y, h = self.rnn(torch.cat([self.embedding(token), feed], dim=1).unsqueeze(0), h)
        feed = torch.tanh(self.combine(torch.cat([y[0], attend(y[0])], dim=1)))
        return self.output(feed), (h, feed)


class FeedingBridge(nn.Module):
    """Nothing was said before the first word."""

    def forward(self, outputs: Tensor, final: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return outputs, (final, outputs.new_zeros(outputs.shape[0], 5))
