"""How things look in a terminal. The only file of the device side that knows."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from rnn_edge.bundle import Bundle
    from rnn_edge.events import Event, Timings
    from rnn_edge.manifest import Manifest

_FLUSH_INTERVAL = 1 / 60
# C0 except tab and line feed, DEL, and C1, which has no pictures.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class StreamWriter:
    """Write pieces of text as they come: slow ones at once, fast ones at most sixty times a second."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._is_terminal = self._stream.isatty()
        self._pieces: list[str] = []
        self._flushed = 0.0
        self._in_line = False

    def write(self, text: str) -> None:
        """Show ``text`` now, or with the next piece that comes after the interval."""
        self._pieces.append(text)
        if text:
            self._in_line = text[-1] != "\n"
        if time.perf_counter() - self._flushed >= _FLUSH_INTERVAL:
            self.flush()

    def close(self) -> None:
        """Show everything. A terminal gets the line break that a prompt wants before it; a file has the text alone."""
        if self._is_terminal and self._in_line:
            self.write("\n")
        self.flush()

    def flush(self) -> None:
        """Show everything so far."""
        if self._pieces:
            text = "".join(self._pieces)
            self._stream.write(visible(text) if self._is_terminal else text)
            self._pieces.clear()
        self._stream.flush()
        self._flushed = time.perf_counter()


def visible(text: str) -> str:
    """Control characters as the pictures of Unicode, so that no bundle's text or name can command a terminal."""
    return text.translate(_PICTURES)


def event_line(event: Event) -> str:
    """One event as a line of JSON; fields without a value are left out."""
    # By hand, since asdict copies deeply: a batch has tens of thousands of events a second.
    fields = {name: value for name in event.__slots__ if (value := getattr(event, name)) is not None}
    if event.timings:
        fields["timings"] = asdict(event.timings)
    return json.dumps(fields, ensure_ascii=False) + "\n"


def summary(timings: Timings, load_seconds: float, device: str, seed: int) -> str:
    """The closing lines of a generation."""
    return (
        f"load {load_seconds * 1e3:.0f} ms on {device} · "
        f"prompt {counted(timings.prompt_tokens, 'token')}, {_rate(timings.prompt_tokens, timings.prompt_seconds)} · "
        f"generated {counted(timings.generated_tokens, 'token')}, "
        f"{_rate(timings.generated_tokens, timings.generation_seconds)} · "
        f"first token after {timings.first_token_seconds * 1e3:.1f} ms · seed {seed}"
    )


def batch_summary(texts: int, read: int, made: int, seconds: float, load_seconds: float, device: str, seed: int) -> str:
    """The closing line of several texts; ``seconds`` are those of all together."""
    return (
        f"load {load_seconds * 1e3:.0f} ms on {device} · "
        f"{counted(texts, 'text')} from prompts of {counted(read, 'token')} · "
        f"generated {counted(made, 'token')} in {seconds:.1f} s, {_rate(made, seconds)} · seed {seed}"
    )


def translation_summary(timings: Timings, load_seconds: float, device: str, seed: int | None) -> str:
    """The closing line of a translation."""
    return (
        f"load {load_seconds * 1e3:.0f} ms on {device} · "
        f"source {counted(timings.prompt_tokens, 'token')}, read in {timings.prompt_seconds * 1e3:.1f} ms · "
        f"translation {counted(timings.generated_tokens, 'token')}, "
        f"{_rate(timings.generated_tokens, timings.generation_seconds)} · "
        f"first after {timings.first_token_seconds * 1e3:.1f} ms" + (f" · seed {seed}" if seed is not None else "")
    )


def counted(number: int, noun: str) -> str:
    """``1 token``, ``2,000 tokens``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def note(text: str) -> None:
    """A quiet line on stderr; a terminal breaks it between words."""
    out = console(stderr=True)
    out.print(visible(text), style="dim", markup=False, soft_wrap=not out.is_terminal)


def console(*, stderr: bool = False) -> Console:
    """A console that keeps colour away from pipes, dumb terminals and NO_COLOR, and never breaks lines of a pipe."""
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            """Leave a closed pipe to the command line, instead of exit code 1."""
            raise BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    return PlainConsole(stderr=stderr, highlight=False, width=None if stream.isatty() else 160)


@contextlib.contextmanager
def progress(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while the block runs, where that is a terminal; call what it yields with done and total.

    A total of 0 is one that nobody knows.
    """
    out = console(stderr=True)
    if quiet or not out.is_terminal or out.is_dumb_terminal:
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def show_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, stderr: bool = False, spare: Sequence[str] = ()
) -> None:
    """A plain table. Columns of ``spare`` are left out, one after another, until it is as narrow as the terminal."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    out = console(stderr=stderr)
    columns = {name: [visible(row[place]) for row in rows] for place, name in enumerate(headings)}
    widths = {name: max(map(cell_len, (name, *cells))) for name, cells in columns.items()}
    for name in spare:
        if sum(widths.values()) + 3 * (len(widths) - 1) > out.width:
            columns.pop(name, None)
            widths.pop(name, None)
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))
    out.print(table)


def show_checks(checks: Sequence[tuple[str, str, str]]) -> None:
    """What was compared, the largest difference and the tolerance; on stderr."""
    show_table(("check", "largest difference", "allowed"), checks, stderr=True)


def show_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Names and values in two columns; on stdout."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in fields:
        table.add_row(Text(name, style="bold"), Text(visible(value)))
    console().print(table)


def bundle_fields(bundle: Bundle) -> list[tuple[str, str]]:
    """Everything a person wants to know of a bundle."""
    manifest = bundle.manifest
    architecture, provenance = manifest.architecture, manifest.provenance
    state_bytes = sum(4 * pair.width for pair in manifest.state)
    pairs = ", ".join(f"{pair.input} → {pair.output} [batch, {pair.width}]" for pair in manifest.state)
    ids = {role: token for role, token in asdict(manifest.special_ids).items() if token is not None}
    return [
        ("name", manifest.name),
        ("path", str(bundle.path)),
        ("task", manifest.task),
        (
            "network",
            (
                f"{_network(bundle)}, embedding {architecture.embedding}"
                f"{', tied' if architecture.tied else ''}, {architecture.parameters:,} parameters"
            ),
        ),
        ("weights", f"{manifest.precision}, {manifest.lowering} lowering"),
        *(
            (place, f"{spec.kind}, vocabulary {spec.vocabulary_size}, {spec.file}")
            for place, spec in manifest.tokenizers.items()
        ),
        ("special ids", ", ".join(f"{role} {token}" for role, token in ids.items()) or "none"),
        ("state pairs", pairs),
        ("state size", f"{state_bytes:,} bytes a stream"),
        *_task_fields(manifest),
        *(
            (f"file {name}", f"{entry.size:,} bytes, sha256 {entry.sha256[:16]}…")
            for name, entry in manifest.files.items()
        ),
        *(
            (metric.name, f"{metric.value:.4f} {metric.unit}: {metric.data}, {metric.split}, {metric.method}")
            for metric in manifest.metrics
        ),
        ("golden", f"{_golden_steps(manifest)} steps recorded"),
        ("trained on", provenance.data_title or "not recorded"),
        ("source", provenance.data_source or "not recorded"),
        ("licence", provenance.data_licence or "not recorded"),
        ("made with", ", ".join(f"{name} {value}" for name, value in manifest.versions.items())),
    ]


def bundle_row(bundle: Bundle) -> tuple[str, ...]:
    """Name, task, network, size and path, for a list."""
    task = bundle.manifest.task
    return bundle.path.name, task, _network(bundle), f"{bundle.size / 1e6:.1f} MB", str(bundle.path)


def _task_fields(manifest: Manifest) -> list[tuple[str, str]]:
    if manifest.source is None:
        return [("sampling", ", ".join(f"{name} {value:g}" for name, value in asdict(manifest.sampling).items()))]
    memory = ", ".join(f"{item.name} [batch, source, {item.width}]" for item in manifest.memory)
    decoding = manifest.decoding
    return [
        ("memory", memory),
        ("longest source", f"{manifest.source.longest} tokens; longer ones are cut in parts"),
        ("decoding", f"beam {decoding.beam}, length penalty {decoding.length_penalty:g}"),
    ]


def _golden_steps(manifest: Manifest) -> int:
    steps = sum(len(golden.tokens) for golden in manifest.golden)
    return steps + sum(len(golden.tokens) for golden in manifest.golden_translations)


def _network(bundle: Bundle) -> str:
    architecture = bundle.manifest.architecture
    network = f"{architecture.cell.upper()} {architecture.layers} × {architecture.hidden}"
    encoder = architecture.encoder
    if encoder is None:
        return network
    directions = "2 × " * (encoder.directions == 2)
    before = f"{architecture.cell.upper()} {encoder.layers} × {directions}{encoder.hidden}"
    return f"{before} → {network}, {encoder.attention} attention"


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:,.0f} tokens/s" if seconds > 0 and tokens else "– tokens/s"
