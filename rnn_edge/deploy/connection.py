"""A device reached through the user's own OpenSSH, so configuration, agent, known hosts and jump hosts apply.

One connection (``ssh -M``) carries everything: the agent's lines, and the files that ``sftp`` puts. Nothing asks for a
password: keys do, or an agent.
"""

import contextlib
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnn_edge.deploy.agent import HELLO
from rnn_edge.errors import DeployError, MissingDependencyError

_CONNECT_SECONDS = 10
_ALIVE_SECONDS = 5
_TOO_OLD, _NO_PYTHON = 71, 72
# Without quotes of its own kind, so that any login shell passes it on. The agent's text follows on its input.
_START = (
    "exec sh -c '"
    "for p in python3 python3.14 python3.13 python3.12 python3.11; do "
    'if "$p" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then '
    'exec "$p" -uc "import sys; exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"; '
    "fi; done; "
    "if command -v python3 >/dev/null 2>&1; then "
    'python3 -c "import platform; print(platform.python_version())"; '
    f"exit {_TOO_OLD}; fi; exit {_NO_PYTHON}'"
)
# What ssh says → what it means, and the mend; {host} is as the user wrote it.
_MEANINGS = (
    (
        "remote host identification has changed",
        "its host key has changed",
        "find out why; ssh {host} says which old key to remove",
    ),
    ("host key verification failed", "its host key is unknown", "connect once and compare the key: ssh {host}"),
    (
        "permission denied",
        "it accepts none of your keys",
        "put your key there: ssh-copy-id {host}; if it has a passphrase: ssh-add",
    ),
    ("too many authentication failures", "it accepts none of your keys", "name one with IdentityFile in ~/.ssh/config"),
    ("connection refused", "it refuses the connection", "check that an SSH server runs there, and the port"),
    ("timed out", "it does not answer", "check that it is on, and its address"),
    ("could not resolve hostname", "there is no host of this name", "check the name, or add it to ~/.ssh/config"),
    ("no route to host", "there is no way to it", "check that it is on, and the network"),
    ("network is unreachable", "there is no way to it", "check the network"),
)


class Connection:
    """One device. ``ask`` is for the agent there, ``upload`` for files; both fail with what to mend."""

    def __init__(self, host: str, config: Path | None = None) -> None:
        if not host or host.startswith("-"):
            raise DeployError(f"{host!r} is no host", "write user@host, a name of your ~/.ssh/config, or ssh://…")
        self.host = host
        # Short: the path of a socket may have about 100 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="rnn-edge-"))
        self._socket = self._folder / "s"
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(_CONNECT_SECONDS),
            "ControlPath": str(self._socket),
            "ControlPersist": "no",
            "ClearAllForwardings": "yes",
            "LogLevel": "ERROR",
            "RemoteCommand": "none",
            "RequestTTY": "no",
            "ServerAliveInterval": str(_ALIVE_SECONDS),
            "ServerAliveCountMax": "3",
        }
        self._options = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        if config:
            self._options += ["-F", str(config)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._agent: subprocess.Popen[bytes] | None = None
        self._writing, self._closed = threading.Lock(), threading.Event()

    def open(self) -> None:
        """Connect, and start the agent.

        Raises:
            DeployError: ssh's reason, or no Python that is new enough.
        """
        if not shutil.which("ssh") or not shutil.which("sftp"):
            raise MissingDependencyError(
                "OpenSSH's ssh and sftp are not installed", "run: sudo apt install openssh-client"
            )
        master = self._start(["ssh", "-M", "-N", "-T", *self._options, "--", self.host])
        end = time.monotonic() + 3 * _CONNECT_SECONDS  # jump hosts take their time
        while not self._socket.exists():
            if master.poll() is not None:
                raise self._meaning((self._folder / "errors").read_text(errors="replace"))
            if time.monotonic() > end:
                raise self._meaning("timed out")
            time.sleep(0.005)
        # ControlMaster=no: this is a guest of the connection above.
        self._agent = self._start(["ssh", "-T", "-o", "ControlMaster=no", *self._options, "--", self.host, _START])
        source = _agent_source()
        self._send(b"%d\n%s" % (len(source), source))
        lines: list[str] = []
        while (line := self._receive()) != HELLO:
            if line is None:
                raise self._no_agent("".join(lines[-1:]))
            lines.append(line)  # what a noisy profile says
        threading.Thread(target=self._say_alive, daemon=True).start()

    def ask(self, do: str, **arguments: Any) -> Any:
        """Let the agent do something → its answer.

        Raises:
            DeployError: what the agent says, or that the connection was cut.
        """
        self._send(json.dumps({"do": do, **arguments}).encode() + b"\n")
        line = self._receive()
        if line is None:
            raise self._cut()
        reply = json.loads(line)
        if "error" in reply:
            raise DeployError(f"{self.host}: {reply['error']}", reply["hint"])
        return reply["ok"]

    def upload(self, files: Mapping[Path, str]) -> None:
        """Put files (here → there), each going on where an earlier attempt ended.

        Raises:
            DeployError: the connection was cut, or the device cannot take them.
        """
        # An empty one has nothing to go on with.
        verbs = {source: "reput" if source.stat().st_size else "put" for source in files}
        commands = "".join(f"{verbs[here]} {_quoted(str(here))} {_quoted(there)}\n" for here, there in files.items())
        done = subprocess.run(
            ["sftp", "-q", "-o", "ControlMaster=no", *self._options, "-b", "-", "--", self._sftp_host()],
            input=commands.encode(),
            capture_output=True,
            start_new_session=True,
            check=False,
        )
        if done.returncode == 0:
            return
        if self._processes[0].poll() is not None:
            raise self._cut()
        free, needed = self.ask("look")["disk"], sum(path.stat().st_size for path in files)
        if free < needed:
            self.ask("clear")  # what runs there needs the room more
            what = f"{free / 1e6:,.1f} MB are left there, needed are {needed / 1e6:,.1f} MB"
            raise DeployError(f"{self.host}: {what}", "make room there, then run it again")
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["sftp failed"]
        raise DeployError(
            f"{self.host}: copying failed: {lines[-1]}", "check that its SSH server has sftp, then run it again"
        )

    def close(self) -> None:
        """End the connection, and with it the agent and its lock."""
        self._closed.set()
        for process in reversed(self._processes):
            process.terminate()  # first, since another thread may be writing to it
        for process in self._processes:
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:  # it takes its leave over a line that is dead
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    with contextlib.suppress(OSError):
                        stream.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, command: list[str]) -> "subprocess.Popen[bytes]":
        # A session of its own: no terminal to ask on, and an interrupt is ours to pass on.
        pipe = subprocess.PIPE
        with (self._folder / "errors").open("ab") as errors:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, start_new_session=True)
        self._processes.append(process)
        return process

    def _send(self, content: bytes) -> None:
        assert self._agent and self._agent.stdin
        try:
            with self._writing:
                self._agent.stdin.write(content)
                self._agent.stdin.flush()
        except (OSError, ValueError) as error:  # the latter where it is closed
            raise self._cut() from error

    def _say_alive(self) -> None:
        """Empty lines: a line that was cut may never say so there, and the agent has the lock."""
        with contextlib.suppress(DeployError):
            while not self._closed.wait(_ALIVE_SECONDS):
                self._send(b"\n")

    def _receive(self) -> str | None:
        assert self._agent and self._agent.stdout
        line = self._agent.stdout.readline()
        return line.decode(errors="replace").rstrip("\n") if line else None

    def _no_agent(self, said: str) -> DeployError:
        assert self._agent
        code = self._agent.wait()
        if code == _TOO_OLD:
            return DeployError(
                f"{self.host}: its Python is {said}, needed is 3.11", "there: install Python 3.11 or later"
            )
        if code == _NO_PYTHON:
            return DeployError(f"{self.host} has no Python", "there: sudo apt install python3 python3-venv")
        return self._cut()

    def _cut(self) -> DeployError:
        hint = "run it again: it goes on where it ended, and what ran there before still runs"
        return DeployError(f"{self.host}: the connection was cut", hint)

    def _meaning(self, said: str) -> DeployError:
        for sign, meaning, mend in _MEANINGS:
            if sign in said.lower():
                return DeployError(f"{self.host}: {meaning}", mend.format(host=self.host))
        lines = said.strip().splitlines() or ["ssh ended"]
        return DeployError(f"{self.host}: {lines[-1].strip()}", f"see what this says: ssh {self.host} true")

    def _sftp_host(self) -> str:
        return "sftp://" + self.host.removeprefix("ssh://") if self.host.startswith("ssh://") else self.host


def _agent_source() -> bytes:
    return Path(__file__).with_name("agent.py").read_bytes()


def _quoted(name: str) -> str:
    escaped = "".join("\\" + character if character in '\\"' else character for character in name)
    return f'"{escaped}"'
