"""Many steps in one go: the graph itself chooses each token and feeds it to the next step.

Python between two steps costs more than its own work, for the step has put everything else out of the caches. So the
choice (``choice``) is a few more nodes of the graph, and a burst of steps runs without anything between them.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnn_edge.buffers import Buffer, Ring
from rnn_edge.choice import CHOICE, NO_FILTERS, NOISE, TEMPERATURE, WEIGHTS, Filters
from rnn_edge.providers import IDLE_UP_TO, run_failure
from rnn_edge.sampling import Logits
from rnn_edge.state import State, zero_state
from rnn_edge.unrolling import STEPS, numbered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnxruntime import InferenceSession

    from rnn_edge.reordering import Replacing
    from rnn_edge.stepper import StepGraph

DEPTH = 8  # steps of a burst at most, and states that are kept
BURST_SECONDS = 0.01  # of steps without a look at what they brought: a third of what an eye sees as one picture

_Run = tuple[Any, Any, Any]  # what to call, with which binding and options, which have no types in the runtime


class Chooser:
    """Bursts of steps over a ring of buffers.

    A step reads one set of buffers and writes the next: nothing is copied, the states of the last steps are still
    there, and a step that runs twice does no harm, as it does when a CUDA graph is captured. Where the graph is
    unrolled by now, one run makes several steps; with filters always, and steps too many at the end are in vain.
    """

    def __init__(self, graph: StepGraph, batch: int = 1, filters: Filters = NO_FILTERS) -> None:
        """Filters need a graph that is unrolled by now, and a batch of 1."""
        manifest, device = graph.manifest, graph.device
        self.batch, self.filters = batch, filters
        self._graph, self._unrolled = graph, graph.unrolled(batch)
        self._several: InferenceSession | None = None  # of STEPS steps
        self._where, self._on_cpu = graph.where, device == "cpu"
        size = manifest.tokenizer.vocabulary_size
        self._temperature = Buffer(np.ones(1, np.float32), device)
        slots = range(DEPTH)
        self._tokens = Ring(np.zeros((DEPTH, batch), np.int64), device)
        self._noise = Ring(np.zeros((DEPTH, batch, size), np.float32), device)
        self._logits = [Buffer(np.zeros((batch, size), np.float32), device) for _ in slots]
        self._states = [
            {name: Buffer(array, device) for name, array in zero_state(manifest, batch).tensors.items()} for _ in slots
        ]
        # By first slot and number of steps: one that waits until the GPU is done, and one that only queues it there.
        self._bindings: dict[tuple[int, int], tuple[_Run, _Run]] = {}
        self._plans: dict[tuple[int, int], tuple[list[_Run], int]] = {}  # by first slot and steps of a burst
        self._weights = Ring(np.ones((STEPS, size), np.float32), device)
        self._barred: int | None = None
        self._silence = np.zeros(size, np.float32)
        self._noisy: set[int] = set()  # slots where something else is
        self._replacing: Replacing | None = None
        self.is_captured = False
        self._slot = 0  # the one whose state and tokens come next
        self._ran = 0  # steps of the last burst
        self.length = 1  # steps of the next burst: the first comes alone, then as many as take BURST_SECONDS

    def start(
        self, state: State | None, tokens: int | NDArray[np.int64], temperature: float, barred: int | None = None
    ) -> None:
        """Go on from a state, None for that which is there, with these tokens to be fed.

        At temperature 1 without noise the likeliest are chosen, but never the id ``barred``.
        """
        if state is not None:
            self._slot = 0
            for name, tensor in state.tensors.items():
                self._states[0][name].write(tensor)
        self._ran, self.length = 0, 1
        self.tokens[:] = tokens
        self._tokens.send([self._slot])
        self._temperature.write(temperature)
        if barred != self._barred:
            self._barred = barred
            self._silence[:] = 0
            if barred is not None:
                self._silence[barred] = -np.inf
            self._noisy = set(range(DEPTH))

    def replace(self, rows: Sequence[int] | NDArray[np.int64], state: State, tokens: int | Sequence[int]) -> None:
        """These streams go on from the state of one stream, with these tokens to be fed."""
        if self._on_cpu or self.batch <= IDLE_UP_TO:  # a copy here and back takes less than making a graph
            for name, tensor in state.tensors.items():
                buffer = self._states[self._slot][name]
                buffer.read()[rows] = tensor
                buffer.send()
        else:
            self._replacing = self._replacing or self._graph.replacing(self._states)
            self._replacing.run(self._slot, rows, state)
            fed = self.tokens
            self._slot, self._ran = (self._slot + 1) % DEPTH, 0
            self.tokens[:] = fed
        self.tokens[rows] = tokens
        self._tokens.send([self._slot])

    def weigh(self, fill: Callable[[Logits], None]) -> None:
        """``fill`` in what a repeat penalty weighs the logits of the next ``STEPS`` steps with [STEPS, vocabulary]."""
        fill(self._weights.array)
        self._weights.send(range(STEPS))

    def run(self, count: int, noise: Logits | None = None) -> NDArray[np.int64]:
        """``count`` steps, at most ``DEPTH``, with a penalty ``STEPS`` → the tokens chosen [count, batch].

        ``noise`` is [count, vocabulary] for all streams, or [count, batch, vocabulary].
        """
        slots = [(self._slot + index) % DEPTH for index in range(count)]
        if noise is not None:
            self._noise.array[slots] = noise if noise.ndim == 3 else noise[:, None]
            self._noise.send(slots)
            self._noisy.update(slots)
        elif noisy := self._noisy.intersection(slots):
            self._noise.array[list(noisy)] = self._silence
            self._noise.send(noisy)
            self._noisy -= noisy
        seconds = self._execute(count)
        if self._unrolled:
            self._unrolled.note(self.filters, count, seconds)
        following = [(slot + 1) % DEPTH for slot in slots]
        chosen: NDArray[np.int64] = self._tokens.read(following)[following]
        return chosen

    def step(self, tokens: int | NDArray[np.int64]) -> Logits:
        """Feed these tokens in place of those chosen → logits [batch, vocabulary]."""
        self.tokens[:] = tokens
        self._tokens.send([self._slot])
        self._execute(1)
        return self.logits(0)

    def logits(self, index: int) -> Logits:
        """Of step ``index`` of the last burst [batch, vocabulary]."""
        return self._logits[(self._slot - self._ran + index) % DEPTH].fetch()

    @property
    def tokens(self) -> NDArray[np.int64]:
        """What is fed next [batch]; a view."""
        fed: NDArray[np.int64] = self._tokens.array[self._slot]
        return fed

    def state(self, taken: int | None = None) -> State:
        """A copy of the state after the first ``taken`` steps of the last burst, one or more; None for all."""
        taken = self._ran if taken is None else taken
        values = self._states[(self._slot - self._ran + taken) % DEPTH]
        fetched = {name: buffer.fetch() for name, buffer in values.items()}
        return State({name: array.copy() for name, array in fetched.items()} if self._on_cpu else fetched)

    def _execute(self, count: int) -> float:
        """``count`` steps → seconds of each."""
        runs, made = self._runs(count)
        began = perf_counter()
        try:
            for run, binding, options in runs:
                run(binding, options)
        except Exception as error:  # the runtime's exceptions share no base class
            raise run_failure(self._where, error) from error
        seconds = (perf_counter() - began) / made
        self._slot = (self._slot + count) % DEPTH
        self._ran = count
        self.length = max(1, min(DEPTH, int(BURST_SECONDS / max(seconds, 1e-9))))
        return seconds

    def _runs(self, count: int) -> tuple[list[_Run], int]:
        """What makes ``count`` steps, and how many it makes."""
        if self._several is None and self._unrolled and (several := self._unrolled.session(self.filters)):
            self._several = several
            self._plans.clear()
        place = self._slot, count
        if place not in self._plans:
            self._plans[place] = self._plan(count)
        return self._plans[place]

    def _plan(self, count: int) -> tuple[list[_Run], int]:
        several, found, made = self._several, [], 0
        while made < count:
            steps = STEPS if several and (self.filters.any or count - made >= STEPS) else 1
            begin = (self._slot + made) % DEPTH, steps
            if begin not in self._bindings:
                session = several if several and steps > 1 else self._graph.session_of(self.batch)
                self._bindings[begin] = self._bind(session, *begin)
            made += steps
            left = count - made  # for the same session, which then waits for both
            hurries = left > 0 and (steps == 1 or self.filters.any or left >= STEPS)
            found.append(self._bindings[begin][hurries])
        return found, made

    def _bind(self, session: InferenceSession, slot: int, steps: int) -> tuple[_Run, _Run]:
        graph, binding = self._graph, session.io_binding()
        self._tokens.bind_input(binding, "token", slot)
        binding.bind_ortvalue_input(TEMPERATURE, self._temperature.value)
        for pair in graph.manifest.state:
            binding.bind_ortvalue_input(pair.input, self._states[slot][pair.input].value)
        for step in range(steps):
            here, following = (slot + step) % DEPTH, (slot + step + 1) % DEPTH

            def name(plain: str, step: int = step) -> str:
                return plain if steps == 1 else numbered(plain, step)

            self._noise.bind_input(binding, name(NOISE), here)
            if self.filters.penalty != 1:
                self._weights.bind_input(binding, name(WEIGHTS), step)
            binding.bind_ortvalue_output(name("logits"), self._logits[here].value)
            self._tokens.bind_output(binding, name(CHOICE), following)
            for pair in graph.manifest.state:
                binding.bind_ortvalue_output(name(pair.output), self._states[following][pair.input].value)
        run, (waiting, hurrying, self.is_captured) = session.run_with_iobinding, graph.capture(session)
        return (run, binding, waiting), (run, binding, hurrying)
