"""Checkpoints: one safetensors file each, with JSON in its header, replaced in one step. Nothing is unpickled."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rnn_edge.errors import RunError
from rnn_edge.files import write_bytes
from rnn_edge.schema import SchemaError, decode, encode
from rnn_edge_export.run import LAST

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """Where a run stands. With the tensors of the checkpoint it is all that resuming needs.

    ``loss_sum`` adds up the training losses since ``logged_step``, the last line of metrics; ``metrics_bytes`` is the
    length of the metrics file, so that lines written after the checkpoint can be cut off. ``annealings`` counts how
    often SGD's learning rate was lowered; ``losses`` are NT-ASGD's validations and ``averaging_from`` the step of its
    trigger. ``made_of`` says what network this is, and by which tokenizers.
    """

    step: int = 0
    batch: int = 0
    epoch: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    logged_step: int = 0
    best: float | None = None
    best_step: int = 0
    bad_validations: int = 0
    metrics_bytes: int = 0
    annealings: int = 0
    losses: tuple[float, ...] = ()
    averaging_from: int | None = None
    made_of: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Best:
    """What a run's best weights scored."""

    step: int
    loss: float
    bleu: float | None
    parameters: int


def save_checkpoint(path: Path, tensors: dict[str, Tensor], description: object) -> None:
    """Write tensors and a dataclass atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(contiguous, metadata={"rnn-edge": json.dumps(encode(description))}))


def load_checkpoint(path: Path, kind: type[T]) -> tuple[dict[str, Tensor], T]:
    """Read what ``save_checkpoint`` wrote.

    Raises:
        RunError: missing, damaged, or not a checkpoint of this kind.
    """
    if not path.is_file():
        raise RunError(
            f"{path.parent} has no checkpoint {path.name}",
            "start it again with --force"
            if path.name == LAST
            else "it has not validated yet: go on with --resume, or start it again with --force",
        )
    try:
        with safe_open(path, framework="pt") as file:
            # Strict: of another version's fields none may be passed over, or a run would go on from the wrong place.
            description = decode(kind, json.loads((file.metadata() or {})["rnn-edge"]), strict=True)
            return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118
    except (SafetensorError, SchemaError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is not a checkpoint: {error}", "train again, or copy the run again") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state with flat names: optimizer.INDEX.KEY."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{key}": value for index, slot in state.items() for key, value in slot.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of ``optimizer_tensors``."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Parameters as PREFIX.NAME, each shared one once."""
    return {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}


@torch.no_grad()
def restore_module(prefix: str, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of ``module_tensors``.

    Raises:
        RunError: a tensor is missing or of another shape.
    """
    for name, parameter in module.named_parameters():
        stored = tensors.get(f"{prefix}.{name}")
        if stored is None or stored.shape != parameter.shape:
            raise RunError(
                f"the checkpoint's {prefix}.{name} is {'missing' if stored is None else tuple(stored.shape)}, "
                f"the recipe's is {tuple(parameter.shape)}",
                "use the run's own recipe and checkpoint together",
            )
        parameter.copy_(stored)
