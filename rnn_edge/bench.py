"""Measuring bundles side by side: repetitions taken in turns, what the figures are, and the limit that memory sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING

from rnn_edge.machine import read_bandwidth

if TYPE_CHECKING:
    from rnn_edge.bundle import Bundle

Progress = Callable[[int, int], None]  # done, of how many
STEP, LIMIT = "step", "of limit"
_WIDTHS = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}  # bytes of a weight


@dataclass(frozen=True)
class Subject:
    """A bundle as it is measured: under this name, on this device, with so many CPU threads."""

    name: str
    bundle: Bundle
    device: str
    threads: int


@dataclass(frozen=True)
class Figure:
    """What a value is called, its unit, and how it comes about."""

    test: str
    unit: str
    method: str


@dataclass(frozen=True)
class Work:
    """Something to measure again and again: ``run`` gives a value for each of ``figures``."""

    subject: Subject
    batch: int
    tokens: int  # the length in the test's name; 0 where it has none
    figures: tuple[Figure, ...]
    run: Callable[[], tuple[float, ...]]
    use_median: bool = False


@dataclass(frozen=True)
class Result:
    """One figure: the mean (or median, as ``method`` says) of ``values``, and their standard deviation.

    ``value`` is None where the measurement failed. ``bytes`` is the size of the bundle's graphs.
    """

    bundle: str
    precision: str
    bytes: int
    device: str
    threads: int
    batch: int
    test: str
    tokens: int
    value: float | None
    deviation: float
    unit: str
    values: tuple[float, ...]
    method: str


class Bench:
    """Runs works in turns, so that what changes on the machine meanwhile changes all of them alike."""

    def __init__(self, works: Sequence[Work]) -> None:
        self._works = works
        self._values: list[list[tuple[float, ...]]] = [[] for _ in works]

    def run(self, repetitions: int, progress: Progress) -> None:
        """One round to warm up, then ``repetitions``. After an interrupt ``results`` has what was complete."""
        done, total = 0, (repetitions + 1) * len(self._works)
        for number in range(repetitions + 1):
            for work, values in zip(self._works, self._values, strict=True):
                found = work.run()
                if number:
                    values.append(found)
                done += 1
                progress(done, total)

    def results(self) -> Iterator[Result]:
        """The figures of all works that ran, each followed by its share of the limit where that can be said."""
        for work, found in zip(self._works, self._values, strict=True):
            for index, figure in enumerate(work.figures if found else ()):
                values = tuple(row[index] for row in found)
                value = median(values) if work.use_median else fmean(values)
                yield _result(work, figure, value, values)
                if figure.test == STEP and (work.batch, work.subject.threads, work.subject.device) == (1, 1, "cpu"):
                    yield _share(work, value)


def _result(work: Work, figure: Figure, value: float | None, values: tuple[float, ...]) -> Result:
    subject, manifest = work.subject, work.subject.bundle.manifest
    return Result(
        subject.name,
        manifest.precision,
        sum(manifest.files[name].size for name in manifest.graphs.values()),
        subject.device,
        subject.threads,
        work.batch,
        figure.test,
        work.tokens,
        value,
        stdev(values) if len(values) > 1 else 0.0,
        figure.unit,
        values,
        figure.method,
    )


def _share(work: Work, steps_a_second: float) -> Result:
    """How near a step comes to reading its weights as fast as one thread can read memory, in percent."""
    weights = weights_read(work.subject.bundle, work.subject.device)
    bandwidth = read_bandwidth(weights)
    share = 100 * weights * steps_a_second / bandwidth
    method = (
        f"estimate: the graph without the rows of the embedding that a token leaves out is {weights / 1e6:,.2f} MB; "
        f"the best of three probes read that much at {bandwidth / 1e9:,.1f} GB/s"
    )
    if share > 100:  # nothing reads faster than memory: something else used it meanwhile
        method = f"the probe failed: by it the step would have {share:,.0f} %; {method}"
        return _result(work, Figure(LIMIT, "%", method), None, ())
    return _result(work, Figure(LIMIT, "%", method), share, (share,))


def weights_read(bundle: Bundle, device: str) -> int:
    """Bytes of weights that one step of one stream must read: an estimate from the size of the graph's file.

    Of an embedding that only looks up rows, one row is read; where it is the output layer too, all of it is. A CPU
    holds fp16 weights as fp32.
    """
    manifest = bundle.manifest
    architecture, width = manifest.architecture, _WIDTHS[manifest.precision]
    size = float(manifest.files[manifest.graphs.get("decoder") or manifest.graphs["step"]].size)
    if not architecture.tied:
        size -= (manifest.tokenizer.vocabulary_size - 1) * architecture.embedding * width
    if manifest.precision == "fp16" and device == "cpu":
        size *= 2
    return max(1, round(size))
