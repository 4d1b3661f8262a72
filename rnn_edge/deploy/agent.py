"""What runs on the device while it is deployed to: sent there as text, so this file is the standard library's alone.

One JSON object a line comes in, ``{"do": name, …}``, and one goes out, ``{"ok": …}`` or ``{"error": …, "hint": …}``.
Empty lines say that the other side is there. When the input ends or is silent, the agent ends, and with it the program
that it runs and its lock. On the device everything is below one folder::

    objects/SHA256          files, each once, under their own hash; SHA256.part while they come in
    environments/ID/        virtual environments, each for one set of packages; complete with .ready
    releases/ID/            models/NAME, bundle → models/NAME, rnn-edge → the environment's program, release.json
    current → releases/ID   changed by one rename
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TextIO

HELLO = "rnn-edge agent"
_READY, _INFORMATION = ".ready", "release.json"
_LONGEST = 1800  # seconds of a program: a slow device that installs packages
_SILENCE = 60  # seconds: a line that was cut may never say so


class AgentError(Exception):
    """What stands in the way on this device, and the mend."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


class Agent:
    """The operations, each safe to repeat: whatever ends in the middle is begun anew, and ``current`` stays."""

    def __init__(self) -> None:
        base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")  # noqa: PTH111
        self.root = Path(base) / "rnn-edge"
        self.objects, self.environments = self.root / "objects", self.root / "environments"
        self.releases, self.current = self.root / "releases", self.root / "current"
        self.lock: TextIO | None = None
        self._program: subprocess.Popen[str] | None = None
        self._ended = False

    def look(self) -> dict[str, Any]:
        """Facts of the device; nothing is changed."""
        there = next(path for path in (self.root, *self.root.parents) if path.exists())
        return {
            "python": platform.python_version(),
            "system": platform.system(),
            "machine": platform.machine(),
            "libc": list(platform.libc_ver()),
            "cores": os.cpu_count() or 1,
            "memory": _available_memory(),
            "disk": shutil.disk_usage(there).free,
            "root": str(self.root),
            "current": self._current_name(),
        }

    def compare(self, objects: list[str], environment: str, digest: str) -> dict[str, Any]:
        """Which of the objects are here, whether the environment is, and the current release if it is the same."""
        return {
            "have": self.have(objects),
            "environment": (self.environments / environment / _READY).is_file(),
            "same": self._same(digest, environment),
        }

    def have(self, objects: list[str]) -> list[str]:
        """Those of the objects that are here, and whole."""
        return [sha for sha in objects if self._object(sha).is_file() and _sha256(self._object(sha)) == sha]

    def begin(self, room: int) -> None:
        """Take the lock, which ends with this process, and make the folders.

        Raises:
            AgentError: another deployment is at work, or less than ``room`` bytes are free.
        """
        for folder in (self.objects, self.environments, self.releases):
            folder.mkdir(parents=True, exist_ok=True)
        self.lock = (self.root / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AgentError("another deployment is at work there", "wait until it is done, then try again") from error
        free = shutil.disk_usage(self.root).free
        if free < room:
            raise AgentError(
                f"{_megabytes(free)} are free in {self.root}, needed are {_megabytes(room)}", "make room there"
            )
        ran = self._names()
        for release in self.releases.iterdir():
            if release.name not in ran:  # an attempt that was cut
                _remove(release)
        for unfinished in self.environments.glob("*.part"):
            shutil.rmtree(unfinished)

    def prepare(self, objects: dict[str, int]) -> None:
        """Make ready for an upload, which goes on with parts: take away changed objects and parts that are too long."""
        for sha, size in objects.items():
            self._object(sha).unlink(missing_ok=True)
            part = self._object(sha, ".part")
            if part.is_file() and part.stat().st_size >= size:
                part.unlink()
            part.touch()

    def clear(self) -> None:
        """Take away all parts."""
        for part in self.objects.glob("*.part"):
            part.unlink()

    def accept(self, objects: dict[str, int]) -> None:
        """Check what came in, and give it its name.

        Raises:
            AgentError: other bytes arrived, and were removed.
        """
        for sha, size in objects.items():
            part = self._object(sha, ".part")
            if not part.is_file() or part.stat().st_size != size or _sha256(part) != sha:
                part.unlink(missing_ok=True)
                raise AgentError(
                    "a file arrived changed", "run it again; if it recurs, check the device's disk and memory"
                )
            _sync(part)
            part.rename(self._object(sha))

    def install(self, environment: str, requirements: list[str], files: dict[str, str], offline: bool) -> None:
        """Make a virtual environment: these requirements, and wheels (name → object), the first of which is ours.

        Raises:
            AgentError: no venv, no index, no wheels for this device, or what pip says.
        """
        folder = self.environments / environment
        shutil.rmtree(folder, ignore_errors=True)
        if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise AgentError(
                "its Python cannot make virtual environments", f"there: sudo apt install python{version}-venv"
            )
        try:
            self._install(folder, requirements, files, offline)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # what runs here may need the room
            raise

    def _install(self, folder: Path, requirements: list[str], files: dict[str, str], offline: bool) -> None:
        made = self._run([sys.executable, "-m", "venv", str(folder)])
        if made.returncode:
            raise _install_failure(made.stdout + made.stderr)
        wheels = folder / "wheels"
        wheels.mkdir()
        for name, sha in files.items():
            _link(self._object(sha), wheels / name)
        (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # The requirements are all of them, so pip looks for no others.
        pip += ["--no-input", "--no-deps", "-r", str(folder / "requirements.txt")]
        pip += ["--no-index", "--find-links", str(wheels)] if offline else []
        done = self._run([*pip, str(wheels / next(iter(files)))])
        if done.returncode:
            raise _install_failure(done.stderr)
        tried = self._run([str(folder / "bin" / "rnn-edge"), "--version"])
        if tried.returncode:
            raise AgentError(f"what was installed does not start: {_last(tried)}", "run it again")
        shutil.rmtree(wheels)
        os.sync()  # all that pip wrote, before it counts as whole
        (folder / _READY).touch()
        _sync(folder)

    def release(self, name: str, bundle: str, files: dict[str, str], information: dict[str, Any]) -> None:
        """Make a release of a bundle's files (name → object), beside those that are there."""
        folder = self.releases / f"{name}.part"
        model = folder / "models" / bundle
        for file, sha in files.items():
            (model / file).parent.mkdir(parents=True, exist_ok=True)
            _link(self._object(sha), model / file)
        (folder / "bundle").symlink_to(f"models/{bundle}")
        (folder / "rnn-edge").symlink_to(self.environments / information["environment"] / "bin" / "rnn-edge")
        _write(folder / _INFORMATION, json.dumps({**information, "bundle": bundle}))
        folder.rename(self.releases / name)

    def prove(self, name: str) -> dict[str, Any]:
        """What ``rnn-edge verify`` says there: findings, and how it ended."""
        done = self._rnn_edge(name, "verify", "--json")
        findings = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return {"passed": done.returncode == 0, "findings": findings, "error": _last(done)}

    def measure(self, name: str) -> dict[str, float]:
        """Tokens per second and megabytes, of a short ``rnn-edge bench``; kept with the release."""
        done = self._rnn_edge(name, "bench", "--format", "json", "--quiet", "-n", "128", "-p", "16", "-r", "1")
        if done.returncode:
            raise AgentError(f"measuring failed: {_last(done)}", "run rnn-edge bench there")
        results = json.loads(done.stdout)["results"]
        speed = next(item for item in results if item["test"] in ("generate", "translate"))
        memory = next(item for item in results if item["test"] == "memory")
        measured = {"tokens_per_second": float(speed["value"]), "memory_mb": float(memory["value"])}
        path = self.releases / name / _INFORMATION
        _write(path, json.dumps({**json.loads(path.read_text()), **measured}))
        return measured

    def switch(self, name: str, keep: int, back: bool = False) -> None:
        """Make a release the current one, in one rename, and forget all but the latest ``keep``.

        What was current is what it goes ``back`` from, or else what ``rollback`` will name.
        """
        path = self.releases / name / _INFORMATION
        # In the order in which they ran, whatever the clock says: a board may begin each day in 1970.
        latest = max((self._information(item)["since"] for item in self._names() if item != name), default=0)
        information = {**json.loads(path.read_text()), "since": max(int(time.time()), latest + 1)}
        if not back:
            information["before"] = self._current_name()
        _write(path, json.dumps(information))
        fresh = self.root / f".current.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(f"releases/{name}")
        fresh.replace(self.current)
        _sync(self.root)
        self._forget(keep)

    def rollback(self) -> str:
        """The name of the release before the current one.

        Raises:
            AgentError: there is none.
        """
        current = self._current_name()
        before = self._information(current).get("before") if current else None
        if before not in self._names():
            raise AgentError("there is no earlier release to go back to", "deploy one, or keep more with --keep")
        return str(before)

    def discard(self, name: str) -> None:
        """Remove a release that did not prove itself."""
        if name != self._current_name():
            _remove(self.releases / name)
            self._forget(len(self._names()))

    def status(self) -> dict[str, Any]:
        """What runs here; nothing where nothing was deployed."""
        name = self._current_name()
        if name is None:
            return {"current": None, "releases": 0}
        return {"current": name, "releases": len(self._names()), **self._information(name)}

    def stop(self) -> None:
        """End the program that runs, and start no other."""
        self._ended = True
        if self._program:
            _kill(self._program)

    def _same(self, digest: str, environment: str) -> str | None:
        """The current release, if it is of this bundle and environment and its files are whole."""
        name = self._current_name()
        if name is None:
            return None
        information = self._information(name)
        same = information.get("digest") == digest and information.get("environment") == environment
        files = information.get("files", {})
        model = self.releases / name / "bundle"
        whole = all((model / file).is_file() and _sha256(model / file) == sha for file, sha in files.items())
        return name if same and files and whole else None

    def _rnn_edge(self, name: str, command: str, *options: str) -> "subprocess.CompletedProcess[str]":
        folder = self.releases / name
        return self._run([str(folder / "rnn-edge"), command, str(folder / "bundle"), *options])

    def _run(self, command: list[str]) -> "subprocess.CompletedProcess[str]":
        """Run a program in a process group of its own, so that ``stop`` ends what it started too."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": ""},
            start_new_session=True,
        )
        self._program = process
        if self._ended:  # meanwhile
            _kill(process)
        try:
            out, err = process.communicate(timeout=_LONGEST)
        except subprocess.TimeoutExpired:
            _kill(process)
            raise AgentError(f"{command[0]} did not end within {_LONGEST} s", "look at the device's load") from None
        finally:
            self._program = None
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def _forget(self, keep: int) -> None:
        names, current = self._names(), self._current_name()
        for name in [name for name in names[:-keep] if name != current]:
            _remove(self.releases / name)
        used = {self._information(name).get("environment") for name in self._names()}
        for folder in self.environments.iterdir():
            if folder.name not in used:
                _remove(folder)
        for path in self.objects.iterdir():
            if path.suffix != ".part" and path.stat().st_nlink == 1:  # in no release
                path.unlink()

    def _object(self, sha: str, suffix: str = "") -> Path:
        return self.objects / f"{sha}{suffix}"

    def _names(self) -> list[str]:
        """The releases that ran, the latest last."""
        names = [path.name for path in self.releases.iterdir()] if self.releases.is_dir() else []
        since = {name: self._information(name).get("since") for name in names if not name.endswith(".part")}
        return sorted((name for name in since if since[name]), key=lambda name: (since[name], name))

    def _current_name(self) -> str | None:
        return self.current.readlink().name if self.current.is_symlink() and self.current.exists() else None

    def _information(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.releases / name / _INFORMATION).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def serve(stream: BinaryIO, out: TextIO) -> None:
    """Answer until the input ends, or is silent for too long."""
    agent = Agent()
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(stream.fileno(), requests, agent.stop), daemon=True).start()
    print(HELLO, file=out, flush=True)
    while line := requests.get():
        request = json.loads(line)
        try:
            reply: dict[str, Any] = {"ok": getattr(agent, request.pop("do"))(**request)}
        except AgentError as failure:
            reply = {"error": failure.message, "hint": failure.hint}
        except OSError as error:
            reply = {"error": f"{error.filename or 'the device'}: {error.strerror or error}", "hint": _mend(error)}
        print(json.dumps(reply), file=out, flush=True)


def _listen(handle: int, requests: "queue.SimpleQueue[bytes]", stop: Callable[[], None]) -> None:
    """Pass requests on, and an empty one when no more will come."""
    rest = b""
    while select.select([handle], [], [], _SILENCE)[0] and (content := os.read(handle, 65536)):
        *lines, rest = (rest + content).split(b"\n")
        for line in filter(None, lines):
            requests.put(line)
    stop()
    requests.put(b"")


def _mend(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the device's disk is full: make room there, then run it again"
    return "check that folder's permissions on the device"


def _install_failure(said: str) -> AgentError:
    """What pip, or the making of an environment, failed of."""
    text = said.lower()
    if any(sign in text for sign in ("no space left", "disk quota", "errno 28")):
        return AgentError("no space is left on the device for the packages", "make room there, then run it again")
    if any(sign in text for sign in ("connection", "name resolution", "retrying", "timed out", "unreachable")):
        return AgentError("its package index cannot be reached", "use --offline: packages are then copied from here")
    if "no matching distribution" in text:
        name = text.rpartition("no matching distribution found for ")[2].split()[0]
        what = f"{platform.machine()}, Python {platform.python_version()}"
        hint = "use a 64-bit system there, and about the same version of Python here and there"
        return AgentError(f"there is no {name} for this device ({what})", hint)
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "pip failed")
    return AgentError(f"installing failed: {last.strip()}", "run it again, or use --offline")


def _last(done: "subprocess.CompletedProcess[str]") -> str:
    """What an ended program said in its last line, or that it was killed."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"it ended with {done.returncode}"])[-1]


def _available_memory() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EMLINK, errno.EXDEV, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)  # a file system without links


def _remove(folder: Path) -> None:
    """Take away a release or environment: by one rename, since half of one must never be taken for whole."""
    gone = folder.with_name(f"{folder.name.removesuffix('.part')}.part")
    folder.rename(gone)
    shutil.rmtree(gone)


def _kill(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text)
    _sync(fresh)
    fresh.replace(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # nobody is there for the last answer
        serve(sys.stdin.buffer, sys.stdout)
