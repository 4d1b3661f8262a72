"""Devices of tests: this machine, in a data folder of its own, behind a real sshd."""

import os
import time
from pathlib import Path
from typing import Any

from rnn_edge.bundle import Bundle, read_bundle
from rnn_edge.deploy.connection import Connection
from rnn_edge.deploy.deployment import Options, Result
from rnn_edge.deploy.fleet import Fleet
from rnn_edge.errors import DeployError
from tests.device.deploy.sshd import Server
from tests.device.tiny import GRU, copy_bundle, replace_file


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


def large(folder: Path, size: int = 3_000_000) -> Path:
    """A bundle with a long card that nothing compresses."""
    path = copy_bundle(GRU, folder / "large")
    replace_file(path, "README.md", os.urandom(size))
    return path


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
