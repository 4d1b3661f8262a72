"""One step graph with its state buffers: a language model's, or the decoder of a translator.

Tokens, logits and two sets of state buffers are bound once. A step reads one set and writes the other, then they
swap: nothing is allocated or copied per token. On CUDA the state stays on the device; tokens go there and logits
come back. ``chooser`` has the steps that need nothing from outside.
"""

from __future__ import annotations

import itertools
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnn_edge.buffers import Buffer
from rnn_edge.captured_stepper import CapturedStepper
from rnn_edge.choice import CHOICE, NO_FILTERS, Filters, choice_nodes
from rnn_edge.chooser import Chooser
from rnn_edge.errors import InvalidValueError
from rnn_edge.providers import IDLE_UP_TO, Device, captures_graphs, capturing_run, run_failure
from rnn_edge.reordering import Reordering, Replacing, reordering_session, replacing_session
from rnn_edge.sessions import FLOAT, INTEGER, MANY, GraphSessions, Port
from rnn_edge.state import State, check_state, check_streams, zero_state
from rnn_edge.unrolling import UnrolledGraphs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from onnxruntime import InferenceSession, RunOptions

    from rnn_edge.bundle import Bundle

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]
LENGTHS, ATTENTION = "source_lengths", "attention"
Memory = dict[str, NDArray[Any]]  # what a decoder reads in every step: memory tensors, and the lengths of the sources
_SPARE = 8  # choosers kept for the next text
_MOST_CAPTURED = 1024  # runs: they stay as long as the session, some 100 kB each


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
        self._widths = {pair.input: pair.width for pair in manifest.state}
        self.where = str(bundle.path / manifest.graphs[role])
        state = {pair.input: Port(FLOAT, 2, pair.width) for pair in manifest.state}
        memory = {item.name: Port(FLOAT, 3, item.width) for item in manifest.memory}
        memory |= {LENGTHS: Port(INTEGER, 1)} if memory else {}
        outputs = {"logits": Port(FLOAT, 2, manifest.tokenizer.vocabulary_size)}
        outputs |= {ATTENTION: Port(FLOAT, 2)} if memory else {}
        outputs |= {pair.output: Port(FLOAT, 2, pair.width) for pair in manifest.state}
        outputs |= {} if memory else {CHOICE: Port(INTEGER, 1)}
        inputs = {"token": Port(INTEGER, 1)} | memory | state
        extension = b"" if memory else choice_nodes()
        self._sessions = GraphSessions(
            bundle, role, inputs, outputs, device=device, threads=threads, extension=extension
        )
        self.session, self.device = self._sessions.few, self._sessions.device
        self._unrolled = None if memory else UnrolledGraphs(bundle, self.device, threads)
        self.threads = threads or 1
        self._captures = captures_graphs(self.session)
        self._numbers = itertools.count(1)  # of captured runs
        self.uncaptured = capturing_run(-1) if self._captures else None
        self._choosers: list[Chooser] = []  # that nobody uses
        self._reordering_session: InferenceSession | None = None
        self._replacing_session: InferenceSession | None = None

    @property
    def place(self) -> str:
        """Device and threads, to be shown."""
        return self.device if self.threads == 1 else f"{self.device}, {self.threads} threads"

    def session_of(self, batch: int) -> InferenceSession:
        """The session for so many streams."""
        return self._sessions.of(batch)

    def stepper(self, batch: int = 1) -> AnyStepper:
        """What steps ``batch`` streams of a language model, at a zero state."""
        captured = self._captures and 1 <= batch <= IDLE_UP_TO
        return CapturedStepper(self, batch) if captured else Stepper(self, batch)

    def unrolled(self, batch: int) -> UnrolledGraphs | None:
        """Graphs of several steps for so many streams, where there are any."""
        return self._unrolled if batch < MANY else None

    def borrow_chooser(self, owner: object, batch: int = 1, filters: Filters = NO_FILTERS) -> Chooser:
        """Bursts of ``batch`` streams for ``owner``. When it is gone, the buffers serve another.

        So does what CUDA captured with them; on the CPU, where there is no such thing, those of batches are not kept.
        """
        chooser = self._spare_chooser(batch, filters) or Chooser(self, batch, filters)
        if batch == 1 or self._captures:
            weakref.finalize(owner, self._give_back, chooser).atexit = False
        return chooser

    def _spare_chooser(self, batch: int, filters: Filters) -> Chooser | None:
        for chooser in list(self._choosers):
            if (chooser.batch, chooser.filters) == (batch, filters):
                with suppress(ValueError):  # another thread took it, or it was one too many
                    self._choosers.remove(chooser)
                    return chooser
        return None

    def _give_back(self, chooser: Chooser) -> None:
        self._choosers.append(chooser)
        while len(self._choosers) > _SPARE:  # else one would stay for every size of batch that there ever was
            with suppress(ValueError):  # another thread took it
                self._choosers.remove(min(self._choosers, key=lambda one: one.is_captured))

    def reordering(self, sides: Sequence[Mapping[str, Buffer]]) -> Reordering:
        """What reorders the rows of these buffers where they are."""
        if self._reordering_session is None:
            self._reordering_session = reordering_session(self._widths, self.device)
        return Reordering(self._reordering_session, sides, self.device)

    def replacing(self, sides: Sequence[Mapping[str, Buffer]]) -> Replacing:
        """What replaces rows of these buffers where they are."""
        if self._replacing_session is None:
            self._replacing_session = replacing_session(self._widths, self.device)
        return Replacing(self._replacing_session, sides, self.device)

    def capture(self, session: InferenceSession) -> tuple[RunOptions | None, RunOptions | None, bool]:
        """Options of runs that always use the same buffers: on CUDA the first is captured, the others replay it.

        With the first options a run waits until it is done, with the second it does not (``capturing_run``). The third
        says whether it is so: after very many, runs are no longer captured.
        """
        if not captures_graphs(session):
            return None, None, False
        number = next(self._numbers)
        captured = number <= _MOST_CAPTURED
        number = number if captured else -1
        return capturing_run(number), capturing_run(number, wait=False), captured

    def step(self, tokens: Tokens, state: State) -> tuple[Logits, State]:
        """One step without side effects: tokens int64 [batch], state → logits [batch, vocabulary], next state."""
        stepper = Stepper(self, len(tokens))
        stepper.load(state)
        return stepper.step(tokens).copy(), stepper.state()


class Stepper:
    """Steps ``batch`` streams at once, state held in buffers."""

    def __init__(self, graph: StepGraph, batch: int, memory: Memory | None = None) -> None:
        """At a zero state; ``memory`` of a decoder has one row a stream."""
        if batch < 1:
            raise InvalidValueError(f"batch is {batch}", "use at least 1")
        self.manifest = manifest = graph.manifest
        self.batch = batch
        self._where = graph.where
        self._run, self._options = graph.session_of(batch).run_with_iobinding, graph.uncaptured
        self._on_cpu = graph.device == "cpu"
        self._tokens = Buffer(np.zeros(batch, np.int64), graph.device)
        # On the CPU, where they are looked at.
        self._logits = Buffer(np.zeros((batch, manifest.tokenizer.vocabulary_size), np.float32), "cpu")
        self._states = [_buffers(zero_state(manifest, batch).tensors, graph.device) for _ in range(2)]
        self._memory = _buffers(memory or {}, graph.device)
        inputs, outputs = {"token": self._tokens, **self._memory}, {"logits": self._logits}
        if self._memory:
            length = self._memory[manifest.memory[0].name].array.shape[1]
            outputs[ATTENTION] = Buffer(np.zeros((batch, length), np.float32), "cpu")
        self.attention: Logits = outputs[ATTENTION].array if memory else np.empty((batch, 0), np.float32)
        self._reordering = None if self._on_cpu else graph.reordering(self._states)
        self._replacing = None if self._on_cpu or self._memory else graph.replacing(self._states)
        self._bindings = [
            _bind(graph, batch, inputs, outputs, self._states[side], self._states[1 - side]) for side in range(2)
        ]
        self._side = 0  # the side that holds the state

    @property
    def memory(self) -> Memory:
        """What the decoder reads in every step; empty for a language model."""
        return {name: buffer.array for name, buffer in self._memory.items()}

    def step(self, tokens: Tokens | int) -> Logits:
        """Feed one token to each stream: int64 [batch], or one id → logits float32 [batch, vocabulary].

        The array returned is a buffer: the next step overwrites it.
        """
        self._tokens.array[:] = tokens
        if not self._on_cpu:
            self._tokens.send()
        try:
            self._run(self._bindings[self._side], self._options)
        except Exception as error:  # the runtime's exceptions share no base class
            raise run_failure(self._where, error) from error
        self._side = 1 - self._side
        return self._logits.array

    def feed(self, tokens: Iterable[int]) -> Logits:
        """Feed tokens one after another to every stream → logits after the last."""
        for token in tokens:
            self.step(token)
        return self._logits.array

    def reorder(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """Stream i goes on from the state of stream ``rows[i]``."""
        if self._reordering:
            self._reordering.run(self._side, rows)
        else:
            for name, buffer in self._states[self._side].items():
                # Any other mode goes through a copy of the whole.
                np.take(buffer.array, rows, axis=0, out=self._states[1 - self._side][name].array, mode="clip")
        self._side = 1 - self._side

    def replace(self, rows: NDArray[np.int64], state: State, memory: Memory | None = None) -> None:
        """The streams ``rows[i]``, one or several, begin anew with row i of the state and of a memory that fits in."""
        if self._replacing and state.batch == 1:
            self._replacing.run(self._side, rows.ravel(), state)
            self._side = 1 - self._side
            return
        for name, array in (memory or {}).items():
            buffer = self._memory[name]
            buffer.array[rows if array.ndim == 1 else (rows, slice(array.shape[1]))] = array[:, None]
            buffer.send()
        for name, tensor in state.tensors.items():
            buffer = self._states[self._side][name]
            buffer.read()[rows] = tensor[:, None]
            buffer.send()

    def state(self) -> State:
        """A copy of the state."""
        return State({name: buffer.read().copy() for name, buffer in self._states[self._side].items()})

    def load(self, state: State) -> None:
        """Set the state from a copy.

        Raises:
            StateError: names, shapes or types differ.
        """
        check_state(state, self.manifest, "the state")
        check_streams(state, self.batch)
        for name, tensor in state.tensors.items():
            self._states[self._side][name].write(tensor)


AnyStepper = Stepper | CapturedStepper


def _buffers(arrays: Mapping[str, NDArray[Any]], device: str) -> dict[str, Buffer]:
    return {name: Buffer(array, device) for name, array in arrays.items()}


def _bind(
    graph: StepGraph,
    batch: int,
    inputs: Mapping[str, Buffer],
    outputs: Mapping[str, Buffer],
    source: Mapping[str, Buffer],
    target: Mapping[str, Buffer],
) -> Any:  # the runtime's binding has no type
    binding = graph.session_of(batch).io_binding()
    for name, buffer in inputs.items():
        binding.bind_ortvalue_input(name, buffer.value)
    for name, buffer in outputs.items():
        binding.bind_ortvalue_output(name, buffer.value)
    for pair in graph.manifest.state:
        binding.bind_ortvalue_input(pair.input, source[pair.input].value)
        binding.bind_ortvalue_output(pair.output, target[pair.input].value)
    return binding
