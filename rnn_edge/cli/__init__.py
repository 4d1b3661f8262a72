"""The command line: a table of commands, each imported when it runs, and the one place where errors are printed."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import typer
from typer.core import TyperGroup

from rnn_edge.errors import RnnEdgeError

# Command → module that holds its Typer app. Those of rnn_edge_export are workstation commands: importable
# without torch, so that --help works everywhere, and naming what to install when they run without it.
COMMANDS = {
    "generate": "rnn_edge.cli.generate",
    "translate": "rnn_edge.cli.translate",
    "evaluate": "rnn_edge.cli.evaluate",
    "bench": "rnn_edge.cli.bench",
    "models": "rnn_edge.cli.models",
    "show": "rnn_edge.cli.show",
    "verify": "rnn_edge.cli.verify",
    "pack": "rnn_edge.cli.pack",
    "unpack": "rnn_edge.cli.unpack",
    "deploy": "rnn_edge.cli.deploy",
    "doctor": "rnn_edge.cli.doctor",
    "web": "rnn_edge.cli.web",
    "train": "rnn_edge_export.cli.train",
    "runs": "rnn_edge_export.cli.runs",
    "plot": "rnn_edge_export.cli.plot",
    "export": "rnn_edge_export.cli.export",
    "import": "rnn_edge_export.cli.import_checkpoint",
    "quantize": "rnn_edge_export.cli.quantize",
}

# The vendored click of typer is private; its base class of all usage errors is reached through a public one.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class LazyGroup(TyperGroup):
    """A group that imports a command's module when the command is needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        command = typer.main.get_command(importlib.import_module(COMMANDS[cmd_name]).app)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """Train small recurrent networks, export them as stepwise ONNX graphs, and stream text from them."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"rnn-edge {installed('rnn-edge')}")
        raise typer.Exit


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    command = typer.main.get_command(app)
    # Closed from the start (>&-): there is nobody to write to.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what a terminal's encoding lacks is no reason to end a text
    try:
        # Not command.main: it would turn a closed pipe into exit code 1.
        with command.make_context("rnn-edge", sys.argv[1:] if arguments is None else arguments) as context:
            code = _exit_code(command, context)
        sys.stdout.flush()
    except RnnEdgeError as error:
        code = _fail(error.message, error.hint, error.exit_code)
    except _UsageError as error:
        code = _usage(error)
    except typer.Exit as done:
        code = done.exit_code
    except BrokenPipeError:
        _drop(sys.stdout)
        code = 0
    except OSError as error:
        what = error.filename or "standard output"
        hint = "check the path, its permissions and the room on the disk"
        code = _fail(f"{what}: {error.strerror or error}", hint, 1)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    try:
        sys.stderr.flush()
    except (OSError, ValueError):  # a screen that went away is no failure of the command
        _drop(sys.stderr)
    return code


def _exit_code(command: Any, context: Any) -> int:
    try:
        command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def help_pages() -> Iterator[tuple[str, str]]:
    """Title and help text of every command, 80 columns wide."""

    def walk(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
        context = command.make_context(name, [], parent=parent, resilient_parsing=True)
        context.terminal_width = 80
        yield context.command_path, command.get_help(context)
        for child in command.list_commands(context) if hasattr(command, "list_commands") else ():
            yield from walk(command.get_command(context, child), child, context)

    yield from walk(typer.main.get_command(app), "rnn-edge", None)


def _usage(error: Any) -> int:
    """A usage error in the same two lines as every other; a bare group shows its help instead."""
    path = error.ctx.command_path if error.ctx else "rnn-edge"
    message = " ".join(error.format_message().split()).rstrip(".")
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message())
        return 2
    return _fail(message[:1].lower() + message[1:], f"see {path} --help", 2)


def _fail(message: str, hint: str, code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        _drop(sys.stdout)
    from rnn_edge.render import visible

    # One line each, whatever a file name or a manifest holds.
    lines = (visible(text.replace("\n", " ")) for text in (f"error: {message}", f"hint: {hint}"))
    print(*lines, sep="\n", file=sys.stderr)
    return code


def _drop(stream: TextIO) -> None:
    """Point a stream to nowhere, so that the interpreter's own flush at exit stays silent after a closed pipe."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
