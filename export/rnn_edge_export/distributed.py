"""Several processes as one trainer: each reads its own streams, and all have the same weights.

``torchrun`` starts them, PyTorch's distributed engine connects them (gloo between CPUs, NCCL between GPUs). The first
process alone writes, validates and prints.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rnn_edge.errors import RunError

if dist.is_available():
    import torch.distributed.nn.functional  # loaded later, its defaults would keep the group past leave_world

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Process ``rank`` of ``size``; alone, everything here does nothing."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes, validates and prints."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's share of ``count`` rows."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.size > 1:
            with _group():
                dist.all_reduce(tensor)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The same of all gradients, in one transfer."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.sum(flat)
        for gradient, part in zip(gradients, flat.split([item.numel() for item in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, one behind the other along the first axis."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with _group():
            dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def lead(self, work: Callable[[], T]) -> T:
        """What the first process finds, for all."""
        if self.size == 1:
            return work()
        found = [work()] if self.leads else cast("list[T]", [None])
        with _group():
            dist.broadcast_object_list(found, src=0)
        return found[0]

    @contextmanager
    def lead_first(self) -> Iterator[None]:
        """The others enter when the first process has left: what it wrote is there."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    def wait(self) -> None:
        """Go on when all are here."""
        if self.size > 1:
            with _group():
                dist.barrier()


def join_world() -> World:
    """The world that ``torchrun`` started this process in, or one of its own."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        return World()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with _group():
        # One that is gone is seen at once; others may read a large corpus while the rest wait.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=7))
    return World(dist.get_rank(), dist.get_world_size())


def leave_world(world: World) -> None:
    """Part in good order: all of them, at the end.

    The engine's threads end here, if nothing else holds the group: one that lives on as Python ends may abort the
    process (pytorch/pytorch#190489).
    """
    if world.size > 1:
        dist.destroy_process_group()


@contextmanager
def _group() -> Iterator[None]:
    """The engine's own words for a process that is gone help nobody."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"another process of this training is gone, or cannot be reached ({str(error).splitlines()[0][:120]})",
            "look for its own message; go on from the last checkpoint with --resume on as many processes",
        ) from error
