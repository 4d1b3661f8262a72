"""Memory that a graph reads and writes again and again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Buffer:
    """A tensor of fixed shape: on the CPU the graph works on the array itself, on CUDA on its copy there."""

    def __init__(self, array: NDArray[Any], device: str) -> None:
        from onnxruntime import OrtValue

        self.array = array  # kept alive here: on the CPU the value only points to it
        self._device, self._on_cpu = device, device == "cpu"
        self.value = OrtValue.ortvalue_from_numpy(array, device, 0)

    def write(self, content: Any) -> None:  # whatever NumPy can put there
        """Set everything."""
        self.array[...] = content
        self.send()

    def send(self) -> None:
        """``array`` was changed: let the graph see it."""
        if not self._on_cpu:
            self.value.update_inplace(self.array)

    def read(self) -> NDArray[Any]:
        """What is there now; a view on the CPU, which the graph may overwrite."""
        if not self._on_cpu:
            np.copyto(self.array, self.value.numpy())
        return self.array


class Ring(Buffer):
    """Tensors of one shape [slots, …], each bound by itself, but sent and read in one go: a copy costs microseconds."""

    def bind_input(self, binding: Any, name: str, slot: int) -> None:
        """The graph reads ``name`` from this slot."""
        binding.bind_input(name, *self._place(slot))

    def bind_output(self, binding: Any, name: str, slot: int) -> None:
        """The graph writes ``name`` to this slot."""
        binding.bind_output(name, *self._place(slot))

    def _place(self, slot: int) -> tuple[Any, ...]:
        """Device and its number, type, shape and address, as the runtime takes them."""
        part = self.array[slot]
        return self._device, 0, part.dtype.type, part.shape, self.value.data_ptr() + slot * part.nbytes
