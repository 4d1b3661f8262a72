"""A language model as a bundle: one step graph."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rnn_edge.bundle import Bundle
from rnn_edge.manifest import (
    FORMAT_VERSION,
    Architecture,
    Lowering,
    Manifest,
    Metric,
    SamplingDefaults,
    SpecialIds,
    StatePair,
    TokenizerSpec,
)
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.checkpoint import restore_module
from rnn_edge_export.language_model.modules import RecurrentLanguageModel
from rnn_edge_export.language_model.parity import check_parity
from rnn_edge_export.language_model.steps import ALLOWED_OPERATORS, make_step
from rnn_edge_export.layers import parameter_count
from rnn_edge_export.onnx_export import (
    TOKENIZER_FILE,
    Signature,
    provenance,
    to_onnx,
    versions,
)
from rnn_edge_export.parity import Check
from rnn_edge_export.recipe import LanguageModelRecipe
from rnn_edge_export.run import TOKENIZER, RunContent, load_tokenizer
from rnn_edge_export.vocabularies import UNKNOWN

STEP_FILE = "step.onnx"


@dataclass(frozen=True)
class LanguageModelSource:
    """A trained language model on the CPU, and where it comes from."""

    model: RecurrentLanguageModel
    tokenizer: Tokenizer
    recipe: LanguageModelRecipe
    metrics: tuple[Metric, ...] = ()
    notes: str = ""

    @property
    def title(self) -> str:
        """What the model is, in a line."""
        return self.recipe.title

    def draft(self, name: str, lowering: Lowering) -> tuple[Manifest, dict[str, bytes]]:
        """The manifest before there are hashes, and the bundle's files."""
        section, names = self.recipe.model, self.model.state_names()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=name,
            task="language-model",
            precision="fp32",
            lowering=lowering,
            architecture=Architecture(
                cell=section.cell,
                embedding=section.embedding,
                hidden=section.hidden,
                layers=section.layers,
                tied=section.tie_weights,
                parameters=parameter_count(self.model),
            ),
            graphs={"step": STEP_FILE},
            state=tuple(
                StatePair(item, f"{item}_next", width, "float32")
                for item, width in zip(names, self.model.state_widths(), strict=True)
            ),
            tokenizer=TokenizerSpec(TOKENIZER_FILE, self.recipe.training.tokenizer, self.tokenizer.vocabulary_size),
            special_ids=SpecialIds(start=self.tokenizer.line_end, unknown=self.tokenizer.id_of(UNKNOWN)),
            sampling=SamplingDefaults(),
            golden=(),
            metrics=self.metrics,
            provenance=provenance(self.recipe),
            versions=versions(),
        )
        return manifest, {STEP_FILE: step_graph(self.model, manifest), TOKENIZER_FILE: self.tokenizer.content}

    def check(self, bundle: Bundle) -> list[Check]:
        """PyTorch against the shipped stepper."""
        return check_parity(self.model.eval(), bundle)


def load_source(run: Path, content: RunContent, recipe: LanguageModelRecipe) -> LanguageModelSource:
    """A run's best weights.

    Raises:
        RunError: a file is missing, or the checkpoint is not the recipe's.
    """
    tokenizer = load_tokenizer(run / TOKENIZER)
    model = RecurrentLanguageModel(recipe.model, tokenizer.vocabulary_size)
    restore_module("model", model, content.tensors)
    return LanguageModelSource(model.requires_grad_(False).eval(), tokenizer, recipe, content.scores)


def step_graph(model: RecurrentLanguageModel, manifest: Manifest) -> bytes:
    """The step graph as ONNX bytes.

    Raises:
        ParityError: the exporter produced something else than asked for.
    """
    return step_to_onnx(make_step(model, manifest.lowering), manifest, ALLOWED_OPERATORS[manifest.lowering])


def step_to_onnx(step: nn.Module, manifest: Manifest, allowed: frozenset[str]) -> bytes:
    """A module of one step (token, state… → logits, next state…) as the step graph that a manifest describes.

    Raises:
        ParityError: the exporter produced something else than asked for.
    """
    # Sizes of 1 and equal sizes would be taken for constants or for one another.
    state = [torch.zeros(3, pair.width) for pair in manifest.state]
    outputs: dict[str, list[str | int]] = {"logits": ["batch", manifest.tokenizer.vocabulary_size]}
    signature = Signature(
        example=(torch.zeros(3, dtype=torch.int64), *state),
        inputs={"token": {0: "batch"}} | {pair.input: {0: "batch"} for pair in manifest.state},
        outputs=outputs | {pair.output: ["batch", pair.width] for pair in manifest.state},
        description="One time step of a recurrent language model: token and state in, logits and next state out.",
    )
    return to_onnx(step, signature, manifest, allowed)
