"""Weights to start from (``--init-from``): a run's best, or those of a checkpoint file in a run's folder."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rnn_edge.errors import RunError
from rnn_edge_export.recipe import Recipe, flag_name
from rnn_edge_export.recipe_sections import ModelSection
from rnn_edge_export.run import BEST, RECIPE, check_run

if TYPE_CHECKING:
    from torch import Tensor, nn

_VOCABULARY = ("tokenizer", "vocabulary_size", "minimum_count", "words", "lowercase")  # what a tokenizer is made by
_MEND = "leave these flags out, or start without --init-from"


@dataclass(frozen=True)
class Initial:
    """Tensors by the names of a network's parameters, the SHA-256 of their file, and the network that they are of."""

    path: Path
    sha256: str
    tensors: "dict[str, Tensor]"
    network: ModelSection

    def start(self, model: "nn.Module", network: ModelSection) -> None:
        """Copy the weights into a model that is made by ``network``.

        Raises:
            RunError: it has other tensors; what differs is named with both values.
        """
        from rnn_edge_export.checkpoint import restore_module

        here = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        there = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        if here != there:
            found = differences(shape(self.network), shape(network)) or differences(there, here)
            raise RunError(f"{self.path} is of another network: {found}", _MEND)
        restore_module("initial", model, {f"initial.{name}": tensor for name, tensor in self.tensors.items()})


def initial_folder(path: Path) -> Path:
    """The folder whose recipe and tokenizer belong to what ``--init-from`` names.

    Raises:
        RunError: neither a run, nor a file in the folder of one.
    """
    if not path.is_file():
        check_run(path)
        return path
    if not (path.parent / RECIPE).is_file():
        raise RunError(
            f"beside {path} is no {RECIPE} that says what it is a checkpoint of",
            f"put the {RECIPE} and tokenizer.json of its run into {path.parent}, or give the run's folder",
        )
    return path.parent


def check_vocabulary(initial: Recipe, plan: Recipe) -> None:
    """Refuse a plan that asks for another tokenizer than the one that comes with the weights.

    Raises:
        RunError: what differs is named with both values.
    """
    there, here = (
        {flag_name(name): getattr(recipe.training, name) for name in _VOCABULARY if hasattr(recipe.training, name)}
        for recipe in (initial, plan)
    )
    found = differences(there, here)
    if found:
        raise RunError(f"--init-from brings its tokenizer along: {found}", _MEND)


def load_initial(path: Path) -> Initial:
    """Read a run's best weights, or a checkpoint's: the averaged ones where it has both.

    Raises:
        RunError: missing, or not a checkpoint.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from rnn_edge_export.recipe import read_recipe

    folder = initial_folder(path)
    file = path if path.is_file() else path / BEST
    if not file.is_file():
        raise RunError(
            f"{folder} has no checkpoint {BEST}", "it has not validated yet: wait, or give another run or checkpoint"
        )
    try:
        content = file.read_bytes()
        tensors = load(content)
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}", "check the path") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise RunError(
            f"{file} is not a checkpoint: {error}", "give a run, or a .safetensors checkpoint that training wrote"
        ) from error
    prefix = "average." if any(name.startswith("average.") for name in tensors) else "model."
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return Initial(file, hashlib.sha256(content).hexdigest(), weights, read_recipe(folder / RECIPE).model)


def shape(network: ModelSection) -> dict[str, object]:
    """What makes a network, by flags; without dropout and what is frozen, which may change between trainings."""
    return {
        flag_name(item.name): getattr(network, item.name)
        for item in dataclasses.fields(network)
        if not item.name.endswith(("dropout", "drop")) and not item.name.startswith("freeze")
    }


def differences(there: Mapping[str, object], here: Mapping[str, object]) -> str:
    """What differs, with both values; empty where nothing does."""
    names = dict.fromkeys((*there, *here))
    return ", ".join(
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in names
        if there.get(name) != here.get(name)
    )
