"""The page's graphs against the bundles' own: the same bits where sums are exact, and named refusals."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rnn_edge.bundle import Bundle, open_bundle
from rnn_edge.errors import BundleError
from rnn_edge.onnx_file import summarise
from rnn_edge.onnx_model import Model, read_model
from rnn_edge.stepper import StepGraph
from rnn_edge.web.blocks import with_wide_blocks
from rnn_edge.web.graph import exact, looped, with_exact_products
from rnn_edge.web.site import model_files
from tests.device.tiny import copy_bundle, replace_file
from tests.web.conftest import BUNDLES, ROOT

Array = NDArray[np.float32]


def session(content: bytes) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # sums are exact on every processor
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def page_model(bundle: Bundle) -> bytes:
    return model_files(bundle)["loop.onnx"]


@pytest.mark.parametrize("name", ["tests/data/lstm", "tests/data/gru", "models/shakespeare", "models/sherlock"])
def test_the_loop_is_many_steps(name: str) -> None:
    """Logits and state of each step, bit for bit, while the graph chooses what to read."""
    bundle = open_bundle(ROOT / name)
    size, steps = bundle.manifest.tokenizer.vocabulary_size, 40
    noise = np.random.default_rng(3).gumbel(size=(steps, size)).astype(np.float32)
    state = {pair.input: np.zeros((1, pair.width), np.float32) for pair in bundle.manifest.state}
    feeds = {"count": np.array(steps), "token": np.array([1]), "temperature": np.array([0.7], np.float32)}
    names = ["tokens", "all_logits", "hidden", *(pair.output for pair in bundle.manifest.state)]
    found = dict(zip(names, session(page_model(bundle)).run(names, {**feeds, "noise": noise, **state}), strict=True))
    stepper = StepGraph(bundle, device="cpu").stepper()
    token = 1
    top = [pair for pair in bundle.manifest.state if pair.input.startswith("h")][-1]
    for step in range(steps):
        logits = stepper.step(token)[0]
        assert np.array_equal(found["all_logits"][step, 0], logits)
        assert np.array_equal(found["hidden"][step, 0], stepper.state().tensors[top.input][0])
        token = int((logits / np.float32(0.7) + noise[step]).argmax())
        assert found["tokens"][step, 0] == token
    for pair in bundle.manifest.state:
        assert np.array_equal(found[pair.output], stepper.state().tensors[pair.input])


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_a_translators_graphs_give_the_same_bits(role: str) -> None:
    bundle = open_bundle(ROOT / "models/en-fr")
    content = bundle.graph(role)
    model = read_model(content, role)
    changed = exact(model)
    assert "MatMulInteger" not in summarise(changed, role).operators  # loops included
    random = np.random.default_rng(1)
    feeds: dict[str, NDArray[np.generic]] = {
        "source": random.integers(0, 6000, (2, 7)),
        "source_lengths": np.array([7, 4]),
        "token": random.integers(0, 6000, 2),
    }
    for item in bundle.manifest.memory:
        feeds[item.name] = random.uniform(-1, 1, (2, 7, item.width)).astype(np.float32)
    for pair in bundle.manifest.state:
        feeds[pair.input] = random.uniform(-1, 1, (2, pair.width)).astype(np.float32)
    sides = []
    for graph in (content, changed):
        opened = session(graph)
        sides.append(opened.run(None, {item.name: feeds[item.name] for item in opened.get_inputs()}))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(*sides, strict=True))


def product(weights: NDArray[np.int8], zero: int = 128) -> Model:
    """x → quantised → product with weights → float."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    constants = [
        numpy_helper.from_array(np.array(1 / 127, np.float32), "scale"),
        numpy_helper.from_array(np.array(zero, np.uint8), "zero"),
        numpy_helper.from_array(weights, "w"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", weights.shape[0]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weights.shape[1]])
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    return read_model(content, "g")


def test_sums_that_fp32_does_not_hold_stay_integers() -> None:
    """1,032 weights of 127 times 128 are below 2²⁴, 1,033 are not: the bound is per column."""
    weights = np.zeros((1100, 3), np.int8)
    weights[:1032, 1] = -127
    assert with_exact_products(product(weights)) == 0
    weights[1032, 1] = 127
    assert with_exact_products(product(weights)) == 1


def test_the_worst_sums_are_exact() -> None:
    weights = np.full((1032, 2), 127, np.int8)
    weights[:, 1] = -127
    model = product(weights)
    before, after = session(model.encode()), session(exact(model))
    x = np.concatenate([np.full((1, 1032), value, np.float32) for value in (-1e9, 1e9, 1.0, 0.0039, -0.5)])
    x = np.concatenate([x, np.random.default_rng(0).uniform(-1.2, 1.2, (64, 1032)).astype(np.float32)])
    ours, theirs = (opened.run(None, {"x": x})[0] for opened in (after, before))
    assert np.array_equal(ours, theirs)
    assert np.abs(theirs).max() > 2**23


def test_halves_are_rounded_alike() -> None:
    """To even, as QuantizeLinear does, for every half that eight bits know."""
    model = product(np.eye(1, dtype=np.int8))
    before, after = session(model.encode()), session(exact(model))
    scale = np.float32(1 / 127)
    x = ((np.arange(-260, 260)[:, None] + np.array([-1e-3, 0, 1e-3])) / 2).astype(np.float32).reshape(-1, 1) * scale
    assert np.array_equal(after.run(None, {"x": x})[0], before.run(None, {"x": x})[0])


def test_other_zero_points_stay_integers() -> None:
    assert with_exact_products(product(np.ones((4, 2), np.int8), zero=127)) == 1


@pytest.mark.parametrize("inner", [64, 72])
def test_four_bits_are_widened(inner: int) -> None:
    """Against the native kernel, which rounds its inputs to eight bits."""
    random = np.random.default_rng(2)
    columns, block = 24, 32
    count = -(-inner // block)
    packed = random.integers(0, 256, (columns, count, block // 2)).astype(np.uint8)
    if count * block > inner:
        packed[:, -1, (inner % block) // 2 :] = 0x88
    constants = [
        numpy_helper.from_array(packed, "w"),
        numpy_helper.from_array(random.uniform(0.01, 0.1, columns * count).astype(np.float32), "s"),
        numpy_helper.from_array(random.normal(size=columns).astype(np.float32), "b"),
    ]
    sizes: dict[str, Any] = {"K": inner, "N": columns, "bits": 4, "block_size": block}
    node = helper.make_node("MatMulNBits", ["x", "w", "s", "", "", "b"], ["y"], domain="com.microsoft", **sizes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, inner])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, columns])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    content = helper.make_model(helper.make_graph([node], "g", [x], [y], constants), opset_imports=opsets, ir_version=8)
    native = onnxruntime.InferenceSession(content.SerializeToString(), providers=["CPUExecutionProvider"])
    model = read_model(content.SerializeToString(), "g")
    with_wide_blocks(model)
    model.opsets.pop("com.microsoft")
    feeds = {"x": random.normal(size=(3, inner)).astype(np.float32)}
    ours, theirs = session(model.encode()).run(None, feeds)[0], native.run(None, feeds)[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", BUNDLES)
def test_every_operator_comes_through(name: str) -> None:
    bundle = open_bundle(ROOT / name)
    for role in bundle.manifest.graphs:
        content = bundle.graph(role)
        ours, theirs = (onnx.load_from_string(item) for item in (read_model(content, role).encode(), content))
        for node in [*ours.graph.node, *theirs.graph.node]:
            for field in ("name", "doc_string", "domain"):
                if field != "domain" or not node.domain:
                    node.ClearField(field)
        assert ours.graph.node == theirs.graph.node
        assert {item.name: item for item in ours.graph.initializer} == {
            item.name: item for item in theirs.graph.initializer
        }


def test_damaged_graphs_are_refused() -> None:
    content = open_bundle(ROOT / "tests/data/lstm").graph("step")
    with pytest.raises(BundleError, match="is not an ONNX model"):
        read_model(content[:-7], "step.onnx")


def test_operators_of_other_domains_are_named(tmp_path: Path) -> None:
    folder = copy_bundle(ROOT / "tests/data/gru", tmp_path / "gru")
    model = onnx.load(folder / "step.onnx")
    node = next(item for item in model.graph.node if item.op_type == "Tanh")
    node.op_type, node.domain = "FastTanh", "com.microsoft"
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    replace_file(folder, "step.onnx", buffer.getvalue())
    with pytest.raises(BundleError, match=r"lacks: com\.microsoft::FastTanh") as caught:
        model_files(open_bundle(folder))
    assert "int8" in caught.value.hint


def test_a_tokenizer_that_the_page_cannot_load_is_named(tmp_path: Path) -> None:
    folder = copy_bundle(ROOT / "tests/data/gru", tmp_path / "gru")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    content["model"] = {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "vocab": vocabulary}
    content["model"]["max_input_chars_per_word"] = 9
    replace_file(folder, "tokenizer.json", json.dumps(content).encode())
    with pytest.raises(BundleError, match=r"tokenizer\.json has a model of type WordPiece, which the page cannot load"):
        model_files(open_bundle(folder))


def test_weights_stay_in_eight_bits() -> None:
    bundle = open_bundle(ROOT / "models/shakespeare")
    model = read_model(bundle.graph("step"), "step.onnx")
    content = looped(model, bundle.manifest.state, 65)
    assert len(content) < 1.01 * len(bundle.graph("step"))
