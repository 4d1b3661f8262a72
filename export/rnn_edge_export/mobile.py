"""A bundle's graphs in ONNX Runtime's own format too: what a reduced build of the runtime reads, as on phones.

The ONNX files stay what the bundle is; ``step.ort`` beside ``step.onnx`` is the same graph converted by ONNX Runtime,
and ``required_operators.config`` lists what a build needs to run it (its ``--include_ops_by_config``).
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from rnn_edge.bundle import Bundle, read_bundle
from rnn_edge.errors import BundleError, InvalidValueError
from rnn_edge.files import new_folder
from rnn_edge.manifest import Manifest, Precision
from rnn_edge.onnx_file import summarise
from rnn_edge.providers import first_line, open_session, run_failure
from rnn_edge.stepper import LENGTHS
from rnn_edge.verification import difference
from rnn_edge_export.onnx_export import check_replaceable, write_bundle
from rnn_edge_export.parity import LOGITS_TOLERANCE, STATE_TOLERANCE, Check, run_checks

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SUFFIX, CONFIG_FILE = ".ort", "required_operators.config"
# The format itself costs 7 to 20 kB a graph, tables and names; weights must not grow.
_OVERHEAD = 32 * 1024
_STEPS, _BATCH, _SOURCE_LENGTH = 256, 3, 9

Arrays = dict[str, NDArray[Any]]


def add_mobile_graphs(bundle: Bundle, output: Path, *, force: bool = False) -> tuple[Bundle, list[Check]]:
    """Write ``bundle`` to ``output`` with its graphs in both formats. Nothing is left there unless they agree.

    Raises:
        BundleError: its graphs would be larger in that format, or cannot be converted.
        InvalidValueError: ``output`` is the bundle itself.
        ParityError: a converted graph computes something else.
        RnnEdgeError: ``output`` exists without ``force``, or cannot be written.
    """
    if output.resolve() == bundle.path.resolve():
        raise InvalidValueError(f"{output} is the bundle itself", "choose another folder")
    check_replaceable(output, force=force)
    manifest = bundle.manifest
    check_precision(manifest.precision)
    contents = {file: bundle.read(file) for file in manifest.files if not is_mobile(file)}
    converted = _convert({file: contents[file] for file in manifest.graphs.values()})
    with new_folder(output, force=force) as folder:
        checks = run_checks(_compare(contents | converted, manifest))
        versions = manifest.versions | {"onnxruntime (.ort)": onnxruntime.__version__}
        write_bundle(folder, replace(manifest, versions=versions), contents | converted)
    return read_bundle(output), checks


def check_precision(precision: Precision) -> None:
    """Raises BundleError for one that is of no use there."""
    if precision == "fp16":
        raise BundleError(
            "fp16 weights are for CUDA: a processor would widen them again in every step",
            "use fp32, int8 or int4 with --format ort",
        )


def is_mobile(file: str) -> bool:
    """Whether a bundle's file is made from its ONNX graphs, by ``add_mobile_graphs``."""
    return file.endswith(SUFFIX) or file == CONFIG_FILE


def ort_name(file: str) -> str:
    """``step.ort`` of ``step.onnx``."""
    return file.removesuffix(".onnx") + SUFFIX


def _convert(graphs: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same graphs by the names of their new files, and the list of operators."""
    with tempfile.TemporaryDirectory(prefix="rnn-edge-") as scratch:
        files = [Path(scratch) / ort_name(file) for file in graphs]
        for target, (file, content) in zip(files, graphs.items(), strict=True):
            if summarise(content, file).external_data:
                raise BundleError(f"{file} keeps tensors in other files", "export the bundle again, in one file")
            _save(_gather_first(content), target, file)
            _check_size(file, len(content), target.stat().st_size)
        config = Path(scratch) / CONFIG_FILE
        _list_operators(files, config)
        return {path.name: path.read_bytes() for path in (*files, config)}


def _save(content: bytes, target: Path, file: str) -> None:
    options = onnxruntime.SessionOptions()
    # Constants are folded and nodes merged by the rules of ONNX alone: levels above bake in this processor's kernels.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions share no base class
        raise BundleError(
            f"ONNX Runtime cannot convert {file}: {first_line(error)}", "export without --format ort"
        ) from error


def _list_operators(files: Sequence[Path], config: Path) -> None:
    """Write what a build needs for these graphs: operators, and their types, which it may leave unused."""
    # Imported here, since it sets up logging for the whole program.
    from onnxruntime.tools.ort_format_model import create_config_from_models

    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves files open
        create_config_from_models(files, config, enable_type_reduction=True)
    lines = config.read_text(encoding="utf-8").splitlines(keepends=True)
    # Its comments name this machine's folders.
    config.write_text("".join(line for line in lines if not line.startswith("#")), encoding="utf-8", newline="\n")


def _check_size(file: str, size: int, converted: int) -> None:
    if converted > size + _OVERHEAD:
        raise BundleError(
            f"{file} would grow from {size / 1e6:.2f} to {converted / 1e6:.2f} MB as {ort_name(file)}: "
            "weights that are widened or turned when the graph is loaded are stored so there",
            "leave out --format ort: ONNX Runtime's full builds for phones read the .onnx",
        )


def _gather_first(content: bytes) -> bytes:
    """Look rows of a narrow table up before they are widened: a table that is widened as a whole is stored so."""
    model = onnx.load_model_from_string(content)
    graph = model.graph
    stored = {item.name for item in graph.initializer}
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast" and node.input[0] in stored}
    for node in list(graph.node):
        cast = casts.get(node.input[0]) if node.op_type == "Gather" else None
        if cast is not None and sum(cast.output[0] in other.input for other in graph.node) == 1:
            node.input[0], cast.input[0] = cast.input[0], f"{node.output[0]}_narrow"
            node.output[0], cast.output[0] = cast.input[0], node.output[0]
            graph.node.remove(cast)
            graph.node.insert(list(graph.node).index(node) + 1, cast)
    return bytes(model.SerializeToString(deterministic=True))


def _compare(contents: Mapping[str, bytes], manifest: Manifest) -> Iterator[Check]:
    """Each graph in both formats on the same random inputs, each format with its own state."""
    random = np.random.default_rng(0)
    files = {role: (file, ort_name(file)) for role, file in manifest.graphs.items()}
    # The runtime knows its own format by the first bytes.
    graphs = {role: [open_session(contents[name], name, device="cpu") for name in files[role]] for role in files}
    if manifest.source is None:
        shapes = {pair.input: (_BATCH, pair.width) for pair in manifest.state}
        carried = 2 * [{name: random.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}]
    else:
        lengths = np.array([_SOURCE_LENGTH, 5, 1])
        ids = random.integers(0, manifest.source.tokenizer.vocabulary_size, (_BATCH, _SOURCE_LENGTH))
        carried = [_run(graph, {"source": ids, LENGTHS: lengths}) for graph in graphs["encoder"]]
        yield Check("encoder.ort against encoder.onnx", _distance(*carried), STATE_TOLERANCE)
        carried = [memory | {LENGTHS: lengths} for memory in carried]
    role, distances = "step" if manifest.source is None else "decoder", []
    for _ in range(_STEPS):
        tokens = random.integers(0, manifest.tokenizer.vocabulary_size, _BATCH)
        found = [_run(graph, {"token": tokens, **item}) for graph, item in zip(graphs[role], carried, strict=True)]
        distances.append(_distance(*found))
        carried = [
            item | {pair.input: outputs[pair.output] for pair in manifest.state}
            for item, outputs in zip(carried, found, strict=True)
        ]
    yield Check(f"{role}.ort against {role}.onnx over {_STEPS} steps", float(np.max(distances)), LOGITS_TOLERANCE)


def _run(session: "InferenceSession", inputs: Arrays) -> Arrays:
    names = [item.name for item in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, inputs), strict=True))
    except Exception as error:  # the runtime's exceptions share no base class
        raise run_failure("the bundle", error) from error


def _distance(one: Arrays, other: Arrays) -> float:
    return float(np.max([difference(other[name], array) for name, array in one.items()]))  # NaN stays NaN
