"""What a device can prove by itself: that its bytes are the exporter's, and that it computes what the exporter did."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from rnn_edge.bundle import Bundle
from rnn_edge.encoder_decoder import EncoderDecoderGraphs
from rnn_edge.errors import DeviceError, InvalidValueError, MissingDependencyError, RnnEdgeError
from rnn_edge.manifest import GoldenTranscript, GoldenTranslation, Manifest
from rnn_edge.onnx_file import summarise
from rnn_edge.providers import Device
from rnn_edge.state import load_state, save_state
from rnn_edge.stepper import AnyStepper, StepGraph
from rnn_edge.tokenizer import Tokenizer, load_tokenizer

HALF_TOLERANCE = 0.05  # sums in half precision, as CUDA adds them, differ by up to 0.02 from those of a CPU
_BATCH_TOLERANCE = 1e-4  # one row of a batch against the same row alone: other kernels may sum in another order


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
    seconds: float


def verify(bundle: Bundle, *, device: Device = "auto", threads: int | None = None) -> Iterator[Finding]:
    """Check files, tokenizers, graphs, golden transcripts, state and batches, one finding at a time.

    Raises:
        InvalidValueError: an unknown device, or a number of threads outside the machine's cores.
        DeviceError: CUDA is asked for and not available.
        MissingDependencyError: there is no ONNX Runtime.
    """
    try:
        manifest = bundle.manifest
        total = sum(len(bundle.read(name)) for name in manifest.files)
        yield Finding("files", True, f"{len(manifest.files)} files, {total:,} bytes, hashes as recorded")
        tokenizers = {spec.file: load_tokenizer(bundle, spec) for spec in manifest.tokenizers.values()}
        sizes = " and ".join(str(tokenizer.vocabulary_size) for tokenizer in tokenizers.values())
        yield Finding("tokenizer", True, f"{sizes} tokens")
        if manifest.source is None:
            yield from _language_model(bundle, device, threads)
        else:
            yield from _translator(bundle, tokenizers[manifest.source.tokenizer.file], device, threads)
    except (InvalidValueError, DeviceError, MissingDependencyError):
        raise  # which say nothing about the bundle
    except RnnEdgeError as error:
        yield Finding("bundle", False, f"{error.message}; {error.hint}")


def _language_model(bundle: Bundle, device: Device, threads: int | None) -> Iterator[Finding]:
    graph = StepGraph(bundle, device=device, threads=threads)
    yield _graph(bundle, "step", graph.device)
    replays = []
    for transcript in bundle.manifest.golden:
        replays.append(replay(graph.stepper(), transcript))
        yield _golden(f"golden {transcript.kind}", replays[-1])
    if not replays:
        yield Finding("golden transcript", False, "the manifest has none; export the bundle again")
    yield _resumption(resumption_difference(graph))
    yield _batches(graph)
    yield from _timing(replays)


def _translator(bundle: Bundle, tokenizer: Tokenizer, device: Device, threads: int | None) -> Iterator[Finding]:
    graphs = EncoderDecoderGraphs(bundle, device=device, threads=threads)
    for role in ("encoder", "decoder"):
        yield _graph(bundle, role, graphs.device)
    goldens = bundle.manifest.golden_translations
    assert bundle.manifest.source is not None
    end = bundle.manifest.source.end
    texts = [golden for golden in goldens if golden.text]
    wrong = sum([*tokenizer.encode(golden.text), end] != list(golden.source) for golden in texts)
    yield Finding("golden texts", wrong == 0, f"{len(texts)} texts, {wrong} with other tokens than recorded")
    replays = [replay(graphs.stepper(graphs.encode([golden.source])), golden) for golden in goldens]
    steps, explained = sum(item.steps for item in replays), sum(item.explained for item in replays)
    unexplained = tuple(step for item in replays for step in item.unexplained)
    seconds = sum(item.seconds for item in replays)
    yield _golden(f"golden translations ({len(goldens)})", Replay(steps, explained, unexplained, seconds))
    if not goldens:
        yield Finding("golden translations", False, "the manifest has none; export the bundle again")
        return
    longest = max(goldens, key=lambda golden: len(golden.tokens))
    memory = graphs.encode([longest.source])
    yield _resumption(_resumed(lambda: graphs.stepper(memory), longest.tokens, bundle.manifest))
    worst = batch_difference(graphs, [golden.source for golden in goldens], goldens[0].tokens)
    yield _batch_finding(f"{len(goldens)} sources", worst, bundle.manifest)
    yield from _timing(replays)


def batch_difference(
    graphs: EncoderDecoderGraphs, sources: Sequence[Sequence[int]], tokens: Sequence[int] | NDArray[np.int64]
) -> float:
    """The largest difference in logits between sources in one padded batch and each alone, fed the same tokens.

    ``tokens`` has one token a step for all, or a row a step with one for each. Relative for logits above 1.
    """
    together = graphs.stepper(graphs.encode(sources))
    alone = [graphs.stepper(graphs.encode([source])) for source in sources]
    worst = 0.0
    for step in tokens:
        row = np.broadcast_to(step, len(sources))
        logits = together.step(row)
        for index, stepper in enumerate(alone):
            worst = max(worst, difference(logits[index], stepper.step(row[index : index + 1])[0]))
    return worst


def difference(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference: absolute for values up to 1, relative above, since an LSTM's c has no bound."""
    return float((np.abs(actual - expected) / np.maximum(1, np.abs(expected))).max())


def _graph(bundle: Bundle, role: str, device: str) -> Finding:
    summary = summarise(bundle.graph(role), role)
    operators = ", ".join(sorted(summary.operators))
    name = "graph" if role == "step" else f"{role} graph"
    return Finding(name, True, f"{summary.node_count} nodes on {device}, as the manifest says: {operators}")


def replay(stepper: AnyStepper, transcript: GoldenTranscript | GoldenTranslation) -> Replay:
    """Feed the recorded tokens from a first state and compare the likeliest ids.

    Another id is explained only where the recorded margin is below the recorded tolerance.
    """
    explained, unexplained, started = 0, [], perf_counter()
    for step, (token, best, margin) in enumerate(
        zip(transcript.tokens, transcript.best, transcript.margins, strict=True)
    ):
        if int(stepper.step(token)[0].argmax()) != best:
            if margin < transcript.tolerance:
                explained += 1
            else:
                unexplained.append(step)
    return Replay(len(transcript.tokens), explained, tuple(unexplained), perf_counter() - started)


def _golden(name: str, result: Replay) -> Finding:
    detail = f"{result.steps} steps, {result.explained} explained differences, {len(result.unexplained)} unexplained"
    if result.unexplained:
        detail += f" (first at step {result.unexplained[0]})"
    return Finding(name, not result.unexplained, detail, result.explained)


def resumption_difference(graph: StepGraph) -> float:
    """Stop in mid-stream, save, load and go on: the largest difference in logits to a stream that never stopped."""
    return _resumed(graph.stepper, _tokens(graph, 32), graph.manifest)


def _resumed(make: Callable[[], AnyStepper], tokens: Sequence[int], manifest: Manifest) -> float:
    middle = len(tokens) // 2
    expected = make().feed(tokens).copy()
    stopped, resumed = make(), make()
    stopped.feed(tokens[:middle])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_state(path, stopped.state(), manifest)
        resumed.load(load_state(path, manifest))
    return float(np.abs(resumed.feed(tokens[middle:]) - expected).max())


def _timing(replays: Sequence[Replay]) -> Iterator[Finding]:
    """How fast the transcripts went; it never fails, since speed proves nothing."""
    steps, seconds = sum(item.steps for item in replays), sum(item.seconds for item in replays)
    if steps and seconds:
        yield Finding(
            "timing", True, f"{steps} steps, {seconds / steps * 1e6:,.0f} µs each: {steps / seconds:,.0f} a second"
        )


def _resumption(difference: float) -> Finding:
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
    return _batch_finding("3 streams", difference, graph.manifest)


def _batch_finding(what: str, difference: float, manifest: Manifest) -> Finding:
    allowed = HALF_TOLERANCE if manifest.precision == "fp16" else _BATCH_TOLERANCE
    detail = f"{what} at once and each alone differ by {difference:.1e}, allowed are {allowed:.0e}"
    return Finding("batches", difference <= allowed, detail)


def _tokens(graph: StepGraph, count: int, first: int = 0) -> list[int]:
    """Ids that walk through the vocabulary."""
    size = graph.manifest.tokenizer.vocabulary_size
    return [(first + 7 * index) % size for index in range(count)]
