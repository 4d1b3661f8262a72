"""The folder of a training run: recipe, tokenizer, checkpoints, metrics."""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rnn_edge.errors import RnnEdgeError, RunError
from rnn_edge.files import check_output
from rnn_edge.manifest import Metric
from rnn_edge.schema import SchemaError, decode
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.checkpoint import Best, load_checkpoint
from rnn_edge_export.recipe import Recipe, read_recipe

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
    if not (directory / RECIPE).is_file():
        raise RunError(f"{directory} is not a training run", "give the folder that rnn-edge train wrote with -o")
    recipe = read_recipe(directory / RECIPE)
    tensors, _ = load_checkpoint(directory / BEST, Best)
    return RunContent(recipe, tensors, _read_scores(directory / METRICS))


def load_tokenizer(path: Path) -> Tokenizer:
    """A run's tokenizer.

    Raises:
        RunError: it is missing.
    """
    try:
        return Tokenizer(path.read_bytes(), str(path))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}", "train again") from error


def _read_scores(metrics: Path) -> tuple[Metric, ...]:
    content = metrics.read_bytes() if metrics.is_file() else b""
    try:
        # What follows the last line end was cut off in the middle; a resumed run writes it again.
        records = [json.loads(line) for line in content.split(b"\n")[:-1]]
        finished = [record for record in records if record["kind"] == "finished"]
        scores = finished[-1]["scores"] if finished else []
        return tuple(decode(Metric, score, strict=False) for score in scores)
    except (SchemaError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{metrics} is damaged: {error}", "go on with --resume, which cuts it back") from error
