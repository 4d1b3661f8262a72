"""Running rnn-edge in a process of its own, with some packages out of reach."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.device.tiny import DATA

# Refuses the packages named in its first argument as if they were not installed, runs the command line with the rest,
# and reports on stderr any forbidden package that something tried to import.
_WITHOUT = """
import sys
forbidden = set(filter(None, sys.argv[1].split(",")))
wanted = []
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            wanted.append(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
from rnn_edge.cli import run
code = run(sys.argv[2:])
if wanted:
    print("WANTED", *sorted(set(wanted)), file=sys.stderr)
sys.exit(code)
"""


def environment(**extra: str) -> dict[str, str]:
    """This process's variables without those that colour output, with the tiny bundles on the search path."""
    colour = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    kept = {name: value for name, value in os.environ.items() if name not in colour}
    return kept | {"RNN_EDGE_MODELS": str(DATA)} | extra


def command(*arguments: str | bytes) -> list[str | bytes]:
    """The command line of ``python -m rnn_edge``."""
    return [sys.executable, "-m", "rnn_edge", *arguments]


def rnn_edge(
    *arguments: str | bytes, cwd: Path | None = None, input_bytes: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m rnn_edge``."""
    return _run(command(*arguments), cwd, input_bytes, variables)


def rnn_edge_without(
    packages: Sequence[str], *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line where ``packages`` cannot be imported. A line WANTED on stderr names what was tried."""
    return _run([sys.executable, "-c", _WITHOUT, ",".join(packages), *arguments], cwd, b"", {})


def _run(
    line: list[str | bytes] | list[str], cwd: Path | None, input_bytes: bytes, variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        line, input=input_bytes, capture_output=True, cwd=cwd, env=environment(**variables), check=False
    )
    out, err = (stream.decode("utf-8") for stream in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)
