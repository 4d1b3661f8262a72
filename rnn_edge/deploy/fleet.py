"""Many devices at once: one that fails does not stop the others, and an interrupt cuts all of them off."""

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rnn_edge.bundle import Bundle
from rnn_edge.deploy import deployment
from rnn_edge.deploy.connection import Connection
from rnn_edge.deploy.deployment import Options, Report, Result
from rnn_edge.deploy.payload import Payload
from rnn_edge.errors import DeployError, RnnEdgeError

_MOST_AT_ONCE = 16


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
            work = deployment.plan if self.options.dry_run else deployment.deploy
            return self._all(lambda connection: work(connection, payload, self.options, self.report))

    def status(self) -> list[Result]:
        """What runs on every device."""
        return self._all(deployment.status)

    def rollback(self) -> list[Result]:
        """Go back to the release before, on every device."""
        return self._all(lambda connection: deployment.rollback(connection, self.report))

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
        return replace(result, seconds=round(time.monotonic() - started, 3))
