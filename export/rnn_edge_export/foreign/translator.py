"""Translators trained elsewhere, as bundles that are verified against the modules they come from."""

import os
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from rnn_edge.bundle import Bundle
from rnn_edge.errors import InvalidValueError, RnnEdgeError
from rnn_edge.manifest import (
    FORMAT_VERSION,
    Architecture,
    EncoderArchitecture,
    Lowering,
    Manifest,
    MemoryTensor,
    SamplingDefaults,
    SourceSpec,
    SpecialIds,
    StatePair,
    TokenizerSpec,
)
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.foreign.encoder_decoder import (
    DecoderStep,
    Encoder,
    EncoderGraph,
    ModuleTranslator,
    decoder_layers,
)
from rnn_edge_export.foreign.layers import LayerWeights, choose_lowering
from rnn_edge_export.foreign.modules import cell_of, check_finite, module_parameters, require
from rnn_edge_export.foreign.origin import Origin
from rnn_edge_export.foreign.vocabulary import Vocabulary, as_tokenizer, kind_of, role_id, unknown_id
from rnn_edge_export.onnx_export import TOKENIZER_FILE, export_bundle, versions
from rnn_edge_export.parity import Check
from rnn_edge_export.translation.export import (
    DECODER_FILE,
    ENCODER_FILE,
    SOURCE_TOKENIZER_FILE,
    decoder_to_onnx,
    encoder_to_onnx,
)
from rnn_edge_export.translation.parity import check_parity

# What is traced may use whatever the standard domain has.
_STANDARD = frozenset(schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain)
_CALLS = "see docs/importing.md for what each of the three is called with"


@dataclass(frozen=True)
class ForeignTranslator:
    """A translator from elsewhere as an export takes it."""

    model: ModuleTranslator
    layers: list[LayerWeights]
    parameters: int
    tied: bool
    tokenizers: tuple[Tokenizer, Tokenizer]
    special_ids: SpecialIds
    source: SourceSpec
    origin: Origin

    @property
    def title(self) -> str:
        """What the model is, in a line."""
        return self.origin.title

    @property
    def notes(self) -> str:
        """Markdown for the model card."""
        return self.origin.notes

    def draft(self, name: str, lowering: Lowering) -> tuple[Manifest, dict[str, bytes]]:
        """The manifest before there are hashes, and the bundle's files."""
        model, (source, target) = self.model, self.tokenizers
        memory = [MemoryTensor("memory", model.memory_width)]
        if model.has_keys:
            memory.append(MemoryTensor("keys", model.keys(torch.zeros(2, 3, model.memory_width)).shape[2]))
        embedding = next((item for item in model.decoder.modules() if isinstance(item, nn.Embedding)), None)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=name,
            task="translation",
            precision="fp32",
            lowering=lowering,
            architecture=Architecture(
                cell=self.layers[0].cell,
                embedding=embedding.embedding_dim if embedding else 0,
                hidden=max(layer.hidden for layer in self.layers),
                layers=len(self.layers),
                tied=self.tied,
                parameters=self.parameters,
                encoder=EncoderArchitecture(
                    model.rnn.hidden_size, model.rnn.num_layers, "own", False, 1 + model.rnn.bidirectional
                ),
            ),
            graphs={"encoder": ENCODER_FILE, "decoder": DECODER_FILE},
            state=tuple(
                StatePair(item, f"{item}_next", width, "float32")
                for item, width in zip(model.state_names(), model.state_widths(), strict=True)
            ),
            tokenizer=TokenizerSpec(TOKENIZER_FILE, kind_of(target), target.vocabulary_size),
            special_ids=self.special_ids,
            sampling=SamplingDefaults(),
            golden=(),
            metrics=self.origin.metrics,
            provenance=self.origin.provenance(f"PyTorch {model.rnn!r}; {type(model.decoder).__name__}"),
            versions=versions(),
            source=self.source,
            memory=tuple(memory),
        )
        try:
            graphs = {
                ENCODER_FILE: encoder_to_onnx(EncoderGraph(model), manifest, _STANDARD),
                DECODER_FILE: decoder_to_onnx(DecoderStep(model, lowering), manifest, _STANDARD),
            }
        except (RnnEdgeError, MemoryError):
            raise
        except Exception as error:  # whatever a user's module does that cannot be traced
            cause = _first_cause(error)
            if isinstance(cause, RnnEdgeError):
                raise cause from error
            raise InvalidValueError(
                f"bridge, attention or decoder cannot become a graph: {' '.join(str(cause).split())[:300]}",
                "write them without branches or sizes that depend on values; see docs/importing.md",
            ) from error
        return manifest, graphs | {TOKENIZER_FILE: target.content, self.source.tokenizer.file: source.content}

    def check(self, bundle: Bundle) -> list[Check]:
        """What the model comes from against the shipped runtime."""
        return check_parity(self.model, bundle)


def export_translator(
    encoder: Encoder,
    attention: nn.Module,
    decoder: nn.Module,
    source_tokenizer: Vocabulary,
    target_tokenizer: Vocabulary,
    directory: str | os.PathLike[str],
    *,
    start: str,
    end: str,
    source_end: str | None = None,
    longest: int = 100,
    source_language: str = "",
    name: str | None = None,
    lowering: Lowering | None = None,
    origin: Origin | None = None,
    force: bool = False,
) -> Bundle:
    """Write a translator of your own to ``directory`` as a bundle, verified against these very modules.

    The modules are left as they are: what is exported, and compared, are copies on the CPU in float32. Recurrent
    modules inside the decoder become ONNX operators or cells; all else in bridge, attention and decoder is traced.

    Args:
        encoder: embedding, recurrent module and bridge of the source side.
        attention: called with a query [B, Q] and keys [B, S, K], it returns scores [B, S]; padding, softmax and the
            weighted mean of the memory are ours. If it has a method ``keys``, memory [B, S, M] → keys [B, S, K], that
            runs once a sentence; else the keys are the memory.
        decoder: one step. Called with a token int64 [B], the state and ``attend``, which takes a query [B, Q] and gives
            a context [B, M], it returns logits [B, V] and the next state.
        source_tokenizer, target_tokenizer: as for ``export_language_model``; give one object twice where it is shared.
        directory: the folder to write.
        start: the target token that every translation begins after.
        end: the target token that ends a translation.
        source_end: the source token behind every source; else the same as ``end``.
        longest: source tokens of the longest sentence trained on; longer ones are translated in parts.
        source_language: code like ``en``, which tells how sentences end.
        name, lowering, origin, force: as for ``export_language_model``.

    Raises:
        InvalidValueError: modules that do not fit together or cannot become graphs.
        BundleError: a tokenizer whose tokens do not stand for bytes.
        ParityError: the graphs do not compute what the modules compute.
        RnnEdgeError: ``directory`` exists without ``force``, or cannot be written.
    """
    source = as_tokenizer(source_tokenizer)
    target = source if target_tokenizer is source_tokenizer else as_tokenizer(target_tokenizer)
    embedding = require(encoder.embedding, nn.Embedding, "the encoder's embedding")
    rnn = require(encoder.rnn, nn.RNNBase, "the encoder's rnn")
    cell_of(rnn)
    modules = {"embedding": embedding, "rnn": rnn, "attention": attention, "decoder": decoder}
    modules |= {"bridge": encoder.bridge} if encoder.bridge is not None else {}
    check_finite(modules)
    layers = decoder_layers(decoder)
    if not layers:
        raise InvalidValueError(
            "the decoder has no recurrent module", "give one that holds an nn.LSTM, nn.GRU or nn.RNN"
        )
    chosen = choose_lowering(layers, lowering)
    model = _checked(encoder, attention, decoder, source, target)
    if longest < 1:
        raise InvalidValueError(f"longest is {longest}", "give at least 1")
    source_end_id = role_id(source, "source_end", end if source_end is None else source_end)
    assert source_end_id is not None
    spec = TokenizerSpec(
        TOKENIZER_FILE if source is target else SOURCE_TOKENIZER_FILE, kind_of(source), source.vocabulary_size
    )
    origin = origin or Origin()
    translator = ForeignTranslator(
        model,
        layers,
        sum(parameter.numel() for parameter in module_parameters(modules.values())),
        _is_tied(decoder),
        (source, target),
        SpecialIds(role_id(target, "start", start), role_id(target, "end", end), unknown_id(target)),
        SourceSpec(spec, source_end_id, longest, unknown_id(source), source_language),
        origin,
    )
    place = Path(directory)
    bundle, _ = export_bundle(translator, place, name=name or place.resolve().name, lowering=chosen, force=force)
    return bundle


@torch.no_grad()
def _checked(
    encoder: Encoder, attention: nn.Module, decoder: nn.Module, source: Tokenizer, target: Tokenizer
) -> ModuleTranslator:
    """The modules after a first run, of two sentences for one step."""
    rows = encoder.embedding.num_embeddings
    if rows != source.vocabulary_size:
        raise InvalidValueError(
            f"the source vocabulary has {source.vocabulary_size:,} tokens, the encoder's embedding {rows:,}",
            "give the vocabulary that the model was trained with, in the order of its ids",
        )
    try:
        model = ModuleTranslator(encoder, attention, decoder)
        memory, state = model.encode(torch.zeros(3, 2, dtype=torch.int64), torch.tensor([3, 2]))
        logits, _, new = model.decode(torch.zeros(1, 2, dtype=torch.int64), state, memory)
    except (RnnEdgeError, MemoryError):
        raise
    except Exception as error:  # whatever a user's module raises
        raise InvalidValueError(
            f"encoder, attention and decoder do not run together: {type(error).__name__}: {error}", _CALLS
        ) from error
    if logits.shape[1:] != (2, target.vocabulary_size):
        raise InvalidValueError(
            f"the decoder gives logits of shape {list(logits.shape[1:])}, not [2, {target.vocabulary_size}] "
            "(2 sentences, the target vocabulary)",
            _CALLS,
        )
    before, after = [list(item.shape) for item in state], [list(item.shape) for item in new]
    if before != after:
        raise InvalidValueError(
            f"the decoder turns a state of shapes {before} into one of shapes {after}",
            "let it return the state as it takes it",
        )
    return model


def _is_tied(decoder: nn.Module) -> bool:
    tables = {item.weight.data_ptr() for item in decoder.modules() if isinstance(item, nn.Embedding)}
    return any(isinstance(item, nn.Linear) and item.weight.data_ptr() in tables for item in decoder.modules())


def _first_cause(error: BaseException) -> BaseException:
    """What the exporter's own error is about."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
