"""Fixtures of the translation tests: sentence pairs, tiny translators, and bundles exported once."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import pytest

from rnn_edge.manifest import AttentionKind, Lowering
from rnn_edge.text_files import Pair, read_pairs
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.recipe import TranslationRecipe
from rnn_edge_export.recipe_sections import DataRecipe, PairSection, TranslationSection
from tests.device.tiny import DATA

if TYPE_CHECKING:
    from rnn_edge.bundle import Bundle
    from rnn_edge_export.parity import Check
    from rnn_edge_export.training import Trainer
    from rnn_edge_export.translation.batches import Batch
    from rnn_edge_export.translation.export import TranslationSource
    from rnn_edge_export.translation.modules import EncoderDecoder
    from rnn_edge_export.translation.task import TranslationTask

    class TranslationTrainer(Trainer[Batch, EncoderDecoder]):
        """A trainer whose task is known."""

        task: TranslationTask


if find_spec("torch") is None:  # a device: nothing here applies
    collect_ignore_glob = ["test_*.py"]

PAIRS = DATA / "pairs.tsv"

Kind = Literal["subword", "word"]

PLAIN = TranslationSection(
    embedding=8,
    encoder_hidden=6,
    encoder_layers=1,
    hidden=12,
    layers=2,
    input_dropout=0.0,
    layer_dropout=0.0,
    output_dropout=0.0,
)
# Everything in training that draws random numbers.
DROPOUTS: dict[str, Any] = {
    **dict.fromkeys(("input_dropout", "layer_dropout", "output_dropout"), 0.2),
    **dict.fromkeys(("word_dropout", "weight_drop"), 0.1),
}
SMALL_TRAINING = PairSection(
    epochs=1.0,
    tokenizer="word",
    batch_tokens=64,
    label_smoothing=0.0,
    validation_pairs=20,
    validation_interval=20,
    learning_rate=0.01,
    warmup_steps=5,
    precision="fp32",
)


class Combination(NamedTuple):
    """What an exported translator is made of."""

    cell: str
    attention: AttentionKind
    lowering: Lowering
    feeding: bool
    layers: int = 2
    tokenizer: Kind = "subword"


class Exported(NamedTuple):
    """A translator, the bundle that it became, and what was checked on the way."""

    source: "TranslationSource"
    bundle: "Bundle"
    checks: "list[Check]"


Export = Callable[[Combination], Exported]
MakeSource = Callable[..., "TranslationSource"]
MakeTrainer = Callable[..., "TranslationTrainer"]
Tokenizers = Callable[[Kind], tuple[Tokenizer, Tokenizer]]


def write_pairs(path: Path, pairs: Sequence[Pair]) -> Path:
    """A TSV file."""
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8", newline="")
    return path


@pytest.fixture(scope="session")
def pairs() -> list[Pair]:
    """English and French sentences."""
    return read_pairs([PAIRS])[0]


@pytest.fixture(scope="session")
def numbers() -> list[Pair]:
    """Numbers word by word: 340 pairs that a tiny model can learn."""
    words = {"one": "un", "two": "deux", "three": "trois", "four": "quatre"}
    texts = [text for length in (1, 2, 3, 4) for text in itertools.product(words, repeat=length)]
    return [(" ".join(text), " ".join(words[word] for word in text)) for text in texts]


@pytest.fixture(scope="session")
def tokenizers(pairs: list[Pair]) -> Tokenizers:
    """Source and target tokenizer of a kind, trained on the sentences; each only once a session."""
    from rnn_edge_export.translation.subwords import train_tokenizers

    @functools.cache
    def train(kind: Kind) -> tuple[Tokenizer, Tokenizer]:
        return train_tokenizers(pairs, PairSection(tokenizer=kind, vocabulary_size=400))

    return train


@pytest.fixture
def make_trainer(tmp_path: Path, numbers: list[Pair]) -> MakeTrainer:
    """A trainer in a folder of its own, with changes to a small recipe."""
    count = itertools.count()

    def make(
        name: str | None = None,
        *,
        resume: bool = False,
        data: Sequence[Pair] = numbers,
        model: TranslationSection = PLAIN,
        **changes: Any,
    ) -> "TranslationTrainer":
        from rnn_edge_export.training import Trainer
        from rnn_edge_export.translation.data import load_pairs
        from rnn_edge_export.translation.task import TranslationTask, run_tokenizers

        directory = tmp_path / (name or f"run{next(count)}")
        plan = TranslationRecipe(model=model, training=replace(SMALL_TRAINING, **changes))
        known = run_tokenizers(directory) if resume else None
        corpus = load_pairs([write_pairs(tmp_path / "numbers.tsv", data)], [], plan.training, tokenizers=known)
        return cast("TranslationTrainer", Trainer(TranslationTask(plan, corpus), directory, "cpu", resume=resume))

    return make


@pytest.fixture(scope="session")
def make_source(tokenizers: Tokenizers) -> MakeSource:
    """An untrained translator with all weights and biases random: zeros would hide mistakes."""

    def make(tokenizer: Kind = "subword", std: float = 0.4, longest: int = 0, **changes: Any) -> "TranslationSource":
        import torch

        from rnn_edge_export.translation.export import TranslationSource
        from rnn_edge_export.translation.task import new_model

        recipe = TranslationRecipe(
            data=DataRecipe(title="sentences", sha256="0" * 64, longest=longest),
            model=replace(PLAIN, **changes),
            training=replace(SMALL_TRAINING, tokenizer=tokenizer),
        )
        recipe.check()
        both = tokenizers(tokenizer)
        model = new_model(recipe, both).requires_grad_(False).eval()
        generator = torch.Generator().manual_seed(11)
        for parameter in model.parameters():
            parameter.normal_(std=std, generator=generator)
        return TranslationSource(model, both, recipe)

    return make


@pytest.fixture(scope="session")
def exported(make_source: MakeSource, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export one combination; each only once a session."""

    @functools.cache
    def export(chosen: Combination) -> Exported:
        from rnn_edge_export.onnx_export import export_bundle

        source = make_source(
            chosen.tokenizer,
            cell=chosen.cell,
            attention=chosen.attention,
            input_feeding=chosen.feeding,
            layers=chosen.layers,
            encoder_layers=chosen.layers,
        )
        output = tmp_path_factory.mktemp("bundles") / "tiny"
        return Exported(source, *export_bundle(source, output, name="tiny", lowering=chosen.lowering))

    return export
