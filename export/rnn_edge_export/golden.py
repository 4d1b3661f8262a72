"""Golden transcripts: what the shipped runtime answers here, for a device to replay and so prove itself."""

from contextlib import suppress
from dataclasses import replace
from typing import Literal

import numpy as np

from rnn_edge.bundle import Bundle
from rnn_edge.encoder_decoder import EncoderDecoderGraphs
from rnn_edge.errors import UnknownTokenError
from rnn_edge.manifest import GoldenTranscript, GoldenTranslation, Manifest
from rnn_edge.stepper import AnyStepper, StepGraph
from rnn_edge.tokenizer import load_tokenizer
from rnn_edge.verification import HALF_TOLERANCE

_STEPS = 128
_TRANSLATION_STEPS = 24
# Two machines' sums differ in the last bits; a choice this close may go either way on another one.
_TOLERANCE = 1e-3
_TEXT = "A device that replays these words, step by step, proves itself.\nDoes it? Yes: 3 checks, no doubt!\n"
_SENTENCES = (
    "Does this device translate as the other one did?",
    "She bought three old books, and he sold a house near the sea.",
    "Yes.",
)
_RANDOM_LENGTHS = (1, 5, 17, 40)  # of sources, the end token not counted


def record(bundle: Bundle) -> Manifest:
    """The bundle's manifest with transcripts of its own text and of ours; of a translator, with translations."""
    manifest = bundle.manifest
    if manifest.source is None:
        return replace(manifest, golden=_transcripts(bundle))
    graphs = EncoderDecoderGraphs(bundle, device="cpu")
    tokenizer, end, random = load_tokenizer(bundle, manifest.source.tokenizer), manifest.source.end, _random()
    rows = []
    for text in _SENTENCES:
        with suppress(UnknownTokenError):  # a vocabulary without a token for others may lack parts of our sentences
            rows.append((text, [*tokenizer.encode(text), end]))
    rows += [("", [*random.integers(0, tokenizer.vocabulary_size, size).tolist(), end]) for size in _RANDOM_LENGTHS]
    return replace(manifest, golden_translations=tuple(_translation(graphs, *row) for row in rows))


def _transcripts(bundle: Bundle) -> tuple[GoldenTranscript, ...]:
    graph, tokenizer = StepGraph(bundle, device="cpu"), load_tokenizer(bundle)
    text = tokenizer.encode(_TEXT, unknown="skip")[: _STEPS // 2]
    # Whatever the script of the corpus, every part of the vocabulary may occur.
    text += _random().integers(0, tokenizer.vocabulary_size, _STEPS - len(text)).tolist()
    start = bundle.manifest.special_ids.start or 0
    given: tuple[tuple[Literal["greedy", "text"], list[int]], ...] = ("greedy", [start]), ("text", text)
    tolerance = _tolerance(bundle.manifest)
    return tuple(GoldenTranscript(kind, *_follow(graph.stepper(), ids, _STEPS), tolerance) for kind, ids in given)


def _translation(graphs: EncoderDecoderGraphs, text: str, source: list[int]) -> GoldenTranslation:
    """Fed with its own best ids, past the end token too: every step proves something."""
    start = graphs.manifest.special_ids.start
    assert start is not None
    found = _follow(graphs.stepper(graphs.encode([source])), [start], _TRANSLATION_STEPS)
    return GoldenTranslation(text, tuple(source), *found, _tolerance(graphs.manifest))


def _tolerance(manifest: Manifest) -> float:
    return HALF_TOLERANCE if manifest.precision == "fp16" else _TOLERANCE


def _follow(
    stepper: AnyStepper, tokens: list[int], steps: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """Tokens fed, which are the best ids where none are given; the best id and its margin at each step."""
    fed: list[int] = []
    best: list[int] = []
    margins: list[float] = []
    for index in range(steps):
        fed.append(tokens[index] if index < len(tokens) else best[-1])
        logits = stepper.step(fed[-1])[0]
        best.append(int(logits.argmax()))
        top = np.sort(logits)[::-1]
        margins.append(round(float(top[0] - top[1]), 4) if len(top) > 1 else 0.0)
    return tuple(fed), tuple(best), tuple(margins)


def _random() -> np.random.Generator:
    return np.random.default_rng(0)
