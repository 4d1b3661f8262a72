"""PyTorch: eager modules, the cell written out, dynamic int8, and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.peers.network import Array, Network, Step, Tokens
from benchmarks.peers.torch_step import CellStep, ModuleStep, cell_example, module_example


class TorchStep:
    """Any module of one step."""

    def __init__(self, module: Callable[..., Any], example: tuple[torch.Tensor, ...]) -> None:
        self._module = module
        self._tokens = np.zeros(len(example[0]), np.int64)
        self._token = torch.from_numpy(self._tokens)
        self._zero = [torch.zeros_like(tensor) for tensor in example[1:]]
        self.reset()

    def reset(self) -> None:
        self._state = self._zero

    @torch.inference_mode()
    def step(self, tokens: Tokens | int) -> Array:
        self._tokens[:] = tokens
        logits, *self._state = self._module(self._token, *self._state)
        return np.asarray(logits.numpy())


def load(network: Network, folder: str, variant: str) -> Step:
    """Needs no files."""
    torch.set_num_threads(1)
    if variant == "module":
        return TorchStep(ModuleStep(network).eval(), module_example(network))
    return TorchStep(_CELLS[variant](network), cell_example(network))


def _eager(network: Network) -> Any:
    return CellStep(network).eval()


def _int8(network: Network) -> Any:
    """What is fastest in PyTorch: linear layers with dynamic int8, traced and frozen."""
    module = torch.ao.quantization.quantize_dynamic(CellStep(network).eval(), {torch.nn.Linear}, dtype=torch.qint8)
    return torch.jit.freeze(torch.jit.trace(module, cell_example(network)))


def _compiled(network: Network) -> Any:
    """Through Inductor, its weights frozen. It compiles at its first call."""
    from torch._inductor import config

    config.freezing = True
    config.max_autotune = True
    config.compile_threads = 1
    module = torch.compile(CellStep(network).eval(), dynamic=False)
    with torch.inference_mode():
        module(*cell_example(network))
    return module


_CELLS: dict[str, Callable[[Network], Any]] = {"cell": _eager, "int8": _int8, "compiled": _compiled}
