"""Plain ONNX Runtime with the exporter's own graph, run in its fastest way: buffers bound once, then swapped."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.network import Array, Network, Step, Tokens
from benchmarks.peers.onnx_files import path, zero_state


def load(network: Network, folder: str, variant: str) -> Step:
    """Reads what ``onnx_files`` wrote."""
    return OnnxRuntime(network, folder, variant)


class OnnxRuntime:
    """Two sets of state buffers: a step reads one and writes the other."""

    def __init__(self, network: Network, folder: str, variant: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = str(path(folder, network, variant))
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._tokens = np.zeros(network.shape.batch, np.int64)
        self._logits = np.zeros((network.shape.batch, network.vocabulary), np.float32)
        self._states = [zero_state(network, variant) for _ in range(2)]
        self._bindings = []
        for side in range(2):
            binding = session.io_binding()
            binding.bind_ortvalue_input("token", value(self._tokens))
            binding.bind_ortvalue_output("logits", value(self._logits))
            for name in self._states[0]:
                binding.bind_ortvalue_input(name, value(self._states[side][name]))
                binding.bind_ortvalue_output(f"{name}_next", value(self._states[1 - side][name]))
            self._bindings.append(binding)
        self._run = session.run_with_iobinding
        self._side = 0

    def reset(self) -> None:
        for array in self._states[self._side].values():
            array[:] = 0

    def step(self, tokens: Tokens | int) -> Array:
        self._tokens[:] = tokens
        self._run(self._bindings[self._side])
        self._side = 1 - self._side
        return self._logits
