"""Steps of few streams on a GPU, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rnn_edge.state import State, check_state, check_streams, zero_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from rnn_edge.sampling import Logits
    from rnn_edge.stepper import StepGraph


class CapturedStepper:
    """What ``Stepper`` is, for so few streams that a GPU waits for the processor: its runs are captured.

    Its buffers are a ``Chooser``'s, so what was captured serves the bursts that follow, and the next stepper. The
    graph's choices are overwritten by the tokens that are fed.
    """

    def __init__(self, graph: StepGraph, batch: int) -> None:
        """At a zero state."""
        self.manifest, self.batch = graph.manifest, batch
        self.chooser = graph.borrow_chooser(self, batch)
        self._start(zero_state(graph.manifest, batch))

    def step(self, tokens: NDArray[np.int64] | int) -> Logits:
        """See ``Stepper.step``; the array is the caller's."""
        return self.chooser.step(tokens)

    def feed(self, tokens: Iterable[int]) -> Logits:
        """See ``Stepper.feed``."""
        logits = np.zeros((self.batch, self.manifest.tokenizer.vocabulary_size), np.float32)
        for token in tokens:
            logits = self.step(token)
        return logits

    def reorder(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """See ``Stepper.reorder``."""
        self._start(self.state().take(rows))

    def replace(self, rows: NDArray[np.int64], state: State) -> None:
        """The streams ``rows`` [n, 1] begin anew, all with the state of one stream, or each with its own."""
        self.chooser.replace(rows[:, 0], state, 0)

    def state(self) -> State:
        """A copy of the state."""
        return self.chooser.state()

    def load(self, state: State) -> None:
        """See ``Stepper.load``."""
        check_state(state, self.manifest, "the state")
        check_streams(state, self.batch)
        self._start(state)

    def _start(self, state: State) -> None:
        self.chooser.start(state, 0, 1.0)
