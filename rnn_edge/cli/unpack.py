"""``rnn-edge unpack``."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def unpack(
    archive: Annotated[Path, typer.Argument(help="Archive that rnn-edge pack wrote.", metavar="ARCHIVE")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to make.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
) -> None:
    """Unpack an archive into a folder, checked file by file.

    All of it or nothing: an archive that is truncated, changed or hostile leaves no folder behind.
    """
    from rnn_edge import render
    from rnn_edge.archive import unpack as extract

    bundle = extract(archive, output, force=force)
    render.note(f"wrote {bundle.path}; how to install it is in {output / 'INSTALL.txt'}")
