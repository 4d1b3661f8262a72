"""Many texts from one batched step: each takes a row, and a row whose text is finished goes to the next at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from rnn_edge.batch_sampling import BatchSampler, Ids, log_probability_rows
from rnn_edge.events import Event, FinishReason, Timings
from rnn_edge.memory import check_batch
from rnn_edge.state import State, zero_state
from rnn_edge.stepper import StepGraph
from rnn_edge.text_stream import TextOptions, TextStream

_SHRINK_BELOW = 0.7  # of the rows still in use, once no text waits: then buffers are made anew without the others


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """One finished text of a batch; ``index`` is the place of its prompt."""

    index: int
    text: str
    finish_reason: FinishReason
    timings: Timings


class BatchGeneration(Iterator[Event]):
    """Texts in the making: iterate for events, or over ``texts`` for whole ones; ``cancel`` to end all.

    Each step feeds one token of every text: of its prompt as long as there is any, else the one chosen last.
    Memory depends on the size of the batch, not on the number of texts.
    """

    def __init__(
        self,
        graph: StepGraph,
        texts: Iterator[TextStream],
        options: TextOptions,
        *,
        batch_size: int,
        state: State | None,
        shared: list[int],
    ) -> None:
        """Each text goes on from ``state``, or from nothing, after the tokens ``shared``, which are fed once.

        Raises:
            InvalidValueError: ``batch_size`` is below one, or more than memory holds.
        """
        check_batch(graph.manifest, batch_size)
        self.seed = options.seed
        self.steps = 0  # of the whole batch so far, without those that read what is shared
        self._graph = graph
        self._waiting = texts
        self._error: Exception | None = None
        self._options = options
        self._batch_size = batch_size
        self._state = state or zero_state(graph.manifest)
        self._shared = shared
        self.cancelled = False  # whether it was, so that prompts may be left that no event tells of
        self._events = self._run()

    def __next__(self) -> Event:
        return next(self._events)

    def cancel(self) -> None:
        """End all texts after the step in the making; their last events say ``interrupt``. Safe in a signal handler."""
        self.cancelled = True

    def texts(self) -> Iterator[GeneratedText]:
        """Whole texts in the order of their prompts, each as soon as it and all before it are finished."""
        pieces: list[str] = []
        for event in in_order(self):
            pieces.append(event.text)
            if event.finish_reason:
                assert event.index is not None
                assert event.timings is not None
                yield GeneratedText(event.index, "".join(pieces), event.finish_reason, event.timings)
                pieces = []

    def _run(self) -> Iterator[Event]:
        start, waiting = self._read_shared(), self._texts()
        first = list(islice(waiting, self._batch_size))
        if first:
            rows = _Rows(self._graph, first, start, self._options)
            while not self.cancelled and any(rows.texts):
                freed = []
                self.steps += 1
                for row, text, token, opinion in rows.step():
                    yield Event(text.push(token), token, opinion, None, None, text.stream)
                    if text.finish_reason:
                        yield _end(text)
                        freed.append(row)
                rows.refill(freed, iter(()) if self.cancelled else waiting)
            for remaining in filter(None, rows.texts):
                remaining.finish_reason = "interrupt"
                yield _end(remaining)
        if self._error:
            raise self._error

    def _read_shared(self) -> State:
        """The state that every text begins with."""
        if not self._shared:
            return self._state
        stepper = self._graph.stepper()
        stepper.load(self._state)
        for token in self._shared:
            if self.cancelled:
                break
            stepper.step(token)
        return stepper.state()

    def _texts(self) -> Iterator[TextStream]:
        """Those that wait, until one cannot be had: that is told when the texts before it are finished."""
        try:
            yield from self._waiting
        except Exception as error:
            self._error = error


class _Rows:
    """The rows of a batched stepper with the text of each, None where no text was left to take one."""

    def __init__(self, graph: StepGraph, texts: list[TextStream], start: State, options: TextOptions) -> None:
        """Every text begins with the state ``start``."""
        self.texts: list[TextStream | None] = []
        self._graph, self._start, self._options = graph, start, options
        self._stepper = graph.stepper(len(texts))
        self._stepper.load(start.fork(len(texts)))
        self._sampler = BatchSampler(
            options.sampling,
            graph.manifest.tokenizer.vocabulary_size,
            len(texts),
            seed=options.seed,
            barred=options.barred,
        )
        self._tokens: Ids = np.zeros(len(texts), np.int64)
        self._reading: set[int] = set()  # rows whose prompt goes on after the next step
        self._begun: list[int] = []  # rows whose prompt ends with it
        for row, text in enumerate(texts):
            self.texts.append(text)
            self._seat(row, text)

    def step(self) -> list[tuple[int, TextStream, int, float | None]]:
        """Feed a token of each text; for those whose prompt is over: row, text, next token and log probability."""
        logits = self._stepper.step(self._tokens)
        ready = [(row, text) for row, text in enumerate(self.texts) if text and row not in self._reading]
        chosen: list[tuple[int, TextStream, int, float | None]] = []
        if ready:
            self._begin()
            penalised = self._options.sampling.repeat_penalty != 1
            recent = [text.recent if text else () for text in self.texts] if penalised else ()
            ids = self._sampler.choose(logits, recent)
            self._tokens[:] = ids
            tokens = ids.tolist()
            if self._options.log_probabilities:
                opinions = log_probability_rows(logits, ids).tolist()
                chosen = [(row, text, tokens[row], opinions[row]) for row, text in ready]
            else:
                chosen = [(row, text, tokens[row], None) for row, text in ready]
        for row in list(self._reading):
            text = self.texts[row]
            assert text is not None
            text.advance()
            self._reading.remove(row)
            self._seat(row, text)
        return chosen

    def refill(self, freed: list[int], waiting: Iterator[TextStream]) -> None:
        """Give rows whose text is finished to those that wait; without any left the batch gets smaller."""
        filled = []
        for row in freed:
            text = self.texts[row] = next(waiting, None)
            if text:
                self._seat(row, text)
                filled.append(row)
        if filled:
            self._stepper.replace(np.array(filled)[:, None], self._start, {})
        if len(filled) < len(freed):
            kept = [row for row, text in enumerate(self.texts) if text]
            if 0 < len(kept) < _SHRINK_BELOW * len(self.texts):
                self._keep(kept)

    def _seat(self, row: int, text: TextStream) -> None:
        self._tokens[row] = text.pending
        if text.unread:
            self._reading.add(row)
        else:
            self._begun.append(row)

    def _begin(self) -> None:
        """Give the rows that choose for the first time their noise."""
        if self._begun:
            texts = [text for text in (self.texts[row] for row in self._begun) if text]
            for text in texts:
                text.note_read()
            self._sampler.start(self._begun, [text.stream for text in texts], [text.first_step for text in texts])
            self._begun = []

    def _keep(self, rows: list[int]) -> None:
        state = self._stepper.state()
        self._stepper = self._graph.stepper(len(rows))
        self._stepper.load(State({name: tensor[rows] for name, tensor in state.tensors.items()}))
        self._sampler = self._sampler.take(rows)
        self._tokens = self._tokens[rows]
        self.texts = [self.texts[row] for row in rows]
        place = {row: index for index, row in enumerate(rows)}
        self._reading = {place[row] for row in self._reading}
        self._begun = [place[row] for row in self._begun]


def in_order(events: Iterable[Event]) -> Iterator[Event]:
    """One text after another: the events of the first unfinished one as they come; the others wait for their turn.

    What a text had before its turn comes joined in one event, without token.
    """
    turn = 0
    held: dict[int, tuple[list[str], list[Event]]] = {}
    for event in events:
        assert event.index is not None
        if event.index != turn:
            pieces, ends = held.setdefault(event.index, ([], []))
            pieces.append(event.text)
            if event.finish_reason:
                ends.append(event)
            continue
        yield event
        while event.finish_reason:
            turn += 1
            if turn not in held:
                break
            pieces, ends = held.pop(turn)
            end = ends[0] if ends else Event("", None)
            event = Event("".join(pieces), None, None, end.finish_reason, end.timings, turn)
            yield event


def _end(text: TextStream) -> Event:
    rest, timings = text.close()
    return Event(rest, None, None, text.finish_reason, timings, text.stream)
