"""``rnn-edge verify``."""

from typing import Annotated

import typer

from rnn_edge.cli.options import DeviceOption

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def verify(
    bundle: Annotated[str, typer.Argument(help="Name, folder or archive of a bundle.", metavar="BUNDLE")],
    device: DeviceOption = "auto",
    threads: Annotated[int | None, typer.Option("-t", "--threads", help="CPU threads. [default: 1]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One finding a line.")] = False,
) -> None:
    """Prove that this device computes the same.

    Checks hashes and graph, replays the golden transcript that the exporting machine recorded, saves and loads the
    state, and compares a batch with its rows. Exit code 1 if something differs and the recorded margins do not explain
    it.
    """
    import json
    from dataclasses import asdict
    from time import perf_counter

    from rnn_edge import render
    from rnn_edge.bundle import open_bundle
    from rnn_edge.verification import verify as run_checks

    found = []
    started = perf_counter()
    for finding in run_checks(open_bundle(bundle), device=device, threads=threads):  # type: ignore[arg-type]  # checked there
        found.append(finding)
        if as_json:
            typer.echo(json.dumps(asdict(finding)))
    if not as_json:
        render.show_table(
            ("check", "result", "detail"),
            [(finding.name, "passed" if finding.passed else "FAILED", finding.detail) for finding in found],
        )
        failed = sum(not finding.passed for finding in found)
        explained = sum(finding.explained for finding in found)
        result = f"{failed} of {len(found)} checks FAILED" if failed else f"all {len(found)} checks passed"
        differences = f"{explained} explained difference{'' if explained == 1 else 's'}"
        render.note(f"{result} · {differences} · {perf_counter() - started:.2f} s")
    if not all(finding.passed for finding in found):
        raise typer.Exit(1)
