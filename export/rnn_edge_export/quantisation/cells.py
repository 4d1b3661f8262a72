"""One step of a recurrent operator as products and element-wise nodes.

The weights are those of the ONNX operator: W [1, G·H, D], R [1, G·H, H], B [1, 2·G·H], gates in its order. Symbols in
shape comments: B streams, D input, H hidden, G gates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rnn_edge_export.quantisation.graph import Array, GraphWriter
from rnn_edge_export.quantisation.products import Activation, Products


@dataclass(frozen=True)
class Layer:
    """What one step of a layer reads, and the names of what it writes.

    ``x`` is None where the input's product was computed beforehand: ``table`` then names it, [B, G·H], with the biases
    that are added before any gate.
    """

    w: Array  # [D, G·H]
    r: Array  # [H, G·H]
    b: Array  # [2, G·H], of input and hidden product
    x: Activation | None
    table: str
    state: Sequence[str]
    outputs: Sequence[str]
    h: Activation

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.r.shape[0])


def add_lstm(writer: GraphWriter, products: Products, layer: Layer) -> None:
    """c' = f · c + i · g, h' = o · tanh(c'); the gates stand as i, o, f, g, so that one Sigmoid serves three."""
    gates = _gates(writer, products, layer)
    hidden = layer.hidden
    sigmoids, candidate = _split(writer, gates, [3 * hidden, hidden])
    i, o, f = _split(writer, writer.add("Sigmoid", [sigmoids]), [hidden] * 3)
    new = writer.add("Mul", [i, writer.add("Tanh", [candidate])])
    c = writer.add("Add", [writer.add("Mul", [f, layer.state[1]]), new], output=layer.outputs[1])
    writer.add("Mul", [o, writer.add("Tanh", [c])], output=layer.outputs[0])


def add_gru(writer: GraphWriter, products: Products, layer: Layer) -> None:
    """h' = n + z · (h − n), n = tanh(W x + b + r · (U h + d)); the gates stand as z, r, n."""
    gates, given, own = _gru_sums(writer, products, layer)
    z, r = _split(writer, writer.add("Sigmoid", [gates]), [layer.hidden] * 2)
    n = writer.add("Tanh", [writer.add("Add", [given, writer.add("Mul", [r, own])])])
    kept = writer.add("Mul", [z, writer.add("Sub", [layer.state[0], n])])
    writer.add("Add", [n, kept], output=layer.outputs[0])


def add_rnn(writer: GraphWriter, products: Products, layer: Layer) -> None:
    """h' = tanh(W x + U h + b)."""
    writer.add("Tanh", [_gates(writer, products, layer)], output=layer.outputs[0])


CELLS: dict[str, Callable[[GraphWriter, Products, Layer], None]] = {"LSTM": add_lstm, "GRU": add_gru, "RNN": add_rnn}


def table_bias(operator: str, b: Array) -> Array:
    """What of the biases [2, G·H] can be added to the input's product beforehand, [G·H]."""
    bias: Array = b[0] if operator == "GRU" else b.sum(axis=0)  # a GRU's hidden bias is under the reset gate
    return bias


def _gates(writer: GraphWriter, products: Products, layer: Layer) -> str:
    """W x + U h + b, [B, G·H]."""
    if layer.x is None:
        return writer.add("Add", [products.add(writer, [layer.h], layer.r, None), layer.table])
    return products.add(writer, [layer.x, layer.h], np.concatenate([layer.w, layer.r]), layer.b.sum(axis=0))


def _gru_sums(writer: GraphWriter, products: Products, layer: Layer) -> tuple[str, str, str]:
    """W x + U h + b + d of both gates [B, 2·H]; of the candidate W x + b and U h + d, since the reset is between."""
    last = 2 * layer.hidden
    if layer.x and products.joins([layer.x, layer.h]):
        stacked = np.concatenate([layer.w[:, :last], layer.r[:, :last]])
        gates = products.add(writer, [layer.x, layer.h], stacked, layer.b[:, :last].sum(axis=0))
        given = products.add(writer, [layer.x], layer.w[:, last:], layer.b[0, last:])
        return gates, given, products.add(writer, [layer.h], layer.r[:, last:], layer.b[1, last:])
    whole = products.add(writer, [layer.x], layer.w, layer.b[0]) if layer.x else layer.table
    given_gates, given = _split(writer, whole, [last, layer.hidden])
    whole = products.add(writer, [layer.h], layer.r, layer.b[1])
    own_gates, own = _split(writer, whole, [last, layer.hidden])
    return writer.add("Add", [given_gates, own_gates]), given, own


def _split(writer: GraphWriter, name: str, widths: Sequence[int]) -> list[str]:
    sizes = writer.constant(np.array(widths, np.int64))
    return writer.add_many("Split", [name, sizes], [""] * len(widths), axis=1)
