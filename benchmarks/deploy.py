"""Deploying to a device that has everything already: whole processes over a real sshd on a loopback port.

    python -m benchmarks.deploy BUNDLE

Starts an sshd with keys of its own (Debian: openssh-server), deploys once, which installs packages from the package
index, and then times ``rnn-edge deploy`` again and again. The target is 3 s; beside it are a bare ``ssh HOST true``,
and verifying and measuring without SSH, which are part of every deployment.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from benchmarks.common import machine, table, verdict
from tests.device.deploy.sshd import PROGRAM, Server

TARGET = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="name or folder of a bundle")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    if not PROGRAM:
        raise SystemExit("there is no sshd: install openssh-server")
    program = [sys.executable, "-m", "rnn_edge"]
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), packages=False)
        try:
            name = server.device("device", Path(folder) / "data")
            deploy = [*program, "deploy", options.bundle, name, "-F", str(server.config), "-q"]
            first = seconds(deploy)
            again = f"rnn-edge deploy {Path(options.bundle).name}"
            contenders: dict[str, Callable[[], float]] = {
                again: lambda: seconds(deploy),
                "ssh true": lambda: seconds(["ssh", "-F", str(server.config), name, "true"]),
                "rnn-edge verify": lambda: seconds([*program, "verify", options.bundle]),
                "rnn-edge bench, as short": lambda: seconds(
                    [*program, "bench", options.bundle, *["-q", "-n", "128", "-p", "16", "-r", "1"]]
                ),
            }
            times: dict[str, list[float]] = {label: [] for label in contenders}
            for _ in range(options.rounds):
                for label, run in contenders.items():
                    times[label].append(run())
        finally:
            server.close()
    rows = []
    for label, values in times.items():
        median = statistics.median(values)
        target = (f"≤ {TARGET}", verdict(median <= TARGET)) if label == again else ("", "")
        rows.append((label, f"{median:.2f} ({min(values):.2f})", *target))
    print(machine())
    print()
    print(table(("whole process", "seconds, median (least)", "target", "result"), rows))
    print(f"\nThe first deployment, packages included, took {first:.1f} s.")


def seconds(command: list[str]) -> float:
    started = perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return perf_counter() - started


if __name__ == "__main__":
    main()
