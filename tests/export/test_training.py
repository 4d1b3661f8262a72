"""Training: schedule, averaging, early stopping, samples, seeds, devices."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rnn_edge.errors import DeviceError
from rnn_edge_export.checkpoint import Best, load_checkpoint
from rnn_edge_export.hardware import resolve_device, resolve_precision
from rnn_edge_export.language_model.modules import RecurrentLanguageModel
from rnn_edge_export.language_model.scoring import carried_loss, cold_block_loss
from rnn_edge_export.language_model.task import write_sample
from rnn_edge_export.optimisation import learning_rate, make_optimizer
from rnn_edge_export.recipe_sections import LanguageModelSection, StreamSection
from rnn_edge_export.training import Trainer
from rnn_edge_export.training_events import FinishedEvent, ValidationEvent
from tests.export.conftest import load_best

if TYPE_CHECKING:
    from tests.export.conftest import MakeTrainer


def _lines(trainer: Trainer[Any, Any]) -> list[dict[str, Any]]:
    content = (trainer.directory / "metrics.jsonl").read_bytes().decode()
    assert content.endswith("\n")
    return [json.loads(line) for line in content[:-1].split("\n")]


def _losses(trainer: Trainer[Any, Any]) -> list[float]:
    return [line["loss"] for line in _lines(trainer) if line["kind"] == "train"]


def test_the_learning_rate_by_hand() -> None:
    plan = StreamSection(learning_rate=0.01, final_learning_rate=0.1, warmup_steps=4)
    rates = [learning_rate(step, 12, plan) for step in range(13)]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[4] == pytest.approx(0.01)
    assert rates[8] == pytest.approx(0.01 * (0.1 + 0.9 * 0.5))  # half way down the cosine
    assert rates[6] == pytest.approx(0.01 * (0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi / 4))))
    assert rates[12] == pytest.approx(0.001)
    assert sorted(rates[4:], reverse=True) == rates[4:]
    # A run shorter than its warm-up spends half of itself on it.
    assert learning_rate(4, 10, replace(plan, warmup_steps=100)) == pytest.approx(0.01)
    assert learning_rate(0, 1, replace(plan, warmup_steps=100)) == pytest.approx(0.01)


def test_decay_is_for_matrices_alone(make_trainer: MakeTrainer) -> None:
    model = make_trainer().state.model
    decayed, free = make_optimizer(model, StreamSection(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in free["params"]} == {1}
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_averaged_weights_by_hand(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(average_decay=0.5, epochs=0.5)
    initial = [parameter.detach().clone() for parameter in trainer.state.model.parameters()]
    steps = 12
    history = []
    for index, batch in enumerate(trainer._remaining_batches()):
        trainer._step(batch)
        history.append([parameter.detach().clone() for parameter in trainer.state.model.parameters()])
        if index + 1 == steps:
            break
    expected = initial
    for index, weights in enumerate(history):
        decay = min(0.5, (2 + index) / (11 + index))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)]
    for mean, other in zip(trainer.state.average.parameters(), expected, strict=True):
        assert torch.allclose(mean, other, atol=1e-6)
    assert min(0.5, 2 / 11) < 0.5 == min(0.5, (2 + 11) / (11 + 11))  # both branches were taken
    moved = zip(trainer.state.average.parameters(), trainer.state.model.parameters(), strict=True)
    assert any(not torch.equal(mean, parameter) for mean, parameter in moved)


def test_without_averaging_the_average_is_the_model(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(average_decay=0.0, epochs=0.3)
    list(trainer.run())
    for mean, parameter in zip(trainer.state.average.parameters(), trainer.state.model.parameters(), strict=True):
        assert torch.equal(mean, parameter)


def test_a_text_that_can_be_learned_is_learned(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        corpus="abcdefgh" * 150,
        epochs=8.0,
        learning_rate=0.02,
        model=LanguageModelSection(embedding=8, hidden=16, layers=1),
    )
    finished = list(trainer.run())[-1]
    assert isinstance(finished, FinishedEvent)
    losses = _losses(trainer)
    assert losses[0] > 1.5  # near log 8 = 2.08 at first
    assert losses[-1] < 0.4
    assert finished.scores[0].method == "state carried from a zero start"
    assert finished.scores[0].value < 0.1  # each letter but the first follows from the one before


def test_the_best_weights_are_kept_and_scored(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(epochs=4.0, learning_rate=3.0, warmup_steps=0, average_decay=0.0, clip_norm=9.0)
    *events, finished = trainer.run()
    validations = [event for event in events if isinstance(event, ValidationEvent)]
    losses = [event.loss for event in validations]
    assert [event.best for event in validations] == [
        loss < min([math.inf, *losses[:i]]) for i, loss in enumerate(losses)
    ]
    assert not all(event.best for event in validations)
    assert isinstance(finished, FinishedEvent)
    assert trainer.state.progress.best == min(losses)
    assert finished.best_step == trainer.state.progress.best_step == validations[losses.index(min(losses))].step
    _, best = load_checkpoint(trainer.directory / "best.safetensors", Best)
    assert best == Best(finished.best_step, min(losses), None, trainer.parameters)
    source, valid = load_best(trainer.directory), trainer.task.corpus.valid
    assert source.recipe == trainer.recipe
    assert [score.value for score in finished.scores] == [
        carried_loss(source.model, valid.tokens),
        cold_block_loss(source.model, valid.tokens),
    ]
    assert {score.split for score in finished.scores} == {"the last 10% of trainer-corpus.txt"}
    assert valid.source == "the last 10% of trainer-corpus.txt"
    assert trainer.state.progress.step == trainer.total_steps


def test_early_stopping(make_trainer: MakeTrainer) -> None:
    # A step far too long: the loss gets worse and worse, and never better.
    trainer = make_trainer(epochs=20.0, learning_rate=3.0, warmup_steps=0, average_decay=0.0, patience=2, clip_norm=9.0)
    *events, finished = trainer.run()
    assert isinstance(finished, FinishedEvent)
    assert finished.reason == "early-stop"
    validations = [event for event in events if isinstance(event, ValidationEvent)]
    assert [event.best for event in validations[-3:]] == [True, False, False]
    assert finished.step == validations[-1].step < trainer.total_steps


def test_validations_and_samples_do_not_disturb_training(make_trainer: MakeTrainer) -> None:
    model = LanguageModelSection(embedding=6, hidden=12, layers=2, input_dropout=0.2, weight_drop=0.2)
    often = make_trainer(model=model, validation_interval=3, reset_probability=0.2)
    assert sum(isinstance(event, ValidationEvent) for event in often.run()) == 14
    seldom = make_trainer(model=model, validation_interval=40, reset_probability=0.2)
    assert sum(isinstance(event, ValidationEvent) for event in seldom.run()) == 2
    assert _losses(often) == _losses(seldom)
    for mine, other in zip(often.state.model.parameters(), seldom.state.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_samples_repeat_by_their_seed_alone(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    before = torch.get_rng_state()
    one = write_sample(trainer.state.average, trainer.task.corpus, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert write_sample(trainer.state.average, trainer.task.corpus, seed=4) == one
    assert write_sample(trainer.state.average, trainer.task.corpus, seed=5) != one


def test_samples_of_words_never_hold_the_unknown_word(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(tokenizer="word", minimum_count=2)
    unknown = trainer.task.corpus.tokenizer.id_of("<unk>")
    assert unknown is not None
    bias = trainer.state.average.output.bias
    with torch.no_grad():
        bias.zero_()[unknown] = 100
    text = write_sample(trainer.state.average, trainer.task.corpus, seed=4)
    assert text
    assert "<unk>" not in text


def test_the_seed_decides_everything(make_trainer: MakeTrainer) -> None:
    runs = []
    for seed in (3, 3, 4):
        trainer = make_trainer(seed=seed)
        list(trainer.run())
        runs.append(_losses(trainer))
    one, same, other = runs
    assert one == same
    assert one != other


@pytest.mark.parametrize(("chance", "low", "high"), [(0.0, 1.0, 1.0), (0.5, 0.3, 0.7)])
def test_streams_are_reset_with_the_chance_asked_for(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, chance: float, low: float, high: float
) -> None:
    kept: list[bool] = []
    forward = RecurrentLanguageModel.features

    def watch(self: RecurrentLanguageModel, tokens: Any, state: Any) -> Any:
        if self.training:
            rows = [[bool((tensor[row] != 0).any()) for layer in state for tensor in layer] for row in range(4)]
            assert all(len(set(row)) == 1 for row in rows)  # a stream forgets all of its state or nothing
            kept.extend(row[0] for row in rows)
        return forward(self, tokens, state)

    monkeypatch.setattr(RecurrentLanguageModel, "features", watch)
    list(make_trainer(reset_probability=chance, average_decay=0.0).run())
    carried = kept[4:]  # the first window starts from zero anyway
    assert len(carried) == 41 * 4
    assert low <= sum(carried) / len(carried) <= high


def test_every_epoch_starts_elsewhere_from_a_zero_state(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[torch.Tensor] = []
    zero: list[bool] = []
    forward = RecurrentLanguageModel.features

    def watch(self: RecurrentLanguageModel, tokens: Any, state: Any) -> Any:
        if self.training:
            windows.append(tokens)
            zero.append(not any(tensor.any() for layer in state for tensor in layer))
        return forward(self, tokens, state)

    monkeypatch.setattr(RecurrentLanguageModel, "features", watch)
    trainer = make_trainer(epochs=2.0)
    list(trainer.run())
    assert trainer.state.progress.step == 84
    assert zero == ([True] + [False] * 41) * 2
    assert not torch.equal(windows[0], windows[42])


def test_cpu_device_and_precision() -> None:
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    assert resolve_precision("fp32", cpu) == "fp32"
    assert resolve_precision("bf16", cpu) == "bf16"
    assert resolve_precision("auto", cpu) == ("bf16" if torch.cpu.get_capabilities().get("amx_bf16") else "fp32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_that_is_absent() -> None:
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(DeviceError, match="--device cuda"):
        resolve_device("cuda")


def test_bf16_keeps_weights_in_fp32(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(precision="bf16", epochs=0.3)
    list(trainer.run())
    exact = make_trainer(precision="fp32", epochs=0.3)
    list(exact.run())
    assert {parameter.dtype for parameter in trainer.state.model.parameters()} == {torch.float32}
    assert _losses(trainer) == pytest.approx(_losses(exact), abs=0.05)
    assert _losses(trainer) != _losses(exact)
