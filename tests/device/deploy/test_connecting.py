"""Hosts that cannot be reached or used, each named with its mend."""

import importlib.util
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rnn_edge.deploy import agent, connection, wheels
from rnn_edge.deploy.connection import Connection
from rnn_edge.deploy.deployment import Options
from rnn_edge.deploy.fleet import Fleet
from rnn_edge.deploy.wheels import platform_tags
from rnn_edge.errors import DeployError
from tests.device.conftest import Cli
from tests.device.deploy.sshd import Line, Server


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


def test_devices_that_are_alike_share_a_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RNN_EDGE_CACHE", str(tmp_path))
    calls: list[Path] = []

    def fetch(_requirements: object, _platforms: object, _version: object, folder: Path) -> None:
        calls.append(folder)
        time.sleep(0.1)
        (folder / "a.whl").touch()

    monkeypatch.setattr(wheels, "_download", fetch)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: wheels.download(["a==1"], "x86_64", ["glibc", "2.36"], "3.11.2"), range(4)))
    assert len(calls) == 1
    assert [[path.name for path in paths] for paths in found] == [["a.whl"]] * 4


def test_releases_follow_one_another_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A board without a clock of its own may begin each day in 1970."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    device = agent.Agent()
    for folder in (device.releases, device.environments, device.objects):
        folder.mkdir(parents=True, exist_ok=True)
    for name, now in (("a", 3000), ("b", 4000), ("c", 10), ("d", 20), ("e", 15)):
        folder = device.releases / name
        folder.mkdir()
        (folder / "release.json").write_text("{}")
        monkeypatch.setattr(time, "time", lambda now=now: now)
        device.switch(name, keep=3)
    assert device._names() == ["c", "d", "e"]
    assert (device._current_name(), device.rollback()) == ("e", "d")


def test_platforms() -> None:
    tags = platform_tags("aarch64", ["glibc", "2.36"])
    assert tags[0] == "manylinux_2_36_aarch64"
    assert {"manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"} <= set(tags)
    with pytest.raises(DeployError, match="architecture armv7l"):
        platform_tags("armv7l", ["glibc", "2.36"])
    with pytest.raises(DeployError, match="without glibc"):
        platform_tags("aarch64", ["", ""])
