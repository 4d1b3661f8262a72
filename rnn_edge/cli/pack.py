"""``rnn-edge pack``."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def pack(
    bundle: Annotated[str, typer.Argument(help="Name or folder of a bundle.", metavar="BUNDLE")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Archive to write: NAME.tar.gz.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing archive.")] = False,
) -> None:
    """Pack a bundle into one file.

    The archive holds the bundle, checksums, pinned requirements and rnn-edge itself: everything but Python. The same
    bundle gives the same bytes. Commands that take a bundle take the archive too.
    """
    from rnn_edge import render
    from rnn_edge.archive import SUFFIXES
    from rnn_edge.archive import pack as write
    from rnn_edge.bundle import open_bundle
    from rnn_edge.errors import InvalidValueError
    from rnn_edge.files import check_output

    if not output.name.endswith(SUFFIXES):
        raise InvalidValueError(f"{output} is no name of an archive", f"end it in {' or '.join(SUFFIXES)}")
    check_output(output, force=force, folder=False)
    packed = write(open_bundle(bundle), output)
    render.note(f"wrote {packed.path}: {packed.size:,} bytes, sha256 {packed.sha256}")
