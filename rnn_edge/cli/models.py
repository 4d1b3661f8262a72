"""``rnn-edge models``."""

from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="One bundle a line.")] = False) -> None:
    """List the bundles found here.

    Looked for in $RNN_EDGE_MODELS, ./bundles, ./models, and among the bundled models.
    """
    import json

    from rnn_edge import render
    from rnn_edge.bundle import list_bundles

    good, bad = list_bundles()
    if as_json:
        for bundle in good:
            manifest = bundle.manifest
            typer.echo(
                json.dumps(
                    {"name": bundle.path.name, "task": manifest.task, "bytes": bundle.size, "path": str(bundle.path)},
                    ensure_ascii=False,
                )
            )
    elif good:
        render.show_table(("name", "task", "network", "size", "path"), [render.bundle_row(bundle) for bundle in good])
    for path, error in bad:
        render.note(f"{path} does not open: {error.message}")
    if not good and not bad:
        render.note("no bundles found; export one with: rnn-edge export RUN -o bundles/NAME")
