"""A translator as a bundle: encoder graph and decoder step graph."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rnn_edge.bundle import Bundle
from rnn_edge.manifest import (
    FORMAT_VERSION,
    Architecture,
    EncoderArchitecture,
    Lowering,
    Manifest,
    MemoryTensor,
    Metric,
    SamplingDefaults,
    SourceSpec,
    SpecialIds,
    StatePair,
    TokenizerSpec,
)
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.checkpoint import restore_module
from rnn_edge_export.layers import parameter_count
from rnn_edge_export.onnx_export import (
    TOKENIZER_FILE,
    Signature,
    provenance,
    to_onnx,
    versions,
)
from rnn_edge_export.parity import Check
from rnn_edge_export.recipe import TranslationRecipe
from rnn_edge_export.run import RunContent
from rnn_edge_export.translation.batches import special_id
from rnn_edge_export.translation.modules import EncoderDecoder
from rnn_edge_export.translation.parity import check_parity
from rnn_edge_export.translation.steps import (
    DECODER_OPERATORS,
    ENCODER_OPERATORS,
    DecoderStep,
    EncoderGraph,
    has_keys,
)
from rnn_edge_export.translation.subwords import END, START, UNKNOWN
from rnn_edge_export.translation.task import new_model, run_tokenizers

ENCODER_FILE, DECODER_FILE, SOURCE_TOKENIZER_FILE = "encoder.onnx", "decoder.onnx", "source_tokenizer.json"


@dataclass(frozen=True)
class TranslationSource:
    """A trained translator on the CPU, its source and target tokenizer (one object where shared), and its origin."""

    model: EncoderDecoder
    tokenizers: tuple[Tokenizer, Tokenizer]
    recipe: TranslationRecipe
    metrics: tuple[Metric, ...] = ()
    notes: str = ""

    @property
    def title(self) -> str:
        """What the model is, in a line."""
        return self.recipe.title

    def draft(self, name: str, lowering: Lowering) -> tuple[Manifest, dict[str, bytes]]:
        """The manifest before there are hashes, and the bundle's files."""
        section, training = self.recipe.model, self.recipe.training
        source, target = self.tokenizers
        shared = source is target
        kind = training.tokenizer
        source_file = TOKENIZER_FILE if shared else SOURCE_TOKENIZER_FILE
        memory = [MemoryTensor("memory", 2 * section.encoder_hidden)]
        memory += [MemoryTensor("keys", section.hidden)] if has_keys(self.model) else []
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=name,
            task="translation",
            precision="fp32",
            lowering=lowering,
            architecture=Architecture(
                cell=section.cell,
                embedding=section.embedding,
                hidden=section.hidden,
                layers=section.layers,
                tied=True,
                parameters=parameter_count(self.model),
                encoder=EncoderArchitecture(
                    section.encoder_hidden, section.encoder_layers, section.attention, section.input_feeding
                ),
            ),
            graphs={"encoder": ENCODER_FILE, "decoder": DECODER_FILE},
            state=tuple(
                StatePair(item, f"{item}_next", width, "float32")
                for item, width in zip(self.model.state_names(), self.model.state_widths(), strict=True)
            ),
            tokenizer=TokenizerSpec(TOKENIZER_FILE, kind, target.vocabulary_size),
            special_ids=SpecialIds(special_id(target, START), special_id(target, END), target.id_of(UNKNOWN)),
            sampling=SamplingDefaults(),
            golden=(),
            metrics=self.metrics,
            provenance=provenance(self.recipe),
            versions=versions(),
            source=SourceSpec(
                TokenizerSpec(source_file, kind, source.vocabulary_size),
                special_id(source, END),
                self.recipe.data.longest or training.maximum_length,
                source.id_of(UNKNOWN),
                training.source_language,
            ),
            memory=tuple(memory),
        )
        contents = {
            ENCODER_FILE: encoder_graph(self.model, manifest),
            DECODER_FILE: decoder_graph(self.model, manifest),
            TOKENIZER_FILE: target.content,
            source_file: source.content,
        }
        return manifest, contents

    def check(self, bundle: Bundle) -> list[Check]:
        """PyTorch against the shipped runtime."""
        return check_parity(self.model.eval(), bundle)


def load_source(run: Path, content: RunContent, recipe: TranslationRecipe) -> TranslationSource:
    """A run's best weights.

    Raises:
        RunError: a file is missing, or the checkpoint is not the recipe's.
    """
    tokenizers = run_tokenizers(run)
    model = new_model(recipe, tokenizers)
    restore_module("model", model, content.tensors)
    return TranslationSource(model.requires_grad_(False).eval(), tokenizers, recipe, content.scores)


def encoder_graph(model: EncoderDecoder, manifest: Manifest) -> bytes:
    """The encoder as ONNX bytes.

    Raises:
        ParityError: the exporter produced something else than asked for.
    """
    return encoder_to_onnx(EncoderGraph(model), manifest, ENCODER_OPERATORS)


def encoder_to_onnx(graph: nn.Module, manifest: Manifest, allowed: frozenset[str]) -> bytes:
    """A module (source [B, S], lengths → memory…, first state…) as the encoder graph that a manifest describes."""
    outputs: dict[str, list[str | int]] = {
        item.name: ["batch", "source_length", item.width] for item in manifest.memory
    }
    signature = Signature(
        # Sizes of 1 and equal sizes would be taken for constants or for one another.
        example=(torch.zeros(3, 7, dtype=torch.int64), torch.tensor([7, 5, 2])),
        inputs={"source": {0: "batch", 1: "source_length"}, "source_lengths": {0: "batch"}},
        outputs=outputs | {pair.input: ["batch", pair.width] for pair in manifest.state},
        description="An encoder: source and its lengths in, memory and the decoder's first state out.",
    )
    return to_onnx(graph, signature, manifest, allowed)


def decoder_graph(model: EncoderDecoder, manifest: Manifest) -> bytes:
    """One step of the decoder as ONNX bytes.

    Raises:
        ParityError: the exporter produced something else than asked for.
    """
    return decoder_to_onnx(DecoderStep(model, manifest.lowering), manifest, DECODER_OPERATORS[manifest.lowering])


def decoder_to_onnx(step: nn.Module, manifest: Manifest, allowed: frozenset[str]) -> bytes:
    """A module (token, memory…, lengths, state… → logits, attention, state…) as the decoder graph of a manifest."""
    memory = [torch.zeros(3, 7, item.width) for item in manifest.memory]
    state = [torch.zeros(3, pair.width) for pair in manifest.state]
    lengths = torch.tensor([7, 5, 2])
    outputs: dict[str, list[str | int]] = {
        "logits": ["batch", manifest.tokenizer.vocabulary_size],
        "attention": ["batch", "source_length"],
    }
    signature = Signature(
        example=(torch.zeros(3, dtype=torch.int64), *memory, lengths, *state),
        inputs={"token": {0: "batch"}}
        | {item.name: {0: "batch", 1: "source_length"} for item in manifest.memory}
        | {"source_lengths": {0: "batch"}}
        | {pair.input: {0: "batch"} for pair in manifest.state},
        outputs=outputs | {pair.output: ["batch", pair.width] for pair in manifest.state},
        description="One time step of an attentive decoder: token, memory and state in, logits and next state out.",
    )
    return to_onnx(step, signature, manifest, allowed)
