"""Streaming generation: yields events, prints nothing, and uses the same memory however long the text."""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import perf_counter

from rnn_edge.bundle import Bundle, open_bundle, require_task
from rnn_edge.errors import InvalidValueError
from rnn_edge.events import Event, FinishReason, Timings
from rnn_edge.manifest import Manifest
from rnn_edge.providers import Device
from rnn_edge.sampling import Sampler, SamplingOptions, gumbel_noise, log_probability
from rnn_edge.state import Continuation, State
from rnn_edge.stepper import StepGraph, Stepper
from rnn_edge.tokenizer import StreamDecoder, Tokenizer, Unknown, load_tokenizer

_START_STREAM = 2**32 - 1  # the noise stream that draws a start token where the vocabulary names none


class LanguageModel:
    """A language model on a device: ``LanguageModel.load("shakespeare").generate("ROMEO:")``."""

    def __init__(self, bundle: Bundle, graph: StepGraph, tokenizer: Tokenizer) -> None:
        self.bundle = bundle
        self.graph = graph
        self.tokenizer = tokenizer

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike[str], *, device: Device = "auto", threads: int | None = None
    ) -> LanguageModel:
        """Open a bundle by name or folder, check its bytes, and load its graph.

        Raises:
            BundleError: not found, damaged, not what its manifest says, or not a language model.
            DeviceError: CUDA is asked for and not available.
            MissingDependencyError: there is no ONNX Runtime.
        """
        bundle = open_bundle(name_or_path)
        require_task(bundle, "language-model")
        return cls(bundle, StepGraph(bundle, device=device, threads=threads), load_tokenizer(bundle))

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    def generate(
        self,
        prompt: str = "",
        *,
        max_tokens: int = 400,
        seed: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repeat_penalty: float = 1.0,
        repeat_window: int = 64,
        stop: str | Sequence[str] = (),
        state: State | None = None,
        unknown: Unknown = "error",
        log_probabilities: bool = False,
    ) -> Generation:
        """Continue ``prompt``.

        Args:
            prompt: the text before; empty starts from the vocabulary's start token, or from a random one.
            max_tokens: how many at most; -1 for no end.
            seed: the same seed gives the same text; None takes the state's, or draws one.
            temperature, top_k, top_p, min_p: as in ``SamplingOptions``; None takes the bundle's default.
            repeat_penalty, repeat_window: as in ``SamplingOptions``.
            stop: end before any of these texts; they are not part of the output.
            state: go on from where an earlier generation stopped.
            unknown: characters that the model has never seen: ``"error"`` or ``"skip"``.
            log_probabilities: put each token's log probability into its event.

        Raises:
            InvalidValueError: a value is out of its range.
            UnknownTokenError: the prompt has characters that the model has never seen.
            StateError: the state is of another model.
        """
        if max_tokens < -1 or max_tokens == 0:
            raise InvalidValueError(f"max-tokens is {max_tokens}", "use a positive number, or -1 for no end")
        if seed is None and state:
            seed = state.continuation.seed
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if any(not text for text in stop):
            raise InvalidValueError("a stop text is empty", "give some text, or leave it out")
        defaults = self.manifest.sampling
        options = SamplingOptions(
            temperature=defaults.temperature if temperature is None else temperature,
            top_k=defaults.top_k if top_k is None else top_k,
            top_p=defaults.top_p if top_p is None else top_p,
            min_p=defaults.min_p if min_p is None else min_p,
            repeat_penalty=repeat_penalty,
            repeat_window=repeat_window,
        )
        return Generation(
            self.graph.stepper(),
            self.tokenizer,
            self.tokenizer.encode(prompt, unknown=unknown),
            options=options,
            start=self.manifest.special_ids.start,
            max_tokens=max_tokens,
            seed=secrets.randbits(32) if seed is None else seed,
            state=state,
            stop=stop,
            log_probabilities=log_probabilities,
        )


class Generation(Iterator[Event]):
    """One text in the making: iterate for events, ``cancel`` to end it, ``state`` for where it stands."""

    def __init__(
        self,
        stepper: Stepper,
        tokenizer: Tokenizer,
        prompt: list[int],
        *,
        options: SamplingOptions,
        start: int | None,
        max_tokens: int,
        seed: int,
        state: State | None,
        stop: Sequence[str],
        log_probabilities: bool,
    ) -> None:
        self.seed = seed
        self._stepper = stepper
        self._max_tokens = max_tokens
        self._log_probabilities = log_probabilities
        before = state.continuation if state else Continuation()
        if state:
            stepper.load(state)
        size = tokenizer.vocabulary_size
        self._sampler = Sampler(options, size, seed=seed, step=before.step)
        self._decoder = StreamDecoder(tokenizer, bytes.fromhex(before.held_bytes))
        self._stop = StopFilter(stop) if stop else None
        self._recent = deque([*before.recent, *prompt], maxlen=options.repeat_window)
        self._prompt = prompt if before.pending is None else [before.pending, *prompt]
        if not self._prompt:
            self._prompt = [_random_start(seed, size) if start is None else start]
        self._pending = self._prompt[0]
        self._held_bytes = b""
        self._cancelled = False
        self._events = self._run(perf_counter())

    def __next__(self) -> Event:
        return next(self._events)

    def cancel(self) -> None:
        """End after the token in the making; the last event says ``interrupt``. Safe in a signal handler."""
        self._cancelled = True

    def state(self) -> State:
        """A copy of the state, to go on from with ``generate(state=…)`` as if the text had never stopped."""
        held = self._decoder.pending or self._held_bytes
        continuation = Continuation(self._pending, self.seed, self._sampler.step, tuple(self._recent), held.hex())
        return replace(self._stepper.state(), continuation=continuation)

    def _run(self, called: float) -> Iterator[Event]:
        choose, push, step, recent = self._sampler.choose, self._decoder.push, self._stepper.step, self._recent
        self._feed_prompt()
        fed = first = perf_counter()
        count = 0
        reason: FinishReason = "interrupt"
        # Wherever this is cancelled, the state has seen everything before the pending token, and that token is shown.
        while not self._cancelled:
            logits = step(self._pending)
            if count == 0:
                fed = perf_counter()
            token = self._pending = choose(logits[0], recent)
            recent.append(token)
            text = push(token)
            count += 1
            if count == 1:
                first = perf_counter()
            opinion = log_probability(logits[0], token) if self._log_probabilities else None
            if self._stop:
                text, stopped = self._stop.push(text)
                if stopped:
                    yield Event(text, token, opinion)
                    reason = "stop"
                    break
            yield Event(text, token, opinion)
            if count == self._max_tokens:
                reason = "length"
                break
        self._held_bytes = self._decoder.pending  # flushed as U+FFFD below, yet the next text may complete them
        rest = ""
        if reason != "stop":
            rest = self._decoder.flush()
            if self._stop:
                rest = self._stop.push(rest)[0] + self._stop.flush()
        timings = Timings(len(self._prompt), fed - called, count, perf_counter() - fed, first - called)
        yield Event(rest, None, finish_reason=reason, timings=timings)

    def _feed_prompt(self) -> None:
        """Feed all but the last token, one a step, so that a long prompt can be cancelled."""
        for following in self._prompt[1:]:
            if self._cancelled:
                break
            self._stepper.step(self._pending)
            self._pending = following


class StopFilter:
    """Find stop texts across token borders, holding back only what may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is certainly no part of a stop text, and whether one was found; nothing after it counts."""
        held = self._held + text
        # The one that ends first, then the longest: so it does not matter how the text was cut into pieces.
        found = [(held.find(stop) + len(stop), held.find(stop)) for stop in self._stops if stop in held]
        if found:
            self._held = ""
            return held[: min(found)[1]], True
        keep = max(self._overlap(held, stop) for stop in self._stops)
        cut = len(held) - keep
        self._held = held[cut:]
        return held[:cut], False

    def flush(self) -> str:
        """What was held back and turned out to be no stop text."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of ``text`` that is a proper start of ``stop``."""
        longest = min(len(text), len(stop) - 1)
        return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


def _random_start(seed: int, vocabulary_size: int) -> int:
    return int(gumbel_noise(seed, _START_STREAM, 0, 1, vocabulary_size)[0].argmax())
