"""The training loop, whatever is trained: steps, validation, checkpoints, exact resume. Yields events."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from rnn_edge.errors import RunError
from rnn_edge.files import write_bytes, write_text
from rnn_edge_export.checkpoint import Best, load_checkpoint, module_tensors, restore_module, save_checkpoint
from rnn_edge_export.distributed import World
from rnn_edge_export.hardware import (
    autocast,
    gradient_scale,
    keep_few_kernels,
    keep_freed_memory,
    release_freed_memory,
    resolve_device,
    resolve_precision,
)
from rnn_edge_export.initial import Initial
from rnn_edge_export.layers import parameter_count
from rnn_edge_export.metrics import Metrics
from rnn_edge_export.optimisation import learning_rate, stalls
from rnn_edge_export.run import BEST, LAST, METRICS, RECIPE
from rnn_edge_export.task import Evaluation, Task
from rnn_edge_export.training_events import FinishedEvent, StepEvent, TrainingEvent, ValidationEvent
from rnn_edge_export.training_state import TrainingState

_LOG_INTERVAL = 10
_RELEASE_INTERVAL = 50

BatchT = TypeVar("BatchT")
ModelT = TypeVar("ModelT", bound=nn.Module)


class Trainer(Generic[BatchT, ModelT]):
    """One run in one folder: train, validate, checkpoint, and resume to the same losses.

    Set ``interrupted`` (from a signal handler, say) to end after the current step with everything saved.
    """

    def __init__(
        self,
        task: Task[BatchT, ModelT],
        directory: Path,
        device: str,
        *,
        resume: bool,
        world: World = World(),  # noqa: B008  # frozen
        initial: Initial | None = None,
    ) -> None:
        """Start a run, from ``initial`` weights where they are given, or resume it.

        Raises:
            RunError: the weights are of another network.
        """
        self.task, self.recipe, self.directory, self.world = task, task.recipe, directory, world
        self.interrupted = self._agreed = False
        self.scoring = False  # everything is trained and saved; only the scores of the best weights are missing
        training = self.recipe.training
        self.device = resolve_device(device)
        self.precision = resolve_precision(training.precision, self.device)
        self._scale = gradient_scale(self.device, self.precision)
        if self.device.type == "cpu":
            keep_freed_memory()
            keep_few_kernels()
        self.state = TrainingState(task, self.device, world, None if resume else initial)
        self.parameters = parameter_count(self.state.model)
        self.steps_per_epoch = -(-task.steps_per_epoch // training.accumulation)
        self.total_steps = max(1, round(self.steps_per_epoch * training.epochs))
        self._metrics = Metrics(directory / METRICS)
        if resume:
            self.state.restore(directory / LAST)
        elif world.leads:
            for stale in (LAST, BEST):  # of a run that is replaced
                (directory / stale).unlink(missing_ok=True)
            write_text(directory / RECIPE, self.recipe.to_toml())
            for name, content in task.files().items():
                write_bytes(directory / name, content)
        if world.leads:
            self._metrics.cut(self.state.progress.metrics_bytes)

    def run(self) -> Iterator[TrainingEvent]:
        """Train to the end, or to an interrupt.

        Raises:
            RunError: the loss is not a number any more; the last good checkpoint stays.
        """
        training = self.recipe.training
        clock = began = time.perf_counter()
        tokens = 0.0
        reason: Literal["complete", "early-stop", "interrupt"] = "complete"
        for done, batches in enumerate(self._remaining_batches(), 1):
            loss, norm, count = self._step(batches)
            self.state.loss_sum += loss
            tokens += count
            self.state.progress = replace(self.state.progress, tokens=self.state.progress.tokens + round(count))
            step = self.state.progress.step
            if step % _RELEASE_INTERVAL == 0:
                release_freed_memory()
            if step % _LOG_INTERVAL == 0 or step == self.total_steps:
                now = time.perf_counter()
                # Batches differ in size: what is left is told from all steps so far, the speed from the last ones.
                left = (now - began) / done * (self.total_steps - step)
                yield self._log_step(norm, tokens / (now - clock), left)
                clock, tokens = now, 0
            if step % training.validation_interval == 0 or step == self.total_steps:
                pause = time.perf_counter()
                yield self._validate()
                self._save()
                pause = time.perf_counter() - pause
                clock, began = clock + pause, began + pause  # tokens/s are of training alone
                if self._is_stale():
                    reason = "early-stop"
                    break
            if self._stops() and step < self.total_steps:
                self._save()
                found = self._evaluate()
                yield ValidationEvent(step, found.loss, False, found.sample, found.bleu, recorded=False)
                reason = "interrupt"
                break
        if reason == "complete" and self._is_stale():  # resumed after it had stopped
            reason = "early-stop"
        yield self._finish(reason)

    def _is_stale(self) -> bool:
        return 0 < self.recipe.training.patience <= self.state.progress.bad_validations

    def _log_step(self, norm: Tensor, rate: float, seconds_left: float) -> StepEvent:
        """The losses since the last line of metrics. Only here does the loss leave the device."""
        step = self.state.progress.step
        self.world.sum(self.state.loss_sum)
        event = StepEvent(
            step=step,
            total_steps=self.total_steps,
            epoch=step / self.steps_per_epoch,
            loss=self._finite(self.state.loss_sum.item() / (step - self.state.progress.logged_step)),
            gradient_norm=norm.item(),
            learning_rate=self._rate(),
            tokens=self.state.progress.tokens,
            tokens_per_second=rate,
            seconds_left=seconds_left,
        )
        self.state.loss_sum.zero_()
        self.state.progress = replace(self.state.progress, logged_step=step)
        self._record("train", event)
        return event

    def _remaining_batches(self) -> Iterator[list[BatchT]]:
        """The batches of each step that is left; advances ``progress`` past them before they are trained on."""
        while self.state.progress.step < self.total_steps and not self._is_stale():
            epoch, done = self.state.progress.epoch, self.state.progress.batch
            batches = self.task.batches(epoch, done)
            while some := list(islice(batches, self.recipe.training.accumulation)):
                done += len(some)
                self.state.progress = replace(self.state.progress, step=self.state.progress.step + 1, batch=done)
                yield some
                if self.state.progress.step >= self.total_steps:
                    return
            self.state.progress = replace(self.state.progress, epoch=epoch + 1, batch=0)

    def _step(self, batches: Sequence[BatchT]) -> tuple[Tensor, Tensor, float]:
        """One step of the optimiser → mean loss (this process's share of it), gradient norm and tokens."""
        training = self.recipe.training
        self.state.model.train()
        self.state.optimizer.zero_grad(set_to_none=True)
        mean, tokens = torch.zeros((), device=self.device), 0.0
        for batch in batches:
            with autocast(self.device, self.precision):
                found = self.task.loss(self.state.model, batch, self.device)
            total = self._agree(found.tokens)
            share = found.tokens / total / len(batches)
            (found.objective * (share * self._scale)).backward()
            mean += found.loss.detach() * share
            tokens += total
        self.world.sum_gradients(self.state.model.parameters())
        if self._scale != 1:
            torch._foreach_div_([p.grad for p in self.state.model.parameters() if p.grad is not None], self._scale)
        norm = nn.utils.clip_grad_norm_(self.state.model.parameters(), training.clip_norm)
        if self._scale != 1:  # what was too large has become NaN, all else 0
            for parameter in self.state.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        rate = self._rate() * sum(map(self.task.rate, batches)) / len(batches)
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        self.state.optimizer.step()
        self.state.update_average()
        return mean, norm, tokens

    def _rate(self) -> float:
        progress = self.state.progress
        return learning_rate(progress.step - 1, self.total_steps, self.recipe.training, progress.annealings)

    def _agree(self, tokens: int) -> float:
        """The tokens of all processes; an interrupt of one is one of all, at the same step."""
        if self.world.size == 1:
            return tokens
        counts = torch.tensor([tokens, self.interrupted], dtype=torch.float64)
        self.world.sum(counts)
        self._agreed = bool(counts[1] > 0)
        return float(counts[0])

    def _stops(self) -> bool:
        return self.interrupted if self.world.size == 1 else self._agreed

    def _note_validation(self, loss: float, *, best: bool) -> None:
        """What the optimiser makes of a validation."""
        training, progress = self.recipe.training, self.state.progress
        if training.optimizer == "sgd" and not best:
            self.state.progress = replace(progress, annealings=progress.annealings + 1)
        if training.optimizer == "nt-asgd" and progress.averaging_from is None:
            losses = (*progress.losses, loss)
            start = progress.step if stalls(losses, training.nonmonotone_interval) else None
            self.state.progress = replace(progress, losses=losses, averaging_from=start)

    def _evaluate(self) -> Evaluation:
        def evaluate() -> Evaluation:
            with autocast(self.device, self.precision):
                return self.task.evaluate(self.state.average, self.state.progress.step)

        return self.world.lead(evaluate)

    def _validate(self) -> ValidationEvent:
        found, step = self._evaluate(), self.state.progress.step
        self._finite(found.loss)
        best = self.state.progress.best is None or found.objective < self.state.progress.best
        if best:
            self.state.progress = replace(self.state.progress, best=found.objective, best_step=step, bad_validations=0)
            description = Best(step, found.loss, found.bleu, self.parameters)
            if self.world.leads:
                save_checkpoint(self.directory / BEST, module_tensors("model", self.state.average), description)
        else:
            self.state.progress = replace(self.state.progress, bad_validations=self.state.progress.bad_validations + 1)
        self._note_validation(found.loss, best=best)
        event = ValidationEvent(step, found.loss, best, found.sample, found.bleu)
        self._record("validation", event)
        return event

    def _finish(self, reason: Literal["complete", "early-stop", "interrupt"]) -> FinishedEvent:
        event = FinishedEvent(reason, self.state.progress.step, self.state.progress.best_step)
        if reason == "interrupt":
            return event
        self.scoring = True
        if not self.world.leads:
            return event
        tensors, _ = load_checkpoint(self.directory / BEST, Best)
        model = self.task.new_model()
        restore_module("model", model, tensors)
        event = replace(event, scores=self.task.scores(model.requires_grad_(False).eval()))
        self._record("finished", event)
        return event

    def _record(self, kind: str, event: TrainingEvent) -> None:
        if self.world.leads:
            length = self._metrics.append(kind, event)
            self.state.progress = replace(self.state.progress, metrics_bytes=length)

    def _finite(self, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        raise RunError(
            f"the loss is {loss} at step {self.state.progress.step}",
            "start a new run with a lower --learning-rate or --clip-norm; "
            "export still takes this one's best weights, if it has validated",
        )

    def _save(self) -> None:
        self.world.sum(self.state.loss_sum)
        self._finite(self.state.loss_sum.item())
        if self.world.leads:
            self._metrics.sync()  # before the checkpoint, which never counts lines that are not on the disk
        self.state.save(self.directory / LAST)
