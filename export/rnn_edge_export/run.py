"""The folder of a training run: recipe, tokenizer, checkpoints, metrics. Only ``load_run`` needs PyTorch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rnn_edge.errors import RnnEdgeError, RunError
from rnn_edge.files import check_output
from rnn_edge.manifest import Metric
from rnn_edge.schema import SchemaError, decode
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.recipe import Recipe, read_recipe
from rnn_edge_export.training_events import FinishedEvent, ValidationEvent

if TYPE_CHECKING:
    from torch import Tensor

RECIPE, METRICS = "recipe.toml", "metrics.jsonl"
TOKENIZER, SOURCE_TOKENIZER = "tokenizer.json", "source_tokenizer.json"
LAST, BEST = "last.safetensors", "best.safetensors"


def start_run(directory: Path, *, force: bool) -> None:
    """Check that a new run may be written to ``directory``.

    Raises:
        RnnEdgeError: it exists and is not empty, and ``force`` is not given; or it cannot be written.
    """
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if force and directory.exists() and not (directory / RECIPE).is_file():
        raise RnnEdgeError(f"{directory} is not a training run", "choose another folder: --force replaces only runs")
    check_output(directory, force=force, folder=True)


@dataclass(frozen=True)
class RunContent:
    """A run's recipe, the tensors of its best weights, and their scores; no scores for an unfinished run."""

    recipe: Recipe
    tensors: dict[str, Tensor]
    scores: tuple[Metric, ...]


def load_run(directory: Path) -> RunContent:
    """Read a run.

    Raises:
        RunError: no run, or a run without a checkpoint.
    """
    from rnn_edge_export.checkpoint import Best, load_checkpoint

    check_run(directory)
    recipe = read_recipe(directory / RECIPE)
    tensors, _ = load_checkpoint(directory / BEST, Best)
    finished = read_metrics(directory).finished
    return RunContent(recipe, tensors, finished.scores if finished else ())


def check_run(directory: Path) -> None:
    """Raises RunError for what is not a run's folder."""
    if not (directory / RECIPE).is_file():
        raise RunError(f"{directory} is not a training run", "give the folder that rnn-edge train wrote with -o")


def load_tokenizer(path: Path) -> Tokenizer:
    """A run's tokenizer.

    Raises:
        RunError: it is missing.
    """
    try:
        return Tokenizer(path.read_bytes(), str(path))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}", "train again") from error


@dataclass(frozen=True)
class StepRecord:
    """What is read of a line about training: loss in nats per token; ``tokens`` that were trained on up to here."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    tokens_per_second: float
    tokens: int | None = None  # runs of the first version did not count them


@dataclass(frozen=True)
class Metrics:
    """What a run has recorded so far."""

    steps: tuple[StepRecord, ...]
    validations: tuple[ValidationEvent, ...]
    finished: FinishedEvent | None

    @property
    def best(self) -> ValidationEvent | None:
        """The validation that the best weights are from."""
        return next((found for found in reversed(self.validations) if found.best), None)

    @property
    def seconds(self) -> float | None:
        """Time spent on training steps, validation left out; None where tokens are not counted."""
        counts = [0, *(record.tokens for record in self.steps if record.tokens is not None)]
        if len(counts) <= len(self.steps):
            return None
        spent = (
            (after - before) / record.tokens_per_second
            for (before, after), record in zip(pairwise(counts), self.steps, strict=True)
        )
        return sum(spent)


def read_metrics(directory: Path) -> Metrics:
    """The metrics of a run, also of one that is at work.

    Raises:
        RunError: a line is not what training writes; it is named.
    """
    path = directory / METRICS
    steps: list[StepRecord] = []
    validations: list[ValidationEvent] = []
    finished = None
    # What follows the last line end was cut off in the middle; a resumed run writes it again.
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            match record["kind"]:
                case "train":
                    steps.append(decode(StepRecord, record, strict=False))
                case "validation":
                    validations.append(decode(ValidationEvent, record, strict=False))
                case "finished":
                    finished = decode(FinishedEvent, record, strict=False)
        except (SchemaError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(
                f"{path} is damaged in line {number}: {error}", "go on with --resume, which cuts it back"
            ) from error
    return Metrics(tuple(steps), tuple(validations), finished)
