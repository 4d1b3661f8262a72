"""Train and export the tiny bundles that the device tests run on: ``python tests/data/make_bundles.py``.

Needs rnn-edge[export,cpu] and a few seconds. The bundles are committed, so that testing the device side needs no torch;
run this again only when the bundle format changes.
"""

import tempfile
from pathlib import Path

import torch

from rnn_edge.manifest import Lowering
from rnn_edge_export.language_model.data import load_corpus
from rnn_edge_export.language_model.export import load_source
from rnn_edge_export.language_model.task import LanguageModelTask
from rnn_edge_export.onnx_export import export_bundle
from rnn_edge_export.recipe import DataRecipe, LanguageModelRecipe, LanguageModelSection, StreamSection
from rnn_edge_export.run import load_run
from rnn_edge_export.training import Trainer

HERE = Path(__file__).parent
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
BUNDLES: dict[str, tuple[LanguageModelSection, Lowering]] = {
    "lstm": (LanguageModelSection("lstm", 16, 32, 2, layer_dropout=0.0, output_dropout=0.0), "operator"),
    "gru": (LanguageModelSection("gru", 16, 32, 1, layer_dropout=0.0, output_dropout=0.0), "cell"),
}


def main() -> None:
    """Make every bundle anew."""
    torch.set_num_threads(1)
    corpus = load_corpus(CORPUS, None, TRAINING)
    data = DataRecipe("The lighthouse keeper's ledger", "tests/data/corpus.txt", "MIT", corpus.sha256)
    for name, (model, lowering) in BUNDLES.items():
        title = f"Tiny {model.cell.upper()} for tests"
        recipe = LanguageModelRecipe(title=title, data=data, model=model, training=TRAINING)
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / name
            for _ in Trainer(LanguageModelTask(recipe, corpus), run, "cpu", resume=False).run():
                pass
            source = load_source(run, load_run(run), recipe)
            bundle, checks = export_bundle(source, HERE / name, name=f"tiny-{name}", lowering=lowering, force=True)
        worst = max(check.difference for check in checks)
        scores = ", ".join(f"{metric.value:.3f}" for metric in bundle.manifest.metrics)
        print(f"{name}: {bundle.size:,} bytes, loss {scores}, largest difference from PyTorch {worst:.1e}")


if __name__ == "__main__":
    main()
