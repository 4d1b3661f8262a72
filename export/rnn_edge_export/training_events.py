"""What training yields. Printing is elsewhere."""

from dataclasses import dataclass
from typing import Literal

from rnn_edge.manifest import Metric


@dataclass(frozen=True)
class StepEvent:
    """Losses in nats per token, the mean since the last such event. ``tokens`` are all that were trained on."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class ValidationEvent:
    """Scores of the averaged weights on the validation data, and a sample that they wrote."""

    step: int
    loss: float
    best: bool
    sample: str
    bleu: float | None = None
    recorded: bool = True


@dataclass(frozen=True)
class FinishedEvent:
    """The end of a run. ``scores`` are those of the best weights, exactly; none after an interrupt."""

    reason: Literal["complete", "early-stop", "interrupt"]
    step: int
    best_step: int
    scores: tuple[Metric, ...] = ()


TrainingEvent = StepEvent | ValidationEvent | FinishedEvent
