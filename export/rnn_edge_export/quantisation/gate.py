"""What rounding costs: two bundles of one model on the same tokens, step by step.

Both read the same text; the difference of their losses is taken token by token, so that the text's own variance
cancels. The interval is that of the mean over pieces of text (each some 50 tokens, nearly independent), normal
approximation, 95 %.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from rnn_edge.bundle import Bundle
from rnn_edge.encoder_decoder import EncoderDecoderGraphs
from rnn_edge.errors import DataError
from rnn_edge.language_model import LanguageModel
from rnn_edge.manifest import Metric
from rnn_edge.noise import gumbel_noise
from rnn_edge.search import log_normalisers
from rnn_edge.stepper import AnyStepper, Logits, StepGraph
from rnn_edge.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
Pairs = Sequence[tuple[str, str]]
WANTED_TOKENS = 100_000
_STREAMS = 64
_PIECE = 50  # steps of a stream that make one piece
_SENTENCES = 64
_ROUNDS, _STEPS = 9, 100  # of timing
OWN_TEXT = "text that the original writes itself at temperature 1"


@dataclass(frozen=True)
class Comparison:
    """A rounded model beside the original on ``tokens`` tokens of ``data``. Losses in nats per token.

    ``skipped`` characters of the data are not in the vocabulary.
    """

    data: str
    tokens: int
    loss: float
    rounded_loss: float
    half_interval: float
    top1_agreement: float
    divergence: float
    largest_difference: float
    skipped: int = 0

    @property
    def increase(self) -> float:
        """Of the loss, as a share of it."""
        return self._share(self.rounded_loss - self.loss)

    @property
    def half_width(self) -> float:
        """Half of its 95 % interval."""
        return self._share(self.half_interval)

    @property
    def upper_increase(self) -> float:
        """The upper end of its 95 % interval."""
        return self.increase + self.half_width

    def metrics(self) -> tuple[Metric, ...]:
        """For the manifest."""
        split = "as given" if self.data != OWN_TEXT else f"{_STREAMS} streams"
        how = f"against the original, {self.tokens:,} tokens"
        half = 100 * self.half_width
        return (
            Metric("loss increase", 100 * self.increase, "%", self.data, split, f"{how}, 95 % interval ± {half:.4f} %"),
            Metric("top-1 agreement", 100 * self.top1_agreement, "%", self.data, split, how),
            Metric("KL divergence", self.divergence, "nats per token", self.data, split, how),
            Metric("largest logit difference", self.largest_difference, "", self.data, split, how),
        )

    def _share(self, value: float) -> float:
        if self.loss == 0:  # one token, and no doubt
            return math.copysign(math.inf, value) if value else 0.0
        return value / self.loss


class _Sums:
    """Sums over tokens, and the difference of the losses by piece."""

    def __init__(self) -> None:
        self._losses = np.zeros(2)
        self._agreed, self._divergence, self._largest = 0, 0.0, 0.0
        self._pieces: dict[int, list[float]] = {}  # difference and tokens
        self.tokens = 0

    def add(self, original: Logits, rounded: Logits, targets: NDArray[np.int64], pieces: NDArray[np.int64]) -> None:
        """Logits [rows, vocabulary] of both, the token that follows each row, and the piece that each row is of."""
        rows = np.arange(len(targets))
        log_p = original - log_normalisers(original)[:, None]
        log_q = rounded - log_normalisers(rounded)[:, None]
        losses = -log_p[rows, targets].astype(np.float64), -log_q[rows, targets].astype(np.float64)
        difference = losses[1] - losses[0]
        self._losses += [losses[0].sum(), losses[1].sum()]
        self._agreed += int((original.argmax(axis=1) == rounded.argmax(axis=1)).sum())
        self._divergence += float((np.exp(log_p) * (log_p - log_q)).sum(dtype=np.float64))
        self._largest = max(self._largest, float(np.abs(original - rounded).max()))
        for piece, value in zip(pieces.tolist(), difference.tolist(), strict=True):
            entry = self._pieces.setdefault(piece, [0.0, 0.0])
            entry[0] += value
            entry[1] += 1
        self.tokens += len(targets)

    def comparison(self, data: str) -> Comparison:
        """What was found."""
        count = self.tokens
        sums = np.array(list(self._pieces.values()))
        # The error of a ratio estimate: pieces differ in length.
        mean = sums[:, 0].sum() / count
        residuals = sums[:, 0] - mean * sums[:, 1]
        error = float(np.sqrt((residuals**2).sum() * len(sums) / max(len(sums) - 1, 1)) / count)
        loss, rounded = (self._losses / count).tolist()
        return Comparison(
            data, count, loss, rounded, 1.96 * error, self._agreed / count, self._divergence / count, self._largest
        )


def compare_language_models(
    original: LanguageModel, rounded: LanguageModel, ids: Sequence[int] | None, data: str, progress: Progress
) -> Comparison:
    """Both read ``ids`` in 64 streams, each from a zero state; with None, what the original itself writes.

    Of a text that is drawn from the original the expected increase is the divergence of the two: nothing is biased.
    """
    if ids is not None and len(ids) < 2 * _STREAMS:
        raise DataError(f"{data} has {len(ids)} tokens", f"give at least {2 * _STREAMS}, better {WANTED_TOKENS:,}")
    steppers = original.graph.stepper(_STREAMS), rounded.graph.stepper(_STREAMS)
    sums = _Sums()
    tokens, choose = _own_text(original) if ids is None else _streams(ids)
    steps = -(-WANTED_TOKENS // _STREAMS) if ids is None else min(len(ids), 4 * WANTED_TOKENS) // _STREAMS - 1
    for step in range(steps):
        logits = [stepper.step(tokens) for stepper in steppers]
        tokens = choose(step, logits[0])
        sums.add(logits[0], logits[1], tokens, np.arange(_STREAMS) + _STREAMS * (step // _PIECE))
        progress(step + 1, steps)
    return sums.comparison(data)


_Choose = Callable[[int, Logits], NDArray[np.int64]]


def _streams(ids: Sequence[int]) -> tuple[NDArray[np.int64], _Choose]:
    """The first tokens of the streams, and what follows in them."""
    table = np.array(ids[: len(ids) // _STREAMS * _STREAMS]).reshape(_STREAMS, -1)
    return table[:, 0], lambda step, _: table[:, step + 1]


def _own_text(model: LanguageModel) -> tuple[NDArray[np.int64], _Choose]:
    size = model.tokenizer.vocabulary_size

    def draw(step: int, logits: Logits) -> NDArray[np.int64]:
        noise = gumbel_noise(0, 0, step, 1, size * _STREAMS).reshape(_STREAMS, size)
        chosen: NDArray[np.int64] = (logits + noise).argmax(axis=1)
        return chosen

    return np.full(_STREAMS, model.manifest.special_ids.start or 0), draw


def step_seconds(original: Bundle, rounded: Bundle) -> tuple[float, float]:
    """Median seconds of one step of one stream, in turns."""
    steppers = [_one_stream(bundle) for bundle in (original, rounded)]
    seconds: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):
        for stepper, values in zip(steppers, seconds, strict=True):
            started = perf_counter()
            stepper.feed([0] * _STEPS)
            values.append((perf_counter() - started) / _STEPS)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _one_stream(bundle: Bundle) -> AnyStepper:
    if bundle.manifest.source is None:
        return StepGraph(bundle, device="cpu").stepper()
    graphs = EncoderDecoderGraphs(bundle, device="cpu")
    return graphs.stepper(graphs.encode([[bundle.manifest.source.end] * 12]))


def compare_translators(
    original: EncoderDecoderGraphs,
    rounded: EncoderDecoderGraphs,
    tokenizers: tuple[Tokenizer, Tokenizer],
    pairs: Pairs,
    data: str,
    progress: Progress,
) -> Comparison:
    """Both read the given targets of ``pairs`` in batches of about equal length; a sentence is a piece."""
    manifest = original.manifest
    assert manifest.source is not None
    start, end = manifest.special_ids.start, manifest.special_ids.end
    assert start is not None
    assert end is not None
    sources = [[*ids, manifest.source.end] for ids in tokenizers[0].encode_batch([source for source, _ in pairs])]
    targets = [[*ids, end] for ids in tokenizers[1].encode_batch([target for _, target in pairs])]
    # The first pairs, whatever their length, where there are very many.
    enough = int(np.searchsorted(np.cumsum([len(ids) for ids in targets]), 2 * WANTED_TOKENS)) + 1
    order = sorted(range(len(pairs))[:enough], key=lambda index: (len(targets[index]), len(sources[index])))
    sums = _Sums()
    for first in range(0, len(order), _SENTENCES):
        batch = order[first : first + _SENTENCES]
        rows = [targets[index] for index in batch]
        given = [sources[index] for index in batch]
        steppers = [graphs.stepper(graphs.encode(given)) for graphs in (original, rounded)]
        tokens = np.full(len(batch), start)
        for step in range(len(rows[-1])):
            logits = [stepper.step(tokens) for stepper in steppers]
            alive = [place for place, row in enumerate(rows) if step < len(row)]
            following = np.array([rows[place][step] for place in alive])
            sums.add(logits[0][alive], logits[1][alive], following, np.array(batch)[alive])
            tokens[alive] = following
        progress(first + len(batch), len(order))
    return sums.comparison(data)
