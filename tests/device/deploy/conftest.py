"""One sshd for all tests, and devices where something runs already."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rnn_edge.deploy import payload
from tests.device.deploy.devices import Device
from tests.device.deploy.sshd import PROGRAM, Server
from tests.device.tiny import LSTM


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if PROGRAM is None:
        pytest.skip("there is no sshd: install openssh-server")
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


@pytest.fixture(scope="session")
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
