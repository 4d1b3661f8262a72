"""Graphs read node by node and written anew."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from rnn_edge_export.quantisation.graph import GraphReader, GraphWriter, attribute


def _graph(nodes: str, output: str = "out") -> onnx.GraphProto:
    return onnx.parser.parse_graph(f"g (float[B, 4] x) => (float[B, 4] {output}) {{ {nodes} }}")


def test_weights_in_half_precision_read_as_float32() -> None:
    graph = _graph("w = Cast<to = 1>(half)  out = MatMul(x, w)")
    graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float16), "half"))
    reader = GraphReader(graph)
    weight = reader.weight("w")
    assert weight is not None
    assert weight.dtype == np.float32
    assert weight.tolist() == np.eye(4).tolist()
    assert reader.weight("half") is None
    assert reader.weight("x") is None
    assert [node.op_type for node in reader.nodes] == ["MatMul"]


def test_the_only_consumer() -> None:
    reader = GraphReader(_graph("a = Tanh(x)  b = Tanh(a)  c = Neg(b)  out = Add(a, c)"))
    found = reader.only_consumer("b", "Neg")
    assert found is not None
    assert list(found.output) == ["c"]
    assert reader.only_consumer("a", "Tanh") is None  # two read it
    assert reader.only_consumer("b", "Tanh") is None  # another operator
    assert GraphReader(_graph("b = Tanh(x)  c = Neg(b)", "b")).only_consumer("b", "Neg") is None  # an output too


def test_nodes_and_constants_that_nothing_reads_are_left_out() -> None:
    graph = _graph("old = Tanh(x)  out = Neg(old)")
    graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unread"))
    reader, writer = GraphReader(graph), GraphWriter(["x", "old", "out"])
    writer.add("Exp", ["x"])
    writer.constant(np.zeros(40, np.float32), "other")
    one = writer.constant(np.array(1, np.float32))
    writer.add("Add", ["x", one], output="out")
    writer.finish(graph, reader.constants)
    assert [node.op_type for node in graph.node] == ["Add"]
    assert [item.name for item in graph.initializer] == [one]


def test_old_constants_that_copied_nodes_read_stay() -> None:
    graph = _graph("out = Add(x, bias)")
    graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "bias"))
    reader, writer = GraphReader(graph), GraphWriter(["x", "bias", "out"])
    mine = writer.constant(np.full(40, 7, np.float32), "bias")
    assert mine != "bias"  # taken
    writer.copy(reader.nodes[0])
    writer.finish(graph, reader.constants)
    assert [(item.name, numpy_helper.to_array(item).tolist()) for item in graph.initializer] == [("bias", [1.0] * 4)]


def test_small_equal_constants_are_one_and_scalars_stay_scalars() -> None:
    writer = GraphWriter()
    one = writer.constant(np.array(1, np.float32))
    assert writer.constant(np.array(1, np.float32)) == one
    assert writer.constant(np.array([1], np.float32)) != one
    assert writer.constant(np.array(1, np.int8)) != one
    large = np.ones(64, np.float32)
    assert writer.constant(large, "w") != writer.constant(large, "w")
    writer.add("Identity", [one], output="out")
    graph = _graph("out = Neg(x)")
    writer.finish(graph, {})
    assert [list(item.dims) for item in graph.initializer] == [[]]


def test_new_names_are_free() -> None:
    writer = GraphWriter(["tanh_1", "tanh_2"])
    names = [writer.add("Tanh", ["x"]) for _ in range(3)]
    assert len({*names, "tanh_1", "tanh_2"}) == 5


def test_attributes() -> None:
    node = _graph("out = Gemm<transB = 1>(x, x)").node[0]
    assert attribute(node, "transB", 0) == 1
    assert attribute(node, "transA", 0) == 0
