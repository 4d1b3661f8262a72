"""The optimiser and its schedule."""

import math

import torch
from torch import nn

from rnn_edge_export.recipe import OptimisationSection


def make_optimizer(model: nn.Module, training: OptimisationSection) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) with decay on matrices and none on biases."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.99), fused=True)


def learning_rate(step: int, total_steps: int, training: OptimisationSection) -> float:
    """Linear warm-up, then a cosine (Loshchilov & Hutter 2017) down to a share of the peak."""
    warmup = min(training.warmup_steps, total_steps // 2)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))
    return training.learning_rate * (training.final_learning_rate + (1 - training.final_learning_rate) * cosine)
