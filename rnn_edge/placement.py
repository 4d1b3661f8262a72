"""Where a bundle runs and with how many threads: measured once for a bundle on a machine, and remembered.

Small models are often faster on a CPU than on a GPU, and on one thread than on two, and which is which depends on the
machine. A probe takes some tens of milliseconds for each candidate.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np

from rnn_edge.bundle import Bundle
from rnn_edge.chooser import DEPTH
from rnn_edge.errors import RnnEdgeError
from rnn_edge.files import cache_folder, write_text
from rnn_edge.machine import describe_cpu, describe_gpus
from rnn_edge.providers import DEVICES, Device, check_device, check_threads, cuda_available
from rnn_edge.stepper import LENGTHS, StepGraph, Stepper

Threads = int | Literal["auto"] | None
_SECONDS = 0.02  # of steps, for each candidate
_GAIN = 0.9  # of the time that one thread takes: more threads must be clearly faster
_SOURCE_LENGTH = 16
_MOST_STREAMS = 256  # of a probe: with more the answer stays the same
_REMEMBERED = 256


@dataclass(frozen=True)
class Placement:
    """A device, and its number of CPU threads."""

    device: Device
    threads: int


Measure = Callable[[Bundle, Placement, int], float]


def place(bundle: Bundle, device: Device, threads: Threads, streams: int = 1) -> Placement:
    """Resolve ``auto``: whichever steps so many streams fastest; never slower than one thread on a CPU.

    A damaged, foreign or unwritable memory of earlier probes is no error: then it is measured again, and so it is after
    a GPU did not open. Where CUDA is fastest ``auto`` stays, which takes the CPU should the GPU be gone by then.
    """
    choices = candidates(device, threads)
    if len(choices) == 1:
        return choices[0]
    streams = max(1, min(streams, _MOST_STREAMS))
    key, path = _key(bundle, choices, streams), cache_folder() / "placements.json"
    known = _read(path)
    found = known.get(key)
    if found is None or found not in choices:
        failed: list[Placement] = []
        found = fastest(bundle, choices, streams, step_seconds, failed)
        entries = dict(list({**known, key: found}.items())[-_REMEMBERED:])
        if not (failed and describe_gpus()):
            with contextlib.suppress(RnnEdgeError):
                write_text(path, json.dumps({name: asdict(item) for name, item in entries.items()}, indent=1))
    return found if found.device == "cpu" else Placement(device, 1)


def candidates(device: Device, threads: Threads) -> list[Placement]:
    """What ``auto`` may become, one CPU thread first.

    Raises:
        InvalidValueError: an unknown device, or more threads than cores.
    """
    check_device(device)
    if isinstance(threads, int):
        check_threads(threads)
    if device == "cuda" or (device == "auto" and threads != "auto" and not cuda_available()):
        return [Placement(device, threads if isinstance(threads, int) else 1)]
    counts = [1 if threads is None else threads]
    if threads == "auto":
        cores = os.cpu_count() or 1
        counts = [count for count in (1, 2, 4, 8, 16, 32) if count <= cores]
    found = [Placement("cpu", count) for count in counts if isinstance(count, int)]
    return found + ([Placement("cuda", 1)] if device == "auto" and cuda_available() else [])


def fastest(
    bundle: Bundle, choices: list[Placement], batch: int, measure: Measure, failed: list[Placement] | None = None
) -> Placement:
    """The first choice, unless another is clearly faster; thread counts that go on getting slower are not tried.

    A GPU that does not open is added to ``failed``.
    """
    best, shortest = choices[0], measure(bundle, choices[0], batch)
    limit, previous = _GAIN * shortest, shortest
    for choice in choices[1:]:
        if choice.device == "cpu" and previous > 1.5 * shortest:
            continue
        try:
            previous = measure(bundle, choice, batch)
        except RnnEdgeError:
            if failed is not None:
                failed.append(choice)
            continue
        if previous < min(shortest, limit):
            best, shortest = choice, previous
    return best


def step_seconds(bundle: Bundle, placement: Placement, batch: int) -> float:
    """The fastest step of ``batch`` streams that a short probe sees."""
    manifest = bundle.manifest
    role = "step" if manifest.source is None else "decoder"
    graph = StepGraph(bundle, role=role, device=placement.device, threads=placement.threads)
    memory: dict[str, Any] = {
        item.name: np.zeros((batch, _SOURCE_LENGTH, item.width), np.float32) for item in manifest.memory
    }
    if memory:
        memory[LENGTHS] = np.full(batch, _SOURCE_LENGTH)
    stepper = Stepper(graph, batch, memory) if memory else graph.stepper(batch)
    for _ in range(DEPTH):  # the first of each set of buffers, which CUDA captures
        stepper.step(0)
    shortest, end = float("inf"), perf_counter() + _SECONDS
    while (started := perf_counter()) < end:
        stepper.step(0)
        shortest = min(shortest, perf_counter() - started)
    return shortest


def _key(bundle: Bundle, choices: list[Placement], batch: int) -> str:
    import onnxruntime

    facts = [bundle.manifest.digest, describe_cpu(), os.cpu_count(), onnxruntime.__version__, batch]
    facts += describe_gpus() if any(choice.device == "cuda" for choice in choices) else []
    facts += [[choice.device, choice.threads] for choice in choices]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, Placement]:
    """What is remembered; nothing of what is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    found = {}
    for key, entry in content.items() if isinstance(content, dict) else ():
        entry = entry if isinstance(entry, dict) else {}
        for device in DEVICES:
            if entry.get("device") == device and isinstance(entry.get("threads"), int):
                found[key] = Placement(device, entry["threads"])
    return found
