"""From a bundle to the same model with weights of fewer bits: measured against the original before it is there."""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from rnn_edge.bundle import Bundle, read_bundle
from rnn_edge.encoder_decoder import EncoderDecoderGraphs
from rnn_edge.errors import BundleError, DataError, InvalidValueError, ParityError
from rnn_edge.files import new_folder
from rnn_edge.language_model import LanguageModel
from rnn_edge.manifest import Manifest, Precision, Task
from rnn_edge.sessions import graph_metadata
from rnn_edge.tokenizer import load_tokenizer
from rnn_edge_export import golden, model_card
from rnn_edge_export.mobile import is_mobile
from rnn_edge_export.onnx_export import CARD_FILE, check_replaceable, versions, write_bundle
from rnn_edge_export.quantisation.bounds import find_bounds, find_state_bounds
from rnn_edge_export.quantisation.gate import (
    OWN_TEXT,
    Comparison,
    Pairs,
    Progress,
    compare_language_models,
    compare_translators,
)
from rnn_edge_export.quantisation.graph import MICROSOFT, GraphReader
from rnn_edge_export.quantisation.half import check_fits, halve
from rnn_edge_export.quantisation.products import ROUNDED_FROM, BlockProducts, StaticProducts
from rnn_edge_export.quantisation.rewrite import Rewriter

PRECISIONS: tuple[Precision, ...] = ("fp16", "int8", "int4")
MAXIMUM_INCREASE: dict[Precision, float] = {"fp16": 0.005, "int8": 0.005, "int4": 0.01}
BLOCK_SIZES = (16, 32, 64, 128, 256)
DEFAULT_BLOCK_SIZE = 128  # a step of 2 × 512 takes 0.73 of its time with 32, and the loss stays within 0.1 %


@dataclass(frozen=True)
class Material:
    """What the rounded model is measured on: a text for a language model, pairs for a translator; None for neither."""

    name: str = OWN_TEXT
    text: str | None = None
    pairs: Pairs | None = None


def quantise(
    bundle: Bundle,
    output: Path,
    precision: Precision,
    *,
    name: str,
    material: Material,
    maximum_increase: float | None = None,
    block_size: int = DEFAULT_BLOCK_SIZE,
    force: bool = False,
    progress: Progress = lambda _done, _all: None,
) -> tuple[Bundle, Comparison]:
    """Write ``bundle`` to ``output`` with rounded weights.

    Nothing is left there if the loss may rise by more than ``maximum_increase`` (a share, compared with the upper end
    of the interval), unless ``force``.

    Raises:
        BundleError: the bundle is rounded already, or nothing in it can be.
        DataError: a translator without pairs, or nothing to measure on.
        InvalidValueError: a block size or a limit out of range, or ``output`` is the bundle itself.
        ParityError: it loses too much.
        RnnEdgeError: ``output`` exists without ``force``, or cannot be written.
    """
    limit = MAXIMUM_INCREASE[precision] if maximum_increase is None else maximum_increase
    if not limit >= 0:  # nan is not, either
        raise InvalidValueError(f"the loss may rise by {100 * limit:g} %", "give 0 or more with --max-loss-increase")
    if output.resolve() == bundle.path.resolve():
        raise InvalidValueError(
            f"{output} is the bundle itself", "choose another folder: keep what others are made from"
        )
    check_material(bundle.manifest.task, material)
    check_replaceable(output, force=force)
    manifest, contents = _draft(bundle, precision, name, block_size)
    card = contents.pop(CARD_FILE, b"").decode("utf-8", errors="replace")
    with new_folder(output, force=force) as folder:
        write_bundle(folder, manifest, contents)
        found = _compare(bundle, read_bundle(folder), material, progress)
        if found.upper_increase > limit and not force:
            finer = precision == "int4" and block_size > min(BLOCK_SIZES)
            raise ParityError(
                f"{precision} may raise the loss by {100 * found.upper_increase:.3f} %, more than {100 * limit:g} % "
                f"(measured {100 * found.increase:.3f} % on {found.tokens:,} tokens)",
                (f"use a --block-size below {block_size}, " if finer else "")
                + "allow more with --max-loss-increase, take it anyway with --force, or keep more bits",
            )
        manifest = replace(golden.record(read_bundle(folder)), metrics=(*manifest.metrics, *found.metrics()))
        title = _title(manifest)
        notes = model_card.notes_of(card, bundle.manifest, title)
        contents[CARD_FILE] = model_card.write(manifest, title, notes).encode()
        write_bundle(folder, manifest, contents)
    return read_bundle(output), found


def write_unmeasured(bundle: Bundle, folder: Path, precision: Precision) -> Bundle:
    """A bundle with rounded weights, for measuring speed: not compared with the original, without golden transcripts.

    Raises:
        BundleError: the bundle is rounded already, or nothing in it can be.
    """
    folder.mkdir(parents=True)
    write_bundle(folder, *_draft(bundle, precision, bundle.manifest.name, DEFAULT_BLOCK_SIZE))
    return read_bundle(folder)


def check_material(task: Task, material: Material) -> None:
    """Raises DataError where a translator has no pairs to be measured on."""
    if task == "translation" and not material.pairs:
        raise DataError("a translator's loss is measured on sentence pairs", "give some with --data")


def check_block_size(block_size: int) -> None:
    """Raises InvalidValueError for a size that MatMulNBits does not know."""
    if block_size not in BLOCK_SIZES:
        raise InvalidValueError(f"block size is {block_size}", f"use one of {', '.join(map(str, BLOCK_SIZES))}")


def check_source(bundle: Bundle, precision: Precision) -> None:
    """Refuse to round what is rounded.

    Raises:
        BundleError: naming what it can be made from.
    """
    given = bundle.manifest.precision
    if given != "fp32":
        raise BundleError(
            f"{bundle.path} has {given} weights already",
            f"make {precision} from its fp32 bundle, which rnn-edge export writes from the training run",
        )


def input_bounds(graphs: dict[str, bytes], manifest: Manifest) -> dict[str, dict[str, float]]:
    """By role, how large the inputs of a bundle's graphs can be: what no graph proves to be bounded is left out."""
    readers = {role: GraphReader(onnx.load_model_from_string(content).graph) for role, content in graphs.items()}
    pairs = {pair.input: pair.output for pair in manifest.state}
    if "encoder" not in readers:
        return {"step": find_state_bounds(readers["step"], pairs, dict.fromkeys(pairs, 0.0), {})}
    first = find_bounds(readers["encoder"], {})
    memory = {item.name: first[item.name] for item in manifest.memory if item.name in first}
    return {"encoder": {}, "decoder": memory | find_state_bounds(readers["decoder"], pairs, first, memory)}


def round_graph(content: bytes, bounded: dict[str, float], manifest: Manifest, block_size: int) -> bytes:
    """The bytes of a graph with weights in the manifest's precision; ``bounded`` are bounds of its inputs."""
    model = onnx.load_model_from_string(content)
    if manifest.precision == "fp16":
        check_fits(model.graph)
        halve(model.graph)
    else:
        products = StaticProducts() if manifest.precision == "int8" else BlockProducts(block_size)
        Rewriter(model.graph, bounded, products).run()
    if any(node.domain == MICROSOFT for node in model.graph.node):
        model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    del model.metadata_props[:]
    for key, value in graph_metadata(manifest).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _draft(bundle: Bundle, precision: Precision, name: str, block_size: int) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest before there are hashes and golden transcripts, and every file."""
    check_source(bundle, precision)
    check_block_size(block_size)
    manifest = replace(
        bundle.manifest,
        name=name,
        precision=precision,
        lowering=bundle.manifest.lowering if precision == "fp16" else "cell",
        golden=(),
        golden_translations=(),
        versions=versions(),
    )
    contents = {file: bundle.read(file) for file in bundle.manifest.files if not is_mobile(file)}
    bounds = input_bounds({role: contents[file] for role, file in manifest.graphs.items()}, manifest)
    for role, file in manifest.graphs.items():
        contents[file] = round_graph(contents[file], bounds[role], manifest, block_size)
    if not any(_is_rounded(contents[file], precision) for file in manifest.graphs.values()):
        raise BundleError(
            f"nothing in {bundle.path} can be rounded to {precision}: its matrices have fewer than {ROUNDED_FROM:,} "
            "values, or read a state that has no bound",
            "use it as it is" + (", or try int8" if precision == "int4" else ""),
        )
    return manifest, contents


def _is_rounded(content: bytes, precision: Precision) -> bool:
    """Whether any weight of a graph has so few bits."""
    graph = onnx.load_model_from_string(content).graph
    if precision == "fp16":  # of which every weight is
        return True
    if precision == "int4":
        return any(node.op_type == "MatMulNBits" for node in graph.node)
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return any(item.data_type in kinds for item in graph.initializer)


def _title(manifest: Manifest) -> str:
    try:
        return str(tomllib.loads(manifest.provenance.recipe).get("title", ""))
    except tomllib.TOMLDecodeError:  # a bundle from elsewhere
        return ""


def _compare(original: Bundle, rounded: Bundle, material: Material, progress: Progress) -> Comparison:
    data = material.name
    if original.manifest.source is not None:
        graphs = [EncoderDecoderGraphs(bundle, device="cpu") for bundle in (original, rounded)]
        target = load_tokenizer(original)
        source = load_tokenizer(original, original.manifest.source.tokenizer)
        assert material.pairs is not None
        return compare_translators(graphs[0], graphs[1], (source, target), material.pairs, data, progress)
    models = [LanguageModel.load(bundle.path, device="cpu") for bundle in (original, rounded)]
    if material.text is None:
        return compare_language_models(models[0], models[1], None, data, progress)
    tokenizer = models[0].tokenizer
    ids = tokenizer.encode(material.text, unknown="skip")
    if not ids:
        raise DataError(f"nothing in {material.name} is in the vocabulary", "give a text like that of the training")
    found = compare_language_models(models[0], models[1], ids, data, progress)
    return replace(found, skipped=len(material.text) - tokenizer.covered(material.text, ids))
