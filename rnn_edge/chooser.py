"""Many steps in one go: the graph itself chooses each token and feeds it to the next step.

Python between two steps costs more than its own work, for the step has put everything else out of the caches. So the
choice (``sampling``'s rule) is three more nodes of the graph, and a burst of steps runs without anything between them.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnn_edge.buffers import Buffer
from rnn_edge.onnx_nodes import Node, Tensor, graph_bytes
from rnn_edge.providers import run_failure
from rnn_edge.sampling import Logits
from rnn_edge.state import State, zero_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rnn_edge.stepper import StepGraph

DEPTH = 8  # steps of a burst at most, and states that are kept
BURST_SECONDS = 0.01  # of steps without a look at what they brought: a third of what an eye sees as one picture
_TEMPERATURE, _NOISE, CHOICE = "temperature", "noise", "choice"


def choice_nodes() -> bytes:
    """What makes a step graph choose: ``choice`` [batch] = argmax(logits / temperature + noise).

    ``temperature`` [1] is 1 and ``noise`` [batch, vocabulary] 0 where they are left out: the likeliest token.
    """
    return graph_bytes(
        [
            Node("Div", ("logits", _TEMPERATURE), "rnn_edge.scaled"),
            Node("Add", ("rnn_edge.scaled", _NOISE), "rnn_edge.noisy"),
            Node("ArgMax", ("rnn_edge.noisy",), CHOICE, (("axis", 1), ("keepdims", 0))),
        ],
        # Free axes: what is left out has one value for all.
        [Tensor(_TEMPERATURE, "float32", (1,)), Tensor(_NOISE, "float32", ("rnn_edge.rows", "rnn_edge.columns"))],
        [Tensor(CHOICE, "int64", ("batch",))],
        {_TEMPERATURE: np.ones(1, np.float32), _NOISE: np.zeros((1, 1), np.float32)},
    )


class Chooser:
    """Bursts of steps over a ring of buffers.

    A step reads one set of buffers and writes the next: nothing is copied, the states of the last steps are still
    there, and a step that runs twice does no harm, as it does when a CUDA graph is captured.
    """

    def __init__(self, graph: StepGraph, batch: int = 1) -> None:
        manifest, device = graph.manifest, graph.device
        self.batch = batch
        self._where = graph.where
        self._run = graph.session_of(batch).run_with_iobinding
        size = manifest.tokenizer.vocabulary_size
        self._temperature = Buffer(np.ones(1, np.float32), device)
        slots = range(DEPTH)
        self._ids = np.zeros((DEPTH, batch), np.int64)
        self._tokens = [Buffer(self._ids[slot], device) for slot in slots]
        self._noise = [Buffer(np.zeros((batch, size), np.float32), device) for _ in slots]
        self._logits = [Buffer(np.zeros((batch, size), np.float32), device) for _ in slots]
        self._states = [
            {name: Buffer(array, device) for name, array in zero_state(manifest, batch).tensors.items()} for _ in slots
        ]
        self._bindings = [self._bind(graph, slot) for slot in slots]
        self._options = [graph.capture() for _ in slots]
        self._silence = np.zeros(size, np.float32)
        self._noisy: set[int] = set()  # slots where noise was written
        self._slot = 0  # the one whose state and tokens come next
        self._ran = 0  # steps of the last burst
        self.length = 1  # steps of the next burst: the first comes alone, then as many as take BURST_SECONDS

    def start(
        self, state: State, tokens: int | NDArray[np.int64], temperature: float, barred: int | None = None
    ) -> None:
        """Go on from a state with these tokens to be fed.

        At temperature 1 without noise the likeliest are chosen, but never the id ``barred``.
        """
        self._slot = self._ran = 0
        self.length = 1
        for name, tensor in state.tensors.items():
            self._states[0][name].write(tensor)
        self._tokens[0].write(tokens)
        self._temperature.write(temperature)
        self._silence[:] = 0
        if barred is not None:
            self._silence[barred] = -np.inf
        self._noisy = set(range(DEPTH))

    def replace(self, rows: Sequence[int], state: State, tokens: Sequence[int]) -> None:
        """These streams go on from the state of one stream, with these tokens to be fed."""
        for name, tensor in state.tensors.items():
            buffer = self._states[self._slot][name]
            buffer.read()[rows] = tensor
            buffer.send()
        fed = self._tokens[self._slot]
        fed.read()[rows] = tokens
        fed.send()

    def run(self, count: int, noise: Logits | None = None) -> NDArray[np.int64]:
        """``count`` steps, at most ``DEPTH`` → the tokens chosen [count, batch].

        ``noise`` is [count, vocabulary] for all streams, or [count, batch, vocabulary].
        """
        slots = [(self._slot + index) % DEPTH for index in range(count)]
        for index, slot in enumerate(slots):
            if noise is not None:
                self._noise[slot].write(noise[index])
                self._noisy.add(slot)
            elif slot in self._noisy:
                self._noise[slot].write(self._silence)
                self._noisy.remove(slot)
        began = perf_counter()
        try:
            for slot in slots:
                self._run(self._bindings[slot], self._options[slot])
        except Exception as error:  # the runtime's exceptions share no base class
            raise run_failure(self._where, error) from error
        self._slot = (self._slot + count) % DEPTH
        self._ran = count
        for slot in slots:
            self._tokens[(slot + 1) % DEPTH].read()
        seconds = (perf_counter() - began) / count
        self.length = max(1, min(DEPTH, int(BURST_SECONDS / max(seconds, 1e-9))))
        return self._ids[[(slot + 1) % DEPTH for slot in slots]]

    def logits(self, index: int) -> Logits:
        """Of step ``index`` of the last burst [batch, vocabulary]."""
        return self._logits[(self._slot - self._ran + index) % DEPTH].read()

    @property
    def tokens(self) -> NDArray[np.int64]:
        """What is fed next [batch]; a view."""
        fed: NDArray[np.int64] = self._ids[self._slot]
        return fed

    def state(self, taken: int | None = None) -> State:
        """A copy of the state after the first ``taken`` steps of the last burst, one or more; None for all."""
        taken = self._ran if taken is None else taken
        values = self._states[(self._slot - self._ran + taken) % DEPTH]
        return State({name: buffer.read().copy() for name, buffer in values.items()})

    def _bind(self, graph: StepGraph, slot: int) -> Any:  # the runtime's binding has no type
        following = (slot + 1) % DEPTH
        binding = graph.session_of(self.batch).io_binding()
        binding.bind_ortvalue_input("token", self._tokens[slot].value)
        binding.bind_ortvalue_input(_TEMPERATURE, self._temperature.value)
        binding.bind_ortvalue_input(_NOISE, self._noise[slot].value)
        binding.bind_ortvalue_output("logits", self._logits[slot].value)
        binding.bind_ortvalue_output(CHOICE, self._tokens[following].value)
        for pair in graph.manifest.state:
            binding.bind_ortvalue_input(pair.input, self._states[slot][pair.input].value)
            binding.bind_ortvalue_output(pair.output, self._states[following][pair.input].value)
        return binding
