"""LiteRT: weights in eight or four bits, activations quantised as they come, kernels of XNNPACK.

``convert`` needs litert-torch and ai-edge-quantizer, some two gigabytes of packages; ``load`` needs the interpreter.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.network import Array, Network, Step, Tokens

_RECIPES = {"int8": "dynamic_wi8_afp32", "int4": "dynamic_wi4_afp32"}


def convert(network: Network, folder: str, variant: str) -> None:
    """Write the model of this precision."""
    import torch

    from benchmarks.peers.torch_step import CellStep, cell_example

    unquantised = _path(network, folder, "fp32")
    if not unquantised.exists():
        example = cell_example(network, torch.int32)
        converted = import_module("litert_torch").convert(CellStep(network).eval(), example)
        converted.export(str(unquantised))
    recipe = getattr(import_module("ai_edge_quantizer.recipe"), _RECIPES[variant])()
    quantizer = import_module("ai_edge_quantizer.quantizer").Quantizer(str(unquantised))
    quantizer.load_quantization_recipe(recipe)
    quantizer.quantize().export_model(str(_path(network, folder, variant)))


def load(network: Network, folder: str, variant: str) -> Step:
    """Reads what ``convert`` wrote."""
    return LiteRT(network, _path(network, folder, variant))


class LiteRT:
    """State goes out of the interpreter and in again, which is no slower than between views of its memory."""

    def __init__(self, network: Network, path: Path) -> None:
        interpreter: Any = import_module("ai_edge_litert.interpreter").Interpreter(model_path=str(path), num_threads=1)
        interpreter.allocate_tensors()
        signature: Any = interpreter.get_signature_runner()
        self._token, *self._inputs = _indices(signature.get_input_details())
        self._logits, *self._outputs = _indices(signature.get_output_details())
        self._set, self._get, self._invoke = interpreter.set_tensor, interpreter.get_tensor, interpreter.invoke
        self._tokens = np.zeros(network.shape.batch, np.int32)
        self._zero = network.zero_state()
        self.reset()

    def reset(self) -> None:
        self._state = self._zero

    def step(self, tokens: Tokens | int) -> Array:
        self._tokens[:] = tokens
        self._set(self._token, self._tokens)
        for index, array in zip(self._inputs, self._state, strict=True):
            self._set(index, array)
        self._invoke()
        self._state = [self._get(index) for index in self._outputs]
        return np.asarray(self._get(self._logits))


def _path(network: Network, folder: str, variant: str) -> Path:
    return Path(folder) / f"{variant}-{network.shape.batch}.tflite"


def _indices(details: dict[str, Any]) -> list[int]:
    """Tensors in the module's order: they are named args_0, args_1, … and output_0, output_1, …"""
    return [details[name]["index"] for name in sorted(details, key=lambda name: int(name.rpartition("_")[2]))]
