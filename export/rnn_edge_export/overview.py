"""What runs have come to, read from their folders without PyTorch. Nothing in a folder stops the reading of others."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from rnn_edge.errors import RnnEdgeError
from rnn_edge.manifest import Task
from rnn_edge_export.recipe import Recipe, read_recipe
from rnn_edge_export.recipe_sections import TranslationSection
from rnn_edge_export.run import BEST, LAST, RECIPE, Metrics, read_metrics

State = Literal["finished", "early stop", "can resume", "no checkpoint"]


@dataclass(frozen=True)
class Overview:
    """A run in figures: ``loss`` in nats per token and ``bleu`` are of its best validation, ``seconds`` of training.

    None stands for what is not known, or not yet; ``problems`` are damages, each in words.
    """

    path: Path
    task: Task
    network: str
    tokenizer: str
    data: str
    parameters: int | None
    step: int
    total_steps: int | None
    epoch: float
    epochs: float
    loss: float | None
    bleu: float | None
    best_step: int | None
    state: State
    seconds: float | None
    problems: tuple[str, ...]

    @property
    def bits(self) -> float | None:
        """The loss in bits per token."""
        return None if self.loss is None else self.loss / math.log(2)

    @property
    def rank(self) -> tuple[str, str, float, float, str]:
        """Sorts runs: those that compare stand together, the best first."""
        worse = math.inf if self.loss is None else self.loss
        return self.task, self.tokenizer, -(self.bleu or 0.0), worse, str(self.path)


def find_runs(folder: Path) -> Iterator[Path]:
    """Every run below a folder, and the folder itself if it is one. Hidden folders and links are passed over."""
    for place, below, files in os.walk(folder):
        if RECIPE in files:
            below.clear()
            yield Path(place)
        below[:] = sorted(name for name in below if not name.startswith("."))


def look_at(run: Path) -> Overview:
    """The overview of a run.

    Raises:
        RnnEdgeError: its recipe cannot be read, so that nothing is known of it.
    """
    recipe = read_recipe(run / RECIPE)
    problems: list[str] = []
    try:
        metrics = read_metrics(run)
    except (RnnEdgeError, OSError) as error:
        metrics = Metrics((), (), None)
        problems.append(str(error))
    counts: dict[str, int | None] = {}
    for name in (BEST, LAST):
        try:
            counts[name] = _parameters(run / name)
        except (SafetensorError, OSError) as error:
            counts[name] = None
            problems.append(f"{name} is damaged: {error}")
    if metrics.finished and counts[BEST] is None and not (run / BEST).is_file():
        problems.append(f"{BEST} is missing")
    last, best = metrics.steps[-1] if metrics.steps else None, metrics.best
    validated = metrics.validations[-1].step if metrics.validations else 0
    return Overview(
        path=run,
        task=recipe.task,
        network=_network(recipe),
        tokenizer=getattr(recipe.training, "tokenizer", "character"),
        data=recipe.data.title,
        parameters=counts[BEST] or counts[LAST],
        step=max(last.step if last else 0, validated),
        total_steps=last.total_steps if last else None,
        epoch=last.epoch if last else 0.0,
        epochs=recipe.training.epochs,
        loss=best.loss if best else None,
        bleu=best.bleu if best else None,
        best_step=best.step if best else None,
        state=_state(metrics, resumable=counts[LAST] is not None),
        seconds=metrics.seconds if last else None,
        problems=tuple(problems),
    )


def _state(metrics: Metrics, *, resumable: bool) -> State:
    if metrics.finished:
        return "early stop" if metrics.finished.reason == "early-stop" else "finished"
    return "can resume" if resumable else "no checkpoint"


def _parameters(checkpoint: Path) -> int | None:
    """The model's parameters by a checkpoint's header, or None where there is no checkpoint."""
    if not checkpoint.is_file():
        return None
    with safe_open(checkpoint, framework="numpy") as file:
        names = [name for name in file.keys() if name.startswith("model.")]  # noqa: SIM118
        shapes: list[list[int]] = [file.get_slice(name).get_shape() for name in names]
    return sum(map(math.prod, shapes))


def _network(recipe: Recipe) -> str:
    model = recipe.model
    encoder = ""
    if isinstance(model, TranslationSection):
        encoder = f"{model.encoder_layers} × 2 × {model.encoder_hidden} → "
    elif model.last_hidden not in (0, model.hidden):
        return f"{model.cell.upper()} {', '.join(map(str, model.widths))}"
    return f"{model.cell.upper()} {encoder}{model.layers} × {model.hidden}"
