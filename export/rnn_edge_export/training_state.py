"""What changes while a run goes on, and nothing else: what a checkpoint keeps and resuming brings back."""

import copy
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from rnn_edge.errors import RunError
from rnn_edge_export.checkpoint import (
    Progress,
    load_checkpoint,
    module_tensors,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
    save_checkpoint,
)
from rnn_edge_export.distributed import World
from rnn_edge_export.initial import Initial, differences, shape
from rnn_edge_export.optimisation import average_weight, make_optimizer
from rnn_edge_export.task import Task

ModelT = TypeVar("ModelT", bound=nn.Module)


class TrainingState(Generic[ModelT]):
    """The network, its averaged weights, the optimiser, how far it is; and through the task and torch the rest."""

    def __init__(self, task: Task[Any, ModelT], device: torch.device, world: World, initial: Initial | None) -> None:
        """Before the first step, from ``initial`` weights where they are given.

        Raises:
            RunError: the weights are of another network.
        """
        self.task, self.device, self.world = task, device, world
        seed = task.recipe.training.seed
        torch.manual_seed(seed)
        model = task.new_model()
        if initial:
            initial.start(model, task.recipe.model)
        if world.size > 1:  # the same first weights, but dropout masks of its own
            torch.manual_seed(seed + (world.rank + 1) * 2**32)
        self.model = model.to(device)
        # Moved to where it is already, which puts a copy's recurrent weights into one block again: cuDNN wants them so.
        self.average = copy.deepcopy(self.model).to(device).requires_grad_(False).eval()
        self.optimizer = make_optimizer(self.model, task.recipe.training)
        self.progress = Progress(made_of=self._made_of())
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)  # since progress.logged_step

    @torch.no_grad()
    def update_average(self) -> None:
        """Take the network's weights into their average."""
        weight = average_weight(self.progress.step, self.progress.averaging_from, self.task.recipe.training)
        for mean, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(parameter, weight)

    def save(self, path: Path) -> None:
        """Write a checkpoint: of several processes the first, for all, once ``loss_sum`` is the sum of all theirs."""
        self.progress = replace(self.progress, loss_sum=self.loss_sum.item())
        if not self.world.leads:
            self.loss_sum.zero_()  # the first process has it all now
        carried = {name: self.world.gather(tensor) for name, tensor in self.task.carried().items()}
        carried["random"] = self.world.gather(torch.get_rng_state())
        if self.device.type == "cuda":
            carried["random_cuda"] = self.world.gather(torch.cuda.get_rng_state())
        if not self.world.leads:
            return
        tensors = {
            **module_tensors("model", self.model),
            **module_tensors("average", self.average),
            **optimizer_tensors(self.optimizer),
            **carried,
        }
        save_checkpoint(path, tensors, self.progress)

    def restore(self, path: Path) -> None:
        """The inverse of ``save``.

        Raises:
            RunError: not a checkpoint, or one of another network, another tokenizer or another number of processes.
        """
        tensors, self.progress = load_checkpoint(path, Progress)
        changed = differences(self.progress.made_of, self._made_of()) if self.progress.made_of else ""
        if changed:
            raise RunError(
                f"{path.parent} has changed since its last checkpoint: {changed}",
                "put its own recipe.toml and tokenizer back, or start a new run with --init-from",
            )
        self.loss_sum.fill_(self.progress.loss_sum if self.world.leads else 0.0)
        restore_module("model", self.model, tensors)
        restore_module("average", self.average, tensors)
        restore_optimizer(self.optimizer, tensors)
        try:
            self.task.restore(tensors, self.device)
            torch.set_rng_state(self._own(tensors["random"], torch.get_rng_state()))
        except KeyError as error:
            raise RunError(f"{path} has no tensor {error.args[0]}", "train again, or copy the run again") from error
        if self.device.type == "cuda" and "random_cuda" in tensors:
            torch.cuda.set_rng_state(self._own(tensors["random_cuda"], torch.cuda.get_rng_state()))

    def _made_of(self) -> dict[str, str]:
        """The network, and the first digits of the tokenizers' SHA-256."""
        files = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in self.task.files().items()}
        return {name: str(value) for name, value in shape(self.task.recipe.model).items()} | files

    def _own(self, states: Tensor, example: Tensor) -> Tensor:
        """This process's state of the random numbers, of those of all that wrote the checkpoint."""
        writers = len(states) // len(example)
        if writers != self.world.size:
            raise RunError(
                f"{writers} processes trained this run, and here {self.world.size} would go on",
                f"go on with torchrun --nproc-per-node {writers} -m rnn_edge_export, or with one process if it was one",
            )
        return states.chunk(writers)[self.world.rank].clone()  # a part of a storage is refused
