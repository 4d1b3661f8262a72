"""The worker's side: JSON lines on stdin, one answer a line on stdout.

    {"do": "convert", "module", "variant", "shape", "weights", "folder"}              writes files for a runtime to load
    {"do": "prepare", "module", "variant", "shape", "weights", "folder", "packages"}  loads a peer
    {"do": "check", "tokens": [[…]…]}                                                 logits after each row of tokens
    {"do": "run", "mode": "step" | "greedy" | "sampled", "steps": N}                  seconds

Answers are ``{"ok": …}``, ``{"skipped": reason}`` where a peer cannot do this by its nature, or ``{"error": text}``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import numpy as np

from benchmarks.common import CHARACTERS
from benchmarks.peers.network import Network, Shape, SkippedError, Step, load
from rnn_edge.sampling import Sampler, SamplingOptions

TEMPERATURE = 0.8


class Worker:
    """Holds one peer."""

    def __init__(self) -> None:
        self._network: Network
        self._step: Step

    def convert(self, module: str, shape: dict[str, Any], weights: str, folder: str, variant: str) -> None:
        network = load(Path(weights), Shape(**shape))
        importlib.import_module(f"benchmarks.peers.{module}").convert(network, folder, variant)

    def prepare(
        self, module: str, shape: dict[str, Any], weights: str, folder: str, variant: str, packages: list[str]
    ) -> dict[str, Any]:
        self._network = load(Path(weights), Shape(**shape))
        started = perf_counter()
        self._step = importlib.import_module(f"benchmarks.peers.{module}").load(self._network, folder, variant)
        seconds = perf_counter() - started
        return {"versions": {name: _version(name) for name in packages}, "seconds": seconds}

    def check(self, tokens: list[list[int]]) -> list[Any]:
        """Logits [steps, B, V] from a zero state."""
        self._step.reset()
        return [np.array(self._step.step(np.array(row, np.int64))).tolist() for row in tokens]

    def run(self, mode: str, steps: int) -> float:
        """Seconds for so many steps."""
        work = {"step": self._bare, "greedy": self._greedy, "sampled": self._sampled}[mode]
        started = perf_counter()
        work(steps)
        return perf_counter() - started

    def _bare(self, steps: int) -> None:
        step, batch, vocabulary = self._step.step, self._network.shape.batch, self._network.vocabulary
        if batch == 1:
            for index in range(steps):
                step(index % vocabulary)
        else:
            rows = [(np.arange(batch) + index) % vocabulary for index in range(8)]
            for index in range(steps):
                step(rows[index % 8])

    def _greedy(self, steps: int) -> None:
        self._generate(steps, lambda logits: int(logits.argmax()), temperature=0.0)

    def _sampled(self, steps: int) -> None:
        sampler = Sampler(SamplingOptions(temperature=TEMPERATURE), self._network.vocabulary, seed=1)
        self._generate(steps, sampler.choose, temperature=TEMPERATURE)

    def _generate(self, steps: int, choose: Callable[[Any], int], temperature: float) -> None:
        """A text from end to end: by the peer's own means where it has them, otherwise with our choice of tokens."""
        own = getattr(self._step, "generate", None)
        if own is not None:
            own(steps, temperature)
            return
        step, token, text = self._step.step, 1, []
        for _ in range(steps):
            token = choose(step(token)[0])
            text.append(CHARACTERS[token])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def answer(worker: Worker, line: str) -> dict[str, Any]:
    """Carry one line out."""
    request = json.loads(line)
    try:
        return {"ok": getattr(worker, request.pop("do"))(**request)}
    except SkippedError as error:
        return {"skipped": str(error)}
    except Exception as error:  # whatever a peer raises is the main process's to report
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0]
        return {"error": f"{type(error).__name__}: {first}"}


def main() -> None:
    # Libraries print to stdout as they like: that goes to stderr, and the protocol keeps the real one.
    out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        print(json.dumps(answer(worker, line)), file=out, flush=True)


if __name__ == "__main__":
    main()
