"""Virtual environments of the peers, one each, since their packages do not agree with one another."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.peers.process import ROOT
from benchmarks.peers.registry import ENVIRONMENTS, MAIN

_REQUIREMENTS = Path(__file__).parent / "requirements"
_DONE = "installed.txt"  # a copy of the requirements, written last


def default_folder() -> Path:
    """In the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "rnn-edge" / "peers"


def python(folder: Path, environment: str) -> Path | None:
    """The environment's Python, or None where it is not installed as it should be now."""
    if environment == MAIN:
        return Path(sys.executable)
    done = folder / environment / _DONE
    if not done.is_file() or done.read_text(encoding="utf-8") != _requirements(environment):
        return None
    return _python(folder / environment)


def install(folder: Path, environments: list[str]) -> list[str]:
    """Make these environments through pip → what failed, by name, with the reason."""
    failures = []
    for environment in environments:
        if python(folder, environment):
            print(f"{environment}: is there")
            continue
        print(f"{environment}: installing", flush=True)
        place = folder / environment
        venv.create(place, with_pip=True)
        command = [str(_python(place)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--constraint", str(ROOT / "constraints.txt")]
        command += ["--requirement", str(_REQUIREMENTS / f"{environment}.txt")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["pip failed"]
            failures.append(f"{environment}: {lines[-1]}")
        else:
            (place / _DONE).write_text(_requirements(environment), encoding="utf-8")
    return failures


def known(environments: list[str]) -> list[str]:
    """Those asked for, or all; a name that is none ends the program."""
    unknown = sorted(set(environments) - set(ENVIRONMENTS))
    if unknown:
        raise SystemExit(f"no environment is called {', '.join(unknown)}; there are {', '.join(ENVIRONMENTS)}")
    return environments or ENVIRONMENTS


def _requirements(environment: str) -> str:
    return (_REQUIREMENTS / f"{environment}.txt").read_text(encoding="utf-8")


def _python(place: Path) -> Path:
    return place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
