"""Streaming generation: yields events, prints nothing, and uses the same memory however long the text."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Unpack

from rnn_edge.bundle import Bundle, open_bundle, require_task
from rnn_edge.choice import Filters
from rnn_edge.chooser import DEPTH
from rnn_edge.errors import InvalidValueError, UnknownTokenError
from rnn_edge.events import Event
from rnn_edge.manifest import Manifest
from rnn_edge.noise import Noise
from rnn_edge.placement import Threads, place
from rnn_edge.providers import Device
from rnn_edge.sampling import RepeatPenalty, Sampler, log_probability
from rnn_edge.state import State, check_state
from rnn_edge.stepper import AnyStepper, StepGraph
from rnn_edge.text_stream import TextKeywords, TextOptions, TextStream
from rnn_edge.tokenizer import Tokenizer, load_tokenizer
from rnn_edge.unrolling import STEPS

if TYPE_CHECKING:
    from rnn_edge.batch_generation import BatchGeneration


class LanguageModel:
    """A language model on a device: ``LanguageModel.load("shakespeare").generate("ROMEO:")``."""

    def __init__(self, bundle: Bundle, graph: StepGraph, tokenizer: Tokenizer) -> None:
        self.bundle = bundle
        self.graph = graph
        self.tokenizer = tokenizer

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike[str], *, device: Device = "auto", threads: Threads = None, streams: int = 1
    ) -> LanguageModel:
        """Open a bundle by name or folder, check its bytes, and load its graph.

        ``threads`` is the number of CPU threads, None for one; ``"auto"`` measures once and remembers (``placement``),
        for ``streams`` at once.

        Raises:
            BundleError: not found, damaged, not what its manifest says, or not a language model.
            DeviceError: CUDA is asked for and not available.
            MissingDependencyError: there is no ONNX Runtime.
        """
        bundle = open_bundle(name_or_path)
        require_task(bundle, "language-model")
        where = place(bundle, device, threads, streams)
        return cls(bundle, StepGraph(bundle, device=where.device, threads=where.threads), load_tokenizer(bundle))

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    def generate(
        self,
        prompt: str = "",
        *,
        state: State | None = None,
        stream: int | None = None,
        **keywords: Unpack[TextKeywords],
    ) -> Generation:
        """Continue ``prompt``.

        Args:
            prompt: the text before; empty starts from the vocabulary's start token, or from a random one.
            state: go on from where an earlier generation stopped, with its seed unless another is given.
            stream: another number draws another text from the same seed; None takes the state's, or 0.
            keywords: max_tokens, seed, temperature, top_k, top_p, min_p, repeat_penalty, repeat_window, stop, unknown,
                log_probabilities, as in ``TextOptions.of``.

        Raises:
            InvalidValueError: a value is out of its range.
            UnknownTokenError: the prompt has characters that the model has never seen.
            StateError: the state is of another model.
        """
        options = self._options(state, keywords)
        if stream is None:
            stream = state.continuation.stream if state else 0
        ids = self.tokenizer.encode(prompt, unknown=options.unknown)
        text = TextStream(self.tokenizer, ids, options, stream=stream, before=state.continuation if state else None)
        stepper = self.graph.stepper()
        if state:
            stepper.load(state)
        return Generation(self.graph, stepper, text, options)

    def generate_batch(
        self,
        prompts: Iterable[str],
        *,
        batch_size: int = 32,
        state: State | None = None,
        **keywords: Unpack[TextKeywords],
    ) -> BatchGeneration:
        """Continue each of ``prompts``, ``batch_size`` of them in one step.

        Text i is what ``generate(prompt_i, stream=i)`` gives with the same options and seed, up to choices between
        tokens whose logits are as close as rounding: a graph may add in another order for another batch.

        Prompts are taken one by one when there is room for them. If they have a method ``ready``, which says whether
        the next can be had without waiting, texts go on until it says so. An error in a prompt, or in taking it, is
        raised when the texts before it are finished.

        Args:
            prompts: any number of texts.
            batch_size: texts in the making at the same time.
            state: each text goes on from here.
            keywords: as for ``generate``.

        Raises:
            InvalidValueError: a value is out of its range, or memory does not hold the batch.
            UnknownTokenError: a prompt has characters that the model has never seen; it is named by its number.
            StateError: the state is of another model.
        """
        options = self._options(state, keywords)
        if isinstance(prompts, str):  # which would be a prompt for each of its characters
            raise InvalidValueError("prompts is one text", "give a list of texts, or use generate_samples")

        def texts() -> Iterator[TextStream]:
            for index, prompt in enumerate(prompts):
                try:
                    ids = self.tokenizer.encode(prompt, unknown=options.unknown)
                except UnknownTokenError as error:
                    raise UnknownTokenError(f"prompt {index + 1}: {error.message}", error.hint) from error
                before = state.continuation if state else None
                yield TextStream(self.tokenizer, ids, options, stream=index, before=before)

        ready: Callable[[], bool] = getattr(prompts, "ready", lambda: True)
        return self._batch(texts(), batch_size, state, [], options, ready)

    def generate_samples(
        self,
        prompt: str = "",
        samples: int = 8,
        *,
        batch_size: int = 32,
        state: State | None = None,
        **keywords: Unpack[TextKeywords],
    ) -> BatchGeneration:
        """Continue ``prompt`` in ``samples`` ways: it is read once, and its state copied.

        Sample i is what ``generate(prompt, stream=i)`` gives, as in ``generate_batch``.

        Raises:
            InvalidValueError: a value is out of its range, or memory does not hold the batch.
            UnknownTokenError: the prompt has characters that the model has never seen.
            StateError: the state is of another model.
        """
        options = self._options(state, keywords)
        if samples < 1:
            raise InvalidValueError(f"samples is {samples}", "use at least 1")
        ids = self.tokenizer.encode(prompt, unknown=options.unknown)
        before = state.continuation if state else None
        known = ids if before is None or before.pending is None else [before.pending, *ids]
        shared = known[:-1]

        def text(index: int) -> TextStream:
            new = TextStream(self.tokenizer, ids, options, stream=index, before=before)
            new.advance(len(shared))
            return new

        return self._batch(map(text, range(samples)), min(batch_size, samples), state, shared, options)

    def _options(self, state: State | None, keywords: TextKeywords) -> TextOptions:
        if state:
            check_state(state, self.manifest, "the state")
            if state.batch != 1:
                raise InvalidValueError(f"the state has {state.batch} streams, not 1", "take the row of one stream")
            if keywords.get("seed") is None:
                keywords = {**keywords, "seed": state.continuation.seed}
        return TextOptions.of(self.manifest, **keywords)

    def _batch(
        self,
        texts: Iterator[TextStream],
        batch_size: int,
        state: State | None,
        shared: list[int],
        options: TextOptions,
        ready: Callable[[], bool] = lambda: True,
    ) -> BatchGeneration:
        from rnn_edge.batch_generation import BatchGeneration

        return BatchGeneration(
            self.graph, texts, options, batch_size=batch_size, state=state, shared=shared, ready=ready
        )


class Generation(Iterator[Event]):
    """One text in the making: iterate for events, ``cancel`` to end it, ``state`` for where it stands."""

    def __init__(self, graph: StepGraph, stepper: AnyStepper, text: TextStream, options: TextOptions) -> None:
        self.seed = options.seed
        self._graph = graph
        self._stepper = stepper
        self._text = text
        self._options = options
        self._cancelled = False
        self._state_now = stepper.state
        self._fastest_step = math.inf  # seconds
        self._events = self._run()

    def __next__(self) -> Event:
        return next(self._events)

    def cancel(self) -> None:
        """End after the token in the making; the last event says ``interrupt``. Safe in a signal handler."""
        self._cancelled = True

    def state(self) -> State:
        """A copy of the state, to go on from with ``generate(state=…)`` as if the text had never stopped."""
        return replace(self._state_now(), continuation=self._text.continuation())

    def _run(self) -> Iterator[Event]:
        text = self._text
        while text.unread and not self._cancelled:  # one a step, so that a long prompt can be cancelled
            self._stepper.step(text.pending)
            text.advance()
        # Wherever this is cancelled, the state has seen everything before the pending token, and that token is shown.
        filters, unrolled = self._filters(), self._graph.unrolled(1)
        if filters and filters.any and unrolled:
            yield from self._steps(unrolled.steps_before(filters))
            unrolled.note(filters, text.count, self._fastest_step if text.count else None)
            if not unrolled.session(filters):
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
            seed=self.seed,
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
            noise = Noise(size, seed=self.seed, stream=text.stream, step=step, barred=options.barred)
        chooser = self._graph.borrow_chooser(self, filters=filters)
        temperature = 1.0 if sampling.greedy else sampling.temperature
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
        if self._cancelled and self._text.finish_reason is None:
            self._text.finish_reason = "interrupt"
        return self._text.finish_reason is not None
