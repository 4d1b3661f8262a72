"""How large the values of a graph can be, from what computes them: the range of static quantisation.

The outputs of LSTM, GRU and tanh RNN, of Tanh, Sigmoid and Softmax lie in [−1, 1] whatever the weights; so do an
encoder's memory, an attention's context (a convex combination of memory) and what they are concatenated to. A looked-up
row is bounded by its table. Nothing has to be measured on data, and no range depends on the other rows of a batch.
"""

import numpy as np

from rnn_edge_export.quantisation.graph import GraphReader

_SAME = {"Squeeze", "Unsqueeze", "Transpose", "Split", "Slice", "Reshape", "Identity", "Expand", "Cast", "Gather"}
_UNIT = {"Tanh", "Sigmoid", "Softmax"}
_RECURRENT = {"LSTM", "GRU", "RNN"}


def find_bounds(reader: GraphReader, inputs: dict[str, float]) -> dict[str, float]:
    """The largest absolute value of each value of the graph that has a bound, given those of its inputs."""
    found = dict(inputs)
    convex: set[str] = set()  # not negative, with a sum of one along the last axis

    def of(name: str) -> float | None:
        constant = reader.constants.get(name)
        return found.get(name) if constant is None else float(np.abs(constant).max(initial=0))

    for node in reader.nodes:
        bound: float | None = None
        outputs = list(node.output)
        if node.op_type in _UNIT:
            bound = 1.0
            convex |= set(outputs) if node.op_type == "Softmax" else set()
        elif node.op_type in _RECURRENT:
            bound, outputs = 1.0, outputs[:2]  # an LSTM's third output, its cell, has no bound
        elif node.op_type in _SAME:
            bound = of(node.input[0])
            convex |= set(outputs) if node.op_type == "Unsqueeze" and node.input[0] in convex else set()
        elif node.op_type == "Concat":
            parts = [of(name) for name in node.input]
            bound = max(part for part in parts if part is not None) if None not in parts else None
        elif node.op_type == "Mul":
            left, right = (of(name) for name in node.input)
            bound = left * right if left is not None and right is not None else None
        elif node.op_type == "MatMul" and node.input[0] in convex:
            bound = of(node.input[1])
        if bound is not None:
            found |= dict.fromkeys((name for name in outputs if name), bound)
    return found
