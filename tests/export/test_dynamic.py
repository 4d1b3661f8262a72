"""Dynamic evaluation: against a NumPy model written out, against static evaluation, and on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rnn_edge.errors import DataError, InvalidValueError
from rnn_edge.manifest import Cell
from rnn_edge_export.language_model import dynamic, scoring
from rnn_edge_export.language_model.dynamic import DynamicRule, dynamic_loss, gradient_statistics
from rnn_edge_export.language_model.modules import RecurrentLanguageModel
from rnn_edge_export.language_model.scoring import carried_loss
from rnn_edge_export.recipe_sections import LanguageModelSection
from tests.export.conftest import contents, load_best

if TYPE_CHECKING:
    from tests.export.conftest import Cli, CliError

Weights = list[NDArray[np.float64]]
_TOKENS = np.random.default_rng(3).integers(0, 4, 24).astype(np.uint16)
_TRAINING = np.random.default_rng(4).integers(0, 4, 30).astype(np.uint16)


def _model(cell: Cell = "rnn", **sizes: Any) -> RecurrentLanguageModel:
    torch.manual_seed(5)
    sizes = {"embedding": 2, "hidden": 3, "layers": 1} | sizes
    # With dropout, which must not act.
    model = RecurrentLanguageModel(LanguageModelSection(cell=cell, input_dropout=0.3, **sizes), 4).double().train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model


def _forward(weights: Weights, tokens: NDArray[Any], h: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The mean loss of ``tokens`` [T + 1, B] of a tanh RNN from state ``h`` [B, H], and the state after."""
    embedding, w_in, w_h, b_in, b_h, w_out, b_out = weights
    losses = []
    for now, following in pairwise(tokens):
        h = np.tanh(embedding[now] @ w_in.T + b_in + h @ w_h.T + b_h)
        logits = h @ w_out.T + b_out
        losses.append(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(now)), following])
    return float(np.mean(losses)), h


def _gradients(weights: Weights, loss: Callable[[Weights], float]) -> Weights:
    """By central differences."""
    gradients = []
    for index, weight in enumerate(weights):
        gradient = np.zeros_like(weight)
        for place in np.ndindex(*weight.shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = [item.copy() for item in weights]
                moved[index][place] += step
                sides.append(loss(moved))
            gradient[place] = (sides[0] - sides[1]) / 2e-6
        gradients.append(gradient)
    return gradients


def _weights(model: RecurrentLanguageModel) -> Weights:
    return [parameter.detach().numpy().copy() for parameter in model.parameters()]


def _by_hand(weights: Weights, rule: DynamicRule, roots: Weights | None) -> float:
    """The whole of dynamic evaluation over ``_TOKENS``."""
    first, h, total = [weight.copy() for weight in weights], np.zeros((1, 3)), 0.0
    for start in range(0, 23, rule.window):
        some = _TOKENS[start : start + rule.window + 1, None]
        state = h
        loss, h = _forward(weights, some, state)
        total += loss * (len(some) - 1)
        gradients = _gradients(weights, lambda moved, some=some, state=state: _forward(moved, some, state)[0])  # type: ignore[misc]
        for index, gradient in enumerate(gradients):
            scale, pull = np.array(rule.learning_rate), np.array(rule.decay)
            if roots is not None:
                average = sum(root.mean() for root in roots) / len(roots)
                scale = rule.learning_rate / (roots[index] + 2e-5)
                pull = rule.decay * np.minimum(roots[index] / average, 1 / rule.decay)
            weights[index] = weights[index] - scale * gradient + pull * (first[index] - weights[index])
    return total / 23


def test_sgd_is_what_the_equation_says() -> None:
    model, rule = _model(), DynamicRule(0.5, 0.1, 5)
    assert [tuple(weight.shape) for weight in _weights(model)] == [(4, 2), (3, 2), (3, 3), (3,), (3,), (4, 3), (4,)]
    expected = _by_hand(_weights(model), rule, None)
    assert dynamic_loss(model, _TOKENS, rule) == pytest.approx(expected, abs=1e-7)
    assert abs(expected - carried_loss(model, _TOKENS)) > 1e-3


@pytest.mark.parametrize("decay", [0.05, 0.8])
def test_rms_is_what_the_equation_says(decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic, "_STREAMS", 2)  # three windows of two streams of 14 steps
    model, rule = _model(), DynamicRule(0.02, decay, 4)
    weights = _weights(model)
    squares = [np.zeros_like(weight) for weight in weights]
    streams, h = np.stack([_TRAINING[:15], _TRAINING[14:29]], 1), np.zeros((2, 3))
    for start in (0, 4, 8):
        some, state = streams[start : start + 5], h
        for square, gradient in zip(
            squares,
            _gradients(weights, lambda moved, some=some, state=state: _forward(moved, some, state)[0]),  # type: ignore[misc]
            strict=True,
        ):
            square += gradient**2
        _, h = _forward(weights, some, state)
    roots = [np.sqrt(square / 3) for square in squares]
    statistics = gradient_statistics(model, _TRAINING, 4)
    for root, found in zip(roots, statistics, strict=True):
        assert np.allclose(found.numpy(), root, rtol=1e-5, atol=1e-9)
    relative = np.concatenate([root.ravel() for root in roots]) / (sum(root.mean() for root in roots) / len(roots))
    assert (relative.max() > 1 / decay) == (decay == 0.8)  # where a weight would be drawn past its first value
    expected = _by_hand(weights, rule, roots)
    assert dynamic_loss(model, _TOKENS, rule, statistics) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("window", [1000, 7, 1])
@pytest.mark.parametrize(("decay", "cell"), [(0.0, "lstm"), (0.3, "gru")])
def test_without_learning_it_is_static_evaluation(
    window: int, decay: float, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_WINDOW", window)
    model = _model(cell, layers=2, embedding=3, tie_weights=True)
    tokens = np.tile(_TOKENS, 60)[: 200 * window]
    assert dynamic_loss(model, tokens, DynamicRule(0.0, decay, window)) == carried_loss(model, tokens)
    statistics = gradient_statistics(model, tokens, 10)
    assert len(statistics) == len(list(model.parameters()))
    assert dynamic_loss(model, tokens, DynamicRule(0.0, decay, window), statistics) == carried_loss(model, tokens)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_text_that_repeats_itself_is_learnt(cell: Cell) -> None:
    model = _model(cell, hidden=16)
    tokens = np.tile(np.array([0, 3, 3, 1, 0, 0, 2], np.uint16), 60)
    static = carried_loss(model, tokens)
    assert dynamic_loss(model, tokens, DynamicRule(0.1, 0.001, 10)) < static - 0.3
    statistics = gradient_statistics(model, _TRAINING, 10)
    assert dynamic_loss(model, tokens, DynamicRule(0.002, 0.002, 10), statistics) < static - 0.3
    # Nothing is scored by weights that have seen it: one window learns for the next ones only.
    assert dynamic_loss(model, tokens, DynamicRule(0.1, 0.0, len(tokens))) == pytest.approx(static)


def test_the_model_is_afterwards_what_it_was() -> None:
    model = _model("lstm")
    model.embedding.weight.requires_grad_(False)
    before, wanted = _weights(model), [parameter.requires_grad for parameter in model.parameters()]

    def stop(done: int, total: int) -> None:
        if done > 10:
            raise KeyboardInterrupt

    gradient_statistics(model, _TRAINING, 5)
    dynamic_loss(model, _TOKENS, DynamicRule(0.5, 0.1, 5))
    with pytest.raises(KeyboardInterrupt):
        dynamic_loss(model, _TOKENS, DynamicRule(0.5, 0.1, 5), progress=stop)
    assert all(np.array_equal(*pair) for pair in zip(before, _weights(model), strict=True))
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_reaches_its_end() -> None:
    seen: list[tuple[int, int]] = []
    dynamic_loss(_model(), _TOKENS, DynamicRule(0.1, 0.1, 10), progress=lambda *at: seen.append(at))
    assert seen == [(10, 23), (20, 23), (23, 23)]
    seen.clear()
    gradient_statistics(_model(), np.tile(_TRAINING, 40), 5, lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)]  # 100 streams of 11 steps


@pytest.mark.parametrize(
    ("values", "flag"),
    [((-0.1, 0, 5), "lr"), ((float("nan"), 0, 5), "lr"), ((0.1, 1.5, 5), "decay"), ((0.1, 0, 0), "window")],
)
def test_values_out_of_range(values: tuple[float, float, int], flag: str) -> None:
    with pytest.raises(InvalidValueError, match=f"--dynamic-{flag} is"):
        DynamicRule(*values)


def test_too_little_training_text() -> None:
    with pytest.raises(DataError, match="has 5 tokens, a window 5"):
        gradient_statistics(_model(), _TRAINING[:5], 5)


# --- the command line


def _rows(cli: Cli, *arguments: object) -> list[dict[str, Any]]:
    answer = cli("evaluate", *arguments, "--json")
    assert (answer.code, answer.err) == (0, ""), answer.err
    return [json.loads(line) for line in answer.out.splitlines()]


def test_a_run_is_evaluated_as_its_bundle_is(finished: Path, cli: Cli, text: str) -> None:
    pytest.importorskip("onnxruntime")
    data = finished / "data.txt"
    data.write_text(text[:1000], encoding="utf-8")
    answer = cli("export", finished / "run", "-o", finished / "bundle")
    assert answer.code == 0, answer.err
    before = contents(finished / "run")
    bundle, run = (_rows(cli, finished / name, data) for name in ("bundle", "run"))
    for mine, theirs in zip(run, bundle, strict=True):
        assert [mine[name] for name in ("name", "unit", "method")] == [
            theirs[name] for name in ("name", "unit", "method")
        ]
        if mine["name"] != "speed":
            assert mine["value"] == pytest.approx(theirs["value"], rel=1e-4)
    assert contents(finished / "run") == before


def test_dynamic_evaluation_of_a_run(finished: Path, cli: Cli, text: str) -> None:
    data, training = finished / "data.txt", finished / "training.txt"
    data.write_text("jump! " * 150, encoding="utf-8")
    training.write_text(text[:3000], encoding="utf-8")
    arguments = (finished / "run", data, "--unknown", "skip")
    static = _rows(cli, *arguments)
    rows = _rows(cli, *arguments, "--dynamic")
    assert [row["name"] for row in rows[: len(static)]] == [row["name"] for row in static]
    loss = rows[len(static)]
    assert loss["method"] == "dynamic evaluation (SGD, η 0.1, λ 0.001, windows of 20)"
    assert loss["value"] < static[0]["value"]
    options = ("--dynamic-lr", 0.001, "--dynamic-decay", 0.5, "--dynamic-window", 7)
    loss = _rows(cli, *arguments, "--dynamic", "--dynamic-statistics", training, *options)[len(static)]
    assert loss["method"] == "dynamic evaluation (RMS, η 0.001, λ 0.5, windows of 7)"
    source = load_best(finished / "run")
    tokens = np.array(source.tokenizer.encode("jump! " * 150, unknown="skip"), np.uint16)
    seen = np.array(source.tokenizer.encode(text[:3000]), np.uint16)
    statistics = gradient_statistics(source.model, seen, 7)
    assert loss["value"] == dynamic_loss(source.model, tokens, DynamicRule(0.001, 0.5, 7), statistics)
    table = cli("evaluate", *arguments, "--dynamic").out
    assert "windows of 20" in table


def test_words_that_are_unknown_are_counted(finished: Path, cli: Cli, corpus_file: Path) -> None:
    flags = "--tokenizer word --hidden 8 --embedding 4 --layers 1 --batch-size 2 --sequence-length 16 --epochs 0.1"
    answer = cli("train", "lm", corpus_file, "-o", finished / "words", *flags.split(), "--device", "cpu")
    assert answer.code == 0, answer.err
    (finished / "data.txt").write_text("the lamp hums to the zebra.\n", encoding="utf-8")
    rows = _rows(cli, finished / "words", finished / "data.txt", "--dynamic")
    assert rows[0] == {
        "name": "unknown",
        "value": pytest.approx(100 / 8),
        "unit": "% of tokens",
        "method": "words that the vocabulary lacks",
    }
    assert rows[-1]["method"].endswith("windows of 5)")


def test_bad_input(finished: Path, cli: Cli, cli_error: CliError, tmp_path: Path) -> None:
    run, data = finished / "run", finished / "corpus.txt"
    bundle = Path(__file__).parent.parent / "data" / "lstm"
    cases: list[tuple[list[Any], str, str, int]] = [
        ([bundle, data, "--dynamic"], "only a run has gradients", "the run that it was exported from", 2),
        ([run, data, "--dynamic-lr", 0.1], "how to learn", "--dynamic", 2),
        ([run, data, "--dynamic", "--dynamic-lr", "nan"], "--dynamic-lr is nan", "from 0", 2),
        ([run, data, "--dynamic", "--dynamic-window", 0], "--dynamic-window is 0", "at least 1", 2),
        ([run, data, "--dynamic", "--dynamic-lr", 1e39], "the loss is nan", "lower --dynamic-lr", 2),
        ([run, data, "--dynamic", "--dynamic-statistics", finished / "no"], "cannot read", "check the path", 1),
        ([run, data, data], "DATA names 2 files", "one text", 2),
        ([run, data, "-o", finished / "out"], "--output is for translations", "leave it out", 2),
        ([run, data, "--threads", "auto"], "--threads auto is for bundles", "a number", 2),
        ([run, finished / "no"], "cannot read", "check the path", 1),
        ([finished / "empty", data], "is not a bundle", "", 1),
    ]
    (finished / "empty").mkdir()
    for arguments, error, hint, code in cases:
        answer = cli_error("evaluate", *arguments, code=code)
        assert error in answer[0]
        assert hint in answer[1]
    (finished / "odd.txt").write_text("the lamp ñ", encoding="utf-8")
    assert "'ñ'" in cli_error("evaluate", run, finished / "odd.txt")[0]
    (finished / "short.txt").write_text("a", encoding="utf-8")
    assert "has 1 tokens" in cli_error("evaluate", run, finished / "short.txt")[0]
    translator = Path(shutil.copytree(run, finished / "translator"))
    (translator / "recipe.toml").write_text('task = "translation"\n', encoding="utf-8")
    error, hint = cli_error("evaluate", translator, data)
    assert "is a translator" in error
    assert "rnn-edge export" in hint
    (run / "best.safetensors").unlink()
    assert "has no checkpoint" in cli_error("evaluate", run, data)[0]
