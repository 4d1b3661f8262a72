"""``rnn-edge deploy``."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def deploy(
    names: Annotated[
        list[str],
        typer.Argument(
            help="A bundle and devices, as ssh knows them; with --status or --rollback devices alone.",
            metavar="[BUNDLE] HOST...",
        ),
    ],
    status: Annotated[bool, typer.Option("--status", help="Say what runs there, since when, and how fast.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to the release before.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Download packages here and copy them, for devices without a network.")
    ] = False,
    keep: Annotated[
        int | None, typer.Option("--keep", help="Releases to keep there, the new one included. [default: 3]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look, and say each step; change nothing.")] = False,
    ssh_config: Annotated[Path | None, typer.Option("-F", "--ssh-config", help="Instead of ~/.ssh/config.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One device a line.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Put a bundle on devices over SSH.

    Looks at each device, installs rnn-edge into an environment of its own, copies what is missing, proves there that it
    computes the same (verify), measures it (bench), and then makes it the current release in one rename. If anything
    fails, what ran before still runs. Exit code 1 if a device failed; the others go on.
    """
    import json
    from dataclasses import asdict

    from rnn_edge import render_deploy
    from rnn_edge.bundle import open_bundle
    from rnn_edge.cli.input import ended_as_by_interrupt
    from rnn_edge.deploy.deployment import Options
    from rnn_edge.deploy.fleet import Fleet
    from rnn_edge.errors import InvalidValueError

    alone = status or rollback
    hosts = names if alone else names[1:]
    if status and rollback:
        raise InvalidValueError("--status and --rollback exclude each other", "give one of the two")
    if alone and (dry_run or offline or keep is not None):
        raise InvalidValueError("--status and --rollback take no --dry-run, --offline and --keep", "leave them out")
    if not hosts:
        raise InvalidValueError("no device is given", "write: rnn-edge deploy BUNDLE user@host")
    if keep is not None and keep < 1:
        raise InvalidValueError(f"--keep is {keep}", "use at least 1")
    if ssh_config and not ssh_config.is_file():
        raise InvalidValueError(f"there is no file {ssh_config}", "give an ssh configuration file, or leave -F out")
    options = Options(offline=offline, keep=keep or 3, dry_run=dry_run, config=ssh_config)
    bundle = None if alone else open_bundle(names[0])
    progress = render_deploy.progress(hosts, steps=not (alone or dry_run), quiet=quiet)
    with ended_as_by_interrupt(), progress as report:
        fleet = Fleet(hosts, options, report)
        results = fleet.status() if status else fleet.rollback() if bundle is None else fleet.deploy(bundle)
    if as_json:
        for result in results:
            typer.echo(json.dumps(asdict(result), ensure_ascii=False))
    else:
        render_deploy.show(results)
    if not all(result.ok for result in results):
        raise typer.Exit(1)
