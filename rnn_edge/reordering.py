"""Rows of a state put in another order where the state is: a graph of its own, one Gather for each tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnn_edge.buffers import Buffer
from rnn_edge.onnx_nodes import Node, Tensor, model_bytes
from rnn_edge.providers import Device, open_session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxruntime import InferenceSession

_ROWS = "rows"


def reordering_session(widths: Mapping[str, int], device: Device) -> InferenceSession:
    """For tensors [batch, width] by name: NAME and ``rows`` int64 [batch] → NAME_next, whose row i is ``rows[i]``."""
    inputs = [Tensor(name, "float32", ("batch", width)) for name, width in widths.items()]
    outputs = [Tensor(f"{name}_next", "float32", ("batch", width)) for name, width in widths.items()]
    nodes = [Node("Gather", (name, _ROWS), f"{name}_next", (("axis", 0),)) for name in widths]
    content = model_bytes(nodes, [*inputs, Tensor(_ROWS, "int64", ("batch",))], outputs)
    return open_session(content, "the graph that reorders states", device=device)


class Reordering:
    """Moves the rows of one set of buffers to the other."""

    def __init__(self, session: InferenceSession, sides: Sequence[Mapping[str, Buffer]], device: str) -> None:
        first = next(iter(sides[0].values()))
        self._rows = Buffer(np.zeros(len(first.array), np.int64), device)
        self._run = session.run_with_iobinding
        self._bindings: list[Any] = []  # the runtime's binding has no type
        for side in range(2):
            binding = session.io_binding()
            binding.bind_ortvalue_input(_ROWS, self._rows.value)
            for name, buffer in sides[side].items():
                binding.bind_ortvalue_input(name, buffer.value)
                binding.bind_ortvalue_output(f"{name}_next", sides[1 - side][name].value)
            self._bindings.append(binding)

    def run(self, side: int, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """Fill the other side: row i is ``rows[i]`` of this side."""
        self._rows.write(rows)
        self._run(self._bindings[side])
