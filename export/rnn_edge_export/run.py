"""The folder of a training run: recipe, tokenizer, checkpoints, metrics."""

import json
from pathlib import Path

from rnn_edge.errors import RnnEdgeError, RunError
from rnn_edge.files import check_output
from rnn_edge.manifest import Metric
from rnn_edge_export.checkpoint import Best, load_checkpoint, restore_module
from rnn_edge_export.modules import RecurrentLanguageModel
from rnn_edge_export.recipe import Recipe

RECIPE, TOKENIZER, METRICS = "recipe.toml", "tokenizer.json", "metrics.jsonl"
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


def load_best(directory: Path) -> tuple[RecurrentLanguageModel, Recipe]:
    """A run's best weights as a model on the CPU, and its recipe.

    Raises:
        RunError: no run, or a run without a checkpoint.
    """
    if not (directory / RECIPE).is_file():
        raise RunError(f"{directory} is not a training run", "give the folder that rnn-edge train wrote with -o")
    recipe = Recipe.from_toml(directory / RECIPE)
    tensors, best = load_checkpoint(directory / BEST, Best)
    model = RecurrentLanguageModel(recipe.model, best.vocabulary_size)
    restore_module("model", model, tensors)
    return model.requires_grad_(False).eval(), recipe


def read_scores(metrics: Path, recipe: Recipe) -> tuple[Metric, ...]:
    """The scores of a finished run's best weights, as a manifest records them; none for an unfinished run."""
    content = metrics.read_bytes() if metrics.is_file() else b""
    try:
        # What follows the last line end was cut off in the middle; a resumed run writes it again.
        records = [json.loads(line) for line in content.split(b"\n")[:-1]]
        finished = [record for record in records if record["kind"] == "finished"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{metrics} is damaged: {error}", "go on with --resume, which cuts it back") from error
    if not finished:
        return ()
    last, data = finished[-1], recipe.data.title
    split = last["valid_source"]
    carried = Metric("loss", last["carried"], "nats per token", data, split, "state carried from a zero start")
    if last["cold"] is None:
        return (carried,)
    cold = Metric("loss", last["cold"], "nats per token", data, split, "consecutive blocks of 256 from a zero state")
    return carried, cold
