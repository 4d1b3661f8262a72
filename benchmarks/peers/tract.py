"""tract, fp32: reads the exporter's ONNX file."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.peers.network import Array, Network, Step, Tokens
from benchmarks.peers.onnx_files import path, zero_state


def load(network: Network, folder: str, variant: str) -> Step:
    """Reads what ``onnx_files`` wrote."""
    return Tract(network, str(path(folder, network, variant)), variant)


class Tract:
    """State stays in the runtime's own tensors."""

    def __init__(self, network: Network, file: str, variant: str) -> None:
        tract: Any = import_module("tract")
        self._tensor = tract.Tensor.from_numpy
        runnable = tract.onnx().load(file).into_model().into_runnable()
        self._state = runnable.spawn_state()
        self._zero = [self._tensor(array) for array in zero_state(network, variant).values()]
        self._tokens = np.zeros(network.shape.batch, np.int64)
        self.reset()

    def reset(self) -> None:
        self._tensors = self._zero

    def step(self, tokens: Tokens | int) -> Array:
        self._tokens[:] = tokens
        logits, *self._tensors = self._state.run([self._tensor(self._tokens), *self._tensors])
        return np.asarray(logits.to_numpy())
