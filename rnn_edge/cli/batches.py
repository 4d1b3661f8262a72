"""How texts of a batch are shown: samples of one prompt one after another, continuations of a file line by line."""

import json
import re
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from rnn_edge import render
from rnn_edge.batch_generation import in_order
from rnn_edge.cli.input import LineReader, cancel_on_interrupt, count_lines
from rnn_edge.errors import DataError

if TYPE_CHECKING:
    from rnn_edge.batch_generation import BatchGeneration, GeneratedText
    from rnn_edge.events import Timings

SEPARATOR = "\n\f\n"  # between two samples in a pipe: a line with a form feed
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


class Prompts:
    """The lines of a file, or of standard input for ``-``, each remembered until its text is written."""

    def __init__(self, file: Path) -> None:
        self.file = None if str(file) == "-" else file
        self.waiting: deque[str] = deque()
        self.is_waiting = False  # for a line that nobody may have written yet
        self.is_over = False  # no line will come any more; set it when none is wanted
        self._reader = LineReader(self.file)
        self._lines: deque[str] = deque()
        self._error: DataError | None = None

    def __iter__(self) -> Iterator[str]:
        while True:
            while not (self._lines or self.is_over):
                self.is_waiting = True
                if not self.is_over:  # in this order: an interrupt finds that it is waited, or is found here
                    self._read()
                self.is_waiting = False
            if not self._lines:
                break
            prompt = unescape(self._lines.popleft().removesuffix("\n").removesuffix("\r"))
            self.waiting.append(prompt)
            yield prompt
        if self._error:
            raise self._error

    def ready(self) -> bool:
        """Whether the next line is there, to its end. Until it is, texts go on without it."""
        if not (self._lines or self.is_over) and self._reader.is_due():
            self._read()
        return bool(self._lines) or self.is_over

    def _read(self) -> None:
        try:
            lines = next(self._reader, None)
        except DataError as error:
            lines, self._error = None, error
        self.is_over |= lines is None
        self._lines.extend(lines or ())


def unescape(line: str) -> str:
    """A line with ``\\n``, ``\\r``, ``\\t`` and ``\\\\`` for what they stand for; any other backslash is itself."""
    return re.sub(r"\\([nrt\\])", lambda found: _ESCAPES[found[1]], line)


def escape(text: str) -> str:
    """A text in one line, which ``unescape`` turns back."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def show_samples(
    batch: "BatchGeneration", prompt: str, samples: int, loaded: float, device: str, *, quiet: bool
) -> int:
    """Sample after sample, the first unfinished one as it comes; the exit code."""
    out, tally, shown = render.StreamWriter(), _Tally(), -1
    terminal = sys.stdout.isatty()
    with cancel_on_interrupt(batch.cancel):
        for event in in_order(batch):
            if event.index != shown:
                assert event.index is not None
                shown = event.index
                if terminal:
                    out.close()
                    render.note(f"── {shown + 1} of {samples} ──")
                elif shown:
                    out.write(SEPARATOR)
                out.write(prompt)
            out.write(event.text)
            tally.add(event.timings)
    out.close()
    return tally.end(batch, loaded, device, quiet=quiet)


def show_events(batch: "BatchGeneration", loaded: float, device: str, *, quiet: bool) -> int:
    """Events of all texts as they come, a line of JSON each; the exit code."""
    out, tally = render.StreamWriter(), _Tally()
    with cancel_on_interrupt(batch.cancel):
        for event in batch:
            out.write(render.event_line(event))
            tally.add(event.timings)
    out.close()
    return tally.end(batch, loaded, device, quiet=quiet)


def show_lines(
    batch: "BatchGeneration",
    prompts: Prompts,
    loaded: float,
    device: str,
    *,
    display_prompt: bool,
    json_lines: bool,
    quiet: bool,
) -> int:
    """A line for each line of the input, in its order; the exit code."""
    out, tally = render.StreamWriter(), _Tally()

    def cancel() -> None:
        batch.cancel()
        prompts.is_over = True
        if prompts.is_waiting:  # which a read would go on doing
            raise KeyboardInterrupt

    with render.progress("generating", quiet=quiet or sys.stdout.isatty()) as progress:
        total = 0 if quiet else count_lines(prompts.file)
        with cancel_on_interrupt(cancel):
            try:
                for text in batch.texts():
                    prompt = prompts.waiting.popleft()
                    before = prompt if display_prompt else ""
                    out.write((_json_line(text, prompt) if json_lines else escape(before + text.text)) + "\n")
                    out.flush()  # somebody may wait for it
                    tally.add(text.timings)
                    progress(tally.texts, total and max(total, tally.texts))
            except KeyboardInterrupt:
                if not prompts.is_waiting:
                    raise
            finally:
                out.close()  # the lines before an error are not lost
    return tally.end(batch, loaded, device, quiet=quiet)


class _Tally:
    """What was made, for the closing line."""

    def __init__(self) -> None:
        self.texts = self._read = self._made = 0
        self._started = perf_counter()

    def add(self, timings: "Timings | None") -> None:
        """Count a text where this is its end."""
        if timings:
            self.texts += 1
            self._read += timings.prompt_tokens
            self._made += timings.generated_tokens

    def end(self, batch: "BatchGeneration", loaded: float, device: str, *, quiet: bool) -> int:
        """Say it; the exit code."""
        if not quiet:
            seconds = perf_counter() - self._started
            render.note(render.batch_summary(self.texts, self._read, self._made, seconds, loaded, device, batch.seed))
        return 130 if batch.cancelled else 0


def _json_line(text: "GeneratedText", prompt: str) -> str:
    fields = {
        "index": text.index,
        "prompt": prompt,
        "text": text.text,
        "finish_reason": text.finish_reason,
        "tokens": text.timings.generated_tokens,
    }
    return json.dumps(fields, ensure_ascii=False)
