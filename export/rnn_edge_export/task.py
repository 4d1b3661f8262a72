"""What a trainer asks of whatever is trained."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from rnn_edge.manifest import Metric
from rnn_edge_export.recipe import Recipe

BatchT = TypeVar("BatchT")
ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class Evaluation:
    """What validation found: nats per token, something that the model wrote, and BLEU where that means something.

    Of two evaluations the one with the lower ``objective`` is better.
    """

    loss: float
    sample: str
    objective: float
    bleu: float | None = None


@dataclass(frozen=True)
class BatchLoss:
    """The mean loss of a batch in nats per token, what is differentiated (with penalties, say), and its tokens."""

    loss: Tensor
    objective: Tensor
    tokens: int


class Task(Protocol[BatchT, ModelT]):
    """What is trained: data, network and scores. ``Trainer`` does everything else.

    Whatever is random in batches is a function of seed and epoch; whatever is random in ``loss`` comes from PyTorch's
    generator. So a resumed run goes on as if it had never stopped.
    """

    steps_per_epoch: int  # about, where batches are drawn anew each epoch

    @property
    def recipe(self) -> Recipe:
        """The recipe, of the task's own kind."""

    def describe(self) -> list[str]:
        """Network and data, for people."""

    def new_model(self) -> ModelT:
        """The untrained network, from PyTorch's generator."""

    def files(self) -> dict[str, bytes]:
        """What else belongs into the run's folder: tokenizers."""

    def batches(self, epoch: int, done: int) -> Iterator[BatchT]:
        """The batches of an epoch after the first ``done``."""

    def loss(self, model: ModelT, batch: BatchT, device: torch.device) -> "BatchLoss":
        """What a batch costs."""

    def rate(self, batch: BatchT) -> float:
        """A factor of the learning rate for this batch."""

    def evaluate(self, model: ModelT, step: int) -> Evaluation:
        """Score the averaged weights on the validation data."""

    def scores(self, model: ModelT) -> tuple[Metric, ...]:
        """The exact scores of the best weights, on the CPU, for the manifest."""

    def carried(self) -> dict[str, Tensor]:
        """What is carried from batch to batch, by its names in the checkpoint."""

    def restore(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Set what is carried from a checkpoint's tensors; a KeyError names what is missing."""
