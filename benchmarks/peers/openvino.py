"""OpenVINO: the cell as ONNX, weights compressed by nncf, computing in float32 (its default here may be bfloat16)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.peers.network import Array, Network, Step, Tokens
from benchmarks.peers.onnx_files import path, zero_state

_SETTINGS = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


def load(network: Network, folder: str, variant: str) -> Step:
    """Reads what ``onnx_files`` wrote."""
    return OpenVINO(network, str(path(folder, network, "cell")))


class OpenVINO:
    """Two requests over shared buffers: one reads what the other writes."""

    def __init__(self, network: Network, file: str) -> None:
        openvino, nncf = import_module("openvino"), import_module("nncf")
        model = openvino.Core().read_model(file)
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        compiled = openvino.compile_model(model, "CPU", _SETTINGS)
        self._tokens = np.zeros(network.shape.batch, np.int64)
        self._logits = np.zeros((network.shape.batch, network.vocabulary), np.float32)
        self._states = [zero_state(network, "cell") for _ in range(2)]
        self._requests: list[Any] = []
        for side in range(2):
            request = compiled.create_infer_request()
            arrays = {"token": self._tokens, "logits": self._logits, **self._states[side]}
            arrays |= {f"{name}_next": array for name, array in self._states[1 - side].items()}
            for name, array in arrays.items():
                request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
            self._requests.append(request)
        self._side = 0

    def reset(self) -> None:
        for array in self._states[self._side].values():
            array[:] = 0

    def step(self, tokens: Tokens | int) -> Array:
        self._tokens[:] = tokens
        request = self._requests[self._side]
        request.start_async()
        request.wait()
        self._side = 1 - self._side
        return self._logits
