"""Language models trained elsewhere, as bundles that are verified against the modules they come from."""

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from rnn_edge.bundle import Bundle
from rnn_edge.errors import InvalidValueError
from rnn_edge.manifest import (
    FORMAT_VERSION,
    Architecture,
    Lowering,
    Manifest,
    SamplingDefaults,
    SpecialIds,
    StatePair,
    TokenizerSpec,
)
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.foreign.layers import STEP_OPERATORS, LayerWeights, choose_lowering, lower_weights
from rnn_edge_export.foreign.modules import (
    ModuleLanguageModel,
    check_finite,
    embedding_table,
    flatten_stack,
    module_parameters,
    private_copy,
    require,
)
from rnn_edge_export.foreign.origin import Origin
from rnn_edge_export.foreign.vocabulary import Vocabulary, as_tokenizer, kind_of, role_id, unknown_id
from rnn_edge_export.language_model.export import STEP_FILE, step_to_onnx
from rnn_edge_export.language_model.parity import ReferenceModel, check_parity
from rnn_edge_export.onnx_export import TOKENIZER_FILE, export_bundle, versions
from rnn_edge_export.parity import Check


@dataclass(frozen=True)
class Network:
    """A language model as plain weights, and the same as its own program computes it.

    embedding [V, E]; output weight [H, V] and bias [V]; ``parameters`` counts tied ones once.
    """

    embedding: Tensor
    layers: Sequence[LayerWeights]
    output_weight: Tensor
    output_bias: Tensor
    reference: ReferenceModel
    parameters: int
    tied: bool
    source: str

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return len(self.embedding)


class Step(nn.Module):
    """token int64 [B], state tensors in flat order → logits [B, V], next state in the same order."""

    def __init__(self, network: Network, lowering: Lowering) -> None:
        super().__init__()
        self.layers = nn.ModuleList(lower_weights(layer, lowering) for layer in network.layers)
        self.counts = [len(layer.state_widths) for layer in network.layers]
        self.embedding = nn.Buffer(network.embedding.clone())
        self.output_weight = nn.Buffer(network.output_weight.contiguous())
        self.output_bias = nn.Buffer(network.output_bias.clone())

    def forward(self, token: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        x = F.embedding(token, self.embedding)  # [B, E]
        next_state: list[Tensor] = []
        for layer, count in zip(self.layers, self.counts, strict=True):
            new = layer(x, *state[len(next_state) : len(next_state) + count])
            x = new[0]
            next_state.extend(new)
        return x @ self.output_weight + self.output_bias, *next_state


@dataclass(frozen=True)
class ForeignLanguageModel:
    """A language model from elsewhere as an export takes it."""

    network: Network
    tokenizer: Tokenizer
    special_ids: SpecialIds
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
        network, layers = self.network, self.network.layers
        widths = [width for layer in layers for width in layer.state_widths]
        hidden = [layer.hidden for layer in layers]
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=name,
            task="language-model",
            precision="fp32",
            lowering=lowering,
            architecture=Architecture(
                cell=layers[0].cell,
                embedding=network.embedding.shape[1],
                hidden=max(hidden),
                layers=len(layers),
                tied=network.tied,
                parameters=network.parameters,
            ),
            graphs={"step": STEP_FILE},
            state=tuple(
                StatePair(item, f"{item}_next", width, "float32")
                for item, width in zip(network.reference.state_names(), widths, strict=True)
            ),
            tokenizer=TokenizerSpec(TOKENIZER_FILE, kind_of(self.tokenizer), self.tokenizer.vocabulary_size),
            special_ids=self.special_ids,
            sampling=SamplingDefaults(),
            golden=(),
            metrics=self.origin.metrics,
            provenance=self.origin.provenance(network.source, hidden=hidden),
            versions=versions(),
        )
        graph = step_to_onnx(Step(network, lowering), manifest, STEP_OPERATORS[lowering])
        return manifest, {STEP_FILE: graph, TOKENIZER_FILE: self.tokenizer.content}

    def check(self, bundle: Bundle) -> list[Check]:
        """What the model comes from against the shipped stepper."""
        with warnings.catch_warnings():
            # PyTorch warns of the slower kernel it computes projections with.
            warnings.filterwarnings("ignore", "LSTM with projections")
            return check_parity(self.network.reference, bundle)


def export_language_model(
    embedding: nn.Embedding,
    rnn: nn.Module | Iterable[nn.Module],
    output: nn.Linear,
    tokenizer: Vocabulary,
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    lowering: Lowering | None = None,
    start: str | None = None,
    end: str | None = None,
    origin: Origin | None = None,
    force: bool = False,
) -> Bundle:
    """Write a language model of your own to ``directory`` as a bundle, verified against these very modules.

    The modules are left as they are: what is exported, and compared, are copies on the CPU in float32.

    Args:
        embedding: tokens to vectors.
        rnn: an ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` of any number of layers, their ``…Cell`` forms, or several of one
            kind from the bottom up, of any widths. Dropout among them is passed over.
        output: the last layer's vectors to logits.
        tokenizer: a ``Tokenizer``, a ``tokenizers.Tokenizer``, the path or the bytes of a ``tokenizer.json``, or the
            characters or words in the order of their ids, or with their ids (``vocabulary_tokenizer``).
        directory: the folder to write.
        name: of the bundle; else that of its folder.
        lowering: ``operator`` or ``cell``; else the first that can express the layers.
        start: the token that texts without a prompt begin after; else the line end, if there is one.
        end: the token that ends a text, if there is one.
        origin: title, notes, metrics and data.
        force: replace an existing bundle.

    Raises:
        InvalidValueError: modules that do not fit together or cannot run step by step.
        BundleError: a tokenizer whose tokens do not stand for bytes.
        ParityError: the graph does not compute what the modules compute.
        RnnEdgeError: ``directory`` exists without ``force``, or cannot be written.
    """
    network = network_of(embedding, rnn, output)
    found = as_tokenizer(tokenizer)
    ids = SpecialIds(
        found.line_end if start is None else role_id(found, "start", start),
        role_id(found, "end", end),
        unknown_id(found),
    )
    place = Path(directory)
    bundle, _ = export_network(
        network, found, ids, place, name=name, lowering=lowering, origin=origin or Origin(), force=force
    )
    return bundle


def export_network(
    network: Network,
    tokenizer: Tokenizer,
    special_ids: SpecialIds,
    directory: Path,
    *,
    name: str | None,
    lowering: Lowering | None,
    origin: Origin,
    force: bool,
) -> tuple[Bundle, list[Check]]:
    """Write a network as a bundle; nothing is left there unless every check passes.

    Raises:
        InvalidValueError: the tokenizer is of another size, or the lowering cannot express a layer.
        ParityError: the graph does not compute what the reference computes.
        RnnEdgeError: ``directory`` exists without ``force``, or cannot be written.
    """
    size = network.vocabulary_size
    if tokenizer.vocabulary_size != size:
        raise InvalidValueError(
            f"the vocabulary has {tokenizer.vocabulary_size:,} tokens, the embedding {size:,}",
            "give the vocabulary that the model was trained with, in the order of its ids",
        )
    chosen = choose_lowering(network.layers, lowering)
    source = ForeignLanguageModel(network, tokenizer, special_ids, origin)
    name = directory.resolve().name if name is None else name
    return export_bundle(source, directory, name=name, lowering=chosen, force=force)


def network_of(embedding: nn.Module, rnn: nn.Module | Iterable[nn.Module], output: nn.Module) -> Network:
    """The network that a user's modules make.

    Raises:
        InvalidValueError: modules that do not fit together or cannot run step by step.
    """
    given, last = require(embedding, nn.Embedding, "embedding"), require(output, nn.Linear, "output")
    stack = flatten_stack(rnn)
    modules = {"embedding": embedding, "rnn": nn.ModuleList(stack), "output": output}
    check_finite(modules)
    tied = last.weight.data_ptr() == given.weight.data_ptr()
    if tied and given.max_norm is not None:
        raise InvalidValueError(
            "the embedding has max_norm and is tied to the output layer, which so changes while it runs",
            "untie the two, or scale the rows down once and leave max_norm out",
        )
    model = ModuleLanguageModel(private_copy(given), [private_copy(module) for module in stack], private_copy(last))
    layers, weight = model.layers(), model.output.weight
    below, above = layers[0].width, layers[-1].output
    for place, found, wanted in (
        (f"the embedding is {given.embedding_dim} wide, the first layer reads {below}", given.embedding_dim, below),
        (f"the last layer gives {above} values, the output layer reads {last.in_features}", above, last.in_features),
        (
            f"the embedding has {given.num_embeddings} rows, the output layer gives {last.out_features} values",
            given.num_embeddings,
            last.out_features,
        ),
    ):
        if found != wanted:
            raise InvalidValueError(place, "give modules that belong together")
    return Network(
        embedding_table(model.embedding),
        layers,
        weight.t(),
        model.output.bias if last.bias is not None else weight.new_zeros(len(weight)),
        model,
        sum(parameter.numel() for parameter in module_parameters(modules.values())),
        tied,
        "PyTorch " + ", ".join(map(repr, stack)),
    )
