"""The two graphs of a translator: the encoder reads a batch of sources once, the decoder steps over what it left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnn_edge.providers import Device, run_failure
from rnn_edge.sessions import FLOAT, INTEGER, GraphSessions, Port
from rnn_edge.state import State
from rnn_edge.stepper import LENGTHS, Memory, StepGraph, Stepper

if TYPE_CHECKING:
    from rnn_edge.bundle import Bundle


@dataclass(frozen=True)
class Encoded:
    """A batch of sources as the decoder wants it: memory with a row a source, and the first state."""

    memory: Memory
    state: State

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Source tokens of each row, the end token included."""
        return self.memory[LENGTHS]

    def take(self, rows: Sequence[int] | NDArray[np.int64] | slice) -> Encoded:
        """These rows, in this order; one may stand there many times. Those of a slice are views."""
        length = int(self.lengths[rows].max())
        memory = {name: array[rows] if array.ndim == 1 else array[rows, :length] for name, array in self.memory.items()}
        return Encoded(memory, State({name: array[rows] for name, array in self.state.tensors.items()}))


class EncoderDecoderGraphs:
    """The sessions of both graphs, checked against the manifest."""

    def __init__(self, bundle: Bundle, *, device: Device = "auto", threads: int | None = None) -> None:
        """Read, check and load both graphs.

        Raises:
            BundleError: other bytes than the manifest says, external data, or other inputs and outputs.
            DeviceError: CUDA is asked for and not available.
        """
        self.manifest = manifest = bundle.manifest
        assert manifest.source is not None
        self._end = manifest.source.end
        inputs = {"source": Port(INTEGER, 2), LENGTHS: Port(INTEGER, 1)}
        outputs = {item.name: Port(FLOAT, 3, item.width) for item in manifest.memory}
        outputs |= {pair.input: Port(FLOAT, 2, pair.width) for pair in manifest.state}
        self._encoder = GraphSessions(bundle, "encoder", inputs, outputs, device=device, threads=threads)
        self.decoder = StepGraph(bundle, role="decoder", device=device, threads=threads)
        self.device = self.decoder.device

    def encode(self, sources: Sequence[Sequence[int]]) -> Encoded:
        """Token ids of each source, the end token last, none empty → memory and first state, padded to the longest."""
        lengths = np.array([len(ids) for ids in sources], dtype=np.int64)
        padded = np.full((len(sources), lengths.max()), self._end, dtype=np.int64)
        for row, ids in zip(padded, sources, strict=True):
            row[: len(ids)] = ids
        manifest = self.manifest
        names = [item.name for item in manifest.memory] + [pair.input for pair in manifest.state]
        try:
            found: list[Any] = self._encoder.of(len(sources)).run(names, {"source": padded, LENGTHS: lengths})
        except Exception as error:  # the runtime's exceptions share no base class
            raise run_failure(self._encoder.where, error) from error
        tensors = dict(zip(names, found, strict=True))
        memory = {item.name: tensors[item.name] for item in manifest.memory}
        return Encoded(memory | {LENGTHS: lengths}, State({pair.input: tensors[pair.input] for pair in manifest.state}))

    def stepper(self, encoded: Encoded) -> Stepper:
        """A decoder at its first state, with a stream for each row of ``encoded``."""
        memory = {name: np.ascontiguousarray(array) for name, array in encoded.memory.items()}
        stepper = Stepper(self.decoder, len(encoded.lengths), memory)
        stepper.load(encoded.state)
        return stepper
