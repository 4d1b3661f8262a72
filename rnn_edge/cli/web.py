"""``rnn-edge web``."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def web(
    bundle: Annotated[str, typer.Argument(help="Name or folder of a bundle.", metavar="BUNDLE")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder to write, or HTML file with --single-file. [default: BUNDLE-site]"),
    ] = None,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="One HTML file that opens without a server.")
    ] = False,
    runtime: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the npm packages of the page's runtime, to fetch nothing: a node_modules, or what"
            " npm pack wrote."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was written, as one object.")] = False,
) -> None:
    """Make a static page that runs a model in the browser.

    Nothing is installed on the server and nothing that is typed leaves the page. The page's runtime (ONNX Runtime for
    WebAssembly) is fetched once from npm's registry, pinned by hash, and kept. The folder also runs under Node:
    node SITE/run.mjs SITE --prompt TEXT.
    """
    import json

    from rnn_edge import render
    from rnn_edge.bundle import open_bundle
    from rnn_edge.web.site import make_single_file, make_site

    found = open_bundle(bundle)
    target = output or Path(f"{found.path.resolve().name}-site{'.html' if single_file else ''}")
    make = make_single_file if single_file else make_site
    make(found, target, force=force, runtime=runtime, note=render.note)
    files = [target] if single_file else [path for path in target.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    if as_json:
        typer.echo(json.dumps({"output": str(target), "files": len(files), "bytes": size}))
        return
    typer.echo(str(target))
    how = f"open {target}" if single_file else f"serve it: python -m http.server --directory {target}"
    render.note(f"{size / 1e6:.1f} MB; {how}")
