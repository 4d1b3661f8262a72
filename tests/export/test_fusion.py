"""Products in one operator: the same numbers, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rnn_edge.errors import BundleError
from rnn_edge.fusion import fuse
from rnn_edge.manifest import Cell
from rnn_edge.onnx_file import summarise
from rnn_edge.onnx_model import Model, Node, read_model, subgraph
from rnn_edge.providers import open_session
from rnn_edge.tokenizer import character_tokenizer
from rnn_edge_export.language_model.export import LanguageModelSource
from rnn_edge_export.language_model.modules import RecurrentLanguageModel
from rnn_edge_export.onnx_export import export_bundle
from rnn_edge_export.quantisation.quantise import write_unmeasured
from rnn_edge_export.recipe import LanguageModelRecipe
from rnn_edge_export.recipe_sections import LanguageModelSection

ROOT = Path(__file__).parents[2]
GRAPHS = ["shakespeare/step.onnx", "sherlock/step.onnx", "en-fr/encoder.onnx", "en-fr/decoder.onnx"]


def operators(content: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(content).graph.node]


@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("name", GRAPHS)
def test_bundled_models_compute_the_same(name: str, batch: int) -> None:
    content = (ROOT / "models" / name).read_bytes()
    fused = fuse(content, name)
    assert "MatMulInteger" in summarise(content, name).operators
    assert "MatMulInteger" not in summarise(fused, name).operators  # loops included
    if name.endswith("step.onnx"):  # whose cells are LSTM
        assert "Split" in operators(content)
        assert "Split" not in operators(fused)
    check_equal(content, fused, batch)


@pytest.mark.parametrize("batch", [1, 16, 33])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_each_cell_computes_the_same(cell: Cell, batch: int, tmp_path: Path) -> None:
    section = LanguageModelSection(cell=cell, embedding=24, hidden=72, layers=2)
    source = LanguageModelSource(
        RecurrentLanguageModel(section, 40).requires_grad_(False).eval(),
        character_tokenizer("".join(map(chr, range(60, 100)))),
        LanguageModelRecipe(model=section),
    )
    bundle = export_bundle(source, tmp_path / "fp32", name="cell")[0]
    content = write_unmeasured(bundle, tmp_path / "int8", "int8").graph("step")
    fused = fuse(content, cell)
    assert operators(content).count("MatMulInteger") >= 3
    assert not {"MatMulInteger", "Split"}.intersection(operators(fused))
    check_equal(content, fused, batch)


def check_equal(content: bytes, fused: bytes, batch: int) -> None:
    """The same bits for random inputs, and the same metadata."""
    name = "a test"
    sessions = [open_session(item, name, device="cpu", integers=True) for item in (content, fused)]
    random = np.random.default_rng(batch)
    sizes = {"batch": batch, "source_length": 7}
    for _ in range(3):
        inputs = {}
        for item in sessions[0].get_inputs():
            shape = [sizes[axis] if isinstance(axis, str) else axis for axis in item.shape]
            floats = item.type == "tensor(float)"
            values = random.uniform(-0.99, 0.99, shape) if floats else random.integers(1, 8, shape)
            inputs[item.name] = values.astype(np.float32 if floats else np.int64)
        one, other = (session.run(None, inputs) for session in sessions)
        for found, expected in zip(other, one, strict=True):
            assert found.tobytes() == expected.tobytes()
    assert sessions[0].get_modelmeta().custom_metadata_map == sessions[1].get_modelmeta().custom_metadata_map


def test_a_graph_without_products_keeps_its_bytes() -> None:
    content = (ROOT / "tests/data/lstm/step.onnx").read_bytes()
    assert fuse(content, "step.onnx") is content


@pytest.mark.parametrize("kept", ["product", "cast", "scaled"])
def test_what_is_read_elsewhere_stays(kept: str) -> None:
    """An output of the graph in the middle of the chain ends it there."""
    constants = [
        numpy_helper.from_array(np.arange(6, dtype=np.int8).reshape(2, 3), "w"),
        numpy_helper.from_array(np.array(128, np.uint8), "zero"),
        numpy_helper.from_array(np.array([0.1, 0.2, 0.3], np.float32), "scales"),
        numpy_helper.from_array(np.array([1, 2, 3], np.float32), "bias"),
    ]
    nodes = [
        helper.make_node("MatMulInteger", ["x", "w", "zero"], ["product"]),
        helper.make_node("Cast", ["product"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scales", "cast"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", 2])
    kind = TensorProto.INT32 if kept == "product" else TensorProto.FLOAT
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3]),
        helper.make_tensor_value_info(kept, kind, ["batch", 3]),
    ]
    graph = helper.make_graph(nodes, "g", [x], outputs, constants)
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    fused = fuse(content, "g")
    assert (fused is content) == (kept != "scaled")
    if kept == "scaled":  # without the bias
        assert operators(fused) == ["MatMulIntegerToFloat", "Add"]
    values = {"x": np.array([[3, 200], [0, 255]], np.uint8)}
    one, other = (open_session(item, "g", device="cpu", integers=True).run(None, values) for item in (content, fused))
    for found, expected in zip(other, one, strict=True):
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("reads", ["its own", "the graph's"])
def test_loops_that_read_the_graph_around_them_keep_all(reads: str) -> None:
    """Which of its values are still needed is not seen from within."""
    own: dict[str, NDArray[Any]] = {
        "w": np.arange(6, dtype=np.int8).reshape(2, 3),
        "zero": np.array(128, np.uint8),
        "scales": np.array([0.1, 0.2, 0.3], np.float32),
    }
    constants = [numpy_helper.from_array(value, name) for name, value in own.items()]
    nodes = [
        helper.make_node("MatMulInteger", ["x", "w", "zero"], ["product"]),
        helper.make_node("Cast", ["product"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scales", "cast"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    within = constants if reads == "its own" else constants[:2]
    body = helper.make_graph(nodes, "step", [x], [y], within)
    loop = helper.make_node("Scan", ["all"], ["found"], body=body, num_scan_inputs=1)
    given = helper.make_tensor_value_info("all", TensorProto.UINT8, ["steps", "batch", 2])
    found = helper.make_tensor_value_info("found", TensorProto.FLOAT, ["steps", "batch", 3])
    outer = [] if reads == "its own" else constants[2:]
    graph = helper.make_graph([loop], "g", [given], [found], outer)
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    (node,) = read_model(content, "g").nodes
    assert node.graphs()["body"].free() == (set() if reads == "its own" else {"scales"})
    fused = fuse(content, "g")
    assert (fused is content) == (reads != "its own")
    values = {"all": np.random.default_rng(0).integers(0, 256, (4, 3, 2)).astype(np.uint8)}
    one, other = (open_session(item, "g", device="cpu", integers=True).run(None, values) for item in (content, fused))
    assert one[0].tobytes() == other[0].tobytes()


def test_a_graph_within_that_is_none() -> None:
    damaged = Node("Scan", ("x",), ("y",), (subgraph("body", b"\x0a\x7fno graph"),))
    model = Model([damaged], {}, {}, {}, {"": 18})
    with pytest.raises(BundleError, match="the body of Scan is not an ONNX graph"):
        fuse(model.encode(), "g")
