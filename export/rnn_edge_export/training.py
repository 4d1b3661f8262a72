"""Training by truncated back-propagation through time. Yields events; printing is elsewhere."""

import copy
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_edge.errors import RunError
from rnn_edge.files import raise_cannot_write, write_bytes, write_text
from rnn_edge.sampling import Sampler, SamplingOptions
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
from rnn_edge_export.data import Corpus, windows, windows_per_epoch
from rnn_edge_export.hardware import autocast, resolve_device, resolve_precision
from rnn_edge_export.modules import RecurrentLanguageModel, State, detach, parameter_count
from rnn_edge_export.optimisation import learning_rate, make_optimizer
from rnn_edge_export.recipe import Recipe
from rnn_edge_export.run import BEST, LAST, METRICS, RECIPE, TOKENIZER, load_best
from rnn_edge_export.scoring import carried_loss, cold_block_loss

_LOG_INTERVAL = 10
_SAMPLE_TOKENS = 200


@dataclass(frozen=True)
class StepEvent:
    """Losses in nats per token, the mean since the last such event."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class ValidationEvent:
    """Loss of the averaged weights on the validation text, and a sample that they wrote."""

    step: int
    loss: float
    best: bool
    sample: str
    recorded: bool = True


@dataclass(frozen=True)
class FinishedEvent:
    """The end of a run. ``carried`` and ``cold`` score the best weights exactly; None after an interrupt."""

    reason: Literal["complete", "early-stop", "interrupt"]
    step: int
    best_step: int
    best_loss: float | None
    carried: float | None = None
    cold: float | None = None
    valid_source: str = ""


TrainingEvent = StepEvent | ValidationEvent | FinishedEvent


class Trainer:
    """One run in one folder: train, validate, checkpoint, and resume to the same losses.

    Set ``interrupted`` (from a signal handler, say) to end after the current step with everything saved.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus, directory: Path, device: str, *, resume: bool) -> None:
        self.recipe, self.corpus, self.directory = recipe, corpus, directory
        self.interrupted = False
        self.scoring = False  # everything is trained and saved; only the scores of the best weights are missing
        self.device = resolve_device(device)
        self.precision = resolve_precision(recipe.training.precision, self.device)
        training = recipe.training
        torch.manual_seed(training.seed)
        model = RecurrentLanguageModel(recipe.model, corpus.tokenizer.vocabulary_size)
        self.parameters = parameter_count(model)
        self.model = model.to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = make_optimizer(self.model, training)
        self.state = self.model.zero_state(training.batch_size)
        self.progress = Progress()
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.windows_per_epoch = windows_per_epoch(len(corpus.train), training.batch_size, training.sequence_length)
        self.total_steps = max(1, round(self.windows_per_epoch * training.epochs))
        self._metrics = directory / METRICS
        if resume:
            self._restore()
        else:
            for stale in (LAST, BEST):  # of a run that is replaced
                (directory / stale).unlink(missing_ok=True)
            write_text(directory / RECIPE, recipe.to_toml())
            write_bytes(directory / TOKENIZER, corpus.tokenizer.content)
            write_bytes(self._metrics, b"")

    def run(self) -> Iterator[TrainingEvent]:
        """Train to the end, or to an interrupt.

        Raises:
            RunError: the loss is not a number any more; the last good checkpoint stays.
        """
        training = self.recipe.training
        clock, clock_step = time.perf_counter(), self.progress.step
        reason: Literal["complete", "early-stop", "interrupt"] = "complete"
        for inputs, targets in self._remaining_windows():
            loss, norm = self._step(inputs, targets)
            self._loss_sum += loss
            step = self.progress.step
            if step % _LOG_INTERVAL == 0 or step == self.total_steps:
                now = time.perf_counter()
                rate = (step - clock_step) * targets.numel() / (now - clock)
                clock, clock_step = now, step
                yield self._log_step(norm, rate, seconds_left=(self.total_steps - step) * targets.numel() / rate)
            if step % training.validation_interval == 0 or step == self.total_steps:
                pause = time.perf_counter()
                yield self._validate()
                self._save()
                clock += time.perf_counter() - pause  # tokens/s are of training alone
                if self._is_stale():
                    reason = "early-stop"
                    break
            if self.interrupted and step < self.total_steps:
                self._save()
                yield self._evaluate(recorded=False)
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
        event = StepEvent(
            step=step,
            total_steps=self.total_steps,
            epoch=step / self.windows_per_epoch,
            loss=self._finite(self._loss_sum.item() / (step - self.progress.logged_step)),
            gradient_norm=norm.item(),
            learning_rate=learning_rate(step - 1, self.total_steps, self.recipe.training),
            tokens_per_second=rate,
            seconds_left=seconds_left,
        )
        self._loss_sum.zero_()
        self.progress = replace(self.progress, logged_step=step)
        self._record("train", event)
        return event

    def _remaining_windows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows from where the run stands; advances ``progress`` past each one before it is trained on."""
        training = self.recipe.training
        while self.progress.step < self.total_steps and not self._is_stale():
            epoch, done = self.progress.epoch, self.progress.window
            # The offset depends on seed and epoch alone, so that a resumed run reads the same windows.
            offset = int(np.random.default_rng((training.seed, epoch)).integers(len(self.corpus.train)))
            if done == 0:
                self.state = self.model.zero_state(training.batch_size)
            batches = windows(self.corpus.train, training.batch_size, training.sequence_length, offset)
            for index, (inputs, targets) in enumerate(batches):
                if index < done:
                    continue
                last = index + 1 == self.windows_per_epoch
                self.progress = replace(
                    self.progress,
                    step=self.progress.step + 1,
                    epoch=epoch + last,
                    window=0 if last else index + 1,
                )
                yield inputs.to(self.device), targets.to(self.device)
                if self.progress.step >= self.total_steps:
                    return

    def _step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One window of truncated back-propagation: inputs, targets [T, B] → its mean loss and gradient norm."""
        training = self.recipe.training
        self.model.train()
        if training.reset_probability > 0:
            self.state = self._reset_some(self.state, training.reset_probability)
        with autocast(self.device, self.precision):
            logits, self.state = self.model(inputs, self.state)
        self.state = detach(self.state)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress.step - 1, self.total_steps, training)
        self.optimizer.step()
        self._update_average(training.average_decay)
        return loss.detach(), norm

    def _reset_some(self, state: State, chance: float) -> State:
        keep = (torch.rand(self.recipe.training.batch_size, 1) >= chance).to(self.device)
        return [tuple(tensor * keep.to(tensor.dtype) for tensor in layer) for layer in state]

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        # A short memory at first, so that the random start is forgotten (as TensorFlow's ExponentialMovingAverage).
        decay = min(decay, (1 + self.progress.step) / (10 + self.progress.step)) if decay > 0 else 0.0
        for mean, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(parameter, 1 - decay)

    def _evaluate(self, *, recorded: bool) -> ValidationEvent:
        length = len(self.corpus.valid)
        # Parallel streams are faster, and each one's zero start costs little where it is long.
        streams = max(1, min(16, (length - 1) // 100), min(256, length // 10_000))
        with autocast(self.device, self.precision):
            loss = carried_loss(self.average, self.corpus.valid, streams)
        best = self.progress.best_loss is None or loss < self.progress.best_loss
        sample = write_sample(self.average, self.corpus, seed=self.progress.step)
        return ValidationEvent(self.progress.step, loss, best, sample, recorded)

    def _validate(self) -> ValidationEvent:
        event = self._evaluate(recorded=True)
        self._finite(event.loss)
        if event.best:
            self.progress = replace(self.progress, best_loss=event.loss, best_step=event.step, bad_validations=0)
            best = Best(event.step, event.loss, self.corpus.tokenizer.vocabulary_size, self.parameters)
            save_checkpoint(self.directory / BEST, module_tensors("model", self.average), best)
        else:
            self.progress = replace(self.progress, bad_validations=self.progress.bad_validations + 1)
        self._record("validation", event)
        return event

    def _finish(self, reason: Literal["complete", "early-stop", "interrupt"]) -> FinishedEvent:
        event = FinishedEvent(reason, self.progress.step, self.progress.best_step, self.progress.best_loss)
        if reason == "interrupt":
            return event
        self.scoring = True
        model, _ = load_best(self.directory)
        event = replace(event, carried=carried_loss(model, self.corpus.valid), valid_source=self.corpus.valid_source)
        if len(self.corpus.valid) > 256:
            event = replace(event, cold=cold_block_loss(model, self.corpus.valid))
        self._record("finished", event)
        return event

    def _record(self, kind: str, event: TrainingEvent) -> None:
        """Append one line of JSON to the run's metrics."""
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
        self._finite(self._loss_sum.item())
        self.progress = replace(self.progress, loss_sum=self._loss_sum.item())
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
            "random": torch.get_rng_state(),
        }
        names = self.model.state_names()
        flat = [tensor for layer in self.state for tensor in layer]
        tensors.update({f"state.{name}": tensor for name, tensor in zip(names, flat, strict=True)})
        if self.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state()
        save_checkpoint(self.directory / LAST, tensors, self.progress)

    def _restore(self) -> None:
        tensors, self.progress = load_checkpoint(self.directory / LAST, Progress)
        self._loss_sum.fill_(self.progress.loss_sum)
        restore_module("model", self.model, tensors)
        restore_module("average", self.average, tensors)
        restore_optimizer(self.optimizer, tensors)
        missing = {"random", *(f"state.{name}" for name in self.model.state_names())}.difference(tensors)
        if missing:
            raise RunError(
                f"{self.directory / LAST} has no tensor {min(missing)}", "train again, or copy the run again"
            )
        flat = iter(tensors[f"state.{name}"].to(self.device) for name in self.model.state_names())
        self.state = [tuple(next(flat) for _ in layer) for layer in self.state]
        torch.set_rng_state(tensors["random"])
        if self.device.type == "cuda" and "random_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random_cuda"])
        written = self._metrics.read_bytes() if self._metrics.is_file() else b""
        write_bytes(self._metrics, written[: self.progress.metrics_bytes])


@torch.no_grad()
def write_sample(model: RecurrentLanguageModel, corpus: Corpus, *, seed: int) -> str:
    """Some text by the model. Its noise is keyed by ``seed``, so it never disturbs the training's random numbers."""
    sampler = Sampler(SamplingOptions(temperature=0.8), corpus.tokenizer.vocabulary_size, seed=seed)
    device = model.output.weight.device
    token, state = int(corpus.valid[0]), model.zero_state(1)
    ids: list[int] = []
    for _ in range(_SAMPLE_TOKENS):
        logits, state = model(torch.tensor([[token]], device=device), state)
        token = sampler.choose(logits[0, 0].float().cpu().numpy())
        ids.append(token)
    return corpus.tokenizer.decode(ids)
