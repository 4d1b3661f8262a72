"""``rnn-edge show``."""

import sys
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def show(
    bundle: Annotated[str, typer.Argument(help="Name, folder or archive of a bundle.", metavar="BUNDLE")],
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest.")] = False,
    recipe: Annotated[bool, typer.Option("--recipe", help="The recipe that trained it, as TOML.")] = False,
) -> None:
    """Show what a bundle holds.

    Network, state pairs, sizes, metrics, provenance.
    """
    from rnn_edge import render
    from rnn_edge.bundle import open_bundle

    found = open_bundle(bundle)
    if as_json or recipe:
        text = found.manifest.to_json() if as_json else found.manifest.provenance.recipe
        typer.echo(render.visible(text) if sys.stdout.isatty() else text, nl=False)
    else:
        render.show_fields(render.bundle_fields(found))
