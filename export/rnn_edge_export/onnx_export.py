"""From a trained run to a bundle: graph, manifest, model card, golden transcript; verified before it is in place."""

import hashlib
import logging
import platform
import warnings
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import torch

from rnn_edge.bundle import Bundle, read_bundle
from rnn_edge.errors import ParityError, RnnEdgeError, RunError
from rnn_edge.files import new_folder, write_bytes, write_text
from rnn_edge.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Architecture,
    FileEntry,
    GoldenTranscript,
    Lowering,
    Manifest,
    Metric,
    Provenance,
    SamplingDefaults,
    SpecialIds,
    StatePair,
    TokenizerSpec,
)
from rnn_edge.stepper import StepGraph, graph_metadata
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export import model_card
from rnn_edge_export.modules import RecurrentLanguageModel, parameter_count
from rnn_edge_export.parity import Check, check_parity
from rnn_edge_export.recipe import Recipe
from rnn_edge_export.run import METRICS, TOKENIZER, load_best, read_scores
from rnn_edge_export.steps import ALLOWED_OPERATORS, make_step

STEP_FILE, TOKENIZER_FILE, CARD_FILE = "step.onnx", "tokenizer.json", "README.md"
# Level with "cell" for fp32 (benchmarks/lowerings.py), and every ONNX runtime has the operators.
DEFAULT_LOWERING: Lowering = "operator"
OPSET, IR_VERSION = 18, 8
_GOLDEN_STEPS = 128
# Two machines' sums differ in the last bits; a choice this close may go either way on another one.
_GOLDEN_TOLERANCE = 1e-3
_GOLDEN_TEXT = "A device that replays these words, step by step, proves itself.\nDoes it? Yes: 3 checks, no doubt!\n"


@dataclass(frozen=True)
class Source:
    """What an export needs from training. ``notes`` is Markdown for the model card."""

    model: RecurrentLanguageModel
    tokenizer: Tokenizer
    recipe: Recipe
    metrics: tuple[Metric, ...]
    notes: str = ""


def export_bundle(
    source: Source, output: Path, *, name: str, lowering: Lowering = DEFAULT_LOWERING, force: bool = False
) -> tuple[Bundle, list[Check]]:
    """Write a bundle to ``output``. Nothing is left there unless every check passes.

    Raises:
        ParityError: the graph does not compute what the model computes.
        RnnEdgeError: ``output`` exists without ``force``, or cannot be written.
    """
    if force and output.exists() and not (output / MANIFEST_NAME).is_file():
        raise RnnEdgeError(f"{output} is not a bundle", "choose another folder: --force replaces only bundles")
    with new_folder(output, force=force) as folder:
        manifest = _draft(source, name, lowering)
        contents = {
            STEP_FILE: export_graph(source.model, manifest),
            TOKENIZER_FILE: source.tokenizer.content,
        }
        manifest = _write(folder, manifest, contents)
        checks = check_parity(source.model, read_bundle(folder))
        golden = record_golden(read_bundle(folder), source)
        manifest = replace(manifest, golden=golden)
        contents[CARD_FILE] = model_card.write(manifest, source.recipe.title, source.notes).encode()
        _write(folder, manifest, contents)
    return read_bundle(output), checks


def export_graph(model: RecurrentLanguageModel, manifest: Manifest) -> bytes:
    """The step graph as ONNX bytes, checked by ``onnx.checker`` and against the operators allowed.

    Raises:
        ParityError: the exporter produced something else than asked for.
    """
    step = make_step(model, manifest.lowering).eval()
    # Sizes of 1 and equal sizes would be taken for constants or for one another.
    example_batch = 3
    state = [torch.zeros(example_batch, pair.width) for pair in manifest.state]
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter warns about one Dim on several inputs, which is what a batch is, and about its own internals.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            step,
            (torch.zeros(example_batch, dtype=torch.int64), *state),
            input_names=["token", *(pair.input for pair in manifest.state)],
            output_names=["logits", *(pair.output for pair in manifest.state)],
            dynamic_shapes={"token": {0: batch}, "state": tuple({0: batch} for _ in state)},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ParityError("the exporter produced nothing", "report this with the versions of torch and onnxscript")
    graph = program.model_proto
    graph.ir_version = IR_VERSION
    graph.producer_name, graph.producer_version = "rnn-edge", version("rnn-edge")
    graph.doc_string = "One time step of a recurrent language model: token and state in, logits and next state out."
    del graph.metadata_props[:]
    for key, value in graph_metadata(manifest).items():
        graph.metadata_props.add(key=key, value=value)
    _strip(graph)
    _check_graph(graph, manifest)
    return bytes(graph.SerializeToString(deterministic=True))


def record_golden(bundle: Bundle, source: Source) -> tuple[GoldenTranscript, ...]:
    """What the shipped runtime answers here: to its own greedy text, and to varied text of ours."""
    graph = StepGraph(bundle, device="cpu")
    start = bundle.manifest.special_ids.start or 0
    text = source.tokenizer.encode(_GOLDEN_TEXT, unknown="skip")[: _GOLDEN_STEPS // 2]
    # Whatever the script of the corpus, every part of the vocabulary may occur.
    random = np.random.default_rng(0).integers(0, source.tokenizer.vocabulary_size, _GOLDEN_STEPS - len(text))
    text += random.tolist()
    return _transcript(graph, "greedy", [start], _GOLDEN_STEPS), _transcript(graph, "text", text, len(text))


def _transcript(graph: StepGraph, kind: Literal["greedy", "text"], tokens: list[int], steps: int) -> GoldenTranscript:
    stepper = graph.stepper()
    fed: list[int] = []
    best: list[int] = []
    margins: list[float] = []
    for index in range(steps):
        fed.append(tokens[index] if index < len(tokens) else best[-1])
        logits = stepper.step(fed[-1])[0]
        best.append(int(logits.argmax()))
        top = np.sort(logits)[::-1]
        margins.append(round(float(top[0] - top[1]), 4) if len(top) > 1 else 0.0)
    return GoldenTranscript(kind, tuple(fed), tuple(best), tuple(margins), _GOLDEN_TOLERANCE)


def _draft(source: Source, name: str, lowering: Lowering) -> Manifest:
    """The manifest before there are files."""
    recipe, model = source.recipe, source.model
    size = source.tokenizer.vocabulary_size
    return Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        task="language-model",
        precision="fp32",
        lowering=lowering,
        architecture=Architecture(
            cell=recipe.model.cell,
            embedding=recipe.model.embedding,
            hidden=recipe.model.hidden,
            layers=recipe.model.layers,
            tied=recipe.model.tie_weights,
            parameters=parameter_count(model),
        ),
        graphs={"step": STEP_FILE},
        state=tuple(StatePair(item, f"{item}_next", recipe.model.hidden, "float32") for item in model.state_names()),
        tokenizer=TokenizerSpec(TOKENIZER_FILE, "character", size),
        special_ids=SpecialIds(start=source.tokenizer.id_of("\n")),
        sampling=SamplingDefaults(),
        golden=(),
        metrics=source.metrics,
        provenance=Provenance(
            recipe=recipe.to_toml(),
            data_title=recipe.data.title,
            data_source=recipe.data.source,
            data_licence=recipe.data.licence,
            data_sha256=recipe.data.sha256,
        ),
        versions={
            "rnn-edge": version("rnn-edge"),
            "python": platform.python_version(),
            # Of the modules, since ONNX Runtime comes in distributions of several names.
            **{module.__name__: module.__version__ for module in (torch, onnx, onnxruntime)},
        },
    )


def _write(folder: Path, manifest: Manifest, contents: dict[str, bytes]) -> Manifest:
    """Write all files, the manifest last, and return it with their hashes."""
    files = {
        name: FileEntry(hashlib.sha256(content).hexdigest(), len(content)) for name, content in sorted(contents.items())
    }
    manifest = replace(manifest, files=files)
    for name, content in contents.items():
        write_bytes(folder / name, content)
    write_text(folder / MANIFEST_NAME, manifest.to_json())
    return manifest


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


def _check_graph(graph: onnx.ModelProto, manifest: Manifest) -> None:
    onnx.checker.check_model(graph, full_check=True)
    mend = "report this with the versions of torch and onnxscript"
    operators = {f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in graph.graph.node}
    foreign = operators - ALLOWED_OPERATORS[manifest.lowering]
    foreign |= {function.name for function in graph.functions}
    if foreign:
        raise ParityError(f"the {manifest.lowering} lowering produced {', '.join(sorted(foreign))}", mend)
    imports = [(opset.domain, opset.version) for opset in graph.opset_import]
    if imports != [("", OPSET)]:
        raise ParityError(f"the graph imports {imports}, not opset {OPSET} of the standard domain alone", mend)
    declared = {item.name: [_dimension(d) for d in item.type.tensor_type.shape.dim] for item in graph.graph.output}
    expected = {"logits": ["batch", manifest.tokenizer.vocabulary_size]}
    expected |= {pair.output: ["batch", pair.width] for pair in manifest.state}
    if declared != expected:
        raise ParityError(f"the graph declares outputs {declared}, not {expected}", mend)


def _dimension(dimension: onnx.TensorShapeProto.Dimension) -> str | int:
    return dimension.dim_param or dimension.dim_value


def load_source(run: Path) -> Source:
    """Everything an export needs from a run's folder.

    Raises:
        RunError: not a run, or without a checkpoint.
    """
    model, recipe = load_best(run)
    try:
        tokenizer = Tokenizer((run / TOKENIZER).read_bytes(), str(run / TOKENIZER))
    except OSError as error:
        raise RunError(f"cannot read {run / TOKENIZER}: {error.strerror}", "train again") from error
    return Source(model, tokenizer, recipe, read_scores(run / METRICS, recipe))
