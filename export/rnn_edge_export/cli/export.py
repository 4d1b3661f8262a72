"""``rnn-edge export``."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from rnn_edge.errors import InvalidValueError
from rnn_edge_export.cli import workstation

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.", metavar="RUN")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the bundle.", show_default=False)],
    lowering: Annotated[str, typer.Option(help="How a cell becomes ONNX.", metavar="operator|cell")] = "operator",
    name: Annotated[str | None, typer.Option(help="Name of the bundle; else that of its folder.")] = None,
    notes: Annotated[Path | None, typer.Option(help="Markdown to add to the model card.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Export a run as a verified bundle.

    Writes a stepwise ONNX graph with explicit state, its tokenizer, model card and manifest. Nothing is written unless
    the graph computes what PyTorch computes.
    """
    if lowering not in ("operator", "cell"):
        raise InvalidValueError(f"--lowering {lowering} is unknown", "use operator or cell")
    with workstation():
        from rnn_edge.render import show_checks
        from rnn_edge_export.data import read_text
        from rnn_edge_export.onnx_export import export_bundle, load_source

        source = load_source(run)
        if notes:
            source = replace(source, notes=read_text(notes, "utf-8")[0])
        title = name or output.resolve().name
        bundle, checks = export_bundle(source, output, name=title, lowering=lowering, force=force)  # type: ignore[arg-type]
    show_checks([(check.name, f"{check.difference:.1e}", f"{check.tolerance:.0e}") for check in checks])
    typer.echo(
        f"{output}: {bundle.size / 1e6:.1f} MB, verified against PyTorch; try: rnn-edge generate {output}", err=True
    )
