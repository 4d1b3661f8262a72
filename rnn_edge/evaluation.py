"""Scores of translations by sacreBLEU, with the signatures that say how they were counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rnn_edge.errors import MissingDependencyError


@dataclass(frozen=True)
class Score:
    """A corpus score and sacreBLEU's signature of how it was made."""

    name: str
    value: float
    signature: str


def bleu(translations: Sequence[str], references: Sequence[str], tokenize: str = "13a") -> Score:
    """BLEU (Papineni et al. 2002), cased, of detokenised text unless ``tokenize`` is ``none`` (Post 2018).

    Raises:
        MissingDependencyError: sacrebleu is not installed.
    """
    # Cased text that was tokenised before (tokenize="none") is what is asked for, not a mistake to warn of.
    metric = _metrics().BLEU(tokenize=tokenize, force=True)
    score = metric.corpus_score(list(translations), [list(references)]).score
    return Score("BLEU", score, str(metric.get_signature()))


def chrf(translations: Sequence[str], references: Sequence[str]) -> Score:
    """chrF (Popović 2015).

    Raises:
        MissingDependencyError: sacrebleu is not installed.
    """
    metric = _metrics().CHRF()
    score = metric.corpus_score(list(translations), [list(references)]).score
    return Score("chrF", score, str(metric.get_signature()))


def _metrics() -> Any:  # a package of the extra
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise MissingDependencyError(
            "sacrebleu is not installed; scoring translations needs it", "run: pip install 'rnn-edge[evaluate]'"
        ) from error
    return metrics
