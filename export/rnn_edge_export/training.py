"""The training loop, whatever is trained: steps, validation, checkpoints, exact resume. Yields events."""

import copy
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from rnn_edge.errors import RunError
from rnn_edge.files import raise_cannot_write, write_bytes, write_text
from rnn_edge_export.checkpoint import (
    Best,
    Progress,
    load_checkpoint,
    module_tensors,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
    save_checkpoint,
)
from rnn_edge_export.distributed import World
from rnn_edge_export.hardware import (
    autocast,
    keep_freed_memory,
    release_freed_memory,
    resolve_device,
    resolve_precision,
)
from rnn_edge_export.initial import Initial, differences, shape
from rnn_edge_export.layers import parameter_count
from rnn_edge_export.optimisation import average_weight, learning_rate, make_optimizer, stalls
from rnn_edge_export.run import BEST, LAST, METRICS, RECIPE
from rnn_edge_export.task import Evaluation, Task
from rnn_edge_export.training_events import FinishedEvent, StepEvent, TrainingEvent, ValidationEvent

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
        if self.device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(training.seed)
        model = task.new_model()
        if initial and not resume:
            initial.start(model, self.recipe.model)
        if world.size > 1:  # the same first weights, but dropout masks of its own
            torch.manual_seed(training.seed + (world.rank + 1) * 2**32)
        self.parameters = parameter_count(model)
        self.model = model.to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = make_optimizer(self.model, training)
        self.progress = Progress(made_of=self._made_of())
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.steps_per_epoch = -(-task.steps_per_epoch // training.accumulation)
        self.total_steps = max(1, round(self.steps_per_epoch * training.epochs))
        self._metrics = directory / METRICS
        if resume:
            self._restore()
        elif world.leads:
            for stale in (LAST, BEST):  # of a run that is replaced
                (directory / stale).unlink(missing_ok=True)
            write_text(directory / RECIPE, self.recipe.to_toml())
            for name, content in task.files().items():
                write_bytes(directory / name, content)
            write_bytes(self._metrics, b"")

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
            self._loss_sum += loss
            tokens += count
            self.progress = replace(self.progress, tokens=self.progress.tokens + round(count))
            step = self.progress.step
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
        return 0 < self.recipe.training.patience <= self.progress.bad_validations

    def _log_step(self, norm: Tensor, rate: float, seconds_left: float) -> StepEvent:
        """The losses since the last line of metrics. Only here does the loss leave the device."""
        step = self.progress.step
        self.world.sum(self._loss_sum)
        event = StepEvent(
            step=step,
            total_steps=self.total_steps,
            epoch=step / self.steps_per_epoch,
            loss=self._finite(self._loss_sum.item() / (step - self.progress.logged_step)),
            gradient_norm=norm.item(),
            learning_rate=self._rate(),
            tokens=self.progress.tokens,
            tokens_per_second=rate,
            seconds_left=seconds_left,
        )
        self._loss_sum.zero_()
        self.progress = replace(self.progress, logged_step=step)
        self._record("train", event)
        return event

    def _remaining_batches(self) -> Iterator[list[BatchT]]:
        """The batches of each step that is left; advances ``progress`` past them before they are trained on."""
        while self.progress.step < self.total_steps and not self._is_stale():
            epoch, done = self.progress.epoch, self.progress.batch
            batches = self.task.batches(epoch, done)
            while some := list(islice(batches, self.recipe.training.accumulation)):
                done += len(some)
                self.progress = replace(self.progress, step=self.progress.step + 1, batch=done)
                yield some
                if self.progress.step >= self.total_steps:
                    return
            self.progress = replace(self.progress, epoch=epoch + 1, batch=0)

    def _step(self, batches: Sequence[BatchT]) -> tuple[Tensor, Tensor, float]:
        """One step of the optimiser → mean loss (this process's share of it), gradient norm and tokens."""
        training = self.recipe.training
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        mean, tokens = torch.zeros((), device=self.device), 0.0
        for batch in batches:
            with autocast(self.device, self.precision):
                found = self.task.loss(self.model, batch, self.device)
            total = self._agree(found.tokens)
            share = found.tokens / total / len(batches)
            (found.objective * share).backward()
            mean += found.loss.detach() * share
            tokens += total
        self.world.sum_gradients(self.model.parameters())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_norm)
        rate = self._rate() * sum(map(self.task.rate, batches)) / len(batches)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self._update_average()
        return mean, norm, tokens

    def _rate(self) -> float:
        progress = self.progress
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

    @torch.no_grad()
    def _update_average(self) -> None:
        weight = average_weight(self.progress.step, self.progress.averaging_from, self.recipe.training)
        for mean, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(parameter, weight)

    def _note_validation(self, loss: float, *, best: bool) -> None:
        """What the optimiser makes of a validation."""
        training, progress = self.recipe.training, self.progress
        if training.optimizer == "sgd" and not best:
            self.progress = replace(progress, annealings=progress.annealings + 1)
        if training.optimizer == "nt-asgd" and progress.averaging_from is None:
            losses = (*progress.losses, loss)
            start = progress.step if stalls(losses, training.nonmonotone_interval) else None
            self.progress = replace(progress, losses=losses, averaging_from=start)

    def _evaluate(self) -> Evaluation:
        def evaluate() -> Evaluation:
            with autocast(self.device, self.precision):
                return self.task.evaluate(self.average, self.progress.step)

        return self.world.lead(evaluate)

    def _validate(self) -> ValidationEvent:
        found, step = self._evaluate(), self.progress.step
        self._finite(found.loss)
        best = self.progress.best is None or found.objective < self.progress.best
        if best:
            self.progress = replace(self.progress, best=found.objective, best_step=step, bad_validations=0)
            description = Best(step, found.loss, found.bleu, self.parameters)
            if self.world.leads:
                save_checkpoint(self.directory / BEST, module_tensors("model", self.average), description)
        else:
            self.progress = replace(self.progress, bad_validations=self.progress.bad_validations + 1)
        self._note_validation(found.loss, best=best)
        event = ValidationEvent(step, found.loss, best, found.sample, found.bleu)
        self._record("validation", event)
        return event

    def _finish(self, reason: Literal["complete", "early-stop", "interrupt"]) -> FinishedEvent:
        event = FinishedEvent(reason, self.progress.step, self.progress.best_step)
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
        """Append one line of JSON to the run's metrics."""
        if not self.world.leads:
            return
        fields = {"kind": kind, **asdict(event)}
        if not isinstance(event, FinishedEvent):
            fields |= {"bits": event.loss / math.log(2), "perplexity": math.exp(min(event.loss, 700))}
        line = json.dumps(fields, ensure_ascii=False) + "\n"
        try:
            with self._metrics.open("ab") as file:
                file.write(line.encode())
                end = file.tell()
        except OSError as error:
            raise_cannot_write(self._metrics, error)
        self.progress = replace(self.progress, metrics_bytes=end)

    def _finite(self, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        raise RunError(
            f"the loss is {loss} at step {self.progress.step}",
            "start a new run with a lower --learning-rate or --clip-norm; "
            "export still takes this one's best weights, if it has validated",
        )

    def _save(self) -> None:
        self.world.sum(self._loss_sum)
        self._finite(self._loss_sum.item())
        self.progress = replace(self.progress, loss_sum=self._loss_sum.item())
        if not self.world.leads:
            self._loss_sum.zero_()  # the first process has it all now
        carried = {name: self.world.gather(tensor) for name, tensor in self.task.carried().items()}
        carried["random"] = self.world.gather(torch.get_rng_state())
        if self.device.type == "cuda":
            carried["random_cuda"] = self.world.gather(torch.cuda.get_rng_state())
        if not self.world.leads:
            return
        # The metrics first: a checkpoint never counts lines that are not on the disk.
        try:
            with self._metrics.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise_cannot_write(self._metrics, error)
        tensors = {
            **module_tensors("model", self.model),
            **module_tensors("average", self.average),
            **optimizer_tensors(self.optimizer),
            **carried,
        }
        save_checkpoint(self.directory / LAST, tensors, self.progress)

    def _restore(self) -> None:
        tensors, self.progress = load_checkpoint(self.directory / LAST, Progress)
        changed = differences(self.progress.made_of, self._made_of()) if self.progress.made_of else ""
        if changed:
            raise RunError(
                f"{self.directory} has changed since its last checkpoint: {changed}",
                "put its own recipe.toml and tokenizer back, or start a new run with --init-from",
            )
        self._loss_sum.fill_(self.progress.loss_sum if self.world.leads else 0.0)
        restore_module("model", self.model, tensors)
        restore_module("average", self.average, tensors)
        restore_optimizer(self.optimizer, tensors)
        try:
            self.task.restore(tensors, self.device)
            torch.set_rng_state(self._own(tensors["random"], torch.get_rng_state()))
        except KeyError as error:
            raise RunError(
                f"{self.directory / LAST} has no tensor {error.args[0]}", "train again, or copy the run again"
            ) from error
        if self.device.type == "cuda" and "random_cuda" in tensors:
            torch.cuda.set_rng_state(self._own(tensors["random_cuda"], torch.cuda.get_rng_state()))
        if not self.world.leads:
            return
        written = self._metrics.read_bytes() if self._metrics.is_file() else b""
        write_bytes(self._metrics, written[: self.progress.metrics_bytes])

    def _made_of(self) -> dict[str, str]:
        """The network, and the first digits of the tokenizers' SHA-256."""
        files = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in self.task.files().items()}
        return {name: str(value) for name, value in shape(self.recipe.model).items()} | files

    def _own(self, states: Tensor, example: Tensor) -> Tensor:
        """This process's state of the random numbers, of those of all that wrote the checkpoint."""
        writers = len(states) // len(example)
        if writers != self.world.size:
            raise RunError(
                f"{writers} processes trained this run, and here {self.world.size} would go on",
                f"go on with torchrun --nproc-per-node {writers} -m rnn_edge_export, or with one process if it was one",
            )
        return states.chunk(writers)[self.world.rank].clone()  # a part of a storage is refused
