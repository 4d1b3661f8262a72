"""One text in the making, without its model: what to feed next, and what a chosen token brings."""

from __future__ import annotations

import secrets
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, TypedDict

from rnn_edge.errors import InvalidValueError
from rnn_edge.events import FinishReason, Timings
from rnn_edge.noise import check_seed, gumbel_noise
from rnn_edge.sampling import SamplingOptions
from rnn_edge.state import Continuation
from rnn_edge.tokenizer import StreamDecoder, Tokenizer, Unknown

if TYPE_CHECKING:
    from rnn_edge.manifest import Manifest

START_STREAM = 2**32 - 1  # the noise stream that draws a start token where the vocabulary names none


class TextKeywords(TypedDict, total=False):
    """What ``LanguageModel.generate`` and its companions take; ``TextOptions.of`` says what each means."""

    max_tokens: int
    seed: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float
    repeat_window: int
    stop: str | Sequence[str]
    unknown: Unknown
    log_probabilities: bool


@dataclass(frozen=True)
class TextOptions:
    """How texts are made, the same for all texts of a batch."""

    sampling: SamplingOptions
    seed: int
    start: int | None
    end: int | None
    barred: int | None  # never written: the token of words that the vocabulary lacks
    max_tokens: int
    stop: tuple[str, ...]
    unknown: Unknown
    log_probabilities: bool

    @classmethod
    def of(
        cls,
        manifest: Manifest,
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
        unknown: Unknown = "error",
        log_probabilities: bool = False,
    ) -> TextOptions:
        """Options with the bundle's defaults.

        Args:
            manifest: the bundle's.
            max_tokens: how many at most; -1 for no end.
            seed: the same seed gives the same text; None draws one.
            temperature, top_k, top_p, min_p: as in ``SamplingOptions``; None takes the bundle's default.
            repeat_penalty, repeat_window: as in ``SamplingOptions``.
            stop: end before any of these texts; they are not part of the output.
            unknown: characters that the model has never seen: ``"error"`` or ``"skip"``.
            log_probabilities: put each token's log probability into its event.

        Raises:
            InvalidValueError: a value is out of its range.
        """
        if max_tokens < -1 or max_tokens == 0:
            raise InvalidValueError(f"max-tokens is {max_tokens}", "use a positive number, or -1 for no end")
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if any(not text for text in stop):
            raise InvalidValueError("a stop text is empty", "give some text, or leave it out")
        seed = secrets.randbits(32) if seed is None else seed
        check_seed(seed)
        defaults = manifest.sampling
        sampling = SamplingOptions(
            temperature=defaults.temperature if temperature is None else temperature,
            top_k=defaults.top_k if top_k is None else top_k,
            top_p=defaults.top_p if top_p is None else top_p,
            min_p=defaults.min_p if min_p is None else min_p,
            repeat_penalty=repeat_penalty,
            repeat_window=repeat_window,
        )
        ids = manifest.special_ids
        return cls(sampling, seed, ids.start, ids.end, ids.unknown, max_tokens, stop, unknown, log_probabilities)


class TextStream:
    """One text: feed ``pending`` to the model; then ``advance`` while there is ``unread`` prompt, else ``push``."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        options: TextOptions,
        *,
        stream: int = 0,
        before: Continuation | None = None,
    ) -> None:
        """``stream`` keys the noise together with the seed; ``before`` is where an earlier text stopped."""
        if not 0 <= stream < START_STREAM:
            raise InvalidValueError(f"stream is {stream}", f"use a whole number from 0 to {START_STREAM - 1}")
        before = before or Continuation()
        self.stream = stream
        self.first_step = before.step  # tokens chosen before this text
        self.count = 0  # tokens chosen in it
        self.finish_reason: FinishReason | None = None
        self.recent = deque([*before.recent, *prompt], maxlen=options.sampling.repeat_window)
        self._options = options
        self._decoder = StreamDecoder(tokenizer, bytes.fromhex(before.held_bytes))
        self._stop = StopFilter(options.stop) if options.stop else None
        self._held_bytes = b""
        self._pieces: list[str] = []  # what ``close`` tells: text,
        self._undecoded: list[int] = []  # and tokens after it
        ids = list(prompt) if before.pending is None else [before.pending, *prompt]
        if not ids:
            ids = [
                _random_start(options.seed, stream, tokenizer.vocabulary_size)
                if options.start is None
                else options.start
            ]
        self._prompt = ids
        self.pending = ids[0]
        self.unread = len(ids) - 1
        self._called = perf_counter()
        self._read = self._first = 0.0

    def advance(self, tokens: int = 1) -> None:
        """So many tokens of the prompt are fed: go on to the next."""
        self.unread -= tokens
        self.pending = self._prompt[-1 - self.unread]

    def upcoming(self, tokens: int) -> list[int]:
        """The next so many tokens of the prompt after ``pending``, as far as there are any."""
        start = len(self._prompt) - self.unread
        return self._prompt[start : start + tokens]

    @property
    def left(self) -> int:
        """How many tokens may still be chosen."""
        return sys.maxsize if self._options.max_tokens < 0 else self._options.max_tokens - self.count

    def note_read(self) -> None:
        """The prompt is fed whole, which ends its time."""
        self._read = perf_counter()

    def push(self, token: int) -> str:
        """Take the token chosen → the text that became certain. ``finish_reason`` is set where it is the last."""
        self.pending = token
        self.recent.append(token)
        self.count += 1
        if self.count == 1:
            self._first = perf_counter()
        if token == self._options.end:
            self.finish_reason = "end"
            return ""
        text = self._decoder.push(token)
        if self._stop:
            text, stopped = self._stop.push(text)
            if stopped:
                self.finish_reason = "stop"
                return text
        if self.count == self._options.max_tokens:
            self.finish_reason = "length"
        return text

    def extend(self, tokens: Sequence[int]) -> None:
        """``push`` for several tokens, whose text comes with ``close``; those after the end are passed over."""
        if self._stop:  # token by token, since what is found in mid-way counts
            self._pieces += [self.push(token) for token in tokens if not self.finish_reason]
            return
        tokens, end = tokens[: self.left], self._options.end
        ended = end is not None and end in tokens
        if ended and end is not None:
            tokens = tokens[: tokens.index(end) + 1]
        self.pending = tokens[-1]
        self.recent.extend(tokens)
        self._first = self._first or perf_counter()
        self.count += len(tokens)
        if ended or not self.left:
            self.finish_reason = "end" if ended else "length"
        self._undecoded += tokens[:-1] if ended else tokens

    def close(self) -> tuple[str, Timings]:
        """What was held back, now that no token follows, and the time it all took."""
        rest = "".join(self._pieces) + self._decoder.push_all(self._undecoded)
        self._held_bytes = self._decoder.pending  # flushed as U+FFFD below, yet the next text may complete them
        if self.finish_reason != "stop":
            last = self._decoder.flush()
            rest += self._stop.push(last)[0] + self._stop.flush() if self._stop else last
        now = perf_counter()
        read = self._read or now
        first = self._first or read
        called = self._called
        return rest, Timings(len(self._prompt), read - called, self.count, now - read, first - called)

    def continuation(self) -> Continuation:
        """Where the text stands."""
        return Continuation(
            self.pending,
            self._options.seed,
            self.first_step + self.count,
            tuple(self.recent),
            (self._decoder.pending or self._held_bytes).hex(),
            self.stream,
        )


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


def _random_start(seed: int, stream: int, vocabulary_size: int) -> int:
    """Of another stream another one: its number takes the place of the step."""
    return int(gumbel_noise(seed, START_STREAM, stream, 1, vocabulary_size)[0].argmax())
