"""What ``rnn_edge.onnx_nodes`` writes, read by the onnx package."""

import numpy as np
import onnx
from onnx import numpy_helper

from rnn_edge.choice import choice_nodes
from rnn_edge.onnx_nodes import Node, Tensor, graph_bytes, model_bytes
from tests.device.tiny import LSTM

GIVEN, MADE = Tensor("given", "float32", ("batch", 300)), Tensor("made", "int64", ("batch",))


def test_a_model_of_its_own() -> None:
    model = onnx.load_from_string(
        model_bytes([Node("ArgMax", ("given",), "made", (("axis", 1), ("keepdims", 0)))], [GIVEN], [MADE])
    )
    onnx.checker.check_model(model, full_check=True)
    (node,) = model.graph.node
    assert {attribute.name: attribute.i for attribute in node.attribute} == {"axis": 1, "keepdims": 0}
    assert [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        300,
    ]


def test_an_extension_of_a_bundled_graph() -> None:
    content = (LSTM / "step.onnx").read_bytes()
    before, after = (onnx.load_from_string(some) for some in (content, content + choice_nodes()))
    onnx.checker.check_model(after, full_check=True)
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node] + [
        "Div",
        "Add",
        "ArgMax",
    ]
    assert {item.name for item in after.graph.output} - {item.name for item in before.graph.output} == {"choice"}
    assert after.metadata_props == before.metadata_props


def test_default_values_and_long_names() -> None:
    name, value = "x" * 1000, np.array([[1.5, -2.0]], np.float32)
    model = onnx.load_from_string(graph_bytes([], [Tensor(name, "float32", (1, 2))], [], {name: value}))
    assert model.graph.input[0].name == name
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), value)
