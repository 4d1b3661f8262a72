"""A recurrent operator over whole sequences in both directions, as an encoder has it, with rounded weights.

The input's products are made for all steps at once, what stands behind a sequence's end included. A Scan over the
steps of each direction does the rest. For the backward one sequences are turned around, each by its own length, so that
neither has to know where a sequence ends.

Symbols in shape comments: S steps, B sequences, D input, H hidden, G gates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnn_edge_export.quantisation.cells import CELLS, Layer, table_bias
from rnn_edge_export.quantisation.graph import Array, GraphWriter
from rnn_edge_export.quantisation.products import Activation, StaticProducts
from rnn_edge_export.quantisation.weights import to_columns


@dataclass(frozen=True)
class BothDirections:
    """What the operator reads, and the names of what it writes, forward first."""

    operator: str
    w: Array  # [2, G·H, D]
    r: Array  # [2, G·H, H]
    b: Array  # [2, 2·G·H]
    x: Activation  # [S, B, D], of known bound
    lengths: str  # int64 [B]
    outputs: Sequence[str]  # h of all steps [S, B, H]
    finals: Sequence[str] = ("", "")  # h of each sequence's last step in this direction [B, H], where it is read


def add_sequence(writer: GraphWriter, products: StaticProducts, layer: BothDirections) -> None:
    """The nodes of both directions."""
    assert layer.x.bound is not None
    hidden = int(layer.r.shape[2])
    ahead = products.rounded(writer, [layer.x], layer.x.bound)
    batch = writer.add("Shape", [layer.lengths])
    zero = writer.add("ConstantOfShape", [writer.add("Concat", [batch, writer.constant(np.array([hidden]))], axis=0)])
    last = _last_steps(writer, layer.lengths, batch)
    for direction, x in enumerate((ahead, _turned(writer, ahead, layer.lengths))):
        columns = to_columns(layer.w[direction].T)
        values = writer.constant(columns.values, "weight_int8")
        product = products.integer_product(writer, x, layer.x.bound, values, columns.scales)
        bias = table_bias(layer.operator, layer.b[direction].reshape(2, -1))
        given = writer.add("Add", [product, writer.constant(bias, "bias")])
        steps = _scan(writer, layer, direction, given, zero)
        if direction:
            _turned(writer, steps, layer.lengths, layer.outputs[1])
        writer.add("GatherND", [steps, last], output=layer.finals[direction])


def _scan(writer: GraphWriter, layer: BothDirections, direction: int, given: str, zero: str) -> str:
    """h of all steps [S, B, H]; ``given`` [S, B, G·H] is the input's part, ``zero`` [B, H] the first state."""
    w, r, biases = layer.w[direction].T, layer.r[direction].T, layer.b[direction].reshape(2, -1)
    hidden, gates = map(int, r.shape)
    body = writer.inner()
    table, names = body.new_name("given"), ("h", "c") if layer.operator == "LSTM" else ("h",)
    old, new = [body.new_name(name) for name in names], [body.new_name(f"{name}_next") for name in names]
    h = Activation(old[0], hidden, 1.0)
    CELLS[layer.operator](body, StaticProducts(), Layer(w, r, biases, None, table, old, new, h))
    step = body.add("Identity", [new[0]])  # an output is the next state or one of the steps
    graph = body.graph("step", dict.fromkeys(old, hidden) | {table: gates}, dict.fromkeys([*new, step], hidden))
    inputs, outputs = [*[zero] * len(old), given], [""] * (len(old) + 1)
    outputs[-1] = "" if direction else layer.outputs[0]
    return writer.add_many("Scan", inputs, outputs, body=graph, num_scan_inputs=1)[-1]


def _turned(writer: GraphWriter, name: str, lengths: str, output: str = "") -> str:
    """[S, B, …] with the steps of each sequence in reverse order."""
    return writer.add("ReverseSequence", [name, lengths], output=output, time_axis=0, batch_axis=1)


def _last_steps(writer: GraphWriter, lengths: str, batch: str) -> str:
    """Where each sequence's last step is in [S, B, …], int64 [B, 2]."""
    zero, one, axis = (writer.constant(np.array(item, np.int64)) for item in (0, 1, [1]))
    last = writer.add("Sub", [lengths, one])
    rows = writer.add("Range", [zero, writer.add("Squeeze", [batch]), one])
    return writer.add("Concat", [writer.add("Unsqueeze", [item, axis]) for item in (last, rows)], axis=1)
