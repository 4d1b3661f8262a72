"""Many texts from one batched step: each takes a row, and a row whose text is finished goes to the next at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rnn_edge.events import Event, FinishReason, Timings
from rnn_edge.memory import check_batch
from rnn_edge.row_writers import burst_depth, larger_batch, next_writer, row_writer, smaller_batch
from rnn_edge.state import State, zero_state
from rnn_edge.stepper import StepGraph
from rnn_edge.text_stream import TextOptions, TextStream

_IDLE = 1 / 32  # of a burst at most goes to rows whose text is known to end in it

Chosen = tuple[int, TextStream, list[int], list[float] | None]  # row, text, tokens; log probabilities where wanted


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """One finished text of a batch; ``index`` is the place of its prompt."""

    index: int
    text: str
    finish_reason: FinishReason
    timings: Timings


class BatchGeneration(Iterator[Event]):
    """Texts in the making: iterate for events, or over ``texts`` for whole ones; ``cancel`` to end all.

    Each step feeds one token of every text: of its prompt as long as there is any, else the one chosen last. Steps
    come in bursts where the graph itself can choose.
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
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """Each text goes on from ``state``, or from nothing, after the tokens ``shared``, which are fed once.

        ``ready`` says whether the next of ``texts`` can be had without waiting.

        Raises:
            InvalidValueError: ``batch_size`` is below one, or more than memory holds.
        """
        check_batch(graph.manifest, batch_size, burst=burst_depth(graph, options, batch_size))
        self.seed = options.seed
        self._batch = _Batch(graph, texts, options, batch_size, state or zero_state(graph.manifest), shared, ready)
        # What runs does not know this object: when nobody has it, the buffers of an abandoned batch are free at once.
        self._events = self._batch.run()

    def __next__(self) -> Event:
        return next(self._events)

    @property
    def steps(self) -> int:
        """Of the whole batch so far, without those that read what is shared."""
        return self._batch.steps

    @property
    def cancelled(self) -> bool:
        """Whether it was, so that prompts may be left that no event tells of."""
        return self._batch.cancelled

    def cancel(self) -> None:
        """End all texts with the step that is told; their last events say ``interrupt``. Safe in a signal handler."""
        self._batch.cancelled = True

    def texts(self) -> Iterator[GeneratedText]:
        """Whole texts in the order of their prompts, each as soon as it and all before it are finished."""
        self._batch.whole = True
        pieces: list[str] = []
        for event in in_order(self):
            pieces.append(event.text)
            if event.finish_reason:
                assert event.index is not None
                assert event.timings is not None
                yield GeneratedText(event.index, "".join(pieces), event.finish_reason, event.timings)
                pieces = []


@dataclass
class _Batch:
    """What writes them; see ``BatchGeneration``."""

    graph: StepGraph
    waiting: Iterator[TextStream]
    options: TextOptions
    batch_size: int
    state: State
    shared: list[int]
    ready: Callable[[], bool]
    steps: int = 0
    cancelled: bool = False
    whole: bool = False  # whether nobody looks at single tokens: then there are no events but the last of each text
    _more: bool = True  # whether any may wait
    _error: Exception | None = None

    def run(self) -> Iterator[Event]:
        start, waiting = self._read_shared(), self._texts()
        first = self._take(waiting, self.batch_size, wait=True)
        if first:
            rows = _Rows(self.graph, first, start, self.options)
            while not self.cancelled and rows.used:
                freed = False
                chosen = rows.run()
                self.steps += rows.steps
                for row, text, tokens, opinions in chosen:
                    if text.count == 0:
                        text.note_read()
                    if self.whole:
                        text.extend(tokens)
                    else:
                        yield from _told(text, tokens, opinions)
                    if text.finish_reason:
                        yield _end(text)
                        rows.vacate(row)
                        freed = True
                if not self.cancelled and (freed or (self._more and rows.used < self.batch_size)):
                    coming = self._take(waiting, self.batch_size - rows.used, wait=not rows.used)
                    rows.refill(coming, self.batch_size)
            for remaining in filter(None, rows.texts):
                remaining.finish_reason = "interrupt"
                yield _end(remaining)
        if self._error:
            raise self._error

    def _take(self, waiting: Iterator[TextStream], most: int, *, wait: bool) -> list[TextStream]:
        """Up to so many texts, as many as are there; where there is none, ``wait`` for one."""
        taken: list[TextStream] = []
        while self._more and len(taken) < most and ((wait and not taken) or self.ready()):
            text = next(waiting, None)
            if text is None:
                self._more = False
            else:
                taken.append(text)
        return taken

    def _read_shared(self) -> State:
        """The state that every text begins with."""
        if not self.shared:
            return self.state
        stepper = self.graph.stepper()
        stepper.load(self.state)
        for token in self.shared:
            if self.cancelled:
                break
            stepper.step(token)
        return stepper.state()

    def _texts(self) -> Iterator[TextStream]:
        """Those that wait, until one cannot be had: that is told when the texts before it are finished."""
        try:
            yield from self.waiting
        except Exception as error:
            self._error = error


class _Rows:
    """The rows of a batch with the text of each, None where no text was left to take one."""

    def __init__(self, graph: StepGraph, texts: list[TextStream], start: State, options: TextOptions) -> None:
        """Every text begins with the state ``start``."""
        self.texts: list[TextStream | None] = list(texts)
        self.used = len(texts)
        self._graph, self._start, self._options = graph, start, options
        self._writer = row_writer(graph, options, len(texts))
        self.steps = 0  # of the last run
        self._seat(list(enumerate(texts)))

    def run(self) -> list[Chosen]:
        """A step, or a burst of them → what the texts whose prompt is over have chosen."""
        texts = [(row, text) for row, text in enumerate(self.texts) if text]
        longest = self._writer.length
        wanted = _burst([min(longest, text.unread + text.left) for _, text in texts], longest)
        given = {row: text.upcoming(wanted) for row, text in texts if text.unread}
        penalised = self._options.sampling.repeat_penalty != 1
        recent = [text.recent if text else () for text in self.texts] if penalised else ()
        found, opinions = self._writer.run(wanted, given, recent)
        read = {row: min(len(tokens), len(found)) for row, tokens in given.items()}
        for row, tokens in read.items():
            text = self.texts[row]
            assert text is not None
            text.advance(tokens)
        self.steps = len(found)
        by_row = found.T.tolist()
        thoughts = opinions.T.tolist() if opinions is not None else None
        chosen: list[Chosen] = []
        for row, text in texts:
            first = read.get(row, 0)
            if first < len(found):
                chosen.append((row, text, by_row[row][first:], thoughts[row][first:] if thoughts else None))
        return chosen

    def vacate(self, row: int) -> None:
        """Its text is finished."""
        self.texts[row] = None
        self.used -= 1

    def refill(self, texts: list[TextStream], most: int) -> None:
        """Give free rows to these, and make more where there are too few; without texts the batch gets smaller."""
        self.used += len(texts)
        size = len(self.texts)
        if self.used > size:
            more = larger_batch(self._graph, size, self.used, most) - size
            self._resize([*range(size), *[0] * more])  # any row will do for those
            self.texts += [None] * more
        free = (row for row, text in enumerate(self.texts) if text is None)
        seated = list(zip(free, texts, strict=False))
        for row, text in seated:
            self.texts[row] = text
        if seated:
            self._seat(seated)
        if 0 < self.used < (size := len(self.texts)) and (fewer := smaller_batch(self._graph, size, self.used)) < size:
            # Those in use first.
            rows = sorted(range(size), key=lambda row: self.texts[row] is None)[:fewer]
            self._resize(rows)
            self.texts = [self.texts[row] for row in rows]

    def _resize(self, rows: list[int]) -> None:
        """Go on with these rows alone. Buffers are free before others take their place."""
        kept = self._writer.rows(rows)
        del self._writer
        self._writer = next_writer(self._graph, self._options, kept)

    def _seat(self, texts: list[tuple[int, TextStream]]) -> None:
        rows = [row for row, _ in texts]
        self._writer.seat(rows, self._start, [text.pending for _, text in texts])
        if self._writer.noise:
            self._writer.noise.start(
                rows,
                [text.stream for _, text in texts],
                [text.first_step for _, text in texts],
                [text.unread for _, text in texts],
            )


def _burst(left: list[int], longest: int) -> int:
    """How many steps to make at once where texts have so many left: rows that end before stay idle, but few may."""
    if longest == 1:
        return 1
    ends = np.array(left)
    steps = range(longest, 1, -1)
    return next((count for count in steps if np.maximum(count - ends, 0).sum() <= _IDLE * count * len(ends)), 1)


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


def _told(text: TextStream, tokens: list[int], opinions: list[float] | None) -> Iterator[Event]:
    """An event for each token, up to the one that ends the text."""
    for step, token in enumerate(tokens):
        yield Event(text.push(token), token, opinions[step] if opinions else None, None, None, text.stream)
        if text.finish_reason:
            break
