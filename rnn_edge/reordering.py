"""Rows of a state put in another order, or begun anew, where the state is: small graphs of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnn_edge.buffers import Buffer
from rnn_edge.onnx_nodes import Node, Tensor, model_bytes
from rnn_edge.providers import Device, open_session, run_failure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxruntime import InferenceSession

    from rnn_edge.state import State

    Sides = Sequence[Mapping[str, Buffer]]  # sets of buffers, of which a graph reads one and writes the next

_ROWS, _KEPT = "rows", "kept"
_REORDERS, _REPLACES = "the graph that reorders states", "the graph that replaces states"


def reordering_session(widths: Mapping[str, int], device: Device) -> InferenceSession:
    """For tensors [batch, width] by name: NAME and ``rows`` int64 [batch] → NAME_next, whose row i is ``rows[i]``."""
    inputs = [Tensor(name, "float32", ("batch", width)) for name, width in widths.items()]
    outputs = [Tensor(f"{name}_next", "float32", ("batch", width)) for name, width in widths.items()]
    nodes = [Node("Gather", (name, _ROWS), f"{name}_next", (("axis", 0),)) for name in widths]
    content = model_bytes(nodes, [*inputs, Tensor(_ROWS, "int64", ("batch",))], outputs)
    return open_session(content, _REORDERS, device=device)


def replacing_session(widths: Mapping[str, int], device: Device) -> InferenceSession:
    """NAME [batch, width], NAME_new [1, width] and ``kept`` bool [batch, 1] → NAME_next: those kept, or the new one."""
    inputs = [Tensor(name, "float32", ("batch", width)) for name, width in widths.items()]
    inputs += [Tensor(f"{name}_new", "float32", (1, width)) for name, width in widths.items()]
    outputs = [Tensor(f"{name}_next", "float32", ("batch", width)) for name, width in widths.items()]
    nodes = [Node("Where", (_KEPT, name, f"{name}_new"), f"{name}_next") for name in widths]
    content = model_bytes(nodes, [*inputs, Tensor(_KEPT, "bool", ("batch", 1))], outputs)
    return open_session(content, _REPLACES, device=device)


class Reordering:
    """Moves the rows of one set of buffers to the next."""

    def __init__(self, session: InferenceSession, sides: Sides, device: str) -> None:
        self._rows = Buffer(np.zeros(_batch(sides), np.int64), device)
        self._session = session
        self._bindings = _bind(session, sides, {_ROWS: self._rows})

    def run(self, side: int, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """Fill the next side: row i is ``rows[i]`` of this side."""
        self._rows.write(rows)
        _run(self._session, self._bindings[side], _REORDERS)


class Replacing:
    """Moves some rows of one set of buffers to the next, and puts one state in place of the others."""

    def __init__(self, session: InferenceSession, sides: Sides, device: str) -> None:
        self._kept = Buffer(np.ones((_batch(sides), 1), np.bool_), device)
        self._new = {name: Buffer(np.zeros_like(buffer.array[:1]), device) for name, buffer in sides[0].items()}
        self._session = session
        given = {f"{name}_new": buffer for name, buffer in self._new.items()}
        self._bindings = _bind(session, sides, {_KEPT: self._kept, **given})

    def run(self, side: int, rows: Sequence[int] | NDArray[np.int64], state: State) -> None:
        """Fill the next side: ``rows`` have the state of one stream, the others what they have on this side."""
        for name, tensor in state.tensors.items():
            self._new[name].write(tensor)
        self._kept.array[:] = True
        self._kept.array[rows] = False
        self._kept.send()
        _run(self._session, self._bindings[side], _REPLACES)


def _run(session: InferenceSession, binding: Any, where: str) -> None:
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # the runtime's exceptions share no base class
        raise run_failure(where, error) from error


def _batch(sides: Sides) -> int:
    return len(next(iter(sides[0].values())).array)


def _bind(session: InferenceSession, sides: Sides, given: Mapping[str, Buffer]) -> list[Any]:
    """A binding for each side, which have no type in the runtime."""
    bindings = []
    for here, following in zip(sides, [*sides[1:], sides[0]], strict=True):
        binding = session.io_binding()
        for name, buffer in {**given, **here}.items():
            binding.bind_ortvalue_input(name, buffer.value)
        for name, buffer in following.items():
            binding.bind_ortvalue_output(f"{name}_next", buffer.value)
        bindings.append(binding)
    return bindings
