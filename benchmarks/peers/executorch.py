"""ExecuTorch with XNNPACK: dynamic int8, one scale a row. Its wheel needs PyTorch to run too."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.network import Array, Network, Step, Tokens
from benchmarks.peers.torch_step import CellStep, cell_example

_XNNPACK = "executorch.backends.xnnpack"


def convert(network: Network, folder: str, variant: str) -> None:
    """Quantise, lower and write the program."""
    quantizer_module = import_module(f"{_XNNPACK}.quantizer.xnnpack_quantizer")
    partitioner_module = import_module(f"{_XNNPACK}.partition.xnnpack_partitioner")
    precisions = import_module(f"{_XNNPACK}.partition.config.xnnpack_config").ConfigPrecisionType
    steps = import_module("torchao.quantization.pt2e.quantize_pt2e")
    exir = import_module("executorch.exir")

    module, example = CellStep(network).eval(), cell_example(network)
    configuration = quantizer_module.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    quantizer = quantizer_module.XNNPACKQuantizer().set_global(configuration)
    prepared = steps.prepare_pt2e(torch.export.export(module, example).module(), quantizer)
    prepared(*example)
    program = torch.export.export(steps.convert_pt2e(prepared), example)
    # First the quantised products, then whatever else XNNPACK has: sigmoid, tanh, element-wise products.
    partitioners = [
        partitioner_module.XnnpackPartitioner(config_precisions=precisions.DYNAMIC_QUANT, per_op_mode=True),
        partitioner_module.XnnpackPartitioner(),
    ]
    lowered = exir.to_edge_transform_and_lower(program, partitioner=partitioners).to_executorch()
    _path(network, folder).write_bytes(lowered.buffer)


def load(network: Network, folder: str, variant: str) -> Step:
    """Reads what ``convert`` wrote."""
    return ExecuTorch(network, _path(network, folder))


class ExecuTorch:
    """State goes from call to call as tensors."""

    def __init__(self, network: Network, path: Path) -> None:
        import_module("executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(1)  # else: all cores
        runtime: Any = import_module("executorch.runtime")
        self._program = runtime.Runtime.get().load_program(str(path))
        self._execute = self._program.load_method("forward").execute
        token, *self._zero = cell_example(network)
        self._token = token
        self._tokens = token.numpy()
        self.reset()

    def reset(self) -> None:
        self._state = self._zero

    def step(self, tokens: Tokens | int) -> Array:
        self._tokens[:] = tokens
        logits, *self._state = self._execute((self._token, *self._state))
        return np.asarray(logits.numpy())


def _path(network: Network, folder: str) -> Path:
    return Path(folder) / f"int8-{network.shape.batch}.pte"
