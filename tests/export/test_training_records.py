"""What training records: metrics, scores, what is kept when the loss explodes, and runs already at their end."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rnn_edge.errors import RunError
from rnn_edge.schema import decode
from rnn_edge_export.checkpoint import Best, Progress, load_checkpoint
from rnn_edge_export.optimisation import learning_rate
from rnn_edge_export.run import load_run
from rnn_edge_export.training import Trainer
from rnn_edge_export.training_events import FinishedEvent, StepEvent, ValidationEvent
from rnn_edge_export.training_state import TrainingState
from tests.export.conftest import load_best

if TYPE_CHECKING:
    from tests.export.conftest import MakeTrainer


def _lines(trainer: Trainer[Any, Any]) -> list[dict[str, Any]]:
    content = (trainer.directory / "metrics.jsonl").read_bytes().decode()
    assert content.endswith("\n")
    return [json.loads(line) for line in content[:-1].split("\n")]


def _losses(trainer: Trainer[Any, Any]) -> list[float]:
    return [line["loss"] for line in _lines(trainer) if line["kind"] == "train"]


def test_events_and_metrics_agree(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(epochs=1.0, validation_interval=15)
    assert trainer.task.steps_per_epoch == 42
    assert trainer.total_steps == 42
    events = list(trainer.run())
    lines = _lines(trainer)
    names = {StepEvent: "train", ValidationEvent: "validation", FinishedEvent: "finished"}
    assert [line.pop("kind") for line in lines] == [names[type(event)] for event in events]
    for line in lines:  # besides the events, for whoever reads the file
        if "loss" in line:
            assert line.pop("bits") == pytest.approx(line["loss"] / math.log(2))
            assert line.pop("perplexity") == pytest.approx(math.exp(line["loss"]))
    assert [decode(type(event), line, strict=True) for event, line in zip(events, lines, strict=True)] == events
    steps = [event for event in events if isinstance(event, StepEvent)]
    assert [event.step for event in steps] == [10, 20, 30, 40, 42]
    assert steps[0].epoch == pytest.approx(10 / 42)
    assert steps[0].learning_rate == learning_rate(9, 42, trainer.recipe.training)
    assert all(event.tokens_per_second > 0 <= event.seconds_left and event.gradient_norm > 0 for event in steps)
    validations = [event for event in events if isinstance(event, ValidationEvent)]
    assert [event.step for event in validations] == [15, 30, 42]
    for event in validations:
        assert len(event.sample) == 200
        assert set(event.sample) <= set(
            trainer.task.corpus.tokenizer.decode(range(trainer.task.corpus.tokenizer.vocabulary_size))
        )


def test_the_logged_loss_is_the_mean_of_its_steps(make_trainer: MakeTrainer) -> None:
    by_hand = make_trainer()
    losses = [by_hand._step(batch)[0].item() for batch in by_hand._remaining_batches()]
    logged = make_trainer()
    list(logged.run())
    expected = [sum(losses[start : start + 10]) / len(losses[start : start + 10]) for start in range(0, 42, 10)]
    assert _losses(logged) == pytest.approx(expected, abs=1e-6)


def test_resuming_a_run_that_stopped_early_adds_nothing(make_trainer: MakeTrainer) -> None:
    # As after a kill between the last checkpoint and the end.
    changes = {"epochs": 20.0, "learning_rate": 3.0, "warmup_steps": 0, "average_decay": 0.0, "patience": 2}
    first = make_trainer("early", **changes)
    list(first.run())
    before = _lines(first)
    assert before[-1]["reason"] == "early-stop"
    again = make_trainer("early", resume=True, **changes)
    list(again.run())
    assert _lines(again) == before


def test_resuming_a_finished_run_adds_nothing(make_trainer: MakeTrainer) -> None:
    first = make_trainer("whole")
    list(first.run())
    before = _lines(first)
    again = make_trainer("whole", resume=True)
    list(again.run())
    assert _lines(again) == before
    assert [line["kind"] for line in before].count("finished") == 1


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("broken", validation_interval=20)
    update = TrainingState.update_average

    def poison(self: TrainingState[Any]) -> None:
        update(self)
        if self.progress.step == 33:
            with torch.no_grad():
                self.model.output.bias[0] = math.nan

    monkeypatch.setattr(TrainingState, "update_average", poison)
    with pytest.raises(RunError, match="the loss is nan at step 40") as caught:
        list(trainer.run())
    assert "--learning-rate" in caught.value.hint
    tensors, progress = load_checkpoint(trainer.directory / "last.safetensors", Progress)
    assert progress.step == 20
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert all(tensor.isfinite().all() for tensor in load_best(trainer.directory).model.parameters())
    assert [line["step"] for line in _lines(trainer)] == [10, 20, 20, 30]  # no NaN: it would not be JSON
    monkeypatch.setattr(TrainingState, "update_average", update)
    list(make_trainer("broken", resume=True, validation_interval=20).run())  # and it goes on from there
    assert [line["step"] for line in _lines(trainer)] == [10, 20, 20, 30, 40, 40, 42, 42, 42]


@pytest.mark.parametrize("step", [20, 33])
def test_an_average_that_is_no_number_is_never_kept(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    update = TrainingState.update_average

    def poison(self: TrainingState[Any]) -> None:
        if self.progress.step == step:
            with torch.no_grad():
                self.model.output.bias[0] = math.inf
        update(self)

    monkeypatch.setattr(TrainingState, "update_average", poison)
    trainer = make_trainer(validation_interval=20)
    with pytest.raises(RunError, match="the loss is"):
        list(trainer.run())
    for name in ("last.safetensors", "best.safetensors"):
        path = trainer.directory / name
        assert path.exists() == (step > 20)
        if path.exists():
            tensors, _ = load_checkpoint(path, Progress if name.startswith("last") else Best)
            assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_scores_for_the_manifest(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(epochs=0.3)
    finished = list(trainer.run())[-1]
    assert isinstance(finished, FinishedEvent)
    assert load_run(trainer.directory).scores == finished.scores
    carried, cold = finished.scores
    assert carried.split == cold.split == "the last 10% of trainer-corpus.txt"
    assert (carried.name, carried.unit) == (cold.name, cold.unit) == ("loss", "nats per token")
    assert "state carried" in carried.method
    assert "blocks of 256" in cold.method
    (trainer.directory / "metrics.jsonl").unlink()
    assert load_run(trainer.directory).scores == ()


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x1e"])
def test_scores_are_read_whatever_the_samples_hold(make_trainer: MakeTrainer, separator: str) -> None:
    trainer = make_trainer(corpus=f"ab{separator}" * 400, epochs=0.5)
    validation = [event for event in trainer.run() if isinstance(event, ValidationEvent)][-1]
    assert separator in validation.sample
    assert len(load_run(trainer.directory).scores) >= 1
