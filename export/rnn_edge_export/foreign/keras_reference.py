"""The equations of Keras's layers in NumPy, on the arrays as Keras stores them: what an import is compared with.

Symbols in shape comments: T steps, B streams, V vocabulary, D input, H units, G gates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnn_edge.manifest import Cell
from rnn_edge_export.layers import STATE_KINDS, LayerState, state_names

_Floats = NDArray[Any]


@dataclass(frozen=True)
class KerasLayer:
    """Kernel [D, G·H], recurrent kernel [H, G·H], bias [G·H] or [2, G·H]; gates i, f, c, o or z, r, h."""

    cell: Cell
    kernel: NDArray[np.float32]
    recurrent: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    activation: str = "tanh"
    reset_after: bool = False
    hard_slope: float = 0.0

    def step(self, x: _Floats, state: Sequence[_Floats]) -> tuple[_Floats, ...]:
        """x [B, D], state [B, H]… → next state."""
        h = state[0]
        units = h.shape[1]
        bias = np.zeros(self.kernel.shape[1]) if self.bias is None else self.bias
        if self.cell == "gru":
            inner = bias[1] if bias.ndim == 2 else 0
            x_z, x_r, x_h = np.split(x @ self.kernel + (bias[0] if bias.ndim == 2 else bias), 3, axis=1)
            if self.reset_after:
                h_z, h_r, h_h = np.split(h @ self.recurrent + inner, 3, axis=1)
                z, r = self._gate(x_z + h_z), self._gate(x_r + h_r)
                candidate = np.tanh(x_h + r * h_h)
            else:
                r_z, r_r, r_h = np.split(self.recurrent, 3, axis=1)
                z, r = self._gate(x_z + h @ r_z), self._gate(x_r + h @ r_r)
                candidate = np.tanh(x_h + (r * h) @ r_h)
            return (z * h + (1 - z) * candidate,)
        mixed = x @ self.kernel + h @ self.recurrent + bias
        if self.cell == "rnn":
            return (np.maximum(mixed, 0) if self.activation == "relu" else np.tanh(mixed),)
        i, f, candidate, o = (mixed[:, gate * units : (gate + 1) * units] for gate in range(4))
        c = self._gate(f) * state[1] + self._gate(i) * np.tanh(candidate)
        return self._gate(o) * np.tanh(c), c

    def _gate(self, x: _Floats) -> _Floats:
        """A logistic function, written so that it never overflows."""
        result: _Floats = np.clip(self.hard_slope * x + 0.5, 0, 1) if self.hard_slope else (1 + np.tanh(x / 2)) / 2
        return result


class KerasReference:
    """Embedding, recurrent layers, Dense, in double precision."""

    def __init__(
        self, table: NDArray[np.float32], layers: Sequence[KerasLayer], kernel: _Floats, bias: _Floats | None
    ) -> None:
        self._table, self._layers = table.astype(np.float64), layers
        self._kernel, self._bias = kernel, 0.0 if bias is None else bias

    def __call__(self, tokens: Tensor, state: list[LayerState]) -> tuple[Tensor, list[LayerState]]:
        """tokens int64 [T, B], state → logits [T, B, V], next state."""
        now: list[tuple[_Floats, ...]] = [tuple(item.numpy().astype(np.float64) for item in layer) for layer in state]
        logits = []
        for step in tokens.numpy():
            x = self._table[step]
            for index, layer in enumerate(self._layers):
                now[index] = layer.step(x, now[index])
                x = now[index][0]
            logits.append(x @ self._kernel + self._bias)
        return torch.from_numpy(np.stack(logits)), [tuple(map(torch.from_numpy, layer)) for layer in now]

    def zero_state(self, batch: int) -> list[LayerState]:
        """Zeros for B streams."""
        return [
            tuple(torch.zeros(batch, len(layer.recurrent)) for _ in STATE_KINDS[layer.cell]) for layer in self._layers
        ]

    def state_names(self) -> list[str]:
        """Names of the state tensors in flat order: h0, c0, h1, c1, …"""
        return state_names(self._layers[0].cell, len(self._layers))
