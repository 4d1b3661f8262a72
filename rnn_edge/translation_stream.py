"""A translation in the making, as a stream of events."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from rnn_edge.events import FinishReason, Timings
from rnn_edge.search import Step, collect
from rnn_edge.sentences import one_line
from rnn_edge.tokenizer import StreamDecoder
from rnn_edge.translation import Sentence, TranslationEvent, TranslationOptions

if TYPE_CHECKING:
    from rnn_edge.translator import Translator


class TranslationStream(Iterator[TranslationEvent]):
    """A translation in the making: iterate for events, ``cancel`` to end it."""

    def __init__(self, translator: Translator, text: str, options: TranslationOptions, first: int = 0) -> None:
        self.seed = secrets.randbits(32) if options.seed is None else options.seed
        self._translator, self._options, self._first_sentence = translator, replace(options, seed=self.seed), first
        self._layout, self.cut = translator.plan(text, options)
        self._cancelled = False
        self._read = self._written = 0  # tokens
        self._encoding = self._first = 0.0  # seconds, and the time of the first token
        self._events = self._run(perf_counter())

    def __next__(self) -> TranslationEvent:
        return next(self._events)

    def cancel(self) -> None:
        """End after the token in the making; the last event says ``interrupt``. Safe in a signal handler."""
        self._cancelled = True

    def _run(self, called: float) -> Iterator[TranslationEvent]:
        reason: FinishReason = "stop"
        gap = self._layout.gaps[0]
        for number, sentence in enumerate(self._layout.sentences):
            result = yield from self._sentence(sentence, number, gap)
            if result is None or self._cancelled:
                break
            gap = self._layout.gap_after(number, result.text)
            reason = reason if result.candidates[0].finished else "length"
        rest = "" if self._cancelled else gap
        reason = "interrupt" if self._cancelled else reason
        ended = perf_counter()
        first = (self._first or ended) - called
        timings = Timings(self._read, self._encoding, self._written, ended - called - self._encoding, first)
        yield TranslationEvent(rest, len(self._layout.sentences), finish_reason=reason, timings=timings)

    def _sentence(self, text: str, number: int, begin: str) -> Generator[TranslationEvent, None, Sentence | None]:
        """Events of one sentence, after the white space that stands before it; None where it was cancelled."""
        translator, options = self._translator, self._options
        started = perf_counter()
        (source,) = translator.sources([text])
        pieces = translator.source_pieces(text, source)
        yield TranslationEvent(begin, number, source=pieces)
        slots = translator.slots([source], options)
        self._encoding += perf_counter() - started
        if options.beam > 1:
            (hypotheses,) = translator.search(slots, options)
            result = translator.read(text, source, hypotheses, options)
            self._note_token(len(result.candidates[0].pieces))
            yield TranslationEvent(result.text, number, result=result)
        else:
            steps: list[Step] = []
            decoder, line = StreamDecoder(translator.tokenizer), _OneLine()
            start = True
            for step in translator.follow(slots, options, self._first_sentence + number):
                steps.append(step)
                token, attention = step.tokens[0], step.attention[0]
                piece = translator.piece(token, attention, pieces, options)
                new = decoder.push_bytes(piece)
                if start:  # the first word's space
                    new = new.lstrip(" ")
                start = start and not new
                self._note_token(1)
                new = line.push(new)
                opinion = step.log_probabilities[0] if step.log_probabilities else None
                yield TranslationEvent(new, number, None, token, piece, opinion, attention)
                if self._cancelled:
                    return None
            hypotheses = collect(steps, [source], translator.end, options.scoring)
            result = translator.read(text, source, hypotheses, options)
            yield TranslationEvent(line.push(decoder.flush()), number, result=result)
        self._read += len(source)
        return result

    def _note_token(self, count: int) -> None:
        self._first = self._first or perf_counter()
        self._written += count


class _OneLine:
    """``one_line`` of a text that comes in pieces: only a line break at the end is held back."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """What became certain."""
        text = self._held + text
        kept = "".join(text.splitlines(keepends=True)[-1:])  # the last line
        self._held = kept[len(one_line(kept)) :]
        return one_line(text)
