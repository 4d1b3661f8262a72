"""The figures of ``rnn-edge bench`` as a table, Markdown, JSON or CSV."""

import sys
from collections.abc import Sequence

import typer

from rnn_edge import render
from rnn_edge.bench import LIMIT, Result
from rnn_edge.machine import Machine

_HEADINGS = ("bundle", "type", "on", "batch", "test", "result")


def show(machine: Machine, results: Sequence[Result], output_format: str) -> None:
    """Print results with the machine and the versions, on stdout."""
    {"table": _table, "md": _markdown, "json": _json, "csv": _csv}[output_format](machine, results)


def _table(machine: Machine, results: Sequence[Result]) -> None:
    headings, rows, shared = _columns(results)
    render.show_table(headings, rows)
    typer.echo()
    for line in (*shared, *_methods(results), *_machine_lines(machine)):
        # A terminal gets whole words, a pipe whole lines.
        render.console().print(render.visible(line), markup=False, soft_wrap=not sys.stdout.isatty())


def _markdown(machine: Machine, results: Sequence[Result]) -> None:
    headings, rows, shared = _columns(results)
    for line in (headings, ["---"] * len(headings), *rows):
        typer.echo("| " + " | ".join(" ".join(_plain(cell).replace("|", "\\|").split()) for cell in line) + " |")
    typer.echo()
    for note in (*shared, *_methods(results), *_machine_lines(machine)):
        typer.echo(f"- {_plain(note)}")


def _json(machine: Machine, results: Sequence[Result]) -> None:
    import json
    from dataclasses import asdict

    content = {"machine": asdict(machine), "results": [asdict(result) for result in results]}
    typer.echo(json.dumps(content, ensure_ascii=False, indent=2))


def _csv(machine: Machine, results: Sequence[Result]) -> None:
    import csv
    import io
    from dataclasses import asdict

    where = {"cpu": machine.cpu, "cores": machine.cores, "os": machine.os} | machine.versions
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for index, result in enumerate(results):
        row = asdict(result) | {"values": " ".join(map(str, result.values))} | where
        if not index:
            writer.writerow(row)
        writer.writerow([_plain(value) if isinstance(value, str) else value for value in row.values()])
    typer.echo(out.getvalue(), nl=False)


def _columns(results: Sequence[Result]) -> tuple[list[str], list[list[str]], list[str]]:
    """Headings and rows, without the columns that are the same in all of several rows; and a line of these."""
    rows = _rows(results)
    same = [len(rows) > 1 and len(set(column)) == 1 for column in zip(*rows, strict=True)]
    same[0] = False  # what is measured is always named
    headings = [heading for heading, out in zip(_HEADINGS, same, strict=True) if not out]
    left = [[cell for cell, out in zip(row, same, strict=True) if not out] for row in rows]
    shared = [f"{name} {cell.strip()}" for name, cell, out in zip(_HEADINGS, rows[0], same, strict=True) if out]
    return headings, left, [f"everywhere: {', '.join(shared)}"] if shared else []


def _rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Cells of each result; numbers of one column end at the same place."""
    values = ["failed" if result.value is None else _number(result.value) for result in results]
    deviations = [f"± {_number(result.deviation)}" if len(result.values) > 1 else "" for result in results]
    width, space = max(map(len, values)), max(map(len, deviations))
    batches = max(len(str(result.batch)) for result in results)
    return [
        (
            result.bundle,
            result.precision,
            "cuda" if result.device == "cuda" else f"{result.threads} cpu",
            f"{result.batch:>{batches}}",
            f"{result.test} {result.tokens}" if result.tokens and result.test != LIMIT else result.test,
            f"{value:>{width}} {deviation:<{space}} {result.unit}",
        )
        for result, value, deviation in zip(results, values, deviations, strict=True)
    ]


def _methods(results: Sequence[Result]) -> list[str]:
    """What each test is, once; of the limit, once a bundle."""
    lines: dict[str, None] = {}
    for result in results:
        where = f"{result.bundle}, {result.test}" if result.test == LIMIT else result.test
        lines[f"{where}: {result.method}"] = None
    return list(lines)


def _machine_lines(machine: Machine) -> list[str]:
    cores = f"{machine.cores} core{'s' * (machine.cores > 1)}"
    return [
        f"{machine.cpu}, {cores}, {machine.os}",
        ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
    ]


def _number(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def _plain(text: str) -> str:
    """In one line, and without control characters."""
    return render.visible(" ".join(text.split("\n")))
