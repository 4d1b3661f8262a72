"""From modules to ONNX bytes, and from a trained run to a bundle in place: verified before it is there."""

import hashlib
import inspect
import logging
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from rnn_edge.bundle import Bundle, read_bundle
from rnn_edge.errors import ParityError, RnnEdgeError
from rnn_edge.files import new_folder, write_bytes, write_text
from rnn_edge.manifest import MANIFEST_NAME, FileEntry, Lowering, Manifest, Provenance
from rnn_edge.sessions import graph_metadata
from rnn_edge_export import golden, model_card
from rnn_edge_export.parity import Check
from rnn_edge_export.recipe import Recipe

TOKENIZER_FILE, CARD_FILE = "tokenizer.json", "README.md"
# Level with "cell" for fp32 (benchmarks/lowerings.py), and every ONNX runtime has the operators.
DEFAULT_LOWERING: Lowering = "operator"
OPSET, IR_VERSION = 18, 8


class Source(Protocol):
    """What an export needs from training, here or elsewhere."""

    @property
    def title(self) -> str:
        """What the model is, in a line; it may be empty."""

    @property
    def notes(self) -> str:
        """Markdown for the model card."""

    def draft(self, name: str, lowering: Lowering) -> tuple[Manifest, dict[str, bytes]]:
        """The manifest before there are hashes and golden transcripts, and every file but the model card."""

    def check(self, bundle: Bundle) -> list[Check]:
        """PyTorch against the runtime; a ParityError where they differ."""


def export_bundle(
    source: Source,
    output: Path,
    *,
    name: str,
    lowering: Lowering = DEFAULT_LOWERING,
    force: bool = False,
) -> tuple[Bundle, list[Check]]:
    """Write a bundle in fp32 to ``output``. Nothing is left there unless every check passes.

    Raises:
        ParityError: the graph does not compute what the model computes.
        RnnEdgeError: ``output`` exists without ``force``, or cannot be written.
    """
    check_replaceable(output, force=force)
    with new_folder(output, force=force) as folder:
        manifest, contents = source.draft(name, lowering)
        write_bundle(folder, manifest, contents)
        checks = source.check(read_bundle(folder))
        manifest = golden.record(read_bundle(folder))
        contents[CARD_FILE] = model_card.write(manifest, source.title, source.notes).encode()
        write_bundle(folder, manifest, contents)
    return read_bundle(output), checks


def check_replaceable(output: Path, *, force: bool) -> None:
    """Raises RnnEdgeError where ``force`` would replace something that is not a bundle."""
    if force and output.exists() and not (output / MANIFEST_NAME).is_file():
        raise RnnEdgeError(f"{output} is not a bundle", "choose another folder: --force replaces only bundles")


@dataclass(frozen=True)
class Signature:
    """Names and dynamic axes of a graph: axis names by axis, for each input and output in order.

    ``example`` are the inputs it is traced with.
    """

    example: tuple[Tensor, ...]
    inputs: dict[str, dict[int, str]]
    outputs: dict[str, list[str | int]]
    description: str


def to_onnx(module: nn.Module, signature: Signature, manifest: Manifest, allowed: frozenset[str]) -> bytes:
    """A graph as ONNX bytes, checked by ``onnx.checker`` and against the operators allowed.

    Raises:
        ParityError: the exporter produced something else than asked for.
    """
    axes = {name: torch.export.Dim(name) for axis in signature.inputs.values() for name in axis.values()}
    shapes = [{index: axes[name] for index, name in axis.items()} for axis in signature.inputs.values()]
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter warns about one Dim on several inputs, which is what a batch is, and about its own internals.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(),
            signature.example,
            input_names=list(signature.inputs),
            output_names=list(signature.outputs),
            dynamic_shapes=_by_parameter(module, shapes),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ParityError("the exporter produced nothing", "report this with the versions of torch and onnxscript")
    graph = program.model_proto
    graph.ir_version = IR_VERSION
    graph.producer_name, graph.producer_version = "rnn-edge", version("rnn-edge")
    graph.doc_string = signature.description
    del graph.metadata_props[:]
    for key, value in graph_metadata(manifest).items():
        graph.metadata_props.add(key=key, value=value)
    _strip(graph)
    _check_graph(graph, signature, allowed)
    return bytes(graph.SerializeToString(deterministic=True))


def provenance(recipe: Recipe) -> Provenance:
    """Where a model comes from."""
    data = recipe.data
    return Provenance(recipe.to_toml(), data.title, data.source, data.licence, data.sha256)


def versions() -> dict[str, str]:
    """What made a bundle."""
    return {
        "rnn-edge": version("rnn-edge"),
        "python": platform.python_version(),
        # Of the modules, since ONNX Runtime comes in distributions of several names.
        **{module.__name__: module.__version__ for module in (torch, onnx, onnxruntime)},
    }


def _by_parameter(module: nn.Module, shapes: Sequence[dict[int, Any]]) -> Any:
    """Dynamic axes in the form of ``forward``'s parameters: the last one may be ``*state``."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    if parameters[-1].kind is not inspect.Parameter.VAR_POSITIONAL:
        return tuple(shapes)
    named = {item.name: shape for item, shape in zip(parameters[:-1], shapes, strict=False)}
    return named | {parameters[-1].name: tuple(shapes[len(named) :])}


def write_bundle(folder: Path, manifest: Manifest, contents: dict[str, bytes]) -> None:
    """Write all files, and the manifest with their hashes last."""
    files = {
        name: FileEntry(hashlib.sha256(content).hexdigest(), len(content)) for name, content in sorted(contents.items())
    }
    for name, content in contents.items():
        write_bytes(folder / name, content)
    write_text(folder / MANIFEST_NAME, replace(manifest, files=files).to_json())


def _strip(graph: onnx.ModelProto) -> None:
    """Remove the exporter's notes about this machine's source code, and shapes of inner values."""
    del graph.graph.value_info[:]
    del graph.graph.metadata_props[:]
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for item in (*graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


def _check_graph(graph: onnx.ModelProto, signature: Signature, allowed: frozenset[str]) -> None:
    onnx.checker.check_model(graph, full_check=True)
    mend = "report this with the versions of torch and onnxscript"
    operators = {f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in graph.graph.node}
    foreign = operators - allowed | {function.name for function in graph.functions}
    if foreign:
        raise ParityError(f"the lowering produced {', '.join(sorted(foreign))}", mend)
    imports = [(opset.domain, opset.version) for opset in graph.opset_import]
    if imports != [("", OPSET)]:
        raise ParityError(f"the graph imports {imports}, not opset {OPSET} of the standard domain alone", mend)
    declared = {item.name: [_dimension(d) for d in item.type.tensor_type.shape.dim] for item in graph.graph.output}
    if declared != signature.outputs:
        raise ParityError(f"the graph declares outputs {declared}, not {signature.outputs}", mend)


def _dimension(dimension: onnx.TensorShapeProto.Dimension) -> str | int:
    return dimension.dim_param or dimension.dim_value
