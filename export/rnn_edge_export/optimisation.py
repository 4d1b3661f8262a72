"""The optimiser, its schedule, and the average of the weights."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from rnn_edge_export.recipe_sections import OptimisationSection


def make_optimizer(model: nn.Module, training: OptimisationSection) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), or plain SGD, with decay on matrices and none on biases."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if training.optimizer != "adamw":
        return torch.optim.SGD(groups, lr=training.learning_rate)
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.99), fused=True)


def learning_rate(step: int, total_steps: int, training: OptimisationSection, annealings: int = 0) -> float:
    """For AdamW linear warm-up, then a cosine (Loshchilov & Hutter 2017) down to a share of the peak.

    For SGD the peak, divided by ``annealing`` for each of ``annealings`` validations that were not better; NT-ASGD's
    does not change.
    """
    if training.optimizer == "sgd":
        return training.learning_rate / training.annealing**annealings
    if training.optimizer == "nt-asgd":
        return training.learning_rate
    warmup = min(training.warmup_steps, total_steps // 2)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))
    return training.learning_rate * (training.final_learning_rate + (1 - training.final_learning_rate) * cosine)


def average_weight(step: int, averaging_from: int | None, training: OptimisationSection) -> float:
    """The share of the new weights in their average after ``step`` steps.

    An exponential average with a short memory at first, so that the random start is forgotten (as TensorFlow's
    ExponentialMovingAverage). NT-ASGD's is the plain mean of all since ``averaging_from``, and before that the weights
    themselves.
    """
    if training.optimizer == "nt-asgd":
        return 1.0 if averaging_from is None else 1 / (step - averaging_from + 1)
    return 1 - min(training.average_decay, (1 + step) / (10 + step)) if training.average_decay > 0 else 1.0


def stalls(losses: Sequence[float], interval: int) -> bool:
    """Whether the last validation loss is worse than the best of all but the ``interval`` before it.

    The trigger of NT-ASGD (Merity et al. 2017, algorithm 1).
    """
    *before, last = losses
    return len(before) > interval and last > min(before[:-interval])
