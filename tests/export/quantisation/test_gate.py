"""What rounding costs: the figures by hand, and on the tiny bundles."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from rnn_edge import LanguageModel
from rnn_edge.bundle import Bundle, read_bundle
from rnn_edge.encoder_decoder import EncoderDecoderGraphs
from rnn_edge.errors import DataError
from rnn_edge.text_files import read_pairs
from rnn_edge.tokenizer import load_tokenizer
from rnn_edge_export.quantisation import gate
from rnn_edge_export.quantisation.gate import (
    Comparison,
    compare_language_models,
    compare_translators,
    step_seconds,
)
from tests.device.tiny import DATA, LSTM, TRANSLATOR, WORDS

PAIRS = read_pairs([DATA / "pairs.tsv"])[0]


def _silent(_done: int, _all: int) -> None:
    pass


class _Fixed:
    """A language model of two tokens that gives every stream logits of its own, at every step."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self.graph = self
        self._logits = logits
        self.tokens: list[int] = []

    def stepper(self, batch: int) -> _Fixed:
        assert batch == len(self._logits)
        return self

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        self.tokens.append(int(tokens[0]))
        return self._logits


def _with_loss(loss: float) -> list[float]:
    """Logits by which token 0 has this loss."""
    chance = math.exp(-loss)
    return [math.log(chance / (1 - chance)), 0]


def _compare(losses: list[float], steps: int) -> Comparison:
    """A model with loss ln 2 for every token, and one with the given loss in each of 64 streams."""
    original = _Fixed(np.zeros((64, 2), np.float32))
    rounded = _Fixed(np.array([_with_loss(loss) for loss in losses], np.float32))
    models = cast("list[LanguageModel]", [original, rounded])
    return compare_language_models(models[0], models[1], [0] * 64 * (steps + 1), "zeros", _silent)


def test_figures_by_hand() -> None:
    """Half of the streams lose 0.1 nats a token, the others gain as much: 64 pieces of ten tokens."""
    found = _compare([math.log(2) + 0.1, math.log(2) - 0.1] * 32, steps=10)
    assert (found.data, found.tokens) == ("zeros", 640)
    assert found.loss == pytest.approx(math.log(2), rel=1e-6)
    assert found.rounded_loss == pytest.approx(math.log(2), rel=1e-6)
    assert found.increase == pytest.approx(0, abs=1e-6)
    # Standard deviation of the pieces' means is 0.1 · √(64 / 63), of their mean an eighth of it.
    half = 1.96 * 0.1 * math.sqrt(64 / 63) / 8
    assert found.half_interval == pytest.approx(half, rel=1e-5)
    assert found.upper_increase == pytest.approx(half / math.log(2), rel=1e-4)
    assert found.top1_agreement == 0.5  # above ln 2 the other token is the better one
    chances = [math.exp(-math.log(2) - change) for change in (0.1, -0.1)]
    divergence = sum(-0.5 * math.log(4 * chance * (1 - chance)) for chance in chances) / 2
    assert found.divergence == pytest.approx(divergence, rel=1e-4)
    assert found.largest_difference == pytest.approx(max(abs(math.log(p / (1 - p))) for p in chances), rel=1e-5)


def test_pieces_of_different_lengths() -> None:
    """60 steps make pieces of 50 and of 10 tokens; each weighs as it is long."""
    losses = [math.log(2) + 0.3] * 16 + [math.log(2)] * 48
    found = _compare(losses, steps=60)
    mean = 0.3 * 16 / 64
    assert found.tokens == 3840
    assert found.rounded_loss - found.loss == pytest.approx(mean, rel=1e-4)
    residuals = [length * (0.3 * (stream < 16) - mean) for length in (50, 10) for stream in range(64)]
    error = math.sqrt(sum(value**2 for value in residuals) * 128 / 127) / 3840
    assert found.half_interval == pytest.approx(1.96 * error, rel=1e-4)


def test_an_even_loss_has_no_interval() -> None:
    found = _compare([math.log(2) + 0.05] * 64, steps=10)
    assert found.increase == pytest.approx(0.05 / math.log(2), rel=1e-4)
    assert found.half_interval == pytest.approx(0, abs=1e-6)


def test_streams_read_the_text_in_64_stretches() -> None:
    original = _Fixed(np.zeros((64, 2), np.float32))
    model = cast(LanguageModel, original)
    ids = [int(index < 130) for index in range(64 * 200 + 3)]
    found = compare_language_models(model, model, ids, "text", _silent)
    assert found.tokens == 64 * 199  # the last token of a stretch is only predicted
    assert original.tokens[::2] == [1] * 130 + [0] * 69  # the first stretch


@pytest.mark.parametrize("source", [LSTM, TRANSLATOR, WORDS], ids=["lstm", "translator", "words"])
def test_a_bundle_beside_itself(source: Any) -> None:
    bundle = read_bundle(source)
    found = _compare_bundles(bundle, bundle)
    assert found.increase == found.half_interval == found.divergence == found.largest_difference == 0
    assert found.top1_agreement == 1
    assert found.loss == found.rounded_loss > 0


def _compare_bundles(original: Bundle, rounded: Bundle) -> Comparison:
    if original.manifest.source is None:
        models = [LanguageModel.load(bundle.path, device="cpu") for bundle in (original, rounded)]
        ids = models[0].tokenizer.encode((DATA / "corpus.txt").read_text(encoding="utf-8"), unknown="skip")
        return compare_language_models(models[0], models[1], ids, "corpus", _silent)
    graphs = [EncoderDecoderGraphs(bundle, device="cpu") for bundle in (original, rounded)]
    both = load_tokenizer(original, original.manifest.source.tokenizer), load_tokenizer(original)
    return compare_translators(graphs[0], graphs[1], both, PAIRS[:100], "pairs", _silent)


def test_the_loss_of_a_translator_is_that_of_its_targets() -> None:
    """Sentence by sentence, as teacher forcing is defined."""
    bundle = read_bundle(WORDS)
    found = _compare_bundles(bundle, bundle)
    assert bundle.manifest.source is not None
    graphs = EncoderDecoderGraphs(bundle, device="cpu")
    source, target = load_tokenizer(bundle, bundle.manifest.source.tokenizer), load_tokenizer(bundle)
    ids = bundle.manifest.special_ids
    assert ids.start is not None
    assert ids.end is not None
    total, count = 0.0, 0
    for text, translation in PAIRS[:100]:
        stepper = graphs.stepper(graphs.encode([[*source.encode(text), bundle.manifest.source.end]]))
        tokens = [ids.start, *target.encode(translation), ids.end]
        for token, following in itertools.pairwise(tokens):
            logits = stepper.step(token)[0].astype(np.float64)
            total += math.log(np.exp(logits).sum()) - logits[following]
            count += 1
    assert found.tokens == count
    assert found.loss == pytest.approx(total / count, rel=1e-5)


def test_of_very_many_pairs_the_first_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the shortest."""
    monkeypatch.setattr(gate, "WANTED_TOKENS", 40)
    bundle = read_bundle(WORDS)
    target = load_tokenizer(bundle)
    lengths = [len(target.encode(translation)) + 1 for _, translation in PAIRS]
    enough = next(count for count in range(len(PAIRS)) if sum(lengths[:count]) >= 80)
    assert sum(lengths[:enough]) != sum(sorted(lengths)[:enough])
    assert _compare_bundles(bundle, bundle).tokens == sum(lengths[:enough])


def test_its_own_text_is_always_the_same() -> None:
    """At temperature 1, where loss and entropy agree."""
    model = LanguageModel.load(LSTM, device="cpu")
    found = [compare_language_models(model, model, None, "own", _silent) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].tokens == 100_032
    assert 1 < found[0].loss < math.log(model.tokenizer.vocabulary_size)


def test_its_own_text_differs_from_stream_to_stream() -> None:
    seen: list[NDArray[np.int64]] = []

    class Watch(_Fixed):
        def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
            seen.append(tokens.copy())
            return super().step(tokens)

    model = Watch(np.zeros((64, 7), np.float32))
    namespace = SimpleNamespace(
        graph=model,
        tokenizer=SimpleNamespace(vocabulary_size=7),
        manifest=SimpleNamespace(special_ids=SimpleNamespace(start=3)),
    )
    model_like = cast(LanguageModel, namespace)
    found = compare_language_models(model_like, model_like, None, "own", _silent)
    assert found.loss == pytest.approx(math.log(7), rel=1e-5)
    assert seen[0].tolist() == [3] * 64
    counts = np.bincount(np.concatenate(seen[2:]), minlength=7)
    assert counts.min() > 0.9 * counts.mean()  # equal chances
    assert len({tuple(tokens) for tokens in seen[2::2]}) == len(seen[2::2])
    columns = {tuple(column) for column in np.array(seen[2:200:2]).T}
    assert len(columns) == 64


def test_too_little_text() -> None:
    model = LanguageModel.load(LSTM, device="cpu")
    with pytest.raises(DataError, match=r"short\.txt has 127 tokens") as caught:
        compare_language_models(model, model, [1] * 127, "short.txt", _silent)
    assert "128" in caught.value.hint
    assert compare_language_models(model, model, [1] * 128, "enough", _silent).tokens == 64


def test_metrics() -> None:
    found = Comparison("a text", 100_032, 2.0, 2.002, 0.0005, 0.99, 0.0012, 0.3)
    increase, agreement, divergence, difference = found.metrics()
    assert (increase.name, increase.unit) == ("loss increase", "%")
    assert increase.value == pytest.approx(0.1)
    assert increase.method == "against the original, 100,032 tokens, 95 % interval ± 0.0250 %"
    assert (agreement.value, agreement.unit, agreement.data, agreement.split) == (99, "%", "a text", "as given")
    assert (divergence.value, difference.value) == (0.0012, 0.3)


def test_progress() -> None:
    seen: list[tuple[int, int]] = []
    model = cast(LanguageModel, _Fixed(np.zeros((64, 2), np.float32)))
    compare_language_models(model, model, [0] * 64 * 121, "text", lambda *done: seen.append(done))
    assert seen == [(step, 120) for step in range(1, 121)]


@pytest.mark.parametrize("source", [LSTM, TRANSLATOR], ids=["lstm", "translator"])
def test_the_time_of_a_step(source: Any) -> None:
    bundle = read_bundle(source)
    assert all(1e-7 < seconds < 0.5 for seconds in step_seconds(bundle, bundle))
