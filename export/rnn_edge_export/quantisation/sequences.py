"""A recurrent operator over whole sequences in both directions, as an encoder has it, with rounded weights.

The input's products are made for all steps at once, what stands behind a sequence's end included. A Scan over the
steps does the rest: its body holds a cell of each direction. For the backward one sequences are turned around, each by
its own length, so that neither has to know where a sequence ends.

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
    finals: Sequence[str]  # h of each sequence's last step in this direction [B, H]


def add_sequence(writer: GraphWriter, products: StaticProducts, layer: BothDirections) -> None:
    """The nodes of both directions."""
    assert layer.x.bound is not None
    hidden = int(layer.r.shape[2])
    ahead = products.rounded(writer, [layer.x], layer.x.bound)
    body, cells = writer.inner(), StaticProducts()
    first, given, state, following, steps = [], [], [], [], []
    for w, r, b, x in zip(layer.w, layer.r, layer.b, (ahead, _turned(writer, ahead, layer.lengths)), strict=True):
        biases = b.reshape(2, -1)
        columns = to_columns(w.T)
        values = writer.constant(columns.values, "weight_int8")
        product = products.integer_product(writer, x, layer.x.bound, values, columns.scales)
        first.append(writer.add("Add", [product, writer.constant(table_bias(layer.operator, biases), "bias")]))
        given.append(body.new_name("given"))
        names = ("h", "c") if layer.operator == "LSTM" else ("h",)
        old, new = [body.new_name(name) for name in names], [body.new_name(f"{name}_next") for name in names]
        h = Activation(old[0], hidden, 1.0)
        CELLS[layer.operator](body, cells, Layer(w.T, r.T, biases, None, given[-1], old, new, h))
        state += old
        following += new
        steps.append(body.add("Identity", [new[0]]))
    inputs = dict.fromkeys(state, hidden) | dict.fromkeys(given, int(layer.r.shape[1]))
    step = body.graph("step", inputs, dict.fromkeys([*following, *steps], hidden))
    batch = writer.add("Shape", [layer.lengths])
    zero = writer.add("ConstantOfShape", [writer.add("Concat", [batch, writer.constant(np.array([hidden]))], axis=0)])
    found = writer.add_many(
        "Scan", [*[zero] * len(state), *first], [*[""] * len(state), layer.outputs[0], ""], body=step, num_scan_inputs=2
    )
    _turned(writer, found[-1], layer.lengths, layer.outputs[1])
    last = _last_steps(writer, layer.lengths, batch)
    for name, final in zip(found[-2:], layer.finals, strict=True):
        writer.add("GatherND", [name, last], output=final)


def _turned(writer: GraphWriter, name: str, lengths: str, output: str = "") -> str:
    """[S, B, …] with the steps of each sequence in reverse order."""
    return writer.add("ReverseSequence", [name, lengths], output=output, time_axis=0, batch_axis=1)


def _last_steps(writer: GraphWriter, lengths: str, batch: str) -> str:
    """Where each sequence's last step is in [S, B, …], int64 [B, 2]."""
    zero, one, axis = (writer.constant(np.array(item, np.int64)) for item in (0, 1, [1]))
    last = writer.add("Sub", [lengths, one])
    rows = writer.add("Range", [zero, writer.add("Squeeze", [batch]), one])
    return writer.add("Concat", [writer.add("Unsqueeze", [item, axis]) for item in (last, rows)], axis=1)
