"""What rounded networks compute, in float64 and from their equations; weights are read from the trained modules.

Gates stand in PyTorch's order: LSTM i, f, g, o (Hochreiter & Schmidhuber 1997); GRU r, z, n (Cho et al. 2014).
Inputs of one product that have one bound share the columns' scales; each other bound makes a product of its own.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from torch import Tensor, nn

from rnn_edge.manifest import Cell, Lowering, Manifest
from rnn_edge_export.language_model.modules import RecurrentLanguageModel
from rnn_edge_export.quantisation.quantise import input_bounds, round_graph
from rnn_edge_export.quantisation.weights import from_blocks, to_blocks
from rnn_edge_export.translation.modules import BahdanauAttention, EncoderDecoder, GeneralAttention

Array = NDArray[Any]
Feeds = dict[str, Array]
Bits = Literal["int8", "int4"]
SMALL = 4096  # values; smaller matrices stay as they are
BLOCK = 16


@dataclass(frozen=True)
class Part:
    """Inputs of a product, and the largest absolute value that they can have."""

    values: Array
    bound: float


def numpy_of(tensor: Tensor | nn.Module) -> Array:
    """A module's weights as float32."""
    assert isinstance(tensor, Tensor)
    array: Array = tensor.detach().numpy()
    return array


def product(parts: Sequence[Part], weight: Array, bits: Bits = "int8") -> Array:
    """concat(parts) @ weight [K, N], with what eight or four bits make of both."""
    if weight.size < SMALL:
        return np.concatenate([part.values for part in parts], axis=1).astype(np.float64) @ weight
    if bits == "int4":
        x = np.concatenate([part.values for part in parts], axis=1).astype(np.float64)
        return x @ _four_bits(weight.tobytes(), weight.shape)
    result, first = np.zeros(()), 0
    for bound, group in groupby(parts, key=lambda part: part.bound):
        x = np.concatenate([part.values for part in group], axis=-1)
        last = first + x.shape[-1]
        result = result + round_values(x, bound) @ round_columns(weight[first:last])
        first = last
    return result


@functools.cache
def _four_bits(content: bytes, shape: tuple[int, ...]) -> Array:
    weight = np.frombuffer(content, np.float32).reshape(shape)
    return from_blocks(to_blocks(weight, BLOCK), len(weight)).astype(np.float64)


def round_values(x: Array, bound: float) -> Array:
    """To 255 steps in ± bound; as QuantizeLinear is defined, in float32 and halves to even."""
    step = np.float32(bound / 127)
    values: Array = np.rint(x.astype(np.float32) / step).clip(-128, 127).astype(np.float64) * step
    return values


def round_columns(weight: Array) -> Array:
    """To 255 steps in ± the largest value of each column."""
    steps = np.abs(weight).max(axis=0).astype(np.float32) / np.float32(127)
    columns: Array = np.rint(weight / steps).astype(np.float64) * steps
    return columns


def round_table(table: Array, factor: float = 1) -> Array:
    """An embedding with one scale a row, times ``factor``; in float32, since it is the value of the graph."""
    if table.size < SMALL:
        return table * np.float32(factor)
    steps = np.abs(table).max(axis=1, keepdims=True) / np.float32(127)
    rows: Array = np.rint(table / steps).astype(np.float32) * (steps * np.float32(factor))
    return rows


def sigmoid(x: Array) -> Array:
    """The logistic function."""
    return cast(Array, 1 / (1 + np.exp(-x)))


@dataclass(frozen=True)
class Layer:
    """One recurrent layer. ``looked_up`` is the embedding that a folded first layer reads, already scaled."""

    module: nn.RNNBase
    cell: Cell
    lowering: Lowering
    bits: Bits
    looked_up: Array | None = None

    def step(self, x: Sequence[Part] | Array, h: Array, c: Array | None = None) -> list[Array]:
        """Inputs, or with a table the tokens; h and c [B, H] → the next h and c."""
        weights = {name: numpy_of(value) for name, value in self.module.named_parameters()}
        w, r = weights["weight_ih_l0"].T, weights["weight_hh_l0"].T
        given, own = weights["bias_ih_l0"].astype(np.float64), weights["bias_hh_l0"].astype(np.float64)
        state = Part(h, 1.0)
        if self.cell == "gru":
            return [self._gru(*self._gru_sums(x, state, (w, r), (given, own)), h)]
        if self.looked_up is not None:
            gates = self._table(x, w, given + own) + product([state], r, self.bits)
        else:
            parts = [*cast("Sequence[Part]", x), state]
            if self.lowering == "cell":  # one value of the graph, concatenated before there is any rounding
                largest = max(part.bound for part in parts)
                parts = [Part(part.values, largest) for part in parts]
            gates = product(parts, np.concatenate([w, r]), self.bits) + given + own
        if self.cell == "rnn":
            return [np.tanh(gates)]
        i, f, g, o = np.split(gates, 4, axis=1)
        assert c is not None
        new = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return [sigmoid(o) * np.tanh(new), new]

    def _gru_sums(
        self, x: Sequence[Part] | Array, state: Part, weights: tuple[Array, Array], biases: tuple[Array, Array]
    ) -> tuple[Array, Array, Array]:
        """Of r and z together; of n, input and state apart."""
        gates = 2 * self.module.hidden_size
        if self.looked_up is None and self.lowering == "operator":
            parts = [*cast("Sequence[Part]", x), state]
            if self.bits == "int4" or all(part.bound == state.bound for part in parts):
                both = product(parts, np.concatenate(weights)[:, :gates], self.bits) + (biases[0] + biases[1])[:gates]
                given, own = (
                    product(inputs, weight[:, gates:], self.bits) + bias[gates:]
                    for inputs, weight, bias in zip((parts[:-1], parts[-1:]), weights, biases, strict=True)
                )
                return both, given, own
        given, own = self._table(x, weights[0], biases[0]), product([state], weights[1], self.bits) + biases[1]
        return given[:, :gates] + own[:, :gates], given[:, gates:], own[:, gates:]

    def _gru(self, gates: Array, given: Array, own: Array, h: Array) -> Array:
        r, z = np.split(sigmoid(gates), 2, axis=1)
        n = np.tanh(given + r * own)
        return cast(Array, (1 - z) * n + z * h)

    def _table(self, x: Sequence[Part] | Array, w: Array, bias: Array) -> Array:
        """The input's part; beforehand for every token, and stored in half precision, where there is a table."""
        if self.looked_up is None:
            return product(cast("Sequence[Part]", x), w, self.bits) + bias
        rows = (self.looked_up @ w + bias).astype(np.float16)
        return rows[cast(Array, x)].astype(np.float64)


class Differences:
    """Between what graphs found and what is expected."""

    def __init__(self) -> None:
        self._found: dict[str, list[Array]] = {}

    def add(self, seen: Feeds, expected: Feeds) -> None:
        """One run; both have the same names."""
        assert seen.keys() == expected.keys()
        for name, value in expected.items():
            assert seen[name].shape == value.shape
            self._found.setdefault(name, []).append(np.abs(seen[name] - value).ravel())

    def check(self, rare: float) -> None:
        """No value differs by more than ``rare``, and few by more than float32 does.

        Where float32 and float64 lie on either side of a tie, they are rounded to neighbours.
        """
        for name, values in self._found.items():
            found = np.concatenate(values)
            assert found.max() < rare, name
            assert np.quantile(found, 0.98) < 2e-5, name


Session = Callable[[Feeds], Feeds]


def open_graph(content: bytes) -> Session:
    """Inputs by name → outputs by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def rounded(contents: dict[str, bytes], role: str, manifest: Manifest) -> bytes:
    """One of a bundle's graphs in the manifest's precision."""
    bounds = input_bounds({role: contents[name] for role, name in manifest.graphs.items()}, manifest)
    return round_graph(contents[manifest.graphs[role]], bounds[role], manifest, BLOCK)


def language_model_step(
    model: RecurrentLanguageModel, lowering: Lowering, bits: Bits, *, folded: bool, feeds: Feeds, seen: Feeds
) -> Feeds:
    """One step. ``seen`` is what the graph found: a layer reads what the one below it really gave."""
    cell, tokens = model.recipe.cell, feeds["token"]
    table = numpy_of(model.embedding.weight)
    x: Sequence[Part] | Array = [Part(round_table(table)[tokens], float(np.abs(table).max()))]
    found: Feeds = {}
    for index, module in enumerate(model.layers):
        looked_up = table if folded and index == 0 else None
        layer = Layer(cast(nn.RNNBase, module), cell, lowering, bits, looked_up)
        state = [feeds[name] for name in (f"h{index}", f"c{index}") if name in feeds]
        new = layer.step(tokens if looked_up is not None else x, *state)
        found |= dict(zip((f"h{index}_next", f"c{index}_next"), new, strict=False))
        x = last = [Part(seen[f"h{index}_next"], 1.0)]
    output = numpy_of(model.output.weight).T
    return found | {"logits": product(last, output) + numpy_of(model.output.bias)}


def encoded(model: EncoderDecoder, source: Array, lengths: Array, seen: Feeds) -> Feeds:
    """What an encoder leaves for sources [B, S]. ``seen`` is what the graph found: keys are made of its memory."""
    recipe = model.recipe
    embedding, factor = numpy_of(model.source_embedding.weight), recipe.embedding**0.5
    table = round_table(embedding, factor)
    rows, steps = source.shape
    memory = np.zeros((rows, steps, 2 * recipe.encoder_hidden))
    summary = np.zeros((rows, 2 * recipe.encoder_hidden))
    for row, length in enumerate(lengths):
        x = Part(table[source[row, :length]], float(np.abs(embedding).max()) * float(np.float32(factor)))
        for pair in model.encoder_pairs():
            ahead = _sequence(pair[0], recipe.cell, x)
            behind = _sequence(pair[1], recipe.cell, Part(x.values[::-1], x.bound))[::-1]
            x = Part(np.concatenate([ahead, behind], axis=1), 1.0)
        memory[row, :length] = x.values
        summary[row] = np.concatenate([ahead[-1], behind[0]])
    found: Feeds = {"memory": memory}
    if isinstance(model.attention, GeneralAttention):
        values = Part(seen["memory"].reshape(rows * steps, -1), 1.0)
        keys = product([values], numpy_of(model.attention.key.weight).T)  # outside of cells: eight bits
        found["keys"] = keys.reshape(rows, steps, -1)
    for index, bridge in enumerate(model.bridge):
        assert isinstance(bridge, nn.Linear)
        last = recipe.cell == "lstm"
        c = product([Part(summary, 1.0)], numpy_of(bridge.weight).T) + numpy_of(bridge.bias)
        found |= {f"h{index}": np.tanh(c)} | ({f"c{index}": c} if last else {})
    return found | ({"feed": np.zeros((rows, recipe.embedding))} if recipe.input_feeding else {})


def _sequence(module: nn.RNNBase, cell: Cell, x: Part) -> Array:
    """A layer over x [S, D] → [S, H]: products of integers, or where a matrix is small the weights alone rounded."""
    weights = {name: numpy_of(value) for name, value in module.named_parameters()}
    w, r = weights["weight_ih_l0"].T, weights["weight_hh_l0"].T
    integers = min(w.size, r.size) >= SMALL
    values = x.values.astype(np.float64)
    given = (product([x], w) if integers else values @ round_columns(w)) + weights["bias_ih_l0"]
    h = c = np.zeros((1, module.hidden_size))
    out = []
    for row in given:
        own = (product([Part(h, 1.0)], r) if integers else h @ round_columns(r)) + weights["bias_hh_l0"]
        if cell == "gru":
            (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(row[None], 3, axis=1), np.split(own, 3, axis=1)
            z, n = sigmoid(x_z + h_z), np.tanh(x_n + sigmoid(x_r + h_r) * h_n)
            h = (1 - z) * n + z * h
        else:
            i, f, g, o = np.split(row + own, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        out.append(h[0])
    return np.array(out)


def decoder_step(
    model: EncoderDecoder, lowering: Lowering, bits: Bits, *, folded: bool, feeds: Feeds, seen: Feeds
) -> Feeds:
    """One step of a decoder, like ``language_model_step``."""
    recipe, tokens = model.recipe, feeds["token"]
    table = numpy_of(model.target_embedding.weight)
    factor = recipe.embedding**0.5
    parts = [Part(round_table(table, factor)[tokens], float(np.abs(table).max()) * float(np.float32(factor)))]
    if recipe.input_feeding:
        parts.append(Part(feeds["feed"], 1.0))
        largest = max(part.bound for part in parts)  # concatenated in the graph
        parts = [Part(part.values, largest) for part in parts]
    found: Feeds = {}
    context = np.zeros(())
    for index, module in enumerate(model.decoder):
        looked_up = table * np.float32(factor) if folded and index == 0 else None
        layer = Layer(cast(nn.RNNBase, module), recipe.cell, lowering, bits, looked_up)
        state = [feeds[name] for name in (f"h{index}", f"c{index}") if name in feeds]
        new = layer.step(tokens if looked_up is not None else parts, *state)
        found |= dict(zip((f"h{index}_next", f"c{index}_next"), new, strict=False))
        h = seen[f"h{index}_next"]
        if index == 0:
            context, found["attention"] = _attend(model, h, feeds)
        parts = [Part(h, 1.0), Part(context, 1.0)] if index == 0 and recipe.layers > 1 else [Part(h, 1.0)]
    combine = numpy_of(model.combine.weight).T
    readout = np.tanh(product([Part(h, 1.0), Part(context, 1.0)], combine) + numpy_of(model.combine.bias))
    if recipe.input_feeding:
        found["feed_next"] = readout
        readout = seen["feed_next"]
    logits = product([Part(readout, 1.0)], table.T) + numpy_of(model.output.bias)
    return found | {"logits": logits}


def _attend(model: EncoderDecoder, h: Array, feeds: Feeds) -> tuple[Array, Array]:
    memory = feeds["memory"].astype(np.float64)
    keys = feeds.get("keys", feeds["memory"]).astype(np.float64)
    attention = model.attention
    if isinstance(attention, BahdanauAttention):
        asked = product([Part(h, 1.0)], numpy_of(attention.query.weight).T) + numpy_of(attention.query.bias)
        scores = np.tanh(asked[:, None] + keys) @ numpy_of(attention.score.weight)[0]
    else:
        scores = np.einsum("bk,bsk->bs", h.astype(np.float64), keys) / np.sqrt(model.recipe.hidden)
    scores[np.arange(keys.shape[1]) >= feeds["source_lengths"][:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("bs,bsm->bm", weights, memory), weights
