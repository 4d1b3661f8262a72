"""Deploying over a real sshd, going back, and what is kept."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rnn_edge.bundle import read_bundle
from rnn_edge.deploy import deployment, payload
from rnn_edge.deploy.deployment import Options
from rnn_edge.deploy.fleet import Fleet
from tests.device.conftest import Cli
from tests.device.deploy.devices import Device
from tests.device.deploy.sshd import Server, free_port
from tests.device.tiny import GRU, LSTM, TRANSLATOR, copy_bundle, edit_manifest


def test_deploy_look_and_go_back(device: Device) -> None:
    before = device.current
    result = device.deploy(LSTM)
    assert (result.ok, result.release, device.current) == (True, before, before)
    result = device.deploy(GRU)
    assert (result.ok, device.runs) == (True, "gru")
    assert result.tokens_per_second
    assert result.memory_mb
    (status,) = device.fleet().status()
    assert (status.bundle, status.release, status.tokens_per_second) == (
        "gru",
        device.current,
        result.tokens_per_second,
    )
    assert abs((status.since or 0) - time.time()) < 100
    (back,) = device.fleet().rollback()
    assert (back.ok, back.release, device.runs) == (True, before, "lstm")
    (none,) = device.fleet().rollback()
    assert (none.ok, none.result) == (False, "there is no earlier release to go back to")
    program = [
        str(device.root / "current" / "rnn-edge"),
        "generate",
        str(device.root / "current" / "bundle"),
        "-n",
        "5",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(program, env=environment, capture_output=True, check=True).stdout


def test_translators_too(device: Device) -> None:
    result = device.deploy(TRANSLATOR)
    assert (result.ok, device.runs) == (True, "translator")
    assert result.tokens_per_second


def test_old_releases_and_their_files_are_forgotten(device: Device) -> None:
    for bundle in (GRU, TRANSLATOR, LSTM, GRU):
        assert device.deploy(bundle, keep=2).ok
    assert len(list((device.root / "releases").iterdir())) == 2
    kept = {entry.sha256 for bundle in (LSTM, GRU) for entry in read_bundle(bundle).manifest.files.values()}
    there = {path.name for path in (device.root / "objects").iterdir()}
    assert kept <= there
    assert len(there) == len(kept) + 2  # the manifests


def test_going_back_is_to_what_ran_before(device: Device) -> None:
    """Not to a release that was gone back from, nor to an attempt that was cut before it ran."""
    first = device.current
    assert device.deploy(GRU).ok
    assert device.fleet().rollback()[0].ok
    (device.root / "releases" / "20990101T000000.000000Z-cut").mkdir()
    (device.root / "releases" / "20990101T000000.000000Z-cut" / "release.json").write_text("{}")
    assert device.fleet().status()[0].result == "runs, 2 releases kept"
    assert device.deploy(TRANSLATOR, keep=2).ok
    assert len(list((device.root / "releases").iterdir())) == 2
    (back,) = device.fleet().rollback()
    assert (back.ok, back.release, device.current) == (True, first, first)


def test_nothing_is_changed_by_a_dry_run(server: Server, tmp_path: Path) -> None:
    said: list[tuple[str, ...]] = []
    name = server.device("dry", tmp_path / "dry")
    options = Options(config=server.config, dry_run=True)
    (result,) = Fleet([name], options, lambda *line: said.append(line)).deploy(read_bundle(GRU))
    assert (result.ok, result.result) == (True, "nothing was changed")
    assert [step for _, step, detail in said if detail] == [*deployment.STEPS, "done"]
    assert not (tmp_path / "dry").exists()


def test_one_device_fails_and_the_other_goes_on(device: Device, cli: Cli) -> None:
    server = device.server
    away = server.device(f"{device.name}-away", Path("/nowhere"), port=free_port())
    code, out, err = cli("deploy", "gru", away, device.name, "-F", str(server.config), "--json", "-q")
    found = {line["device"]: line for line in map(json.loads, out.splitlines())}
    assert (code, err) == (1, "")
    assert found[away]["result"] == "it refuses the connection"
    assert (found[device.name]["ok"], device.runs) == (True, "gru")
    code, out, err = cli("deploy", "--status", away, device.name, "-F", str(server.config))
    assert code == 1
    assert "FAILED: it refuses the connection" in out
    assert "check that an SSH server runs there" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gru"], "no device is given"),
        (["--status"], "missing argument"),
        (["--status", "--rollback", "x"], "exclude each other"),
        (["--status", "--dry-run", "x"], "take no --dry-run"),
        (["gru", "x", "--keep", "0"], "--keep is 0"),
        (["gru", "x", "-F", "missing"], "there is no file missing"),
    ],
)
def test_usage(cli: Cli, arguments: list[str], said: str) -> None:
    code, _, err = cli("deploy", *arguments)
    assert (code, said in err) == (2, True), err


def test_edits_reach_the_payload(tmp_path: Path) -> None:
    """A manifest is part of what is copied: another one is another bundle."""
    copy = copy_bundle(GRU, tmp_path / "gru")
    before = payload.Payload.of(read_bundle(copy), tmp_path)
    edit_manifest(copy, lambda manifest: manifest.update(name="other"))
    after = payload.Payload.of(read_bundle(copy), tmp_path)
    assert before.digest != after.digest
    assert before.wheel == after.wheel


def test_another_python_there_has_an_environment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = payload.Payload.of(read_bundle(GRU), tmp_path)
    devices = [("3.11.2", "aarch64"), ("3.11.9", "aarch64"), ("3.13.5", "aarch64"), ("3.11.2", "x86_64")]

    def environments() -> list[str]:
        facts = ({"python": python, "machine": machine} for python, machine in devices)
        return [payload.Packages.of(sent, fact).environment for fact in facts]

    same = environments()
    assert same[0] == same[1]
    assert len(set(same)) == 3
    monkeypatch.setattr(payload, "requirements", lambda device: (f"x=={device['python_full_version']}",))
    others = environments()
    assert len(set(others)) == 4
    assert not set(same) & set(others)
