"""The steps of a deployment, in order, for many devices at once. Whatever fails, what ran there before still runs."""

import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rnn_edge.bundle import Bundle
from rnn_edge.deploy.connection import Connection
from rnn_edge.deploy.wheels import download
from rnn_edge.device_install import device_wheel, requirements
from rnn_edge.errors import DeployError, RnnEdgeError
from rnn_edge.manifest import MANIFEST_NAME

STEPS = ("look", "install", "copy", "prove", "measure", "switch")
_ENVIRONMENT_BYTES = 400_000_000  # numpy, ONNX Runtime and what they need, with pip's own temporary copies
_SPARE = 5_000_000
_MOST_AT_ONCE = 16

# Device, step, and what there is to say of it.
Report = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Options:
    """How to deploy."""

    offline: bool = False
    keep: int = 3
    dry_run: bool = False
    config: Path | None = None


@dataclass(frozen=True)
class Result:
    """How a device's deployment, rollback or status ended. ``hint`` is the mend where ``ok`` is false."""

    device: str
    ok: bool
    result: str
    hint: str = ""
    release: str | None = None
    bundle: str | None = None
    since: int | None = None
    tokens_per_second: float | None = None
    memory_mb: float | None = None
    explained: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Payload:
    """What goes to every device: the bundle's files, our wheel, and the packages that must be there.

    ``files`` and ``wheel`` are hash → path here; ``names`` is the bundle's file name → hash.
    """

    bundle: str
    digest: str
    files: dict[str, Path]
    names: dict[str, str]
    wheel: tuple[str, str, Path]
    requirements: tuple[str, ...]

    @classmethod
    def of(cls, bundle: Bundle, scratch: Path) -> "Payload":
        """Check a bundle and gather it; our wheel is written into ``scratch``."""
        for name in bundle.manifest.files:
            bundle.read(name)
        manifest = (bundle.path / MANIFEST_NAME).read_bytes()
        names = {name: entry.sha256 for name, entry in bundle.manifest.files.items()}
        names[MANIFEST_NAME] = hashlib.sha256(manifest).hexdigest()
        files = {sha: bundle.path / name for name, sha in names.items()}
        wheel, content = device_wheel()
        (scratch / wheel).write_bytes(content)
        sha = hashlib.sha256(content).hexdigest()
        return cls(
            bundle.path.resolve().name,
            names[MANIFEST_NAME],
            files,
            names,
            (wheel, sha, scratch / wheel),
            requirements(),
        )

    @property
    def environment(self) -> str:
        """The name of the environment with these packages."""
        return hashlib.sha256("\n".join([*self.requirements, self.wheel[1]]).encode()).hexdigest()[:16]


class Fleet:
    """Devices that are worked on at once; ``close`` cuts all of them off, and leaves each as it was."""

    def __init__(self, hosts: Sequence[str], options: Options, report: Report) -> None:
        self.hosts = list(dict.fromkeys(hosts))
        self.options, self.report = options, report
        self._connections: list[Connection] = []
        self._stopped = threading.Event()

    def deploy(self, bundle: Bundle) -> list[Result]:
        """Deploy a bundle to every device."""
        with tempfile.TemporaryDirectory(prefix="rnn-edge-") as scratch:
            payload = Payload.of(bundle, Path(scratch))
            work = self._plan if self.options.dry_run else self._deploy
            return self._all(lambda connection: work(connection, payload))

    def status(self) -> list[Result]:
        """What runs on every device."""
        return self._all(self._status)

    def rollback(self) -> list[Result]:
        """Go back to the release before, on every device."""
        return self._all(self._rollback)

    def close(self) -> None:
        """Cut off every device."""
        self._stopped.set()
        for connection in list(self._connections):
            connection.close()

    def _all(self, work: Callable[[Connection], Result]) -> list[Result]:
        with ThreadPoolExecutor(min(len(self.hosts), _MOST_AT_ONCE)) as pool:
            futures = [pool.submit(self._one, host, work) for host in self.hosts]
            try:
                return [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()
                self.close()
                raise

    def _one(self, host: str, work: Callable[[Connection], Result]) -> Result:
        started = time.monotonic()
        connection = None
        try:
            connection = Connection(host, self.options.config)
            self._connections.append(connection)
            if self._stopped.is_set():
                raise DeployError(f"{host}: interrupted", "run it again")
            connection.open()
            result = work(connection)
        except RnnEdgeError as error:
            result = Result(host, False, error.message.removeprefix(f"{host}: "), error.hint)
        except OSError as error:
            result = Result(host, False, str(error), "run it again")
        finally:
            if connection:
                connection.close()
        self.report(host, "done" if result.ok else "failed", result.result)
        return Result(**{**vars(result), "seconds": round(time.monotonic() - started, 3)})

    def _deploy(self, connection: Connection, payload: Payload) -> Result:
        host, ask = connection.host, connection.ask
        facts = self._look(connection, payload)
        missing = {sha: path for sha, path in payload.files.items() if sha not in facts["have"]}
        room = sum(path.stat().st_size for path in missing.values()) + _SPARE
        ask(
            "begin", room=room + (0 if facts["environment"] else _ENVIRONMENT_BYTES if payload.requirements else _SPARE)
        )
        if not facts["environment"]:
            self.report(host, "install", "offline" if self.options.offline else f"{len(payload.requirements)} packages")
            self._install(connection, payload, facts)
        if facts["same"]:
            name = facts["same"]
            self.report(host, "copy", "nothing: this bundle is there")
        else:
            self.report(host, "copy", _amount(missing.values()))
            self._copy(connection, facts["root"], missing)
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{payload.digest[:8]}"
            information = {"digest": payload.digest, "environment": payload.environment, "files": payload.names}
            ask("release", name=name, bundle=payload.bundle, files=payload.names, information=information)
        try:
            explained = self._prove(connection, name)
            self.report(host, "measure", "a short bench")
            measured = ask("measure", name=name)
        except DeployError:
            ask("discard", name=name)
            raise
        if name != facts["same"]:
            self.report(host, "switch", name)
            ask("switch", name=name, keep=self.options.keep)
        return Result(host, True, "runs", release=name, bundle=payload.bundle, explained=explained, **measured)

    def _look(self, connection: Connection, payload: Payload) -> dict[str, Any]:
        self.report(connection.host, "look", "")
        sizes = {sha: path.stat().st_size for sha, path in payload.files.items()}
        facts: dict[str, Any] = connection.ask(
            "look", objects=sizes, environment=payload.environment, digest=payload.digest
        )
        free = f", {facts['memory'] / 1e6:,.0f} MB of memory" if facts["memory"] else ""
        detail = f"{facts['machine']}, Python {facts['python']}{free}, {facts['disk'] / 1e6:,.0f} MB of disk"
        self.report(connection.host, "look", detail)
        if facts["system"] != "Linux":
            raise DeployError(f"its system is {facts['system']}", "deploy to Linux devices")
        return facts

    def _install(self, connection: Connection, payload: Payload, facts: dict[str, Any]) -> None:
        name, sha, path = payload.wheel
        wheels = {name: sha}
        files = {sha: path}
        if self.options.offline:
            for wheel in download(payload.requirements, facts["machine"], facts["libc"], facts["python"]):
                digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
                wheels[wheel.name], files[digest] = digest, wheel
        sizes = {digest: path.stat().st_size for digest, path in files.items()}
        have = connection.ask("look", objects=sizes, environment="", digest="")["have"]
        self._copy(connection, facts["root"], {sha: path for sha, path in files.items() if sha not in have})
        connection.ask(
            "install",
            environment=payload.environment,
            requirements=list(payload.requirements),
            files=wheels,
            offline=self.options.offline,
        )

    def _copy(self, connection: Connection, root: str, files: dict[str, Path]) -> None:
        if not files:
            return
        sizes = {sha: path.stat().st_size for sha, path in files.items()}
        connection.ask("prepare", objects=sizes)
        connection.upload({path: f"{root}/objects/{sha}.part" for sha, path in files.items()})
        connection.ask("accept", objects=sizes)

    def _prove(self, connection: Connection, name: str) -> int:
        """Run ``verify`` there → the number of explained differences.

        Raises:
            DeployError: something differs that nothing explains.
        """
        self.report(connection.host, "prove", "verify")
        proof = connection.ask("prove", name=name)
        explained = sum(int(finding["explained"]) for finding in proof["findings"])
        if not proof["passed"]:
            failed = [
                f"{finding['name']}: {finding['detail']}" for finding in proof["findings"] if not finding["passed"]
            ]
            what = "; ".join(failed) or proof["error"]
            raise DeployError(
                f"it does not prove itself there: {what}", "see rnn-edge doctor there, and export it again"
            )
        self.report(
            connection.host, "prove", f"{len(proof['findings'])} checks passed, {explained} explained differences"
        )
        return explained

    def _plan(self, connection: Connection, payload: Payload) -> Result:
        """Say what would be done; only look."""
        host, facts = connection.host, self._look(connection, payload)
        for step, detail in _planned(facts, payload, self.options):
            self.report(host, step, detail)
        return Result(host, True, "nothing was changed", release=facts["current"], bundle=payload.bundle)

    def _status(self, connection: Connection) -> Result:
        found = connection.ask("status")
        if found["current"] is None:
            return Result(connection.host, True, "nothing is deployed")
        releases = f"{found['releases']} release{'s' if found['releases'] != 1 else ''}"
        known = {key: found.get(key) for key in ("bundle", "since", "tokens_per_second", "memory_mb")}
        return Result(connection.host, True, f"runs, {releases} kept", release=found["current"], **known)

    def _rollback(self, connection: Connection) -> Result:
        connection.ask("begin", room=0)
        name = connection.ask("rollback")
        explained = self._prove(connection, name)
        self.report(connection.host, "switch", name)
        connection.ask("switch", name=name, keep=_MOST_RELEASES)
        found = connection.ask("status")
        known = {key: found.get(key) for key in ("bundle", "since", "tokens_per_second", "memory_mb")}
        return Result(connection.host, True, "runs again", release=name, explained=explained, **known)


_MOST_RELEASES = 1_000_000  # going back forgets none


def _planned(facts: dict[str, Any], payload: Payload, options: Options) -> Iterator[tuple[str, str]]:
    if facts["environment"]:
        yield "install", "nothing: the packages are there"
    else:
        source = "copied from here" if options.offline else "from its package index"
        yield "install", f"{len(payload.requirements) + 1} packages, {source}, into {facts['root']}/environments"
    missing = [path for sha, path in payload.files.items() if sha not in facts["have"]]
    yield "copy", "nothing: this bundle is there" if facts["same"] else _amount(missing)
    yield "prove", "rnn-edge verify"
    yield "measure", "rnn-edge bench"
    now = f", instead of {facts['current']}" if facts["current"] else ""
    yield "switch", f"{facts['root']}/current{now}; {options.keep} releases are kept"


def _amount(paths: Any) -> str:
    sizes = [path.stat().st_size for path in paths]
    if not sizes:
        return "nothing: its files are there"
    return f"{len(sizes)} file{'s' if len(sizes) != 1 else ''}, {sum(sizes) / 1e6:,.1f} MB"


def as_json(result: Result) -> str:
    """One line."""
    return json.dumps(vars(result), ensure_ascii=False)
