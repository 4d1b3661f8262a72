"""What a model is worth on given data: losses of language models, BLEU and chrF of translators, and their speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from rnn_edge.errors import MissingDependencyError
from rnn_edge.search import log_normalisers

if TYPE_CHECKING:
    from rnn_edge.language_model import LanguageModel
    from rnn_edge.text_files import Pair
    from rnn_edge.tokenizer import Tokenizer, Unknown
    from rnn_edge.translation import TranslationOptions
    from rnn_edge.translator import Translator

Progress = Callable[[int, int], None]  # done, of how many
_BLOCKS_AT_ONCE = 32
_SENTENCES_AT_ONCE = 512


@dataclass(frozen=True)
class Loss:
    """Mean loss in nats over ``tokens``, which stand for ``characters``, how it was measured, and how fast."""

    method: str
    nats: float
    tokens: int
    characters: int
    seconds: float

    @property
    def bits(self) -> float:
        """Bits per token."""
        return self.nats / math.log(2)

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(min(self.nats, 700))

    @property
    def bits_per_character(self) -> float:
        """Comparable between tokenizers."""
        return self.bits * self.tokens / self.characters


@dataclass(frozen=True)
class Score:
    """A corpus score and sacreBLEU's signature of how it was made."""

    name: str
    value: float
    signature: str


@dataclass(frozen=True)
class TranslationScores:
    """Scores of a translator: of its translations, and the loss of the references; ``seconds`` of translating."""

    translations: tuple[str, ...]
    scores: tuple[Score, ...]
    reference: Loss
    seconds: float
    words: int


def characters_of(tokenizer: Tokenizer, text: str, ids: Sequence[int], unknown: Unknown) -> tuple[int, int]:
    """How many characters of ``text`` its ``ids`` stand for, and all of them but the first, which is not scored."""
    covered = tokenizer.covered(text, ids) if unknown == "skip" else len(text)
    return covered, covered - len(tokenizer.decode(ids[:1]))


def carried_loss(model: LanguageModel, ids: Sequence[int], characters: int, progress: Progress) -> Loss:
    """Every token but the first is scored, with all the text before it: one stream from a zero state.

    ``characters`` are those of the tokens that are scored.
    """
    started, total = perf_counter(), 0.0
    stepper = model.graph.stepper()
    for index, (token, following) in enumerate(pairwise(ids)):
        logits = stepper.step(token)
        total += float(log_normalisers(logits)[0] - logits[0, following])
        if index % 1000 == 0:
            progress(index, len(ids) - 1)
    count = len(ids) - 1
    return Loss("state carried from a zero start", total / count, count, characters, perf_counter() - started)


def cold_block_loss(model: LanguageModel, ids: Sequence[int], characters: int, block: int, progress: Progress) -> Loss:
    """Consecutive blocks of ``block`` tokens, each from a zero state; what is left at the end is left out.

    ``characters`` are those of all tokens but the first.
    """
    started, total = perf_counter(), 0.0
    blocks = (len(ids) - 1) // block
    tokens = np.array(ids[: blocks * block + 1])
    inputs, targets = tokens[:-1].reshape(blocks, block), tokens[1:].reshape(blocks, block)
    for first in range(0, blocks, _BLOCKS_AT_ONCE):
        some = slice(first, min(first + _BLOCKS_AT_ONCE, blocks))
        stepper = model.graph.stepper(some.stop - first)
        for column, following in zip(inputs[some].T, targets[some].T, strict=True):
            logits = stepper.step(column)
            total += float((log_normalisers(logits) - logits[np.arange(len(column)), following]).sum())
        progress(some.stop * block, blocks * block)
    method = f"consecutive blocks of {block} from a zero state"
    share = round(characters * blocks * block / (len(ids) - 1))
    return Loss(method, total / (blocks * block), blocks * block, share, perf_counter() - started)


def evaluate_translator(
    translator: Translator, pairs: Sequence[Pair], options: TranslationOptions, tokenize: str, progress: Progress
) -> TranslationScores:
    """Translate all sources in batches; BLEU, chrF, and the loss of the references.

    Raises:
        MissingDependencyError: sacrebleu is not installed.
    """
    bleu(["a"], ["a"])  # before the work rather than after it
    started = perf_counter()
    translations: list[str] = []
    for first in range(0, len(pairs), _SENTENCES_AT_ONCE):
        some = [source for source, _ in pairs[first : first + _SENTENCES_AT_ONCE]]
        translations += [found.text for found in translator.translate_sentences(some, options)]
        progress(len(translations), len(pairs))
    seconds = perf_counter() - started
    references = [target for _, target in pairs]
    scores = (bleu(translations, references, tokenize), chrf(translations, references))
    started = perf_counter()
    found = translator.score(pairs, options.batch_size)
    count = sum(tokens for _, tokens in found)
    loss = Loss(
        "of the references",
        -sum(value for value, _ in found) / count,
        count,
        sum(map(len, references)),
        perf_counter() - started,
    )
    return TranslationScores(tuple(translations), scores, loss, seconds, sum(len(t.split()) for t in translations))


def bleu(translations: Sequence[str], references: Sequence[str], tokenize: str = "13a") -> Score:
    """BLEU (Papineni et al. 2002), cased, of detokenised text unless ``tokenize`` is ``none`` (Post 2018).

    Raises:
        MissingDependencyError: sacrebleu is not installed.
    """
    # Text that looks tokenised is what tokenize="none" is for, and no reason to warn.
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
