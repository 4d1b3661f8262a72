"""Streaming generation: yields events, prints nothing, and uses the same memory however long the text."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter

from rnn_edge.captured_stepper import CapturedStepper
from rnn_edge.choice import Filters
from rnn_edge.chooser import DEPTH
from rnn_edge.events import Event
from rnn_edge.noise import Noise
from rnn_edge.sampling import RepeatPenalty, Sampler, log_probability
from rnn_edge.state import State
from rnn_edge.stepper import AnyStepper, StepGraph
from rnn_edge.text_stream import TextOptions, TextStream
from rnn_edge.unrolling import STEPS


class Generation(Iterator[Event]):
    """One text in the making: iterate for events, ``cancel`` to end it, ``state`` for where it stands."""

    def __init__(self, graph: StepGraph, stepper: AnyStepper, text: TextStream, options: TextOptions) -> None:
        self.seed = options.seed
        self._writing = _Writing(graph, stepper, text, options)
        # What runs does not know this object: when nobody has it, the buffers of an abandoned text are free at once.
        self._events = self._writing.run()

    def __next__(self) -> Event:
        return next(self._events)

    def cancel(self) -> None:
        """End after the token in the making; the last event says ``interrupt``. Safe in a signal handler."""
        self._writing.cancelled = True

    def state(self) -> State:
        """A copy of the state, to go on from with ``generate(state=…)`` as if the text had never stopped."""
        return self._writing.state()


class _Writing:
    """What writes it."""

    def __init__(self, graph: StepGraph, stepper: AnyStepper, text: TextStream, options: TextOptions) -> None:
        self._graph = graph
        self._stepper = stepper
        self._text = text
        self._options = options
        self.cancelled = False
        self._state_now = stepper.state
        self._fastest_step = math.inf  # seconds

    def state(self) -> State:
        return replace(self._state_now(), continuation=self._text.continuation())

    def run(self) -> Iterator[Event]:
        text = self._text
        while text.unread and not self.cancelled:  # one a step, so that a long prompt can be cancelled
            self._stepper.step(text.pending)
            text.advance()
        # Wherever this is cancelled, the state has seen everything before the pending token, and that token is shown.
        filters, unrolled = self._filters(), self._graph.unrolled(1)
        if filters and filters.any and unrolled:
            yield from self._steps(unrolled.steps_before(filters))
            # Fewer may all have been captured.
            unrolled.note(filters, text.count, self._fastest_step if text.count > DEPTH else None)
            if self._is_over() or not unrolled.session(filters):
                filters = None
        yield from self._bursts(filters) if filters else self._steps()
        rest, timings = text.close()
        yield Event(rest, None, finish_reason=text.finish_reason, timings=timings)

    def _filters(self) -> Filters | None:
        size = self._stepper.manifest.tokenizer.vocabulary_size
        return Filters.of(self._options.sampling, self._options.barred, size)

    def _steps(self, most: int = sys.maxsize) -> Iterator[Event]:
        """At most so many tokens of all, step by step: what is filtered or penalised is chosen outside of the graph."""
        text, options = self._text, self._options
        sampler = Sampler(
            options.sampling,
            self._stepper.manifest.tokenizer.vocabulary_size,
            seed=options.seed,
            stream=text.stream,
            step=text.first_step + text.count,
            recent=text.recent,
            barred=options.barred,
        )
        step, choose, push = self._stepper.step, sampler.choose, text.push
        opinion = None
        while text.count < most and not self._is_over():
            began = perf_counter()
            logits = step(text.pending)
            self._fastest_step = min(self._fastest_step, perf_counter() - began)
            if text.count == 0:
                text.note_read()
            token = choose(logits[0])
            if options.log_probabilities:
                opinion = log_probability(logits[0], token)
            yield Event(push(token), token, opinion)

    def _bursts(self, filters: Filters) -> Iterator[Event]:
        """Several steps in one go, of so short a time that the text stays smooth; the first token comes alone."""
        text, options, sampling = self._text, self._options, self._options.sampling
        size = self._stepper.manifest.tokenizer.vocabulary_size
        noise = None
        if not sampling.greedy:
            step = text.first_step + text.count
            noise = Noise(size, seed=options.seed, stream=text.stream, step=step, barred=options.barred)
        temperature = 1.0 if sampling.greedy else sampling.temperature
        if isinstance(self._stepper, CapturedStepper) and not filters.any:  # go on with its buffers
            chooser = self._stepper.chooser
            chooser.start(None, text.pending, temperature, options.barred)
        else:
            chooser = self._graph.borrow_chooser(self, filters=filters)
            chooser.start(self._stepper.state(), text.pending, temperature, options.barred)
        longest, penalty = DEPTH, None
        if filters.penalty != 1:  # between runs it learns what was chosen
            longest = STEPS
            penalty = RepeatPenalty(size, sampling.repeat_penalty, sampling.repeat_window, text.recent)
        taken, opinion = 0, None

        def state() -> State:
            return chooser.state(taken)

        while not self._is_over():
            count = min(max(chooser.length, STEPS) if filters.any else chooser.length, longest, text.left)
            if penalty:
                chooser.weigh(penalty.ahead)
            drawn = noise.take(count) if noise else None
            tokens = chooser.run(count if drawn is None else len(drawn), drawn)[:, 0].tolist()
            if text.count == 0:
                text.note_read()
            for taken, token in enumerate(tokens, 1):
                self._state_now = state
                if penalty:
                    penalty.push(token)
                if options.log_probabilities:
                    opinion = log_probability(chooser.logits(taken - 1)[0], token)
                yield Event(text.push(token), token, opinion)
                if self._is_over():
                    break

    def _is_over(self) -> bool:
        if self.cancelled and self._text.finish_reason is None:
            self._text.finish_reason = "interrupt"
        return self._text.finish_reason is not None
