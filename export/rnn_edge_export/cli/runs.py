"""``rnn-edge runs``."""

import textwrap
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rnn_edge_export.cli import workstation

if TYPE_CHECKING:
    from rnn_edge_export.overview import Overview

_SPARE = ("parameters", "at step", "time", "epochs", "data", "steps")  # on a narrow terminal, the first first

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders that have runs below them. [default: runs]", metavar="[FOLDER]..."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One run a line.")] = False,
) -> None:
    """List training runs with their best figures.

    The best of each kind comes first. Losses are of the best validation and compare between runs with the same tokens.
    The time is that of training steps alone. A narrow terminal leaves columns out.
    """
    import json

    with workstation():
        from rnn_edge import render
        from rnn_edge.errors import RnnEdgeError, RunError
        from rnn_edge_export.overview import find_runs, look_at

        found, failures = [], []
        for folder in folders or [Path("runs")]:
            if not folder.is_dir():
                raise RunError(f"there is no folder {folder}", "give a folder that has training runs below it")
            for path in find_runs(folder):
                try:
                    found.append(look_at(path))
                except RnnEdgeError as error:
                    failures.append((path, error.message))
    found = sorted({overview.path.resolve(): overview for overview in found}.values(), key=lambda one: one.rank)
    if as_json:
        for overview in found:
            typer.echo(json.dumps(_record(overview), ensure_ascii=False))
        for path, message in failures:
            typer.echo(json.dumps({"path": str(path), "problems": [message]}, ensure_ascii=False))
    else:
        for index, (kind, group) in enumerate(groupby(found, key=lambda one: (one.task, one.tokenizer))):
            typer.echo("\n" * (index > 0) + f"{kind[0]}, {kind[1]} tokens")
            render.show_table(*_table(list(group)), spare=_SPARE)
    for overview in found:
        for problem in overview.problems:
            render.note(f"{overview.path}: {problem}")
    for path, message in failures:
        render.note(f"{path} cannot be read: {message}")
    if not found and not failures:
        render.note("no runs found; start one with: rnn-edge train lm CORPUS -o runs/NAME")


def _record(overview: "Overview") -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(overview), "path": str(overview.path), "bits": overview.bits}


def _table(found: "list[Overview]") -> tuple[list[str], list[list[str]]]:
    """Headings and rows, without columns that would be empty."""
    columns: dict[str, list[str]] = {
        "run": [overview.path.resolve().name for overview in found],
        "network": [overview.network for overview in found],
        "parameters": [_millions(overview.parameters) for overview in found],
        "data": [textwrap.shorten(overview.data, 24, placeholder="…") for overview in found],
        "steps": [_share(overview.step, overview.total_steps) for overview in found],
        "epochs": [_share(round(overview.epoch, 1), overview.epochs) for overview in found],
        "BLEU": ["" if overview.bleu is None else f"{overview.bleu:.2f}" for overview in found],
        "bits": ["–" if overview.bits is None else f"{overview.bits:.4f}" for overview in found],
        "at step": ["–" if overview.best_step is None else f"{overview.best_step:,}" for overview in found],
        "state": [overview.state for overview in found],
        "time": [_duration(overview.seconds) for overview in found],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    return list(shown), [list(row) for row in zip(*shown.values(), strict=True)]


def _share(done: float, planned: float | None) -> str:
    """Done of planned, or one figure where both are the same."""
    if done == planned:
        return f"{done:,g}"
    return f"{done:,g}/{'?' if planned is None else f'{planned:,g}'}"


def _millions(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.2f} M"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
