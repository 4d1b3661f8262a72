"""How large the values of a graph can be, from what computes them: the range of static quantisation.

The outputs of LSTM, GRU and tanh RNN, of Tanh, Sigmoid and Softmax lie in [−1, 1] whatever the weights; so do an
encoder's memory, an attention's context (a convex combination of memory) and what they are concatenated to. A looked-up
row is bounded by its table. Nothing has to be measured on data, and no range depends on the other rows of a batch.
"""

from collections.abc import Mapping

import numpy as np
import onnx

from rnn_edge_export.quantisation.graph import RECURRENT, GraphReader, attribute

_SAME = {"Squeeze", "Unsqueeze", "Transpose", "Split", "Slice", "Reshape", "Identity", "Expand", "Cast", "Gather"}
_UNIT = {"Tanh", "Sigmoid", "Softmax"}


def find_bounds(reader: GraphReader, inputs: Mapping[str, float]) -> dict[str, float]:
    """The largest absolute value of each value of the graph that has a bound, given those of its inputs."""
    found = dict(inputs)
    convex: set[str] = set()  # not negative, with a sum of one along the last axis
    shares: set[str] = set()  # in [0, 1]

    def of(name: str) -> float | None:
        constant = reader.constants.get(name)
        return found.get(name) if constant is None else float(np.abs(constant).max(initial=0))

    def largest(*names: str) -> float | None:
        parts = [of(name) for name in names]
        return max(part for part in parts if part is not None) if None not in parts else None

    for node in reader.nodes:
        bound: float | None = None
        outputs = list(node.output)
        if node.op_type in _UNIT:
            bound = 1.0
            convex |= set(outputs) if node.op_type == "Softmax" else set()
            shares |= set(outputs) if node.op_type != "Tanh" else set()
        elif node.op_type in RECURRENT:
            # A GRU's h is a mean of what it was at first and a tanh. An LSTM's third output, its cell, has no bound.
            first = node.input[5] if node.op_type == "GRU" and len(node.input) > 5 else ""
            bound = (max(1.0, of(first) or 0.0) if of(first) is not None else None) if first else 1.0
            outputs = outputs[:2] if attribute(node, "activations") is None else []
        elif node.op_type in _SAME:
            bound = of(node.input[0])
            convex |= set(outputs) if node.op_type == "Unsqueeze" and node.input[0] in convex else set()
            shares |= set(outputs) if node.input[0] in shares else set()
        elif node.op_type == "Concat":
            bound = largest(*node.input)
        elif node.op_type == "Mul":
            left, right = (of(name) for name in node.input)
            bound = left * right if left is not None and right is not None else None
        elif node.op_type == "Add":
            mixed = _mixed(reader, node, shares)
            terms = [of(name) for name in node.input]
            bound = largest(*mixed) if mixed else sum(t for t in terms if t is not None) if None not in terms else None
        elif node.op_type == "MatMul" and node.input[0] in convex:
            bound = of(node.input[1])
        elif node.op_type == "Clip" and set(node.input[1:]) <= set(reader.constants) and len(node.input) == 3:
            bound = largest(*node.input[1:])
            low, high = (float(reader.constants[name]) for name in node.input[1:])
            shares |= set(outputs) if low >= 0 and high <= 1 else set()
        elif node.op_type == "ConstantOfShape":
            value = attribute(node, "value")
            bound = 0.0 if value is None else float(np.abs(onnx.numpy_helper.to_array(value)).max(initial=0))
        if bound is not None:
            found |= dict.fromkeys((name for name in outputs if name), bound)
    return found


def find_state_bounds(
    reader: GraphReader, pairs: Mapping[str, str], first: Mapping[str, float], inputs: Mapping[str, float]
) -> dict[str, float]:
    """Bounds of the state inputs of a step, those that have one, given those of its other ``inputs``.

    ``pairs`` are input and output names, ``first`` the bounds of the first state. By induction over the steps: what is
    in [−1, 1] at first, and where a step that reads such states writes such states again, stays there.
    """
    assumed = {name for name in pairs if first.get(name, 2.0) <= 1}
    while True:
        found = find_bounds(reader, {**inputs, **dict.fromkeys(assumed, 1.0)})
        proven = {name for name in assumed if found.get(pairs[name], 2.0) <= 1}
        if proven == assumed:
            return dict.fromkeys(sorted(proven), 1.0)
        assumed = proven


def _mixed(reader: GraphReader, add: onnx.NodeProto, shares: set[str]) -> tuple[str, str] | None:
    """a and b where a node is a + z · (b − a) with z in [0, 1], as a GRU writes the mean of its candidate and its h."""
    for a, product in (tuple(add.input), tuple(reversed(add.input))):
        mul = reader.producers.get(product)
        for z, rest in (tuple(mul.input), tuple(reversed(mul.input))) if mul and mul.op_type == "Mul" else ():
            sub = reader.producers.get(rest)
            if z in shares and sub is not None and sub.op_type == "Sub" and sub.input[1] == a:
                return a, sub.input[0]
    return None
