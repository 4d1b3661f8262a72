"""How large the values of small graphs can be."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rnn_edge_export.quantisation.bounds import find_bounds, find_state_bounds
from rnn_edge_export.quantisation.graph import Array, GraphReader


def _bounds(nodes: str, constants: dict[str, Array] | None = None, **inputs: float) -> dict[str, float]:
    graph = onnx.parser.parse_graph(f"g (float[B, 4] any) => (float[B, 4] out) {{ {nodes} }}")
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in (constants or {}).items())
    return find_bounds(GraphReader(graph), dict(inputs))


TABLE = np.array([[0.5, -3.5], [2, 1]], np.float32)
TWO = np.array(-2, np.float32)


def test_recurrent_operators() -> None:
    """The cell of an LSTM, its third output, adds up without end."""
    found = _bounds("y, h, c = LSTM(any, w, r, b)  y1, h1 = GRU(any, w, r, b)  y2, h2 = RNN(any, w, r, b)")
    assert found == dict.fromkeys(("y", "h", "y1", "h1", "y2", "h2"), 1.0)
    assert _bounds("y, h, c = LSTM(any, w, r, b)  x = Squeeze(c)  z = Squeeze(h)").keys() == {"y", "h", "z"}


def test_unit_functions_and_what_has_no_bound() -> None:
    found = _bounds("a = Tanh(any)  b = Sigmoid(any)  c = Softmax(any)  d = Add(a, b)  e = MatMul(a, b)  f = Relu(a)")
    assert found == {"a": 1, "b": 1, "c": 1, "d": 2}


def test_rows_of_a_table() -> None:
    found = _bounds("x = Gather(table, any)  y = Mul(x, two)  z = Mul(two, y)", {"table": TABLE, "two": TWO})
    assert found == {"x": 3.5, "y": 7, "z": 14}


def test_a_table_in_half_precision() -> None:
    nodes = "table = Cast<to = 1>(half)  x = Gather(table, any)"
    assert _bounds(nodes, {"half": TABLE.astype(np.float16)}) == {"x": 3.5}


def test_concatenations_have_the_largest_bound_of_their_parts_or_none() -> None:
    nodes = "x = Concat<axis = 1>(h, feed)  y = Concat<axis = 1>(h, any)  z = Concat<axis = 1>(h, table)"
    found = _bounds(nodes, {"table": TABLE}, h=1.0, feed=2.0)
    assert found == {"h": 1, "feed": 2, "x": 2, "z": 3.5}


def test_a_product_of_a_value_without_bound_has_none() -> None:
    assert _bounds("x = Mul(any, two)  y = Mul(two, any)", {"two": TWO}) == {}
    assert _bounds("x = Mul(h, h)", h=3.0) == {"h": 3, "x": 9}


def test_what_moves_values_about_keeps_their_bound() -> None:
    nodes = (
        "a = Squeeze(h)  b = Unsqueeze(a)  c = Transpose(b)  d1, d2 = Split(c)  e = Slice(d2)  f = Reshape(e)  "
        "i = Identity(f)  j = Expand(i)  k = Gather(j, any)"
    )
    found = _bounds(nodes, h=0.25)
    assert set(found.values()) == {0.25}
    assert len(found) == 11


def test_the_context_of_an_attention_is_bounded_by_its_memory() -> None:
    nodes = "a = Softmax(any)  b = Unsqueeze(a)  context = MatMul(b, memory)  x = Squeeze(context)"
    assert _bounds(nodes, memory=1.5) == {"memory": 1.5, "a": 1, "b": 1, "context": 1.5, "x": 1.5}
    assert "context" not in _bounds(nodes)
    # Weights in (0, 1) that do not sum to one are another thing.
    assert "context" not in _bounds(nodes.replace("Softmax", "Sigmoid"), memory=1.5)


@pytest.mark.parametrize("bound", [1.0, 8.0])
def test_given_bounds_are_those_of_the_inputs(bound: float) -> None:
    assert _bounds("x = Concat<axis = 1>(h0, h0)", h0=bound)["x"] == bound


def _step(nodes: str, constants: dict[str, Array] | None = None, **first: float) -> dict[str, float]:
    """Bounds of the states h and c of a step that writes h1 and c1."""
    graph = onnx.parser.parse_graph(f"g (float[B, 4] any, float[B, 4] h) => (float[B, 4] h1) {{ {nodes} }}")
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in (constants or {}).items())
    return find_state_bounds(GraphReader(graph), {"h": "h1", "c": "c1"}, {"h": 0.0, "c": 0.0} | first, {})


def test_a_state_is_bounded_where_every_step_keeps_it_so() -> None:
    lstm = "i, o, f = Split(gates)  a = Mul(f, c)  b = Mul(i, g)  c1 = Add(a, b)  d = Tanh(c1)  h1 = Mul(o, d)"
    assert _step(f"gates = Sigmoid(any)  g = Tanh(any)  {lstm}") == {"h": 1}
    assert _step(f"gates = Sigmoid(any)  g = Tanh(any)  {lstm}", h=1.5) == {}  # not even at first
    assert _step(f"gates = Relu(any)  g = Tanh(any)  {lstm}") == {}
    hard = "gates = Clip(any, low, high)  g = Tanh(any)"
    low, high = np.array(0, np.float32), np.array(1, np.float32)
    assert _step(f"{hard}  {lstm}", {"low": low, "high": high}) == {"h": 1}
    assert _step(f"{hard}  {lstm}", {"low": low, "high": high + 1}) == {}


def test_a_mean_of_state_and_candidate_is_bounded() -> None:
    gru = "z = Sigmoid(any)  n = Tanh(any)  d = Sub(h, n)  m = Mul(z, d)  h1 = Add(n, m)"
    assert _step(gru) == {"h": 1}
    assert _step(gru.replace("Sigmoid", "Tanh")) == {}  # no share
    assert _step(gru.replace("Sub(h, n)", "Sub(n, h)")) == {}
    assert _step(gru.replace("n = Tanh", "n = Relu")) == {}


def test_states_that_nothing_bounds() -> None:
    assert _step("h1 = Relu(any)") == {}
    assert _step("y = Tanh(any)  h1 = MatMul(y, w)", {"w": TABLE}) == {}
    # One state may lean on another only if that is bounded itself.
    assert _step("h1 = Identity(c)  c1 = Identity(h)") == {"c": 1, "h": 1}
    assert _step("h1 = Identity(c)  c1 = Add(h, h)") == {}


def test_a_recurrent_operator_with_other_functions_or_from_another_state() -> None:
    assert _bounds('y, h = RNN<activations = ["Relu"]>(any, w, r, b)') == {}
    assert "y" not in _bounds("y, h = GRU(any, w, r, b, , first)")
    assert _bounds("y, h = GRU(any, w, r, b, , first)", first=3.0)["h"] == 3
