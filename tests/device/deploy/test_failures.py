"""Everything that may go wrong on the way leaves what ran before."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rnn_edge.bundle import read_bundle
from rnn_edge.deploy import connection, deployment, payload
from rnn_edge.deploy.connection import Connection
from tests.device.conftest import Cli
from tests.device.deploy.devices import Device, large, wait_for_lock, wait_until_free
from tests.device.deploy.sshd import Line, Server
from tests.device.tiny import GRU, LSTM, copy_bundle


def test_the_network_is_cut_in_the_middle_of_a_copy(server: Server, device: Device, tmp_path: Path) -> None:
    bundle, before = large(tmp_path), device.current
    line = Line(server.port, 1_000_000)
    through = Device(server, f"{device.name}-cut", tmp_path / "data", port=line.port)
    try:
        result = through.deploy(bundle)
    finally:
        line.close()
    assert (result.ok, result.result) == (False, "the connection was cut")
    assert "goes on where it ended" in result.hint
    assert (device.current, device.runs) == (before, "lstm")
    # What has arrived is kept, and the next attempt goes on behind it.
    sha = read_bundle(bundle).manifest.files["README.md"].sha256
    part = device.root / "objects" / f"{sha}.part"
    arrived = part.stat().st_size
    assert 100_000 < arrived < 3_000_000
    assert part.read_bytes() == (bundle / "README.md").read_bytes()[:arrived]
    line = Line(server.port, 3_000_000 - arrived + 300_000)
    through = Device(server, f"{device.name}-again", tmp_path / "data", port=line.port)
    try:
        result = wait_for_lock(through, bundle)
    finally:
        line.close()
    assert (result.ok, device.runs) == (True, "large")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small disk can be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(
    server: Server, first: Device, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(server, "small", small_disk)
    device.share_environments(first)
    monkeypatch.setattr(deployment, "_SPARE", 0)
    assert device.deploy(LSTM).ok
    result = device.deploy(large(tmp_path))
    assert (result.ok, device.runs) == (False, "lstm")
    assert "are free" in result.result
    assert "make room there" in result.hint
    # The same where the disk fills up only while files come in.
    monkeypatch.setattr(deployment, "_SPARE", -(10**9))
    result = device.deploy(large(tmp_path / "again"))
    assert (result.ok, device.runs) == (False, "lstm")
    assert "needed are 3.0 MB" in result.result
    assert "make room there" in result.hint
    result = device.deploy(LSTM)
    assert result.ok, result


def test_a_file_that_changed_on_the_device_is_copied_again(device: Device) -> None:
    before = device.current
    graph = device.root / "current" / "bundle" / "step.onnx"
    content = bytearray(graph.read_bytes())
    content[-100] ^= 1
    graph.write_bytes(content)
    result = device.deploy(LSTM)
    assert result.ok, result
    assert device.current != before
    assert (device.root / "current" / "bundle" / "step.onnx").read_bytes() == (LSTM / "step.onnx").read_bytes()


def test_a_file_that_arrives_changed(device: Device, tmp_path: Path) -> None:
    bundle = read_bundle(large(tmp_path))
    upload = Connection.upload

    def corrupt(self: Connection, files: dict[Path, str]) -> None:
        (bundle.path / "README.md").write_bytes(os.urandom(3_000_000))
        upload(self, files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "upload", corrupt)
        result = device.deploy(bundle)
    assert (result.ok, result.result, device.runs) == (False, "a file arrived changed", "lstm")
    sha = bundle.manifest.files["README.md"].sha256
    assert not list((device.root / "objects").glob(f"{sha}*"))


def test_a_bundle_that_does_not_prove_itself(device: Device, tmp_path: Path) -> None:
    def lie(manifest: dict[str, Any]) -> None:
        golden = manifest["golden"][0]
        step = golden["margins"].index(max(golden["margins"]))
        golden["best"][step] = (golden["best"][step] + 1) % 70

    result = device.deploy(copy_bundle(GRU, tmp_path / "liar", lie))
    assert (result.ok, device.runs) == (False, "lstm")
    assert "golden greedy" in result.result
    assert len(list((device.root / "releases").iterdir())) == 1


def test_a_bundle_that_changed_since_export_goes_nowhere(device: Device, cli: Cli, tmp_path: Path) -> None:
    broken = copy_bundle(GRU, tmp_path / "broken")
    (broken / "step.onnx").write_bytes(b"x")
    code, _, err = cli("deploy", str(broken), device.name, "-F", str(device.server.config))
    assert (code, "truncated or changed" in err) == (1, True)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("fact", "said", "mend"),
    [
        ({"machine": "armv7l"}, "no ONNX Runtime for the architecture armv7l", "64-bit"),
        ({"libc": ["", ""]}, "no ONNX Runtime for systems without glibc", "Debian"),
        ({"system": "Darwin"}, "its system is Darwin", "Linux"),
    ],
)
def test_a_device_that_nothing_runs_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fact: Any, said: str, mend: str, dry_run: bool
) -> None:
    ask = Connection.ask

    def other(self: Connection, do: str, **arguments: Any) -> Any:
        found = ask(self, do, **arguments)
        return {**found, **fact} if do == "look" else found

    monkeypatch.setattr(Connection, "ask", other)
    device = Device(server, f"foreign-{next(iter(fact))}-{dry_run}", tmp_path)
    result = device.deploy(GRU, dry_run=dry_run)
    assert (result.ok, said in result.result, mend in result.hint) == (False, True, True)
    assert not device.root.exists()


def test_a_line_that_is_cut_in_silence_frees_the_lock(
    server: Server, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tells the device that the line is dead: it must notice by itself."""
    source = connection._agent_source().replace(b"_SILENCE = 60", b"_SILENCE = 3")
    monkeypatch.setattr(connection, "_agent_source", lambda: source)
    monkeypatch.setattr(connection, "_ALIVE_SECONDS", 1)
    line = Line(server.port, 10**9)
    through = Device(server, f"{device.name}-dead", tmp_path / "data", port=line.port)
    held = Connection(through.name, server.config)
    try:
        held.open()
        held.ask("begin", room=0)
        time.sleep(4)
        assert device.deploy(GRU).result == "another deployment is at work there"
        line.stall, line.left = True, 0
        assert wait_for_lock(device, GRU).ok
    finally:
        held.close()
        line.close()


def test_a_cut_in_the_middle_of_installing_ends_what_runs_there(
    server: Server, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pip that waits for an index that never answers would hold the lock for long."""
    with socket.create_server(("127.0.0.1", 0)) as index:
        url = f"http://127.0.0.1:{index.getsockname()[1]}"
        lines = (f"--index-url {url}", "no-such-package==1")
        monkeypatch.setattr(payload, "requirements", lambda **_: lines)
        (device.root / "environments").unlink()  # it is that of all devices here
        (device.root / "environments").mkdir()
        fleet = device.fleet()
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(fleet.deploy, read_bundle(GRU))
            with index.accept()[0]:  # pip is there
                assert device.deploy(GRU).result == "another deployment is at work there"
                fleet.close()
                assert not found.result()[0].ok
                wait_until_free(device)
    assert list((device.root / "environments").iterdir()) == []
    assert device.runs == "lstm"


def test_two_at_once(device: Device) -> None:
    held = Connection(device.name, device.server.config)
    try:
        held.open()
        held.ask("begin", room=0)
        result = device.deploy(GRU)
        assert (result.ok, result.result) == (False, "another deployment is at work there")
    finally:
        held.close()
    assert wait_for_lock(device, GRU).ok


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda kind: kind.name)
def test_an_interrupt_leaves_the_old_release_and_no_lock(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: signal.Signals
) -> None:
    (tmp_path / "t").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    bundle, line = large(tmp_path), Line(device.server.port, 1_000_000, stall=True)
    stalled = device.server.device(f"{device.name}-stalled", tmp_path / "data", port=line.port)
    program = (
        "import sys; from rnn_edge.deploy import payload; payload.requirements = lambda **_: (); "
        "from rnn_edge.cli import run; sys.exit(run())"
    )
    command = [sys.executable, "-c", program, "deploy", str(bundle), stalled, "-F", str(device.server.config)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert line.reached.wait(20)
        process.send_signal(kind)
        _, err = process.communicate(timeout=20)
    finally:
        line.close()
        process.kill()
    assert process.returncode == 130, err
    assert list((tmp_path / "t").iterdir()) == []  # the connection's folder
    assert "Traceback" not in err
    assert device.runs == "lstm"
    assert wait_for_lock(device, bundle).ok
