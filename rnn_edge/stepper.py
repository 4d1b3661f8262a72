"""One step graph with its state buffers: a language model's, or the decoder of a translator.

Tokens, logits and two sets of state buffers are bound once. A step reads one set and writes the other, then they
swap: nothing is allocated or copied per token. On CUDA the state stays on the device; tokens go there and logits
come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import BundleError, InvalidValueError
from rnn_edge.onnx_file import summarise
from rnn_edge.providers import Device, first_line, open_session, session_device
from rnn_edge.state import State, check_state, zero_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from onnxruntime import InferenceSession, OrtValue

    from rnn_edge.bundle import Bundle
    from rnn_edge.manifest import Manifest

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]
LENGTHS, ATTENTION = "source_lengths", "attention"
Memory = dict[str, NDArray[Any]]  # what a decoder reads in every step: memory tensors, and the lengths of the sources
FLOAT, INTEGER = "tensor(float)", "tensor(int64)"


@dataclass(frozen=True)
class Port:
    """An input or output of a graph: its type, rank, and last axis where that is fixed."""

    type: str
    rank: int
    width: int | None = None


class StepGraph:
    """The session of a bundle's step graph, checked against the manifest. Make one ``Stepper`` per batch from it."""

    def __init__(
        self, bundle: Bundle, *, role: str = "step", device: Device = "auto", threads: int | None = None
    ) -> None:
        """Read, check and load the graph with this role: ``step``, or ``decoder``.

        Raises:
            BundleError: other bytes than the manifest says, external data, or other inputs and outputs.
            DeviceError: CUDA is asked for and not available.
        """
        self.manifest = manifest = bundle.manifest
        self.where = str(bundle.path / manifest.graphs[role])
        state = {pair.input: Port(FLOAT, 2, pair.width) for pair in manifest.state}
        memory = {item.name: Port(FLOAT, 3, item.width) for item in manifest.memory}
        memory |= {LENGTHS: Port(INTEGER, 1)} if memory else {}
        outputs = {"logits": Port(FLOAT, 2, manifest.tokenizer.vocabulary_size)}
        outputs |= {ATTENTION: Port(FLOAT, 2)} if memory else {}
        outputs |= {pair.output: Port(FLOAT, 2, pair.width) for pair in manifest.state}
        self.session = open_graph(
            bundle, role, {"token": Port(INTEGER, 1)} | memory | state, outputs, device=device, threads=threads
        )
        self.device = session_device(self.session)
        self.threads = threads or 1

    @property
    def place(self) -> str:
        """Device and threads, to be shown."""
        return self.device if self.threads == 1 else f"{self.device}, {self.threads} threads"

    def stepper(self, batch: int = 1, memory: Memory | None = None) -> Stepper:
        """Buffers for ``batch`` streams, at a zero state; ``memory`` has one row a stream."""
        return Stepper(self, batch, memory)

    def step(self, tokens: Tokens, state: State) -> tuple[Logits, State]:
        """One step without side effects: tokens int64 [batch], state → logits [batch, vocabulary], next state."""
        stepper = Stepper(self, len(tokens))
        stepper.load(state)
        return stepper.step(tokens).copy(), stepper.state()


class Stepper:
    """Steps ``batch`` streams at once, state held in buffers."""

    def __init__(self, graph: StepGraph, batch: int, memory: Memory | None = None) -> None:
        if batch < 1:
            raise InvalidValueError(f"batch is {batch}", "use at least 1")
        from onnxruntime import OrtValue

        self.manifest = graph.manifest
        self.batch = batch
        self._where = graph.where
        self._run = graph.session.run_with_iobinding
        self._on_cpu = graph.device == "cpu"
        self._tokens: Tokens = np.zeros(batch, np.int64)
        self._logits: Logits = np.zeros((batch, graph.manifest.tokenizer.vocabulary_size), np.float32)
        token = OrtValue.ortvalue_from_numpy(self._tokens, graph.device, 0)
        logits = OrtValue.ortvalue_from_numpy(self._logits)
        # On the CPU an OrtValue shares the memory of its array, so the arrays must stay alive with it.
        self._arrays = [_zeros(self.manifest, batch) for _ in range(2)]
        self._values = [
            {name: OrtValue.ortvalue_from_numpy(array, graph.device, 0) for name, array in arrays.items()}
            for arrays in self._arrays
        ]
        self._token_value = token
        inputs, outputs = {"token": token}, {"logits": logits}
        self.attention: Logits = np.empty((batch, 0), np.float32)  # [batch, source_length] of the last step
        self.memory = memory or {}
        self._memory_values = {
            name: OrtValue.ortvalue_from_numpy(array, graph.device, 0) for name, array in self.memory.items()
        }
        if self.memory:
            self.attention = np.zeros((batch, self.memory[graph.manifest.memory[0].name].shape[1]), np.float32)
            outputs[ATTENTION] = OrtValue.ortvalue_from_numpy(self.attention)
            inputs |= self._memory_values
        self._bindings = [
            _bind(graph, inputs, outputs, self._values[side], self._values[1 - side]) for side in range(2)
        ]
        self._side = 0  # the side that holds the state

    def step(self, tokens: Tokens | int) -> Logits:
        """Feed one token to each stream: int64 [batch], or one id → logits float32 [batch, vocabulary].

        The array returned is a buffer: the next step overwrites it.
        """
        self._tokens[:] = tokens
        if not self._on_cpu:
            self._token_value.update_inplace(self._tokens)
        try:
            self._run(self._bindings[self._side])
        except Exception as error:  # the runtime's exceptions share no base class
            raise BundleError(
                f"{self._where}: the graph fails: {first_line(error)}", "export the bundle again"
            ) from error
        self._side = 1 - self._side
        return self._logits

    def feed(self, tokens: Iterable[int]) -> Logits:
        """Feed tokens one after another to every stream → logits after the last."""
        for token in tokens:
            self.step(token)
        return self._logits

    def reorder(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """Stream i goes on from the state of stream ``rows[i]``."""
        if self._on_cpu:
            for name, array in self._arrays[self._side].items():
                # Any other mode goes through a copy of the whole.
                np.take(array, rows, axis=0, out=self._arrays[1 - self._side][name], mode="clip")
            self._side = 1 - self._side
        else:
            for value in self._values[self._side].values():
                value.update_inplace(value.numpy()[rows])

    def replace(self, rows: NDArray[np.int64], state: State, memory: Memory) -> None:
        """The streams ``rows[i]``, one or several, begin anew with row i of the state and of a memory that fits in."""
        for name, array in memory.items():
            own = self.memory[name]
            own[rows if array.ndim == 1 else (rows, slice(array.shape[1]))] = array[:, None]
            if not self._on_cpu:
                self._memory_values[name].update_inplace(own)
        for name, tensor in state.tensors.items():
            if self._on_cpu:
                self._arrays[self._side][name][rows] = tensor[:, None]
            else:
                value = self._values[self._side][name]
                whole = value.numpy()
                whole[rows] = tensor[:, None]
                value.update_inplace(whole)

    def state(self) -> State:
        """A copy of the state."""
        if self._on_cpu:
            return State({name: array.copy() for name, array in self._arrays[self._side].items()})
        return State({name: value.numpy() for name, value in self._values[self._side].items()})

    def load(self, state: State) -> None:
        """Set the state from a copy.

        Raises:
            StateError: names, shapes or types differ.
        """
        check_state(state, self.manifest, "the state")
        if state.batch != self.batch:
            raise InvalidValueError(f"the state has {state.batch} streams, not {self.batch}", "fork it to the batch")
        for name, tensor in state.tensors.items():
            if self._on_cpu:
                self._arrays[self._side][name][:] = tensor
            else:
                self._values[self._side][name].update_inplace(np.ascontiguousarray(tensor))


def _zeros(manifest: Manifest, batch: int) -> dict[str, NDArray[np.float32]]:
    return zero_state(manifest, batch).tensors


def _bind(
    graph: StepGraph,
    inputs: Mapping[str, OrtValue],
    outputs: Mapping[str, OrtValue],
    source: Mapping[str, OrtValue],
    target: Mapping[str, OrtValue],
) -> Any:  # the runtime's binding has no type
    binding = graph.session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    for pair in graph.manifest.state:
        binding.bind_ortvalue_input(pair.input, source[pair.input])
        binding.bind_ortvalue_output(pair.output, target[pair.input])
    return binding


def open_graph(
    bundle: Bundle,
    role: str,
    inputs: Mapping[str, Port],
    outputs: Mapping[str, Port],
    *,
    device: Device,
    threads: int | None,
) -> InferenceSession:
    """The session of one of a bundle's graphs. Inputs, outputs and metadata must be what the manifest says.

    Raises:
        BundleError: other bytes than the manifest says, external data, or other inputs and outputs.
        DeviceError: CUDA is asked for and not available.
    """
    manifest, where = bundle.manifest, str(bundle.path / bundle.manifest.graphs[role])
    mend = "export the bundle again"
    content = bundle.graph(role)
    summary = summarise(content, where)
    if summary.external_data:
        raise BundleError(f"{where} keeps tensors in other files", "export the bundle again, in one file")
    session = open_session(
        content, where, device=device, threads=threads, integers="MatMulInteger" in summary.operators
    )
    for kind, nodes, expected in (("input", session.get_inputs(), inputs), ("output", session.get_outputs(), outputs)):
        found = {node.name: (node.type, len(node.shape)) for node in nodes}
        wanted = {name: (port.type, port.rank) for name, port in expected.items()}
        if found != wanted:
            differing = sorted(set(found.items()) ^ set(wanted.items()))
            raise BundleError(f"{where}: {kind} {differing[0][0]} is not what the manifest says", mend)
        for node in nodes:
            width = expected[node.name].width
            if width is not None and node.shape[-1] != width:
                raise BundleError(f"{where}: {node.name} is {node.shape[-1]} wide, the manifest says {width}", mend)
    metadata = session.get_modelmeta().custom_metadata_map
    for key, value in graph_metadata(manifest).items():
        if metadata.get(key) != value:
            raise BundleError(f"{where}: its metadata say {key} = {metadata.get(key)!r}, the manifest {value!r}", mend)
    return session


def graph_metadata(manifest: Manifest) -> dict[str, str]:
    """What the ONNX file says about itself; the manifest is authoritative and the two must agree."""
    return {
        "rnn_edge.format_version": str(manifest.format_version),
        "rnn_edge.name": manifest.name,
        "rnn_edge.task": manifest.task,
        "rnn_edge.precision": manifest.precision,
        "rnn_edge.lowering": manifest.lowering,
        "rnn_edge.cell": manifest.architecture.cell,
        "rnn_edge.state": ",".join(f"{pair.input}->{pair.output}" for pair in manifest.state),
    }
