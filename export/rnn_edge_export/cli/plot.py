"""``rnn-edge plot``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rnn_edge_export.cli import workstation

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs.", metavar="RUN...")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The picture, an .svg or .png file.", show_default=False)
    ],
    over: Annotated[str, typer.Option(help="What runs along the picture.", metavar="steps|epochs|tokens")] = "steps",
    loss: Annotated[str, typer.Option(help="Unit of the loss.", metavar="nats|bits|perplexity")] = "nats",
    log: Annotated[bool, typer.Option("--log", help="Draw the loss on a logarithmic scale.")] = False,
    title: Annotated[str, typer.Option(help="Written above.", show_default=False)] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Draw the loss curves of runs, finished or at work.

    Validation is drawn bold and training faint, the best validation is marked, and BLEU has a panel of its own.
    """
    with workstation():
        from rnn_edge import render
        from rnn_edge.errors import RunError
        from rnn_edge.files import write_bytes
        from rnn_edge.heatmap import check_picture_path
        from rnn_edge_export.plotting import check_plot, draw
        from rnn_edge_export.run import check_run, read_metrics

        check_plot(over, loss)
        check_picture_path(output, force=force)
        found = {}
        for name, run in zip(_names(runs), runs, strict=True):
            check_run(run)
            metrics = read_metrics(run)
            if metrics.steps:
                found[name] = metrics
            else:
                render.note(f"{run} has recorded nothing yet, and is left out")
        if not found:
            raise RunError("there is nothing to draw", "wait until a run has trained for some steps")
        suffix = output.suffix.lower().removeprefix(".")
        picture = draw(found, suffix, over=over, loss=loss, log=log, title=title)  # type: ignore[arg-type]  # checked above
        write_bytes(output, picture)


def _names(runs: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell the runs apart."""
    parts = [run.resolve().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names
