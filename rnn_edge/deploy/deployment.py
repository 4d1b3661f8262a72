"""The steps of a deployment to one device, in order. Whatever fails, what ran there before still runs."""

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rnn_edge.deploy.connection import Connection
from rnn_edge.deploy.payload import Packages, Payload
from rnn_edge.deploy.wheels import download, platform_tags
from rnn_edge.errors import DeployError

STEPS = ("look", "install", "copy", "prove", "measure", "switch")
_ENVIRONMENT_BYTES = 400_000_000  # numpy, ONNX Runtime and what they need, with pip's own temporary copies
_SPARE = 5_000_000
_MOST_RELEASES = 1_000_000  # going back forgets none
_NOTHING = "nothing: this bundle is there"

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


def deploy(connection: Connection, payload: Payload, options: Options, report: Report) -> Result:
    """Look, install, copy, prove, measure, switch.

    Raises:
        DeployError: what stands in the way; ``current`` is what it was.
    """
    host, ask = connection.host, connection.ask
    facts, packages, found = _look(connection, payload, report)
    missing = _missing(payload, found)
    room = sum(path.stat().st_size for path in missing.values()) + _SPARE
    if not found["environment"]:
        room += _ENVIRONMENT_BYTES if packages.requirements else _SPARE
    ask("begin", room=room)
    if not found["environment"]:
        source = "copied from here" if options.offline else "from its package index"
        report(host, "install", f"{_packages(packages)}, {source}")
        _install(connection, payload, packages, facts, options.offline)
    if found["same"]:
        name = found["same"]
        report(host, "copy", _NOTHING)
    else:
        report(host, "copy", _amount(missing.values()))
        _copy(connection, facts["root"], missing)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{payload.digest[:8]}"
        information = {"digest": payload.digest, "environment": packages.environment, "files": payload.names}
        ask("release", name=name, bundle=payload.bundle, files=payload.names, information=information)
    try:
        explained = _prove(connection, name, report)
        report(host, "measure", "a short bench")
        measured = ask("measure", name=name)
    except DeployError:
        ask("discard", name=name)
        raise
    if name != found["same"]:
        report(host, "switch", name)
        ask("switch", name=name, keep=options.keep)
    return Result(host, True, "runs", release=name, bundle=payload.bundle, explained=explained, **measured)


def plan(connection: Connection, payload: Payload, options: Options, report: Report) -> Result:
    """Say what ``deploy`` would do; only look."""
    facts, packages, found = _look(connection, payload, report)
    for step, detail in _planned(facts, packages, found, payload, options):
        report(connection.host, step, detail)
    return Result(connection.host, True, "nothing was changed", release=facts["current"], bundle=payload.bundle)


def status(connection: Connection) -> Result:
    """What runs there."""
    found = connection.ask("status")
    if found["current"] is None:
        return Result(connection.host, True, "nothing is deployed")
    releases = f"{found['releases']} release{'s' if found['releases'] != 1 else ''}"
    return Result(connection.host, True, f"runs, {releases} kept", release=found["current"], **_known(found))


def rollback(connection: Connection, report: Report) -> Result:
    """Go back to the release before, which proves itself first.

    Raises:
        DeployError: there is none, or it does not.
    """
    connection.ask("begin", room=0)
    name = connection.ask("rollback")
    explained = _prove(connection, name, report)
    report(connection.host, "switch", name)
    connection.ask("switch", name=name, keep=_MOST_RELEASES, back=True)
    known = _known(connection.ask("status"))
    return Result(connection.host, True, "runs again", release=name, explained=explained, **known)


def _look(connection: Connection, payload: Payload, report: Report) -> tuple[dict[str, Any], Packages, dict[str, Any]]:
    """Facts of the device, what it needs, and what of it is there.

    Raises:
        DeployError: nothing can run there.
    """
    report(connection.host, "look", "")
    facts: dict[str, Any] = connection.ask("look")
    free = f", {facts['memory'] / 1e6:,.0f} MB of memory" if facts["memory"] else ""
    detail = f"{facts['machine']}, Python {facts['python']}{free}, {facts['disk'] / 1e6:,.0f} MB of disk"
    report(connection.host, "look", detail)
    if facts["system"] != "Linux":
        raise DeployError(f"its system is {facts['system']}", "deploy to Linux devices")
    platform_tags(facts["machine"], facts["libc"])  # refuses what nothing can be installed on
    packages = Packages.of(payload, facts)
    found = connection.ask(
        "compare", objects=list(payload.files), environment=packages.environment, digest=payload.digest
    )
    return facts, packages, found


def _install(
    connection: Connection, payload: Payload, packages: Packages, facts: dict[str, Any], offline: bool
) -> None:
    name, sha, path = payload.wheel
    wheels = {name: sha}
    files = {sha: path}
    if offline:
        for wheel in download(packages.requirements, facts["machine"], facts["libc"], facts["python"]):
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            wheels[wheel.name], files[digest] = digest, wheel
    have = connection.ask("have", objects=list(files))
    _copy(connection, facts["root"], {sha: path for sha, path in files.items() if sha not in have})
    connection.ask(
        "install",
        environment=packages.environment,
        requirements=list(packages.requirements),
        files=wheels,
        offline=offline,
    )


def _copy(connection: Connection, root: str, files: dict[str, Path]) -> None:
    if not files:
        return
    sizes = {sha: path.stat().st_size for sha, path in files.items()}
    connection.ask("prepare", objects=sizes)
    connection.upload({path: f"{root}/objects/{sha}.part" for sha, path in files.items()})
    connection.ask("accept", objects=sizes)


def _prove(connection: Connection, name: str, report: Report) -> int:
    """Run ``verify`` there → the number of explained differences.

    Raises:
        DeployError: something differs that nothing explains.
    """
    report(connection.host, "prove", "verify")
    proof = connection.ask("prove", name=name)
    findings = proof["findings"]
    explained = sum(int(finding["explained"]) for finding in findings)
    if not proof["passed"]:
        failed = [f"{finding['name']}: {finding['detail']}" for finding in findings if not finding["passed"]]
        what = "; ".join(failed) or proof["error"]
        raise DeployError(f"it does not prove itself there: {what}", "see rnn-edge doctor there, and export it again")
    report(connection.host, "prove", f"{len(findings)} checks passed, {explained} explained differences")
    return explained


def _planned(
    facts: dict[str, Any], packages: Packages, found: dict[str, Any], payload: Payload, options: Options
) -> Iterator[tuple[str, str]]:
    if found["environment"]:
        yield "install", "nothing: the packages are there"
    else:
        source = "copied from here" if options.offline else "from its package index"
        yield "install", f"{_packages(packages)}, {source}, into {facts['root']}/environments"
    yield "copy", _NOTHING if found["same"] else _amount(_missing(payload, found).values())
    yield "prove", "rnn-edge verify"
    yield "measure", "rnn-edge bench"
    now = f", instead of {facts['current']}" if facts["current"] else ""
    yield "switch", f"{facts['root']}/current{now}; {options.keep} releases are kept"


def _missing(payload: Payload, found: dict[str, Any]) -> dict[str, Path]:
    return {sha: path for sha, path in payload.files.items() if sha not in found["have"]}


def _packages(packages: Packages) -> str:
    count = len(packages.requirements) + 1
    return f"{count} package{'s' if count != 1 else ''}"


def _known(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found.get(key) for key in ("bundle", "since", "tokens_per_second", "memory_mb")}


def _amount(paths: Collection[Path]) -> str:
    if not paths:
        return "nothing: its files are there"
    size = sum(path.stat().st_size for path in paths)
    return f"{len(paths)} file{'s' if len(paths) != 1 else ''}, {size / 1e6:,.1f} MB"
