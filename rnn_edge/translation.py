"""What a translation is asked with, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import InvalidValueError
from rnn_edge.events import FinishReason, Timings
from rnn_edge.manifest import MAXIMUM_BEAM
from rnn_edge.noise import check_seed
from rnn_edge.sampling import SamplingOptions
from rnn_edge.search import Scoring
from rnn_edge.sentences import Layout


@dataclass(frozen=True)
class TranslationOptions:
    """How to translate.

    ``beam`` 1 takes the likeliest token at each step, or draws it where ``sampling`` is given, with ``seed`` (None
    draws one). ``n_best`` keeps so many candidates of each sentence. ``length_penalty`` and ``coverage_penalty`` are α
    and β of Wu et al. (2016). A target has at most ``maximum_ratio`` times the source's tokens, and ten; it starts
    with ``prefix``. ``replace_unknown`` puts the source word that an unknown target word looks at in its place.
    ``unwrap`` joins the lines of a paragraph before it is split into sentences. ``log_probabilities`` are wanted of
    translations without a beam too, and with them scores; one with a beam is searched by them.
    """

    beam: int = 1
    n_best: int = 1
    length_penalty: float = 1.0
    coverage_penalty: float = 0.0
    maximum_ratio: float = 1.5
    prefix: str = ""
    replace_unknown: bool = False
    sampling: SamplingOptions | None = None
    seed: int | None = None
    unwrap: bool = False
    batch_size: int = 32
    log_probabilities: bool = False

    def __post_init__(self) -> None:
        """Check ranges and combinations.

        Raises:
            InvalidValueError: a value is out of its range, or two exclude each other.
        """
        # Each test is written so that NaN fails it.
        if not 1 <= self.beam <= MAXIMUM_BEAM:
            raise InvalidValueError(f"beam is {self.beam}", f"use 1 to {MAXIMUM_BEAM}")
        if self.n_best < 1:
            raise InvalidValueError(f"n-best is {self.n_best}", "use at least 1")
        if self.n_best > self.beam:
            wider = f"use --beam {min(self.n_best, MAXIMUM_BEAM)}, or a smaller --n-best"
            raise InvalidValueError(
                f"n-best is {self.n_best}, more than the beam of {self.beam}",
                "what is drawn is one translation: leave --n-best or the sampling out" if self.sampling else wider,
            )
        for name, value, limit in (
            ("length-penalty", self.length_penalty, 10),
            ("coverage-penalty", self.coverage_penalty, 10),
            ("max-ratio", self.maximum_ratio, 100),
        ):
            if not 0 <= value <= limit:
                raise InvalidValueError(f"{name} is {value}", f"use a value from 0 to {limit}")
        if not 1 <= self.batch_size <= 4096:
            raise InvalidValueError(f"batch-size is {self.batch_size}", "use 1 to 4096")
        if self.sampling and self.beam > 1:
            raise InvalidValueError("sampling and a beam exclude each other", "leave the temperature or the beam out")
        if self.seed is not None:
            check_seed(self.seed)

    @property
    def scoring(self) -> Scoring:
        """How candidates compare."""
        return Scoring(self.length_penalty, self.coverage_penalty)


@dataclass(frozen=True)
class Candidate:
    """One translation of one sentence.

    ``score`` is the log probability after length and coverage penalty, both NaN where neither they nor a beam were
    asked for; a candidate that is not ``finished`` was cut off at the maximum length. ``pieces`` are the bytes of its
    tokens, a space before what begins a word, none for the end token; ``attention`` has a row for each, over the
    source's pieces.
    """

    text: str
    score: float
    log_probability: float
    finished: bool
    pieces: tuple[bytes, ...]
    attention: NDArray[np.float32]


@dataclass(frozen=True)
class Sentence:
    """A sentence and its translations, best first. ``pieces`` are the bytes of its tokens, none for the end token."""

    source: str
    pieces: tuple[bytes, ...]
    candidates: tuple[Candidate, ...]

    @property
    def text(self) -> str:
        """The best translation."""
        return self.candidates[0].text


@dataclass(frozen=True)
class Translation:
    """A translated text: its sentences put together again with the white space that stood around them.

    ``layout`` has what stands between the sentences. ``cut`` counts sentences that are longer than any the model was
    trained on: they were translated in parts.
    """

    text: str
    sentences: tuple[Sentence, ...]
    layout: Layout
    cut: int


@dataclass(frozen=True, slots=True)
class TranslationEvent:
    """One token of a translation, or the start or end of a sentence, or the end of all.

    ``text`` is what became certain; joined over all events it is the whole translation. The first event of a sentence
    has ``source``, the bytes of its tokens. Each token comes with its bytes, its natural ``log_probability`` by the
    model if it was asked for, and its ``attention`` over the source's tokens. The last event of a sentence has the
    ``result``. Only the last event of all has ``finish_reason`` and ``timings``.
    """

    text: str
    sentence: int
    source: tuple[bytes, ...] | None = None
    token: int | None = None
    piece: bytes | None = None
    log_probability: float | None = None
    attention: NDArray[np.float32] | None = None
    result: Sentence | None = None
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
