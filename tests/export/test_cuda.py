"""Training on a GPU."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from rnn_edge_export.hardware import resolve_device, resolve_precision
from rnn_edge_export.language_model.data import Texts, load_corpus
from rnn_edge_export.language_model.dynamic import DynamicRule, dynamic_loss, gradient_statistics
from rnn_edge_export.language_model.modules import RecurrentLanguageModel
from rnn_edge_export.language_model.scoring import carried_loss
from rnn_edge_export.language_model.task import LanguageModelTask
from rnn_edge_export.onnx_export import export_bundle
from rnn_edge_export.recipe import LanguageModelRecipe
from rnn_edge_export.recipe_sections import LanguageModelSection, StreamSection
from rnn_edge_export.training import Trainer
from rnn_edge_export.training_events import FinishedEvent, StepEvent
from tests.export.conftest import load_best

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA GPU"),
]

_MODEL = LanguageModelSection(embedding=8, hidden=16, layers=2, weight_drop=0.3, input_dropout=0.1)


def test_weight_drop_reaches_the_fused_kernel() -> None:
    torch.manual_seed(1)
    model = RecurrentLanguageModel(replace(_MODEL, input_dropout=0.0, layer_dropout=0.0, output_dropout=0.0), 9)
    model = model.to("cuda").train()
    tokens = torch.randint(9, (6, 2), device="cuda")
    first, second = (model(tokens, model.zero_state(2))[0] for _ in range(2))
    assert not torch.allclose(first[1:], second[1:], atol=1e-4)
    first.sum().backward()
    for layer in model.layers:
        gradient = dict(layer.named_parameters())["weight_hh_l0"].grad
        assert gradient is not None
        assert 0 < (gradient == 0).float().mean() < 1  # some weights were dropped


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_trains_resumes_and_exports(tmp_path: Path, text: str, precision: Literal["fp32", "bf16"]) -> None:
    corpus_file = tmp_path / "corpus.txt"
    corpus_file.write_text(text, encoding="utf-8")
    training = StreamSection(
        epochs=2.0,
        batch_size=8,
        sequence_length=24,
        learning_rate=0.01,
        validation_interval=30,
        reset_probability=0.05,
        precision=precision,
    )
    plan = LanguageModelRecipe(model=_MODEL, training=training)
    corpus = load_corpus(Texts.survey([corpus_file]), training)
    trainer = Trainer(LanguageModelTask(plan, corpus), tmp_path / "run", "cuda", resume=False)
    losses = []
    for event in trainer.run():
        if isinstance(event, StepEvent):
            losses.append(event.loss)
            trainer.interrupted = event.step == 50
    assert losses[-1] < losses[0]
    trainer = Trainer(LanguageModelTask(plan, corpus), tmp_path / "run", "auto", resume=True)
    assert trainer.device.type == "cuda"
    assert trainer.state.progress.step == 50
    finished = list(trainer.run())[-1]
    assert isinstance(finished, FinishedEvent)
    carried = finished.scores[0]
    assert carried.method == "state carried from a zero start"
    assert carried.value < math.log(corpus.tokenizer.vocabulary_size)
    export_bundle(load_best(tmp_path / "run"), tmp_path / "bundle", name="tiny")


def test_auto_takes_the_gpu() -> None:
    device = resolve_device("auto")
    assert device.type == "cuda"
    expected = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    assert resolve_precision("auto", device) == expected


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_dynamic_evaluation_is_that_of_the_cpu(cell: Literal["lstm", "gru"]) -> None:
    """In evaluation mode, where cuDNN's recurrent kernels do not differentiate."""
    torch.manual_seed(2)
    model = RecurrentLanguageModel(replace(_MODEL, cell=cell), 9).eval()
    tokens = np.tile(np.arange(9, dtype=np.uint16), 40)
    found = []
    for device in ("cpu", "cuda"):
        statistics = gradient_statistics(model.to(device), tokens, 5)
        losses = [
            dynamic_loss(model, tokens, DynamicRule(*rule), roots)
            for rule, roots in (
                ((0.1, 0.01, 10), None),
                ((0.0001, 0.01, 10), statistics),  # ten times that, and float64 differs from float32 by 0.03
            )
        ]
        found.append([carried_loss(model, tokens), *losses])
    assert found[0] == pytest.approx(found[1], abs=0.002)  # products on a GPU are rounded to TF32
    assert found[1][2] < found[1][0] - 0.005
