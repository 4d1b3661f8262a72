"""``export --format ort``: the same graphs for reduced builds of ONNX Runtime, and what cannot be had there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rnn_edge.bundle import Bundle, read_bundle
from rnn_edge.errors import BundleError, ParityError, RnnEdgeError
from rnn_edge.verification import verify
from rnn_edge_export import mobile
from rnn_edge_export.mobile import CONFIG_FILE, add_mobile_graphs
from rnn_edge_export.quantisation import products
from rnn_edge_export.quantisation.quantise import Material, quantise, write_unmeasured
from tests.device.tiny import DATA, GRU, LSTM
from tests.export.conftest import names

if TYPE_CHECKING:
    from tests.export.conftest import Cli, CliError, MakeSource

ROOT = DATA.parent.parent
SHAKESPEARE, TRANSLATOR = ROOT / "models" / "shakespeare", DATA / "translator"


def required(folder: Path) -> set[str]:
    """Operators that the list names, as ONNX Runtime's build reads it."""
    from onnxruntime.tools.reduced_build_config_parser import parse_config

    operators, types = parse_config(str(folder / CONFIG_FILE), enable_type_reduction=True)
    assert types is not None
    return {name for versions in operators.values() for listed in versions.values() for name in listed}


@pytest.mark.parametrize("path", [LSTM, GRU, TRANSLATOR, DATA / "translator-word"], ids=lambda path: path.name)
def test_a_bundle_gets_its_graphs_in_the_other_format_too(path: Path, tmp_path: Path) -> None:
    bundle, checks = add_mobile_graphs(read_bundle(path), tmp_path / "b")
    graphs = bundle.manifest.graphs
    added = {CONFIG_FILE} | {file.replace(".onnx", ".ort") for file in graphs.values()}
    assert set(bundle.manifest.files) == set(read_bundle(path).manifest.files) | added
    assert [check.difference for check in checks] == [0.0] * len(graphs)
    assert all(finding.passed for finding in verify(bundle, device="cpu"))
    assert bundle.manifest.digest == read_bundle(path).manifest.digest
    assert bundle.manifest.versions["onnxruntime (.ort)"] == onnxruntime.__version__
    listed = required(bundle.path)
    for file in graphs.values():
        content = bundle.read(file.replace(".onnx", ".ort"))
        assert content[4:8] == b"ORTM"
        own = {node.op_type for node in onnx.load(path / file).graph.node}
        # Constants are folded and nodes merged, but a cell stays what it is.
        assert own & {"LSTM", "GRU", "Sigmoid", "Tanh"} <= listed
    assert b"/" not in (bundle.path / CONFIG_FILE).read_bytes()


def greedy(session: onnxruntime.InferenceSession, bundle: Bundle, steps: int) -> list[int]:
    """Ids that follow the first of the bundle's own greedy text."""
    golden = bundle.manifest.golden[0]
    state = {pair.input: np.zeros((1, pair.width), np.float32) for pair in bundle.manifest.state}
    wanted = ["logits", *(pair.output for pair in bundle.manifest.state)]
    ids = [golden.tokens[0]]
    for _ in range(steps):
        logits, *arrays = session.run(wanted, {"token": np.array(ids[-1:]), **state})
        state = dict(zip(state, arrays, strict=True))
        ids.append(int(np.asarray(logits).argmax()))
    return ids


def test_what_is_loaded_from_the_file_writes_the_golden_text(tmp_path: Path) -> None:
    """The eight-bit graph whose table is widened only after rows were looked up: no larger than its ONNX file."""
    bundle, _ = add_mobile_graphs(read_bundle(SHAKESPEARE), tmp_path / "b")
    sizes = [bundle.manifest.files[name].size for name in ("step.onnx", "step.ort")]
    assert sizes[1] < 1.01 * sizes[0]
    session = onnxruntime.InferenceSession(bundle.path / "step.ort", providers=["CPUExecutionProvider"])
    golden = bundle.manifest.golden[0]
    close = next((index for index, margin in enumerate(golden.margins) if margin < golden.tolerance), 100)
    assert greedy(session, bundle, close)[1:] == list(golden.best[:close])
    assert close > 20
    assert "MatMulInteger" in required(bundle.path)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_fewer_bits_are_converted(precision: str, make_source: MakeSource, tmp_path: Path) -> None:
    from rnn_edge_export.onnx_export import export_bundle

    whole, _ = export_bundle(make_source("lstm", 2, False, 64), tmp_path / "whole", name="tiny")
    rounded = write_unmeasured(whole, tmp_path / "rounded", precision)  # type: ignore[arg-type]
    bundle, checks = add_mobile_graphs(rounded, tmp_path / "b")
    assert [check.difference for check in checks] == [0.0]
    assert {"int8": "MatMulInteger", "int4": "MatMulNBits"}[precision] in required(bundle.path)


def test_rounding_leaves_out_the_graphs_of_the_original(tmp_path: Path) -> None:
    bundle, _ = add_mobile_graphs(read_bundle(LSTM), tmp_path / "b")
    text = (DATA / "corpus.txt").read_text(encoding="utf-8")[:2000]
    rounded, _ = quantise(
        bundle, tmp_path / "small", "int8", name="small", material=Material("t", text), maximum_increase=1.0
    )
    assert names(rounded.path) == ["README.md", "manifest.json", "step.onnx", "tokenizer.json"]
    assert set(rounded.manifest.files) == {"README.md", "step.onnx", "tokenizer.json"}


def test_graphs_that_would_grow_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"decoder.onnx would grow from 4.10 to 6\.\d+ MB as decoder.ort"):
        add_mobile_graphs(read_bundle(ROOT / "models" / "en-fr"), tmp_path / "b")
    rounded = write_unmeasured(read_bundle(LSTM), tmp_path / "half", "fp16")
    with pytest.raises(BundleError, match="fp16 weights are for CUDA"):
        add_mobile_graphs(rounded, tmp_path / "b")
    assert names(tmp_path) == ["half"]


def keep_a_tensor_elsewhere(graph: onnx.ModelProto) -> None:
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret")


def use_an_operator_of_ones_own(graph: onnx.ModelProto) -> None:
    graph.graph.node[-1].domain = "com.example"
    graph.opset_import.append(helper.make_opsetid("com.example", 1))


def cut_the_embedding(graph: onnx.ModelProto) -> None:
    embedding = next(item for item in graph.graph.initializer if item.name == "embedding")
    embedding.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(embedding)[:2], "embedding"))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (keep_a_tensor_elsewhere, "keeps tensors in other files"),
        (use_an_operator_of_ones_own, r"cannot convert step\.onnx: .*com\.example"),
        (cut_the_embedding, "the graph fails"),
    ],
)
def test_bundles_from_elsewhere_that_cannot_be_converted(
    change: Callable[[onnx.ModelProto], None], error: str, tmp_path: Path
) -> None:
    from rnn_edge_export.onnx_export import write_bundle

    bundle = read_bundle(LSTM)
    files = {file: bundle.read(file) for file in bundle.manifest.files}
    graph = onnx.load_model_from_string(files["step.onnx"])
    change(graph)
    (tmp_path / "own").mkdir()
    write_bundle(tmp_path / "own", bundle.manifest, files | {"step.onnx": graph.SerializeToString()})
    with pytest.raises(BundleError, match=error):
        add_mobile_graphs(read_bundle(tmp_path / "own"), tmp_path / "b")
    assert names(tmp_path) == ["own"]


def test_a_conversion_that_computes_something_else_is_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(content: bytes) -> bytes:
        graph = onnx.load_model_from_string(content)
        bias = next(item for item in graph.graph.initializer if list(item.dims) == [1, 256])
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
        return bytes(graph.SerializeToString())

    monkeypatch.setattr(mobile, "_gather_first", damaged)
    with pytest.raises(ParityError, match=r"step\.ort against step\.onnx over 256 steps: differs by"):
        add_mobile_graphs(read_bundle(LSTM), tmp_path / "b")
    assert names(tmp_path) == []


def test_a_table_that_others_read_stays_as_it_is() -> None:
    """Rows are looked up in the narrow table only where nothing else wants the wide one."""
    table = numpy_helper.from_array(np.arange(8, dtype=np.float16).reshape(4, 2), "table")
    nodes = [
        helper.make_node("Cast", ["table"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["wide", "token"], ["row"]),
    ]
    other = helper.make_node("Transpose", ["wide"], ["turned"])
    for rest, first in (([], "Gather"), ([other], "Cast")):
        outputs = [helper.make_tensor_value_info("row", TensorProto.FLOAT, None)]
        graph = helper.make_graph(
            [*nodes, *rest],
            "g",
            [helper.make_tensor_value_info("token", TensorProto.INT64, [2])],
            outputs,
            initializer=[table],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        changed = mobile._gather_first(model.SerializeToString())
        assert onnx.load_model_from_string(changed).graph.node[0].op_type == first
        session = onnxruntime.InferenceSession(changed, providers=["CPUExecutionProvider"])
        assert np.asarray(session.run(["row"], {"token": np.array([3, 1])})[0]).tolist() == [[6, 7], [2, 3]]


def test_the_command_line(finished: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "ROUNDED_FROM", 1)
    run, text = finished / "run", finished / "corpus.txt"
    answer = cli("export", run, "-o", tmp_path / "whole", "--format", "ort")
    assert answer.code == 0, answer.err
    assert "step.ort against step.onnx over 256 steps" in answer.out + answer.err
    assert "INFO" not in answer.out + answer.err
    files = ["README.md", "manifest.json", CONFIG_FILE, "step.onnx", "step.ort", "tokenizer.json"]
    assert names(tmp_path / "whole") == files
    flags = ["--precision", "int8", "--data", text, "--max-loss-increase", "50"]
    answer = cli("export", run, "-o", tmp_path / "small", "--format", "ort", *flags)
    assert answer.code == 0, answer.err
    assert names(tmp_path / "small") == files
    bundle = read_bundle(tmp_path / "small")
    assert (bundle.manifest.name, bundle.manifest.precision) == ("small", "int8")
    assert f"{tmp_path / 'small'}: " in answer.err
    assert "rnn-edge-" not in answer.err  # the scratch folder's name


def test_a_bundle_that_exists_already(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(LSTM, tmp_path / "models" / "mine")
    for name, output in (("mine", "by-name"), (LSTM, "by-path"), ("by-name", "again")):
        answer = cli("export", name, "-o", output, "--format", "ort")
        assert answer.code == 0, answer.err
        assert read_bundle(tmp_path / output).manifest.name == "tiny-lstm"
        assert names(tmp_path / output) == names(tmp_path / "by-name")
    assert "step.ort" in names(tmp_path / "again")


def test_mistakes_are_named(tmp_path: Path, cli_error: CliError) -> None:
    output = tmp_path / "b"
    # Before anything else is looked at.
    error, _ = cli_error("export", tmp_path / "nothing", "-o", output, "--format", "ort", "--precision", "fp16")
    assert "fp16 weights are for CUDA" in error
    error, _ = cli_error("export", LSTM, "-o", output, "--format", "tflite", code=2)
    assert "--format tflite is unknown" in error
    error, hint = cli_error("export", LSTM, "-o", output, "--format", "ort", "--precision", "int8", code=2)
    assert "is a bundle already" in error
    assert "--force" in hint
    error, _ = cli_error("export", LSTM, "-o", output)
    assert "not a training run" in error
    error, _ = cli_error("export", tmp_path / "nothing", "-o", output, "--format", "ort")
    assert "not a training run" in error
    assert names(tmp_path) == []
    output.mkdir()
    with pytest.raises(RnnEdgeError, match="exists already"):
        add_mobile_graphs(read_bundle(LSTM), output)
    with pytest.raises(RnnEdgeError, match="is the bundle itself"):
        add_mobile_graphs(read_bundle(LSTM), LSTM, force=True)
