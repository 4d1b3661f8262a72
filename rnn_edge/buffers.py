"""Memory that a graph reads and writes again and again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TOGETHER = 2**17  # bytes of a slot of a ring, up to which all of them are copied at once


class Buffer:
    """A tensor of fixed shape: on the CPU the graph works on the array itself, on CUDA on its copy there."""

    def __init__(self, array: NDArray[Any], device: str) -> None:
        from onnxruntime import OrtValue

        self.array = array  # kept alive here: on the CPU the value only points to it
        self._on_cpu = device == "cpu"
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

    def fetch(self) -> NDArray[Any]:
        """What is there now: on a GPU an array of its own, on the CPU a view, which the graph may overwrite."""
        return self.array if self._on_cpu else np.asarray(self.value.numpy())


class Ring:
    """Tensors of one shape [slots, …], each bound by itself; small ones are sent and read in one go.

    A copy to a GPU or back costs some microseconds, whatever its size.
    """

    def __init__(self, array: NDArray[Any], device: str) -> None:
        self.array = array
        self._device = device
        self._together = array[0].nbytes <= _TOGETHER
        self._buffers = [Buffer(part, device) for part in ([array] if self._together else array)]

    def bind_input(self, binding: Any, name: str, slot: int) -> None:
        """The graph reads ``name`` from this slot."""
        if self._together:
            binding.bind_input(name, *self._place(slot))
        else:
            binding.bind_ortvalue_input(name, self._buffers[slot].value)

    def bind_output(self, binding: Any, name: str, slot: int) -> None:
        """The graph writes ``name`` to this slot."""
        if self._together:
            binding.bind_output(name, *self._place(slot))
        else:
            binding.bind_ortvalue_output(name, self._buffers[slot].value)

    def send(self, slots: Iterable[int]) -> None:
        """``array`` was changed in these slots: let the graph see it. The others may get what it has for them, too."""
        for buffer in self._buffers if self._together else [self._buffers[slot] for slot in slots]:
            buffer.send()

    def read(self, slots: Iterable[int]) -> NDArray[Any]:
        """All slots, of which these are as they are now; a view."""
        for buffer in self._buffers if self._together else [self._buffers[slot] for slot in slots]:
            buffer.read()
        return self.array

    def _place(self, slot: int) -> tuple[Any, ...]:
        """Device and its number, type, shape and address, as the runtime takes them."""
        part = self.array[slot]
        return self._device, 0, part.dtype.type, part.shape, self._buffers[0].value.data_ptr() + slot * part.nbytes
