"""ONNX files of the step, made by PyTorch's exporter with its defaults, in the environment of the workstation side.

``operator``: a model with ``nn.LSTM`` or ``nn.GRU``, as people export it. ``operator-int8``: the same through ONNX
Runtime's own pre-processing and ``quantize_dynamic``. ``cell``: the cell written out in matrix products, for runtimes
whose compression knows these only.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from benchmarks.peers.network import Array, Network, SkippedError


def path(folder: str, network: Network, variant: str) -> Path:
    """Shapes are fixed, so there is a file for each batch."""
    return Path(folder) / f"{variant}-{network.shape.batch}.onnx"


def state_names(network: Network, variant: str) -> list[str]:
    """Inputs of the file; its outputs are the same with ``_next``."""
    return network.shape.state_names if variant == "cell" else list(network.shape.kinds)


def zero_state(network: Network, variant: str) -> dict[str, Array]:
    """Zeros: [B, H] each in the cell's file, stacked to [L, B, H] in the operator's."""
    shape = network.shape
    size = (shape.batch, shape.hidden) if variant == "cell" else (shape.layers, shape.batch, shape.hidden)
    return {name: np.zeros(size, np.float32) for name in state_names(network, variant)}


def convert(network: Network, folder: str, variant: str) -> None:
    """Write the file of this variant."""
    if variant == "operator-int8":
        _quantise(network, folder)
        return
    target = path(folder, network, variant)
    if target.exists():
        return
    import torch

    from benchmarks.peers.torch_step import CellStep, ModuleStep, cell_example, module_example

    cell = variant == "cell"
    module = CellStep(network) if cell else ModuleStep(network)
    names = state_names(network, variant)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.onnx.export(
        module.eval(),
        cell_example(network) if cell else module_example(network),
        str(target),
        input_names=["token", *names],
        output_names=["logits", *(f"{name}_next" for name in names)],
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _quantise(network: Network, folder: str) -> None:
    if network.shape.cell != "lstm":
        raise SkippedError("quantize_dynamic knows no GRU")
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    convert(network, folder, "operator")
    prepared = path(folder, network, "prepared")
    # The exporter computes each layer's weights in the graph; the quantiser wants them as constants.
    quant_pre_process(str(path(folder, network, "operator")), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(str(prepared), str(path(folder, network, "operator-int8")), weight_type=QuantType.QInt8)
