"""A recurrent operator over whole sequences in both directions, as an encoder has it, with rounded weights.

The input's products are made for all steps at once, what stands behind a sequence's end included. A Scan over the
steps of each direction does the rest. For the backward one sequences are turned around, each by its own length, so that
neither has to know where a sequence ends.

Symbols in shape comments: S steps, B sequences, D input, H hidden, G gates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import numpy_helper

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
    places = _Places(writer, layer.x.name, layer.lengths)
    sizes = writer.add("Concat", [places.batch, writer.constant(np.array([hidden]))], axis=0)
    zero = writer.add("ConstantOfShape", [sizes], value=numpy_helper.from_array(np.zeros(1, np.float32)))
    for direction, x in enumerate((ahead, places.take(ahead, layer.x.width, places.turned))):
        columns = to_columns(layer.w[direction].T)
        values = writer.constant(columns.values, "weight_int8")
        product = products.integer_product(writer, x, layer.x.bound, values, columns.scales)
        bias = table_bias(layer.operator, layer.b[direction].reshape(2, -1))
        given = writer.add("Add", [product, writer.constant(bias, "bias")])
        steps = _scan(writer, layer, direction, given, zero)
        if direction:
            places.take(steps, hidden, places.turned, layer.outputs[1])
        places.take(steps, hidden, places.last, layer.finals[direction])


class _Places:
    """Where steps are in [S · B, …], which any runtime can gather: not all know ReverseSequence.

    ``turned`` int64 [S, B] has the steps of each sequence in reverse order, what stands behind its end where it was;
    ``last`` int64 [B] each sequence's last step; ``batch`` int64 [1] is B.
    """

    def __init__(self, writer: GraphWriter, x: str, lengths: str) -> None:
        """``x`` [S, B, …], ``lengths`` int64 [B]."""
        self._writer = writer
        zero, one, axis = (writer.constant(np.array(item, np.int64)) for item in (0, 1, [1]))
        self.batch = writer.add("Shape", [lengths])
        count = writer.add("Gather", [writer.add("Shape", [x]), zero])
        steps = writer.add("Unsqueeze", [writer.add("Range", [zero, count, one]), axis])  # [S, 1]
        rows = writer.add("Range", [zero, writer.add("Squeeze", [self.batch]), one])
        last = writer.add("Sub", [lengths, one])
        within = writer.add("Less", [steps, lengths])
        turned = writer.add("Where", [within, writer.add("Sub", [last, steps]), steps])
        self.turned, self.last = (
            writer.add("Add", [writer.add("Mul", [step, self.batch]), rows]) for step in (turned, last)
        )

    def take(self, name: str, width: int, places: str, output: str = "") -> str:
        """The steps at these places of a value [S, B, width]."""
        flat = self._writer.add("Reshape", [name, self._writer.constant(np.array([-1, width]))])
        return self._writer.add("Gather", [flat, places], output=output, axis=0)


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
