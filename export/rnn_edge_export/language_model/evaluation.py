"""What a run of a language model is worth on a text: in PyTorch, so that it may learn from the text on its way."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from rnn_edge.errors import DataError, InvalidValueError, RunError
from rnn_edge.evaluation import Loss, characters_of
from rnn_edge.text_files import read_text
from rnn_edge.tokenizer import Tokenizer, Unknown
from rnn_edge_export.hardware import resolve_device
from rnn_edge_export.language_model.dynamic import DynamicRule, Progress, dynamic_loss, gradient_statistics
from rnn_edge_export.language_model.export import LanguageModelSource, load_source
from rnn_edge_export.language_model.scoring import carried_loss, cold_block_loss
from rnn_edge_export.language_model.token_files import Tokens
from rnn_edge_export.recipe import LanguageModelRecipe
from rnn_edge_export.run import load_run
from rnn_edge_export.vocabularies import UNKNOWN

Bar = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Dynamic:
    """What is asked for of dynamic evaluation; None takes what measured best here or with the authors."""

    learning_rate: float | None = None
    decay: float | None = None
    window: int | None = None
    statistics: Path | None = None

    def rule(self, kind: str) -> DynamicRule:
        """The rule for a tokenizer of this kind.

        Raises:
            InvalidValueError: a value is out of its range.
        """
        window = self.window if self.window is not None else 20 if kind in ("character", "byte") else 5
        # Gradients that are divided by their usual size need no more than one figure; others grow with the window.
        rate, decay = (5e-5, 0.002) if self.statistics else (0.005 * window, 0.001)
        return DynamicRule(
            rate if self.learning_rate is None else self.learning_rate,
            decay if self.decay is None else self.decay,
            window,
        )


def evaluate_run(
    run: Path,
    data: Path,
    *,
    encoding: str,
    unknown: Unknown,
    block: int,
    device: str,
    threads: int | str | None,
    dynamic: Dynamic | None,
    bar: Bar,
) -> tuple[list[Loss], float, float]:
    """Losses of a text, the share of its tokens that stand for unknown words, and of its characters that were skipped.

    Raises:
        RnnEdgeError: the run or a text cannot be used, or a value is out of its range.
    """
    if threads == "auto":
        raise InvalidValueError("--threads auto is for bundles", "give a number")
    source = _load(run)
    rule = dynamic.rule(source.recipe.training.tokenizer) if dynamic else None
    text, tokens = _read(data, source.tokenizer, encoding, unknown)
    torch.set_num_threads(int(threads or 1))
    model = source.model.to(resolve_device(device))
    found = []

    def measure(method: str, work: Callable[[], float], count: int, characters: int) -> None:
        started = perf_counter()
        nats = work()
        if not math.isfinite(nats):
            raise InvalidValueError(f"the loss is {nats} ({method})", "lower --dynamic-lr")
        found.append(Loss(method, nats, count, characters, perf_counter() - started))

    every, ids = len(tokens) - 1, tokens.tolist()
    covered, characters = characters_of(source.tokenizer, text, ids, unknown)
    measure("state carried from a zero start", lambda: carried_loss(model, tokens), every, characters)
    if every >= block:
        count = every // block * block
        method = f"consecutive blocks of {block} from a zero state"
        measure(method, lambda: cold_block_loss(model, tokens, block), count, round(characters * count / every))
    if dynamic and rule:
        name, statistics = "SGD", None
        if dynamic.statistics:
            name = "RMS"
            _, training = _read(dynamic.statistics, source.tokenizer, encoding, unknown)
            with bar("gradient statistics") as progress:
                statistics = gradient_statistics(model, training, rule.window, progress)
        method = f"dynamic evaluation ({name}, η {rule.learning_rate:g}, λ {rule.decay:g}, windows of {rule.window})"
        with bar("dynamic evaluation") as progress:
            measure(method, lambda: dynamic_loss(model, tokens, rule, statistics, progress), every, characters)
    unknown_id = source.tokenizer.id_of(UNKNOWN)
    lacking = 0.0 if unknown_id is None else float((tokens == unknown_id).mean())
    return found, lacking, 1 - covered / len(text)


def _load(run: Path) -> LanguageModelSource:
    content = load_run(run)
    if not isinstance(content.recipe, LanguageModelRecipe):
        raise RunError(
            f"{run} is a translator, and runs are evaluated only of language models",
            f"give the bundle that rnn-edge export {run} writes",
        )
    return load_source(run, content, content.recipe)


def _read(path: Path, tokenizer: Tokenizer, encoding: str, unknown: Unknown) -> tuple[str, Tokens]:
    """A text and its tokens [N], at least two."""
    text = read_text(path, encoding)[0]
    tokens = np.array(tokenizer.encode(text, unknown=unknown), np.uint32)
    if len(tokens) < 2:
        raise DataError(f"{path} has {len(tokens)} tokens", "give at least two")
    return text, tokens
