"""What generation yields. Printing is elsewhere."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["length", "stop", "end", "interrupt"]


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds and tokens of one text.

    ``first_token_seconds`` counts from the call, prompt included; in a batch, from when the text found room in it.
    """

    prompt_tokens: int
    prompt_seconds: float
    generated_tokens: int
    generation_seconds: float
    first_token_seconds: float


@dataclass(frozen=True, slots=True)
class Event:
    """One token, or the end.

    ``text`` is what became certain with this event; joined over all events it is the whole text. ``token`` is None
    in the last event, which alone has ``finish_reason`` and ``timings``. ``log_probability`` is natural, of the model
    before temperature and filters, where it was asked for. ``index`` tells the texts of a batch apart.
    """

    text: str
    token: int | None
    log_probability: float | None = None
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    index: int | None = None
