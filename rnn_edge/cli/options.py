"""Options that several commands share."""

from typing import Annotated, Any

import typer


def _threads(value: str) -> int | str:
    if value == "auto":
        return value
    try:
        return int(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is no number, and not auto") from None


# A number, "auto", or None; its range is checked where a session opens.
ThreadsOption = Annotated[
    Any,
    typer.Option(
        "-t",
        "--threads",
        help="CPU threads; auto measures once for a bundle, and remembers. [default: 1]",
        metavar="N|auto",
        parser=_threads,
        show_default=False,
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="Where to run.", metavar="auto|cpu|cuda")]
