"""Results as Markdown tables and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from typing import Any

from benchmarks.common import microseconds, ratio, table
from benchmarks.peers.measure import Absence, Result
from benchmarks.peers.network import Shape
from benchmarks.peers.registry import OURS

_MODES = {"step": "step", "greedy": "greedy text", "sampled": "sampled text"}


def networks(results: Sequence[Result], against: str | None = None) -> str:
    """A table for each network and batch: the time of each peer by mode, and how many times ours it is.

    Ours is that of the precision ``against``; None takes each peer's own.
    """
    shapes = list(dict.fromkeys(result.shape for result in results))
    tables = [_network([result for result in results if result.shape == shape], against) for shape in shapes]
    return "\n\n".join(tables)


def summary(results: Sequence[Result], mode: str, batch: int) -> str:
    """Peers by networks: median µs a step of one mode, or thousands of tokens/s of all streams for a batch."""
    some = [result for result in results if result.shape.batch == batch and mode in result.seconds]
    columns = list(dict.fromkeys(_size(result.shape) for result in some))
    found = {(result.peer.name, _size(result.shape)): _figure(result, mode) for result in some}
    names = dict.fromkeys(result.peer.name for result in some)
    rows = [[name, *(found.get((name, column), "–") for column in columns)] for name in names]
    unit = "median µs" if batch == 1 else "thousand tokens/s of all streams"
    return f"**{_MODES[mode]}, batch {batch}: {unit}**\n\n{table(['peer', *columns], rows)}"


def absences(found: Sequence[Absence]) -> str:
    """Who is missing and why, each reason once."""
    reasons: dict[tuple[str, str, bool], list[str]] = {}
    for item in found:
        where = f"{_size(item.shape)} batch {item.shape.batch}"
        reasons.setdefault((item.peer.name, item.reason, item.failed), []).append(where)
    lines = [
        f"- {name} {'FAILED' if failed else 'was skipped'}: {reason} ({', '.join(places)})"
        for (name, reason, failed), places in reasons.items()
    ]
    return "\n".join(lines)


def as_json(results: Sequence[Result], missing: Sequence[Absence]) -> dict[str, Any]:
    """All rounds, in seconds per step."""
    measured = [
        {
            "peer": result.peer.name,
            "precision": result.peer.precision,
            **result.shape.to_json(),
            "relative_error": result.relative_error,
            "largest_difference": result.largest_difference,
            "load_seconds": result.load_seconds,
            "seconds_per_step": result.seconds,
        }
        for result in results
    ]
    left_out = [
        {"peer": item.peer.name, **item.shape.to_json(), "reason": item.reason, "failed": item.failed}
        for item in missing
    ]
    return {"results": measured, "absences": left_out}


def _network(results: list[Result], against: str | None) -> str:
    shape = results[0].shape
    modes = list(results[0].seconds)
    headings = ["peer"]
    for mode in modes:
        headings += [f"{_MODES[mode]}, µs", "× ours"]
    headings += ["tokens/s"] * (shape.batch > 1) + ["largest difference", "relative error"]
    rows = []
    for result in results:
        row = [result.peer.name]
        for mode in modes:
            row += [microseconds(result.seconds[mode]), _relative(result, results, mode, against)]
        if shape.batch > 1:
            row.append(f"{shape.batch / statistics.median(result.seconds['step']):,.0f}")
        rows.append([*row, f"{result.largest_difference:.1e}", f"{result.relative_error:.1e}"])
    return f"**{_size(shape)}, batch {shape.batch}**\n\n{table(headings, rows)}"


def counterpart(precision: str, ours: Collection[str]) -> str | None:
    """The precision of ours to compare with: the same, or else the next finer one, or else the finest there is."""
    bits = ("int4", "int8", "fp32")
    finer = bits[bits.index(precision) :]
    return next((found for found in (*finer, *reversed(bits)) if found in ours), None)


def _relative(result: Result, results: Sequence[Result], mode: str, against: str | None) -> str:
    """Above 1 where ours is faster; by rounds, since both of a round met the same machine."""
    ours = {item.peer.precision: item.seconds[mode] for item in results if item.peer.name.startswith(OURS)}
    precision = counterpart(against or result.peer.precision, ours)
    if precision is None:
        return "–"
    note = "" if precision == result.peer.precision else f" ({precision})"
    return f"{ratio(result.seconds[mode], ours[precision]):.2f}{note}"


def _figure(result: Result, mode: str) -> str:
    median = statistics.median(result.seconds[mode])
    return f"{median * 1e6:,.1f}" if result.shape.batch == 1 else f"{result.shape.batch / median / 1e3:,.1f}"


def _size(shape: Shape) -> str:
    return f"{shape.cell} {shape.hidden}x{shape.layers}"
