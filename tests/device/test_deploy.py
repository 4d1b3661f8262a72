"""Deploying over a real sshd: everything that may go wrong on the way leaves what ran before."""

import importlib.util
import json
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

from rnn_edge.bundle import Bundle, read_bundle
from rnn_edge.deploy import agent, connection, deployment, payload
from rnn_edge.deploy.connection import Connection
from rnn_edge.deploy.deployment import Options, Result
from rnn_edge.deploy.fleet import Fleet
from rnn_edge.deploy.wheels import platform_tags
from rnn_edge.errors import DeployError
from tests.device.conftest import Cli
from tests.device.sshd import PROGRAM, Line, Server, free_port
from tests.device.tiny import GRU, LSTM, TRANSLATOR, copy_bundle, edit_manifest, replace_file

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no sshd: install openssh-server")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("sshd"))
    name = server.device("probe", server.folder / "probe")
    done = subprocess.run(["ssh", "-F", str(server.config), name, "true"], capture_output=True, text=True, check=False)
    try:
        if done.returncode:
            pytest.skip(f"this account cannot log in to an sshd of its own: {done.stderr.strip()}")
        yield server
    finally:
        server.close()


@pytest.fixture(autouse=True)
def few_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our wheel alone is installed; the session's PYTHONPATH has what it needs."""
    monkeypatch.setattr(payload, "requirements", lambda **_: ())


class Device:
    """A device of a test: deploy to it, and look at it from behind."""

    def __init__(self, server: Server, name: str, data: Path, **settings: Any) -> None:
        self.server, self.root = server, data / "rnn-edge"
        self.name = server.device(name, data, **settings)

    def fleet(self, **options: Any) -> Fleet:
        return Fleet([self.name], Options(config=self.server.config, **options), lambda *said: None)

    def deploy(self, bundle: Path | Bundle, **options: Any) -> Result:
        found = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
        (result,) = self.fleet(**options).deploy(found)
        return result

    @property
    def current(self) -> str:
        return (self.root / "current").readlink().name

    @property
    def runs(self) -> str:
        return (self.root / "current" / "bundle").readlink().name

    def share_environments(self, other: "Device") -> None:
        """The environments of another device, so that none must be made."""
        self.root.mkdir(parents=True)
        (self.root / "environments").symlink_to(other.root / "environments")


@pytest.fixture(scope="module")
def first(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Device:
    """A device where the LSTM runs, with an environment that the others share."""
    device = Device(server, "first", tmp_path_factory.mktemp("first"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payload, "requirements", lambda **_: ())
        result = device.deploy(LSTM)
    assert result.ok, result
    return device


@pytest.fixture
def device(server: Server, first: Device, tmp_path: Path, request: pytest.FixtureRequest) -> Device:
    device = Device(server, f"device-{request.node.name.replace('[', '-').strip(']')}", tmp_path / "data")
    device.share_environments(first)
    result = device.deploy(LSTM)
    assert result.ok, result
    return device


def large(folder: Path, size: int = 3_000_000) -> Path:
    """A bundle with a long card that nothing compresses."""
    path = copy_bundle(GRU, folder / "large")
    replace_file(path, "README.md", os.urandom(size))
    return path


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


def wait_until_free(device: Device) -> None:
    """The agent of a connection that was cut may take a moment to notice."""
    end = time.monotonic() + 20
    while True:
        probe = Connection(device.name, device.server.config)
        try:
            probe.open()
            probe.ask("begin", room=0)
            return
        except DeployError as error:
            if "another deployment" not in error.message or time.monotonic() > end:
                raise
        finally:
            probe.close()
        time.sleep(0.1)


def wait_for_lock(device: Device, bundle: Path) -> Result:
    """Deploy once the lock is free."""
    wait_until_free(device)
    return device.deploy(bundle)


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


def test_an_interrupt_leaves_the_old_release_and_no_lock(device: Device, tmp_path: Path) -> None:
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
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        line.close()
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert device.runs == "lstm"
    assert wait_for_lock(device, bundle).ok


@pytest.mark.parametrize(
    ("lines", "settings", "said", "mend"),
    [
        ((), {"key": "stranger"}, "it accepts none of your keys", "ssh-copy-id"),
        (("HostName no-such-host.invalid",), {}, "there is no host of this name", "ssh/config"),
        (("UserKnownHostsFile /dev/null",), {}, "its host key is unknown", "compare the key"),
        (("UserKnownHostsFile {folder}/changed",), {}, "its host key has changed", "which old key"),
    ],
)
def test_named_errors(
    server: Server, tmp_path: Path, lines: tuple[str, ...], settings: dict[str, Any], said: str, mend: str
) -> None:
    server.trust("changed", server.port, "other-host")
    filled = [line.format(folder=server.folder) for line in lines]
    name = server.device(f"named-{said.replace(' ', '-')}", tmp_path, *filled, **settings)
    (result,) = Fleet([name], Options(config=server.config), lambda *said: None).status()
    assert (result.ok, result.result) == (False, said)
    assert mend in result.hint


def test_a_host_that_does_not_answer(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_CONNECT_SECONDS", 1)
    line = Line(server.port, 0, stall=True)
    name = server.device("silent", tmp_path, port=line.port)
    try:
        (result,) = Fleet([name], Options(config=server.config), lambda *said: None).status()
    finally:
        line.close()
    assert (result.ok, result.result) == (False, "it does not answer")


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("", "no-python-here has no Python"),
        ('case "$2" in *platform*) echo 3.9.2;; *) exit 1;; esac', "its Python is 3.9.2, needed is 3.11"),
    ],
)
def test_no_python_that_is_new_enough(tmp_path: Path, python: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell's part, by itself: what an exec of another PATH finds."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sh").symlink_to("/bin/sh")
    if python:
        (programs / "python3").write_text(f"#!/bin/sh\n{python}\n")
        (programs / "python3").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", connection._START],
        env={"PATH": str(programs)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    device = Connection("no-python-here")
    process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({done.returncode})"])
    monkeypatch.setattr(device, "_agent", process)
    error = device._no_agent(done.stdout.strip())
    device.close()
    assert said in error.message


def test_names_that_would_be_options_of_ssh(cli: Cli) -> None:
    for name in ("-oProxyCommand=touch /tmp/x", ""):
        with pytest.raises(DeployError, match="is no host"):
            Connection(name)
    code, _, err = cli("deploy", "gru", "--", "-oProxyCommand=x")
    assert (code, "is no host" in err) == (1, True)


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


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        (
            """WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'
            ERROR: Could not find a version that satisfies the requirement numpy==2
            ERROR: No matching distribution found for numpy==2""",
            "index cannot be reached",
            "--offline",
        ),
        ("ERROR: No matching distribution found for onnxruntime==1.32.0", "there is no onnxruntime==1.32.0", "64-bit"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "no space", "room"),
        ("ERROR: something else", "something else", "--offline"),
    ],
)
def test_what_pip_says(said: str, message: str, hint: str) -> None:
    error = agent._install_failure(said)
    assert message in error.message
    assert hint in error.hint


def test_no_venv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find(name))
    with pytest.raises(agent.AgentError, match="cannot make virtual environments") as caught:
        agent.Agent().install("x", [], {"a.whl": "0"}, offline=True)
    assert "apt install" in caught.value.hint


def test_platforms() -> None:
    tags = platform_tags("aarch64", ["glibc", "2.36"])
    assert tags[0] == "manylinux_2_36_aarch64"
    assert {"manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"} <= set(tags)
    with pytest.raises(DeployError, match="architecture armv7l"):
        platform_tags("armv7l", ["glibc", "2.36"])
    with pytest.raises(DeployError, match="without glibc"):
        platform_tags("aarch64", ["", ""])


def test_edits_reach_the_payload(tmp_path: Path) -> None:
    """A manifest is part of what is copied: another one is another bundle."""
    copy = copy_bundle(GRU, tmp_path / "gru")
    before = payload.Payload.of(read_bundle(copy), tmp_path)
    edit_manifest(copy, lambda manifest: manifest.update(name="other"))
    after = payload.Payload.of(read_bundle(copy), tmp_path)
    assert before.digest != after.digest
    assert before.wheel == after.wheel


def test_another_python_there_has_an_environment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "requirements", lambda device: (f"x=={device['python_version']}",))
    sent = payload.Payload.of(read_bundle(GRU), tmp_path)
    packages = [
        payload.Packages.of(sent, {"python": python, "machine": "aarch64"}) for python in ("3.11.2", "3.11.9", "3.13.5")
    ]
    assert [found.requirements for found in packages] == [("x==3.11",), ("x==3.11",), ("x==3.13",)]
    assert packages[0] == packages[1]
    assert packages[0].environment != packages[2].environment
