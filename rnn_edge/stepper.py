"""One step graph with its state buffers.

Tokens, logits and two sets of state buffers are bound once. A step reads one set and writes the other, then they
swap: nothing is allocated or copied per token. On CUDA the state stays on the device; tokens go there and logits
come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import BundleError, InvalidValueError
from rnn_edge.onnx_file import summarise
from rnn_edge.providers import Device, first_line, open_session, session_device
from rnn_edge.state import State, check_state, zero_state

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnxruntime import InferenceSession, OrtValue

    from rnn_edge.bundle import Bundle
    from rnn_edge.manifest import Manifest

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]


class StepGraph:
    """The session of a bundle's step graph, checked against the manifest. Make one ``Stepper`` per batch from it."""

    def __init__(self, bundle: Bundle, *, device: Device = "auto", threads: int | None = None) -> None:
        """Read, check and load the graph.

        Raises:
            BundleError: other bytes than the manifest says, external data, or other inputs and outputs.
            DeviceError: CUDA is asked for and not available.
        """
        self.manifest = bundle.manifest
        self.where = where = str(bundle.path / bundle.manifest.graphs["step"])
        content = bundle.graph("step")
        if summarise(content, where).external_data:
            raise BundleError(f"{where} keeps tensors in other files", "export the bundle again, in one file")
        self.session: InferenceSession = open_session(content, where, device=device, threads=threads)
        self.device = session_device(self.session)
        _check_graph(self.session, bundle.manifest, where)

    def stepper(self, batch: int = 1) -> Stepper:
        """Buffers for ``batch`` streams, at a zero state."""
        return Stepper(self, batch)

    def step(self, tokens: Tokens, state: State) -> tuple[Logits, State]:
        """One step without side effects: tokens int64 [batch], state → logits [batch, vocabulary], next state."""
        stepper = Stepper(self, len(tokens))
        stepper.load(state)
        return stepper.step(tokens).copy(), stepper.state()


class Stepper:
    """Steps ``batch`` streams at once, state held in buffers."""

    def __init__(self, graph: StepGraph, batch: int) -> None:
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
        self._bindings = [_bind(graph, token, logits, self._values[side], self._values[1 - side]) for side in range(2)]
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
    graph: StepGraph, token: OrtValue, logits: OrtValue, source: dict[str, OrtValue], target: dict[str, OrtValue]
) -> Any:  # the runtime's binding has no type
    binding = graph.session.io_binding()
    binding.bind_ortvalue_input("token", token)
    binding.bind_ortvalue_output("logits", logits)
    for pair in graph.manifest.state:
        binding.bind_ortvalue_input(pair.input, source[pair.input])
        binding.bind_ortvalue_output(pair.output, target[pair.input])
    return binding


def _check_graph(session: InferenceSession, manifest: Manifest, where: str) -> None:
    """Inputs, outputs and metadata must be what the manifest says."""
    widths = {pair.input: pair.width for pair in manifest.state}
    inputs = {"token": ("tensor(int64)", 1)} | dict.fromkeys(widths, ("tensor(float)", 2))
    outputs = {"logits": ("tensor(float)", 2)} | {pair.output: ("tensor(float)", 2) for pair in manifest.state}
    mend = "export the bundle again"
    for kind, nodes, expected in (("input", session.get_inputs(), inputs), ("output", session.get_outputs(), outputs)):
        found = {node.name: (node.type, len(node.shape)) for node in nodes}
        if found != expected:
            differing = sorted(set(found.items()) ^ set(expected.items()))
            raise BundleError(f"{where}: {kind} {differing[0][0]} is not what the manifest says", mend)
    widths |= {pair.output: pair.width for pair in manifest.state}
    widths["logits"] = manifest.tokenizer.vocabulary_size
    for node in (*session.get_inputs(), *session.get_outputs()):
        if node.name in widths and node.shape[1] != widths[node.name]:
            raise BundleError(
                f"{where}: {node.name} is {node.shape[1]} wide, the manifest says {widths[node.name]}", mend
            )
    metadata = session.get_modelmeta().custom_metadata_map
    for key, value in graph_metadata(manifest).items():
        if metadata.get(key) != value:
            raise BundleError(f"{where}: its metadata say {key} = {metadata.get(key)!r}, the manifest {value!r}", mend)


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
