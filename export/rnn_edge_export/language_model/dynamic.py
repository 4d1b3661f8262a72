"""Dynamic evaluation: a model that goes on learning from the text that it is scored on (Krause et al. 2018).

The text is cut into windows s₁, s₂, … Each is scored with weights that have learnt from all windows before it, and
then they learn from it too. With θ₀ the trained weights, L(s) the mean loss of a window and the state carried on:

    SGD   θᵢ = θᵢ₋₁ − η ∇L(sᵢ) + λ (θ₀ − θᵢ₋₁)
    RMS   θᵢ = θᵢ₋₁ − η ∇L(sᵢ) / (√MS + ε) + λ min(R, 1/λ) (θ₀ − θᵢ₋₁)

MS is the mean of the squared gradients of windows of training text, for each weight, and R = √MS / avg(√MS): weights
that training has moved most may change most, and are drawn back most. The average is that of the tensors' means, as the
authors compute it, so that their η and λ are the ones here.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_edge.errors import DataError, InvalidValueError
from rnn_edge_export.language_model.data import windows
from rnn_edge_export.language_model.modules import RecurrentLanguageModel, detach
from rnn_edge_export.language_model.token_files import Tokens

EPSILON = 2e-5  # the authors'
_STREAMS = 100  # of training text at once: how many there are changes MS, so it is the authors' number
Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class DynamicRule:
    """How fast weights learn (η) and are drawn back (λ), and after how many tokens each time."""

    learning_rate: float
    decay: float
    window: int

    def __post_init__(self) -> None:
        """Raises InvalidValueError for values out of range; written so that NaN fails too."""
        if not 0 <= self.learning_rate < float("inf"):
            raise InvalidValueError(f"--dynamic-lr is {self.learning_rate}", "use a number from 0 on")
        if not 0 <= self.decay <= 1:
            raise InvalidValueError(f"--dynamic-decay is {self.decay}", "use a number from 0 to 1")
        if self.window < 1:
            raise InvalidValueError(f"--dynamic-window is {self.window}", "use at least 1")


def dynamic_loss(
    model: RecurrentLanguageModel,
    tokens: Tokens,
    rule: DynamicRule,
    statistics: Sequence[Tensor] | None = None,
    progress: Progress = lambda done, total: None,
) -> float:
    """Mean loss of ``tokens`` [N] in nats: every token but the first, each by weights that have not seen it.

    The RMS rule where there are ``statistics`` (√MS of each parameter), else SGD. The model itself stays as it is.
    """
    count = len(tokens) - 1
    learner = _learner(model)
    parameters, state = list(learner.parameters()), learner.zero_state(1)
    trained = [parameter.detach().clone() for parameter in parameters]
    total = trained[0].new_zeros((), dtype=torch.float64)  # read once, at the end: a GPU runs behind the program
    scales, pulls = _factors(trained, rule, statistics)
    for start in range(0, count, rule.window):
        stop = min(start + rule.window, count)
        window = _window(model, tokens[start : stop + 1, None])
        logits, state = learner(window[:-1], detach(state))
        loss = F.cross_entropy(logits.float().flatten(0, 1), window[1:].flatten(), reduction="sum")
        gradients = torch.autograd.grad(loss / (stop - start), parameters)
        with torch.no_grad():
            total += loss
            for parameter, gradient, first, scale, pull in zip(
                parameters, gradients, trained, scales, pulls, strict=True
            ):
                parameter.lerp_(first, pull).addcmul_(scale, gradient, value=-1)
        progress(stop, count)
    return total.item() / count


def gradient_statistics(
    model: RecurrentLanguageModel, tokens: Tokens, window: int, progress: Progress = lambda done, total: None
) -> list[Tensor]:
    """√MS of each parameter over windows of training text ``tokens`` [N], up to 100 streams at once.

    Raises:
        DataError: there is less than a window.
    """
    if len(tokens) <= window:
        raise DataError(
            f"the training text has {len(tokens)} tokens, a window {window}",
            "give --dynamic-statistics more text, or lower --dynamic-window",
        )
    streams = min(_STREAMS, (len(tokens) - 1) // window)
    total = (len(tokens) - 1) // streams // window
    learner = _learner(model)
    parameters, state, count = list(learner.parameters()), learner.zero_state(streams), 0
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    for inputs, targets in windows(tokens, streams, window):
        logits, state = learner(inputs.to(squares[0].device), detach(state))
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.to(squares[0].device).flatten())
        for square, gradient in zip(squares, torch.autograd.grad(loss, parameters), strict=True):
            square.addcmul_(gradient, gradient)
        count += 1
        progress(count, total)
    return [(square / count).sqrt() for square in squares]


def _factors(
    parameters: Sequence[Tensor], rule: DynamicRule, statistics: Sequence[Tensor] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """What gradients, and what ways back to the trained weights, are multiplied by."""
    if statistics is None:
        rate, decay = (parameters[0].new_tensor(value) for value in (rule.learning_rate, rule.decay))
        return [rate] * len(parameters), [decay] * len(parameters)
    average = torch.stack([root.mean() for root in statistics]).mean()
    scales = [rule.learning_rate / (root + EPSILON) for root in statistics]
    return scales, [(rule.decay * root / average).clamp(max=1) for root in statistics]


def _learner(model: RecurrentLanguageModel) -> RecurrentLanguageModel:
    """A copy that learns without dropout. It is in training mode, the only one that cuDNN differentiates."""
    learner = copy.deepcopy(model)
    learner.recipe = replace(
        model.recipe,
        embedding_dropout=0.0,
        input_dropout=0.0,
        layer_dropout=0.0,
        output_dropout=0.0,
        weight_drop=0.0,
    )
    for layer in learner.layers:
        if isinstance(layer, nn.RNNBase):
            layer.flatten_parameters()  # a copy's weights are not in one block
    return learner.train().requires_grad_(True)


def _window(model: RecurrentLanguageModel, tokens: Tokens) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64)).to(model.output.weight.device)
