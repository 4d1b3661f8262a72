"""The network that all peers run, and what they must be able to do with it. NumPy only.

Token → embedding → L × LSTM or GRU → logits, one step a call, the state fed back. Weights are in PyTorch's layout and
gate order: LSTM i, f, g, o; GRU r, z, n with the reset after the hidden product.
Symbols in shape comments: B streams, V vocabulary, E embedding, H hidden, G gates per cell, D input of a layer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Tokens = NDArray[np.int64]

# The largest error that a precision explains: root mean square of the difference in logits over that of the logits.
# With these weights, rounding each row gives 0.01 in eight bits and 0.18 to 0.24 in four; rounding activations too, or
# with one scale for a whole matrix, up to 0.1 and 0.4. A step that forgets its state gives 0.57 and more.
TOLERANCE: dict[str, float] = {"fp32": 1e-3, "int8": 0.15, "int4": 0.5}


class SkippedError(Exception):
    """A peer cannot do this by its nature; the text says why."""


@dataclass(frozen=True)
class Layer:
    """One layer's weights: w [G·H, D], u [G·H, H], b and d [G·H] for input and state."""

    w: Array
    u: Array
    b: Array
    d: Array


@dataclass(frozen=True)
class Shape:
    """What is run: the cell, its width, the number of layers, and streams at once."""

    cell: Literal["lstm", "gru"]
    hidden: int
    layers: int
    batch: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """State tensors of a layer."""
        return ("h", "c") if self.cell == "lstm" else ("h",)

    @property
    def state_names(self) -> list[str]:
        """All state tensors in flat order: h0, c0, h1, c1, …"""
        return [f"{kind}{index}" for index in range(self.layers) for kind in self.kinds]

    def to_json(self) -> dict[str, Any]:
        """For a worker."""
        return asdict(self)


@dataclass(frozen=True)
class Network:
    """Shape and weights: embedding [V, E], output [V, H], bias [V]."""

    shape: Shape
    embedding: Array
    layers: list[Layer]
    output: Array
    bias: Array

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.bias)

    def zero_state(self) -> list[Array]:
        """Zeros [B, H] in flat order."""
        return [np.zeros((self.shape.batch, self.shape.hidden), np.float32) for _ in self.shape.state_names]


class Step(Protocol):
    """One peer, loaded."""

    def reset(self) -> None:
        """Put all streams at a zero state."""

    def step(self, tokens: Tokens | int) -> Array:
        """Feed one token to each stream: int64 [B], or one id for all → logits [B, V], which may be a buffer."""


def save(path: Path, network: Network) -> None:
    """Write the weights as npz."""
    arrays = {"embedding": network.embedding, "output": network.output, "bias": network.bias}
    for index, layer in enumerate(network.layers):
        arrays |= {f"{name}{index}": getattr(layer, name) for name in ("w", "u", "b", "d")}
    np.savez(path, allow_pickle=False, **arrays)


def load(path: Path, shape: Shape) -> Network:
    """Read the weights."""
    with np.load(path) as arrays:
        layers = [Layer(*(arrays[f"{name}{index}"] for name in ("w", "u", "b", "d"))) for index in range(shape.layers)]
        return Network(shape, arrays["embedding"], layers, arrays["output"], arrays["bias"])


def token_rows(vocabulary: int, batch: int, steps: int) -> Tokens:
    """Tokens [steps, B] to compare peers on, different in every stream."""
    return np.random.default_rng(0).integers(0, vocabulary, (steps, batch))


def relative_error(found: Array, expected: Array) -> float:
    """Root mean square of the difference over that of what is expected; infinite where it is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    difference = (found - expected).astype(np.float64)
    return float(np.sqrt((difference**2).mean() / (expected.astype(np.float64) ** 2).mean()))
