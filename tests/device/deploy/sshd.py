"""A real SSH server on a loopback port, with keys of its own, and a line to it that can be cut or stalled."""

import getpass
import os
import select
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import pytest

PROGRAM = shutil.which("sshd") or next((path for path in ("/usr/sbin/sshd",) if Path(path).exists()), None)


class Server:
    """An sshd, and an ssh configuration with one name for each device that a test wants.

    A device is this machine with a data folder of its own. With ``packages``, sessions see those of these tests on
    PYTHONPATH, so that nothing but our own wheel is installed, and nothing is downloaded.
    """

    def __init__(self, folder: Path, *, packages: bool = True) -> None:
        self.folder = folder
        self.port = free_port()
        self.config = folder / "config"
        for name in ("host", "other-host", "user", "stranger"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        shutil.copy(folder / "user.pub", folder / "authorized")
        installed = os.pathsep.join(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {folder / 'host'}",
            f"AuthorizedKeysFile {folder / 'authorized'}",
            "StrictModes no",
            "UsePAM no",
            "PidFile none",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "Subsystem sftp internal-sftp",
            "AcceptEnv XDG_DATA_HOME",
            "MaxStartups 100",
            f"SetEnv PATH={path}" + (f" PYTHONPATH={installed}" if packages else ""),
        ]
        (folder / "sshd_config").write_text("\n".join(lines) + "\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        assert PROGRAM
        command = [PROGRAM, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "log")]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.trust("known", self.port)
        self.config.write_text("")
        wait_for_port(self.port)

    def trust(self, name: str, port: int, key: str = "host") -> Path:
        """A file of known hosts with the key of this server, or another's."""
        path = self.folder / name
        path.write_text(f"[127.0.0.1]:{port} {(self.folder / f'{key}.pub').read_text()}")
        return path

    def device(self, name: str, data: Path, *lines: str, port: int | None = None, key: str = "user") -> str:
        """Write a device of this name into the configuration; ``lines`` come first, so they win."""
        known = self.trust(f"known-{name}", port or self.port)
        settings = [
            *lines,
            "HostName 127.0.0.1",
            f"Port {port or self.port}",
            f"User {getpass.getuser()}",
            f"IdentityFile {self.folder / key}",
            "IdentitiesOnly yes",
            "IdentityAgent none",
            f"UserKnownHostsFile {known}",
            "GlobalKnownHostsFile /dev/null",
            f"SetEnv XDG_DATA_HOME={data}",
        ]
        with self.config.open("a") as file:
            file.write(f"Host {name}\n" + "".join(f"  {line}\n" for line in settings))
        return name

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


class Line:
    """A port that passes everything on, until so many bytes went to the server: then it cuts, or only stalls."""

    def __init__(self, target: int, after: int, *, stall: bool = False) -> None:
        self.target, self.left, self.stall = target, after, stall
        self.reached = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        for connection in (self._socket, *self._open):
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            self._open += [client, server]
            threading.Thread(target=self._pass, args=(client, server), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        try:
            while True:
                for ready in select.select(list(other), [], [])[0]:
                    content = ready.recv(16384)
                    if ready is client:
                        self.left -= len(content)
                    if not content or (self.left <= 0 and not self.stall):
                        self.reached.set()
                        client.close()
                        server.close()
                        return
                    if self.left <= 0:
                        self.reached.set()
                        time.sleep(60)
                    other[ready].sendall(content)
        except (OSError, ValueError):
            return


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for_port(port: int) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.02)
    pytest.skip("sshd does not start here")
