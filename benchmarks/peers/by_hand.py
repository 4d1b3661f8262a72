"""NumPy by hand, fp32: a page of code with one product a layer and its results in buffers."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.network import Array, Layer, Network, Step, Tokens


def load(network: Network, folder: str, variant: str) -> Step:
    """Needs no files."""
    return ByHand(network)


class ByHand:
    """Weights transposed once; sigmoid as tanh, which NumPy has vectorised."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._embedding = network.embedding
        self._run = _lstm if network.shape.cell == "lstm" else _gru
        self._layers = [_prepared(layer, network.shape.cell) for layer in network.layers]
        self._output = np.ascontiguousarray(network.output.T)
        self._width = len(network.shape.kinds)
        self.reset()

    def reset(self) -> None:
        self._state = self._network.zero_state()

    def step(self, tokens: Tokens | int) -> Array:
        x = self._embedding[tokens if isinstance(tokens, np.ndarray) else [tokens]]
        for index, weights in enumerate(self._layers):
            place = slice(index * self._width, (index + 1) * self._width)
            self._state[place] = new = self._run(weights, x, *self._state[place])
            x = new[0]
        return x @ self._output + self._network.bias


def _prepared(layer: Layer, cell: str) -> tuple[Array, ...]:
    if cell == "lstm":
        return np.ascontiguousarray(np.concatenate([layer.w, layer.u], axis=1).T), layer.b + layer.d
    return np.ascontiguousarray(layer.w.T), np.ascontiguousarray(layer.u.T), layer.b, layer.d


def _sigmoid(x: Array) -> Array:
    x *= np.float32(0.5)
    np.tanh(x, out=x)
    x += np.float32(1)
    x *= np.float32(0.5)
    return x


def _lstm(weights: tuple[Array, ...], x: Array, h: Array, c: Array) -> list[Array]:
    product, bias = weights
    gates = np.concatenate([x, h], axis=1) @ product  # [B, 4·H]
    gates += bias
    size = h.shape[1]
    opened = _sigmoid(gates[:, : 2 * size])
    c = opened[:, size:] * c + opened[:, :size] * np.tanh(gates[:, 2 * size : 3 * size])
    return [_sigmoid(gates[:, 3 * size :]) * np.tanh(c), c]


def _gru(weights: tuple[Array, ...], x: Array, h: Array) -> list[Array]:
    w, u, b, d = weights
    inputs, hidden = x @ w + b, h @ u + d  # [B, 3·H]
    size = h.shape[1]
    gates = inputs[:, : 2 * size] + hidden[:, : 2 * size]
    _sigmoid(gates)
    new = np.tanh(inputs[:, 2 * size :] + gates[:, :size] * hidden[:, 2 * size :])
    return [new + gates[:, size:] * (h - new)]
