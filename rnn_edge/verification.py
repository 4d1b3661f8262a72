"""What a device can prove by itself: that its bytes are the exporter's, and that it computes what the exporter did."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rnn_edge.bundle import Bundle
from rnn_edge.errors import RnnEdgeError
from rnn_edge.language_model import load_tokenizer
from rnn_edge.manifest import GoldenTranscript
from rnn_edge.onnx_file import summarise
from rnn_edge.providers import Device
from rnn_edge.state import load_state, save_state
from rnn_edge.stepper import StepGraph

# One row of a batch against the same row alone: other kernels may sum in another order.
_BATCH_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Finding:
    """One check. ``explained`` counts differences that the recorded margins allow; they do not fail it."""

    name: str
    passed: bool
    detail: str
    explained: int = 0


@dataclass(frozen=True)
class Replay:
    """A golden transcript against this device: steps that answered another id, allowed by their margin and not."""

    steps: int
    explained: int
    unexplained: tuple[int, ...]


def verify(bundle: Bundle, *, device: Device = "auto", threads: int | None = None) -> Iterator[Finding]:
    """Check files, tokenizer, graph, golden transcripts, state and batches, one finding at a time."""
    try:
        total = sum(len(bundle.read(name)) for name in bundle.manifest.files)
        yield Finding("files", True, f"{len(bundle.manifest.files)} files, {total:,} bytes, hashes as recorded")
        tokenizer = load_tokenizer(bundle)
        yield Finding("tokenizer", True, f"{tokenizer.vocabulary_size} tokens")
        graph = StepGraph(bundle, device=device, threads=threads)
        summary = summarise(bundle.graph("step"), "step")
        operators = ", ".join(sorted(summary.operators))
        yield Finding(
            "graph",
            True,
            f"{summary.node_count} nodes on {graph.device}, as the manifest says: {operators}",
        )
        for transcript in bundle.manifest.golden:
            yield _golden(graph, transcript)
        if not bundle.manifest.golden:
            yield Finding("golden transcript", False, "the manifest has none; export the bundle again")
        yield _resumption(graph)
        yield _batches(graph)
    except RnnEdgeError as error:
        yield Finding("bundle", False, f"{error.message}; {error.hint}")


def replay(graph: StepGraph, transcript: GoldenTranscript) -> Replay:
    """Feed the recorded tokens from a zero state and compare the likeliest ids.

    Another id is explained only where the recorded margin is below the recorded tolerance.
    """
    stepper = graph.stepper()
    explained, unexplained = 0, []
    for step, (token, best, margin) in enumerate(
        zip(transcript.tokens, transcript.best, transcript.margins, strict=True)
    ):
        if int(stepper.step(token)[0].argmax()) != best:
            if margin < transcript.tolerance:
                explained += 1
            else:
                unexplained.append(step)
    return Replay(len(transcript.tokens), explained, tuple(unexplained))


def _golden(graph: StepGraph, transcript: GoldenTranscript) -> Finding:
    result = replay(graph, transcript)
    detail = f"{result.steps} steps, {result.explained} explained differences, {len(result.unexplained)} unexplained"
    if result.unexplained:
        detail += f" (first at step {result.unexplained[0]})"
    return Finding(f"golden {transcript.kind}", not result.unexplained, detail, result.explained)


def resumption_difference(graph: StepGraph) -> float:
    """Stop in mid-stream, save, load and go on: the largest difference in logits to a stream that never stopped."""
    tokens = _tokens(graph, 32)
    expected = graph.stepper().feed(tokens).copy()
    stopped, resumed = graph.stepper(), graph.stepper()
    stopped.feed(tokens[:16])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_state(path, stopped.state(), graph.manifest)
        resumed.load(load_state(path, graph.manifest))
    return float(np.abs(resumed.feed(tokens[16:]) - expected).max())


def _resumption(graph: StepGraph) -> Finding:
    difference = resumption_difference(graph)
    detail = "bit for bit the same" if difference == 0 else f"differs by {difference:.1e}"
    return Finding("state saved and loaded", difference == 0, detail)


def _batches(graph: StepGraph) -> Finding:
    """Three streams at once against each alone."""
    rows = [_tokens(graph, 16, first) for first in (0, 5, 11)]
    together = graph.stepper(3)
    for column in zip(*rows, strict=True):
        logits = together.step(np.array(column))
    alone = np.concatenate([graph.stepper().feed(row).copy() for row in rows])
    difference = float(np.abs(logits - alone).max())
    detail = f"3 streams at once and each alone differ by {difference:.1e}, allowed are {_BATCH_TOLERANCE:.0e}"
    return Finding("batches", difference <= _BATCH_TOLERANCE, detail)


def _tokens(graph: StepGraph, count: int, first: int = 0) -> list[int]:
    """Ids that walk through the vocabulary."""
    size = graph.manifest.tokenizer.vocabulary_size
    return [(first + 7 * index) % size for index in range(count)]
