"""What keeps networks from learning by heart, and networks of other shapes: in training, and exported."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_edge.errors import InvalidValueError
from rnn_edge.manifest import Cell, Lowering
from rnn_edge.onnx_file import summarise
from rnn_edge.stepper import StepGraph
from rnn_edge.tokenizer import character_tokenizer
from rnn_edge.verification import verify
from rnn_edge_export import layers
from rnn_edge_export.checkpoint import Progress, load_checkpoint
from rnn_edge_export.language_model.data import random_lengths, windows
from rnn_edge_export.language_model.export import LanguageModelSource
from rnn_edge_export.language_model.modules import RecurrentLanguageModel
from rnn_edge_export.language_model.task import LanguageModelTask
from rnn_edge_export.layers import NormalisedLayer, dropped_weight, run_layer
from rnn_edge_export.onnx_export import export_bundle
from rnn_edge_export.optimisation import average_weight, learning_rate, stalls
from rnn_edge_export.quantisation.quantise import write_unmeasured
from rnn_edge_export.recipe import LanguageModelRecipe
from rnn_edge_export.recipe_sections import DataRecipe, LanguageModelSection, StreamSection
from rnn_edge_export.task import BatchLoss

if TYPE_CHECKING:
    from tests.export.conftest import MakeTrainer

CELLS: tuple[Cell, ...] = ("lstm", "gru", "rnn")
_ALPHABET = "\n abcdefghij"
_SHAPES: dict[str, dict[str, Any]] = {
    "projection": {"tie_weights": True, "embedding": 5},
    "last": {"last_hidden": 5},
    "last, tied": {"last_hidden": 6, "embedding": 6, "tie_weights": True},
    "residual": {"residual": True},
    "residual, narrow end": {"residual": True, "last_hidden": 5, "layers": 4},
    "normalised": {"layer_norm": True},
    "normalised, residual, tied": {"layer_norm": True, "residual": True, "tie_weights": True, "embedding": 5},
}


def _source(alphabet: str = _ALPHABET, **shape: Any) -> LanguageModelSource:
    """All weights and biases random: zeros would hide mistakes."""
    section = LanguageModelSection(**{"embedding": 7, "hidden": 8, "layers": 3} | shape)
    recipe = LanguageModelRecipe(data=DataRecipe(title="letters", sha256="0" * 64), model=section)
    tokenizer = character_tokenizer(alphabet)
    model = RecurrentLanguageModel(section, tokenizer.vocabulary_size).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        parameter.normal_(std=0.5, generator=generator)
    return LanguageModelSource(model, tokenizer, recipe)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", _SHAPES)
def test_every_shape_exports_and_verifies(tmp_path: Path, cell: Cell, shape: str) -> None:
    source = _source(cell=cell, **_SHAPES[shape])
    lowerings: Iterable[Lowering] = ("cell",) if "normalised" in shape else ("operator", "cell")
    for lowering in lowerings:
        bundle, checks = export_bundle(source, tmp_path / lowering, name="shaped", lowering=lowering)
        assert len(checks) == 10
        assert all(finding.passed for finding in verify(bundle, device="cpu"))
        assert [pair.width for pair in bundle.manifest.state] == source.model.state_widths()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", ["projection", "residual", "normalised", "normalised, residual, tied"])
def test_eight_bits_of_every_shape(tmp_path: Path, cell: Cell, shape: str) -> None:
    letters = "".join(map(chr, range(32, 96)))
    source = _source(letters, **_SHAPES[shape] | {"cell": cell, "hidden": 80, "embedding": 72})
    for parameter in source.model.parameters():
        parameter.mul_(0.25)
    bundle, _ = export_bundle(source, tmp_path / "fp32", name="shaped", lowering="cell")
    rounded = write_unmeasured(bundle, tmp_path / "int8", "int8")
    operators = summarise(rounded.graph("step"), "step").operators
    assert "MatMulInteger" in operators
    # What a projection gives has no bound worth the name, so the output layer behind one stays as it is.
    assert ("MatMul" in operators) == (source.model.projection is not None)
    steppers = [StepGraph(item, device="cpu").stepper() for item in (bundle, rounded)]
    tokens = np.random.default_rng(0).integers(0, len(letters), 60).tolist()
    logits = [np.stack([stepper.step(token)[0].copy() for token in tokens]) for stepper in steppers]
    assert np.abs(logits[0] - logits[1]).max() < 0.1 * np.abs(logits[0]).max()


def test_no_operator_normalises(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="no layer normalisation inside") as caught:
        export_bundle(_source(layer_norm=True), tmp_path / "b", name="n", lowering="operator")
    assert "--lowering cell" in caught.value.hint


def test_nothing_to_add() -> None:
    shapes: list[dict[str, Any]] = [{"layers": 1}, {"layers": 2, "last_hidden": 5}]
    for shape in shapes:
        with pytest.raises(InvalidValueError, match="--residual has nothing to add"):
            LanguageModelRecipe(model=LanguageModelSection(residual=True, **shape)).check()


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_normalised_cells_by_hand(cell: Cell) -> None:
    """The equations of the docstring, gate by gate, in float64."""
    torch.manual_seed(0)
    layer = NormalisedLayer(cell, 3, 4).double()
    for parameter in layer.parameters():
        parameter.normal_()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    state = tuple(torch.randn(2, 4, dtype=torch.float64) for _ in layers.STATE_KINDS[cell])

    def norm(value: Tensor, module: nn.LayerNorm | None) -> Tensor:
        assert module is not None
        centred = value - value.mean(1, keepdim=True)
        scaled = centred / (value.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return scaled * module.weight + (0 if module.bias is None else module.bias)

    h, c = state[0], state[-1]
    outputs = []
    for step in x:
        a, u = step @ layer.weight_ih_l0.t(), h @ layer.weight_hh_l0.t()
        if cell == "rnn":
            h = torch.tanh(norm(a + u, layer.input_norm))
        elif cell == "gru":
            (ar, az, an), (ur, uz, un) = norm(a, layer.input_norm).chunk(3, 1), norm(u, layer.hidden_norm).chunk(3, 1)
            n = torch.tanh(an + torch.sigmoid(ar + ur) * un)
            h = n + torch.sigmoid(az + uz) * (h - n)
        else:
            i, f, g, o = (norm(a, layer.input_norm) + norm(u, layer.hidden_norm)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(norm(c, layer.cell_norm))
        outputs.append(h)
    y, new = run_layer(layer, x, state)
    assert torch.allclose(y, torch.stack(outputs), atol=1e-12)
    assert torch.equal(new[0], y[-1])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("normalised", [False, True])
def test_dropped_weights_reach_the_kernel_and_gradients_the_raw_ones(cell: Cell, normalised: bool) -> None:
    torch.manual_seed(0)
    layer = NormalisedLayer(cell, 3, 6) if normalised else layers.CELLS[cell](3, 6)
    layers.initialise(layer, cell)
    layer.train()
    x = torch.randn(7, 2, 3)
    torch.manual_seed(5)
    y, _ = run_layer(layer, x, None, dropped_weight(layer, 0.5))
    torch.manual_seed(5)
    raw = layer.weight_hh_l0
    assert isinstance(raw, Tensor)
    mask = F.dropout(torch.ones_like(raw), 0.5)
    assert 0.2 < (mask == 0).float().mean() < 0.8
    # The same layer with the dropped matrix in the place of its own, run one step at a time.
    with torch.no_grad():
        kept = raw.clone()
        raw.copy_(raw * mask)
        layer.eval()
        state, steps = None, []
        for step in x:
            out, state = run_layer(
                layer, step[None], state, dropped_weight(layer, 0.5)
            )  # in evaluation nothing is dropped
            steps.append(out[0])
        raw.copy_(kept)
    assert torch.allclose(y, torch.stack(steps), atol=1e-6)
    y.square().sum().backward()
    assert raw.grad is not None
    assert torch.equal(raw.grad == 0, mask == 0)


def test_embedding_dropout_takes_tokens_out_whole(make_trainer: MakeTrainer) -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(50, 4)
    tokens = torch.randint(50, (30, 3))
    x = embedding(tokens)
    found = layers.drop_rows(x, tokens, embedding, 0.4)
    factor = found / x
    gone = {int(token) for token in tokens[(factor == 0).all(2)]}
    kept = {int(token) for token in tokens[(factor - 1 / 0.6).abs().amax(2) < 1e-5]}
    assert gone | kept == set(tokens.flatten().tolist())
    assert not gone & kept  # everywhere or nowhere
    assert gone
    assert torch.equal(layers.drop_rows(x, tokens, embedding.eval(), 0.4), x)


def test_penalties_are_differentiated_and_not_reported(make_trainer: MakeTrainer) -> None:
    plain = make_trainer()
    batch = next(plain.task.batches(0, 0))
    recipe = plain.recipe
    assert isinstance(recipe, LanguageModelRecipe)
    model, device = plain.state.model.eval(), torch.device("cpu")
    base = plain.task.loss(model, batch, device)
    assert base.objective is base.loss
    features = model.features(batch[0], model.zero_state(batch[0].shape[1]))
    expected = {
        "activation_regularisation": features.dropped.square().mean(),
        "temporal_regularisation": (features.raw[1:] - features.raw[:-1]).square().mean(),
    }
    for name, penalty in expected.items():
        changes: dict[str, Any] = {name: 3.0}
        training = replace(recipe.training, **changes)
        task = LanguageModelTask(replace(recipe, training=training), plain.task.corpus)
        found = task.loss(model, batch, device)
        assert found.loss.item() == pytest.approx(base.loss.item(), abs=1e-6)
        assert (found.objective - found.loss).item() == pytest.approx(3 * penalty.item(), rel=1e-4)
    task = LanguageModelTask(replace(recipe, training=replace(recipe.training, label_smoothing=0.2)), plain.task.corpus)
    found = task.loss(model, batch, device)
    logits = model.logits(features.dropped)
    uniform = -logits.log_softmax(2).mean()
    assert found.loss.item() == pytest.approx(base.loss.item(), abs=1e-6)
    assert found.objective.item() == pytest.approx((0.8 * base.loss + 0.2 * uniform).item(), abs=1e-5)


def test_random_lengths_fill_the_streams() -> None:
    lengths = random_lengths(20_000, 70, np.random.default_rng(0))
    assert 20_000 - 5 < sum(lengths) <= 20_000
    assert min(lengths) >= 5
    long = [length for length in lengths[:-1] if length > 52]
    assert abs(sum(long) / len(long) - 70) < 1
    assert 0.01 < 1 - len(long) / len(lengths) < 0.12
    tokens = np.arange(101, dtype=np.uint16)
    found = list(windows(tokens, 2, [10, 7, 20, 13]))
    assert [len(inputs) for inputs, _ in found] == [10, 7, 20, 13]
    assert torch.cat([inputs for inputs, _ in found])[:, 1].tolist() == list(range(50, 100))
    (last,) = windows(tokens, 2, [10, 7, 20, 13], done=3)
    assert torch.equal(last[0], found[3][0])


@pytest.mark.parametrize(
    "changes",
    [
        {"random_lengths": True, "optimizer": "sgd", "learning_rate": 5.0, "annealing": 2.0, "accumulation": 3},
        {"optimizer": "nt-asgd", "learning_rate": 8.0, "nonmonotone_interval": 1, "activation_regularisation": 1.0},
        {"accumulation": 2, "label_smoothing": 0.1},
    ],
    ids=str,
)
def test_a_resumed_run_is_the_same(make_trainer: MakeTrainer, changes: dict[str, Any]) -> None:
    shape = {"model": LanguageModelSection(embedding=6, hidden=12, layers=2, embedding_dropout=0.1, weight_drop=0.2)}
    settings = {"epochs": 3.0, "validation_interval": 7, **changes, **shape}
    whole = make_trainer("whole", **settings)
    list(whole.run())
    first = make_trainer("parts", **settings)
    for event in first.run():
        if event.step >= first.total_steps // 2:
            first.interrupted = True
    second = make_trainer("parts", resume=True, **settings)
    assert 0 < second.state.progress.step < second.total_steps
    list(second.run())
    ends = [load_checkpoint(trainer.directory / "last.safetensors", Progress) for trainer in (whole, second)]
    tensors = [found for found, _ in ends]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    one, other = (replace(progress, metrics_bytes=0) for _, progress in ends)
    assert one == other


def test_accumulation_is_a_larger_batch(make_trainer: MakeTrainer) -> None:
    """Two windows of half the length, without dropout, move the weights as their mean does."""
    still = LanguageModelSection(embedding=6, hidden=12, layers=1, layer_dropout=0.0, output_dropout=0.0)
    settings = {"model": still, "warmup_steps": 0, "optimizer": "sgd", "learning_rate": 1.0, "clip_norm": 1e6}
    one = make_trainer(**settings, accumulation=2)
    before = {name: parameter.clone() for name, parameter in one.state.model.named_parameters()}
    batches = next(one._remaining_batches())
    assert len(batches) == 2
    other = make_trainer(**settings)
    total = sum(other.task.loss(other.state.model.train(), batch, other.device).objective for batch in batches) / 2
    assert isinstance(total, Tensor)
    total.backward()
    one._step(batches)
    for name, parameter in one.state.model.named_parameters():
        gradient = other.state.model.get_parameter(name).grad
        assert gradient is not None
        decay = 0.01 * before[name] if parameter.dim() > 1 else 0.0
        assert torch.allclose(parameter, before[name] - gradient - decay, atol=1e-6)
    assert one.total_steps == math.ceil(other.total_steps / 2)


def test_rates_and_averages() -> None:
    sgd = StreamSection(optimizer="sgd", learning_rate=20.0)
    assert [learning_rate(step, 100, sgd, count) for step, count in ((0, 0), (50, 1), (99, 2))] == [20.0, 5.0, 1.25]
    asgd = replace(sgd, optimizer="nt-asgd")
    assert learning_rate(99, 100, asgd, 3) == 20.0
    assert average_weight(50, None, asgd) == 1.0
    values, mean = [3.0, 5.0, 10.0, 2.0], 0.0
    for step, value in enumerate(values, 41):
        mean += (value - mean) * average_weight(step, 41, asgd)
    assert mean == pytest.approx(sum(values) / 4)
    assert average_weight(50, None, replace(sgd, average_decay=0.0)) == 1.0
    assert [stalls(losses, 2) for losses in ([3, 2], [3, 2, 2.5], [3, 2, 1, 2.5], [3, 2, 1, 4])] == [
        *(False, False, False, True)
    ]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_half_precision_does_not_hold_is_left_out(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    trainer = make_trainer(optimizer="sgd", learning_rate=1.0, weight_decay=0.0, clip_norm=0.25)
    batch = next(trainer.task.batches(0, 0))
    before = [parameter.detach().clone() for parameter in trainer.state.model.parameters()]
    loss = trainer.task.loss
    monkeypatch.setattr(trainer, "_scale", 1024.0)

    def overflowing(*arguments: Any) -> BatchLoss:
        found = loss(*arguments)
        return replace(found, objective=found.objective * value)

    monkeypatch.setattr(trainer.task, "loss", overflowing)
    trainer._step([batch])
    for old, new in zip(before, trainer.state.model.parameters(), strict=True):
        assert torch.equal(old, new)
    monkeypatch.undo()
    trainer._step([batch])
    assert not torch.equal(before[0], next(iter(trainer.state.model.parameters())))


def test_a_decay_that_leaves_nothing_is_refused() -> None:
    for kind in ("sgd", "nt-asgd"):
        with pytest.raises(InvalidValueError, match="takes 20% of all weights in each step"):
            StreamSection(optimizer=kind, learning_rate=20.0).check()
        StreamSection(optimizer=kind, learning_rate=20.0, weight_decay=1.2e-6).check()


def test_sgd_anneals_and_nt_asgd_triggers(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(optimizer="sgd", learning_rate=4.0)
    for loss, best in ((3.0, True), (3.1, False), (3.2, False)):
        trainer._note_validation(loss, best=best)
    assert trainer.state.progress.annealings == 2
    trainer = make_trainer(optimizer="nt-asgd", nonmonotone_interval=2)
    for step, loss in enumerate((3.0, 2.0, 2.5, 1.9, 2.6, 1.0), 1):
        trainer.state.progress = replace(trainer.state.progress, step=step)
        trainer._note_validation(loss, best=False)
    assert trainer.state.progress.averaging_from == 5  # 2.6 is worse than 2.0, the best before the last two
    assert trainer.state.progress.losses == (3.0, 2.0, 2.5, 1.9, 2.6)
