"""The main process's side of a worker: start it, ask, wait no longer than a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks.peers.network import SkippedError

ROOT = Path(__file__).resolve().parents[2]
# One thread whatever library a peer does its products with.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TBB_NUM_THREADS", "RAYON_NUM_THREADS"), "1"
)


class PeerError(Exception):
    """A peer failed; the text says how."""


class Process:
    """One worker. It ends with the ``with`` block, whatever it was doing."""

    def __init__(self, python: Path, limit: float) -> None:
        """``limit`` is the time for one answer in seconds."""
        self._limit = limit
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the process
        environment = os.environ | _ONE_THREAD | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.peers.worker"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send one request → its answer.

        Raises:
            SkippedError: the peer cannot do this by its nature.
            PeerError: it failed, crashed, or did not answer in time.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a dead process: the read below says so
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        try:
            line = self._lines.get(timeout=self._limit)
        except queue.Empty:
            self.end()
            raise PeerError(f"no answer to {do} in {self._limit:g} s") from None
        if not line:
            code = self._process.wait()
            raise PeerError(f"ended with exit code {code} in {do}{self._last_words()}")
        answer = json.loads(line)
        if "skipped" in answer:
            raise SkippedError(answer["skipped"])
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["ok"]

    def end(self) -> None:
        """End the process now."""
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=1)  # a child of the worker's own may keep the pipe open
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):  # what a dead worker did not read
                    stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")  # its end

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""
