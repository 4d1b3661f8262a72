"""Train and export the tiny bundles that the device tests run on: ``python tests/data/make_bundles.py [NAME...]``.

Needs rnn-edge[export,cpu] and a minute. The bundles are committed, so that testing the device side needs no torch;
run this again only when the bundle format changes.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from rnn_edge.bundle import Bundle
from rnn_edge.manifest import Lowering
from rnn_edge_export.language_model.data import Texts, load_corpus
from rnn_edge_export.language_model.export import load_source
from rnn_edge_export.language_model.task import LanguageModelTask
from rnn_edge_export.onnx_export import export_bundle
from rnn_edge_export.parity import Check
from rnn_edge_export.recipe import LanguageModelRecipe, TranslationRecipe
from rnn_edge_export.recipe_sections import (
    DataRecipe,
    LanguageModelSection,
    PairSection,
    StreamSection,
    TranslationSection,
)
from rnn_edge_export.run import load_run
from rnn_edge_export.training import Trainer
from rnn_edge_export.translation.data import load_pairs
from rnn_edge_export.translation.export import load_source as load_translation_source
from rnn_edge_export.translation.subwords import train_tokenizers
from rnn_edge_export.translation.task import TranslationTask

HERE = Path(__file__).parent
Made = tuple[Bundle, list[Check]]

CORPUS = HERE / "corpus.txt"
TRAINING = StreamSection(
    epochs=40,
    batch_size=8,
    sequence_length=48,
    learning_rate=0.01,
    warmup_steps=20,
    average_decay=0.98,
    validation_interval=100,
    precision="fp32",
)

# Every sentence of a small grammar, subject verb object place, in English and French.
SUBJECTS = (("The keeper", "Le gardien"), ("Marta", "Marta"), ("My sister", "Ma sœur"), ("She", "Elle"))
NAMES = ("Tobias", "Elena", "Ann")  # the vocabularies of words lack them
VERBS = (("sees", "voit"), ("paints", "peint"), ("sells", "vend"), ("repairs", "répare"))
OBJECTS = (
    ("a boat", "un bateau"),
    ("the lighthouse", "le phare"),
    ("the old house", "la vieille maison"),
    ("two red books", "deux livres rouges"),
)
PLACES = (("", ""), (" in the morning", " le matin"), (" near the sea", " près de la mer"), (", he said", ", dit-il"))


def main(names: list[str]) -> None:
    """Make every bundle anew, or those that are named."""
    torch.set_num_threads(1)
    for name in names or BUNDLES:
        bundle, checks = BUNDLES[name](name)
        worst = max(check.difference for check in checks)
        scores = ", ".join(f"{metric.name} {metric.value:.3f}" for metric in bundle.manifest.metrics)
        print(f"{name}: {bundle.size:,} bytes, {scores}, largest difference from PyTorch {worst:.1e}")


def language_model(name: str, model: LanguageModelSection, lowering: Lowering) -> Made:
    """Characters of one small text."""
    texts = Texts.survey([CORPUS])
    corpus = load_corpus(texts, TRAINING)
    data = DataRecipe("The lighthouse keeper's ledger", "tests/data/corpus.txt", "MIT", texts.corpus.sha256)
    recipe = LanguageModelRecipe(
        title=f"Tiny {model.cell.upper()} for tests", data=data, model=model, training=TRAINING
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / name
        for _ in Trainer(LanguageModelTask(recipe, corpus), run, "cpu", resume=False).run():
            pass
        source = load_source(run, load_run(run), recipe)
        return export_bundle(source, HERE / name, name=f"tiny-{name}", lowering=lowering, force=True)


def translator(name: str, model: TranslationSection, training: PairSection, lowering: Lowering) -> Made:
    """The grammar's sentences. A tokenizer learns from those without names."""
    known, named = sentences(SUBJECTS), sentences([(name, name) for name in NAMES])
    with tempfile.TemporaryDirectory() as folder:
        tsv, run = Path(folder) / "pairs.tsv", Path(folder) / name
        tsv.write_text("".join(f"{source}\t{target}\n" for source, target in [*known, *named]), encoding="utf-8")
        corpus = load_pairs([tsv], [], training, tokenizers=train_tokenizers(known, training))
        data = DataRecipe(
            "Sentences of a small grammar", "tests/data/make_bundles.py", "MIT", corpus.sha256, longest=corpus.longest
        )
        title = f"Tiny {model.cell.upper()} translator for tests"
        recipe = TranslationRecipe(title=title, data=data, model=model, training=training)
        for _ in Trainer(TranslationTask(recipe, corpus), run, "cpu", resume=False).run():
            pass
        source = load_translation_source(run, load_run(run), recipe)
        return export_bundle(source, HERE / name, name=f"tiny-{name}", lowering=lowering, force=True)


def sentences(subjects: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """A pair for every choice of words."""
    return [
        ("{} {} {}{}.".format(*source), "{} {} {}{}.".format(*target))
        for source, target in (zip(*words, strict=True) for words in product(subjects, VERBS, OBJECTS, PLACES))
    ]


PAIRS = PairSection(
    epochs=25,
    vocabulary_size=300,
    batch_tokens=800,
    learning_rate=0.01,
    warmup_steps=20,
    average_decay=0.98,
    validation_pairs=20,
    select_by="loss",
    precision="fp32",
)
TRANSLATOR = TranslationSection(
    embedding=16,
    encoder_hidden=12,
    encoder_layers=1,
    hidden=24,
    input_dropout=0.0,
    layer_dropout=0.0,
    output_dropout=0.0,
)
BUNDLES: dict[str, Callable[[str], Made]] = {
    "lstm": partial(
        language_model,
        model=LanguageModelSection("lstm", 16, 32, 2, layer_dropout=0.0, output_dropout=0.0),
        lowering="operator",
    ),
    "gru": partial(
        language_model,
        model=LanguageModelSection("gru", 16, 32, 1, layer_dropout=0.0, output_dropout=0.0),
        lowering="cell",
    ),
    "translator": partial(translator, model=TRANSLATOR, training=PAIRS, lowering="operator"),
    "translator-word": partial(
        translator,
        model=replace(TRANSLATOR, cell="gru", layers=1, attention="bahdanau"),
        training=replace(PAIRS, tokenizer="word"),
        lowering="cell",
    ),
}


if __name__ == "__main__":
    main(sys.argv[1:])
