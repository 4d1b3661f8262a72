"""Training throughput of our ``Trainer`` against bare PyTorch loops of the same shapes and precision.

    python -m benchmarks.training
    python -m benchmarks.training --hidden 512 --precision fp32 --steps 30 --variants weight-drop layer-norm

The bare loop below is what one writes on a page: ``nn.LSTM`` with ``num_layers`` and ``dropout``, cross entropy, AdamW,
clipping, truncated back-propagation with the state carried; no averaged weights, no schedule, no log. The other one
does what the loop of PyTorch's word_language_model example does: dropout around the network, log-softmax and its loss,
plain SGD by hand. Ours is ``Trainer.run`` on a synthetic corpus, with averaging, schedule and metrics, and then with
each regulariser and optimiser. All take turns in chunks of ten steps, in one process. Prints a table of median (best)
tokens per second and the ratios ours / peer, with pass or MISS for the target: at least 0.95 of the bare loop.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import CELLS, CHARACTERS, EMBEDDING, interleave, machine, ratio, table, verdict
from rnn_edge.manifest import Cell
from rnn_edge.tokenizer import character_tokenizer
from rnn_edge_export.language_model.data import Corpus, Part
from rnn_edge_export.language_model.task import LanguageModelTask
from rnn_edge_export.recipe import LanguageModelRecipe
from rnn_edge_export.recipe_sections import LanguageModelSection, StreamSection
from rnn_edge_export.training import Trainer
from rnn_edge_export.training_events import StepEvent, TrainingEvent

TARGET = 0.95
CHUNK = 10  # Trainer.run yields once in ten steps
NEVER = 10**9
WARM_UP = 1
WINDOWS = 100  # of the synthetic corpus; both loops go round it

# Ours with one thing more (or less).
VARIANTS: dict[str, dict[str, Any]] = {
    "unlocked-dropout": {"locked_dropout": False},
    "embedding-dropout": {"embedding_dropout": 0.1},
    "weight-drop": {"weight_drop": 0.5},
    "activation": {"activation_regularisation": 2.0, "temporal_regularisation": 1.0},
    "tied": {"tie_weights": True},
    "residual": {"residual": True},
    "random-lengths": {"random_lengths": True},
    "label-smoothing": {"label_smoothing": 0.1},
    "accumulation": {"accumulation": 2},
    "sgd": {"optimizer": "sgd"},
    "nt-asgd": {"optimizer": "nt-asgd"},
    "layer-norm": {"layer_norm": True},
}
UNJUDGED = {"layer-norm"}  # for which there is no fused kernel

_CELLS: dict[Cell, Callable[..., nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=CELLS, default="lstm")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=128, help="steps of a window")
    parser.add_argument("--steps", type=int, default=60, help="measured steps of each loop, in chunks of ten")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=tuple(VARIANTS))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    corpus = synthetic_corpus(options.batch, options.length)
    recipe = LanguageModelRecipe(
        model=LanguageModelSection(
            cell=options.cell, embedding=EMBEDDING, hidden=options.hidden, layers=options.layers
        ),
        training=StreamSection(
            epochs=float(NEVER),  # the chunks end it
            batch_size=options.batch,
            sequence_length=options.length,
            validation_interval=NEVER,
        ),
    )
    rows, place = [], ""
    for precision in options.precision:
        with tempfile.TemporaryDirectory() as folder:
            trainers = {}
            for name in ("ours", *options.variants):
                changed = recipe.override({"precision": precision, **VARIANTS.get(name, {})})
                task = LanguageModelTask(changed, corpus)
                trainers[name] = Trainer(task, Path(folder) / name, options.device, resume=False)
            device = trainers["ours"].device
            kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
            place = f"{kind}, {torch.get_num_threads()} thread(s)"
            contenders = {
                "bare loop": on_device(device, BareLoop(recipe, corpus, device, precision).chunk),
                "word_language_model's": on_device(device, ExampleLoop(recipe, corpus, device, precision).chunk),
            }
            for name, trainer in trainers.items():
                contenders[name] = on_device(device, our_chunk(trainer.run()))
            units = CHUNK * options.batch * options.length
            seconds = interleave(contenders, rounds=-(-options.steps // CHUNK), units=units, warm_up=WARM_UP)
        if "accumulation" in seconds:  # whose steps have twice the tokens
            seconds["accumulation"] = [item / 2 for item in seconds["accumulation"]]
        for name, spent in seconds.items():
            relative = [ratio(seconds[peer], spent) for peer in list(seconds)[:2]]
            judged = name in trainers and name not in UNJUDGED
            verdicts = (f"≥ {TARGET}", verdict(relative[0] >= TARGET)) if judged else ("", "")
            figures = [f"{figure:.3f}" for figure in relative]
            rows.append((precision, name, tokens_per_second(spent), *figures, *verdicts))
    print(
        f"{options.cell} {options.hidden}x{options.layers}, embedding {EMBEDDING}, vocabulary {len(CHARACTERS)}, "
        f"batch {options.batch} × {options.length}, {place}"
    )
    print(machine("torch"), end="\n\n")
    headings = ("precision", "loop", "tokens/s", "× bare", "× word_language_model's", "target", "result")
    print(table(headings, rows))


def synthetic_corpus(batch: int, length: int) -> Corpus:
    """Random tokens: speed does not depend on them."""
    tokens = np.random.default_rng(0).integers(0, len(CHARACTERS), WINDOWS * batch * length + 1, np.uint16)
    train, valid = (Part(some, len(some), "random tokens") for some in (tokens, tokens[: 2 * length]))
    return Corpus(character_tokenizer(CHARACTERS), train, valid)


def our_chunk(events: Iterator[TrainingEvent]) -> Callable[[], None]:
    """Ten steps of ``Trainer.run``."""

    def work() -> None:
        event = next(events)
        assert isinstance(event, StepEvent)
        assert event.step % CHUNK == 0

    return work


class BareLoop:
    """The peer: nothing but what training needs."""

    def __init__(
        self, recipe: LanguageModelRecipe, corpus: Corpus, device: torch.device, precision: Literal["fp32", "bf16"]
    ) -> None:
        shape, training = recipe.model, recipe.training
        self.device, self.enabled = device, precision == "bf16"
        self.length, self.clip_norm = training.sequence_length, training.clip_norm
        size = len(CHARACTERS)
        self.embedding = nn.Embedding(size, shape.embedding)
        between = shape.layer_dropout if shape.layers > 1 else 0.0
        self.rnn = _CELLS[shape.cell](shape.embedding, shape.hidden, shape.layers, dropout=between)
        self.dropout = nn.Dropout(shape.output_dropout)
        self.output = nn.Linear(shape.hidden, size)
        self.model = nn.ModuleList([self.embedding, self.rnn, self.dropout, self.output]).to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )
        tokens = torch.from_numpy(corpus.train.tokens[:-1].astype(np.int64))
        streams = tokens.view(training.batch_size, -1).t().contiguous().to(device)  # [steps, streams]
        self.inputs, self.targets = streams, torch.roll(streams, -1, 0)
        self.state: tuple[Tensor, ...] | Tensor | None = None
        self.place = 0

    def chunk(self) -> None:
        """Ten steps."""
        for _ in range(CHUNK):
            window = slice(self.place, self.place + self.length)
            self.place = (self.place + self.length) % len(self.inputs)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.enabled):
                y, state = self.rnn(self.embedding(self.inputs[window]), self.state)
                logits = self.output(self.dropout(y))
            self.state = tuple(item.detach() for item in state) if isinstance(state, tuple) else state.detach()
            loss = F.cross_entropy(logits.float().flatten(0, 1), self.targets[window].flatten())
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
            self.optimizer.step()


class ExampleLoop(BareLoop):
    """What the loop of PyTorch's word_language_model example does, with the same network."""

    def chunk(self) -> None:
        """Ten steps."""
        for _ in range(CHUNK):
            window = slice(self.place, self.place + self.length)
            self.place = (self.place + self.length) % len(self.inputs)
            self.model.zero_grad()
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.enabled):
                y, state = self.rnn(self.dropout(self.embedding(self.inputs[window])), self.state)
                logits = self.output(self.dropout(y))
            self.state = tuple(item.detach() for item in state) if isinstance(state, tuple) else state.detach()
            scores = F.log_softmax(logits.float().flatten(0, 1), dim=1)
            loss = F.nll_loss(scores, self.targets[window].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
            with torch.no_grad():
                for parameter in self.model.parameters():
                    if parameter.grad is not None:
                        parameter.add_(parameter.grad, alpha=-1e-3)
            loss.item()


def on_device(device: torch.device, work: Callable[[], None]) -> Callable[[], None]:
    """The same work, waited for: kernels of a GPU run behind the program."""

    def waited() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return waited


def tokens_per_second(seconds_per_token: list[float]) -> str:
    """Median (best)."""
    return f"{1 / statistics.median(seconds_per_token):,.0f} ({1 / min(seconds_per_token):,.0f})"


if __name__ == "__main__":
    main()
