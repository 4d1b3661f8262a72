"""Matrix products with rounded weights, as nodes.

Eight bits (``StaticProducts``): activations of known bound become uint8 by a constant scale, so that no range is
computed at run time and no row of a batch depends on its neighbours:

    y = (QuantizeLinear(x, bound / 127, 128) ⊙ W) · column scale      ⊙ is MatMulInteger, exact in 32 bits

Four bits (``BlockProducts``): ONNX Runtime's MatMulNBits, which rounds activations row by row itself.

Symbols in shape comments: B rows, K inner axis, N columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import onnx

from rnn_edge_export.quantisation.graph import MICROSOFT, Array, GraphWriter
from rnn_edge_export.quantisation.weights import Matrix, to_blocks, to_columns

_ZERO = 128
ROUNDED_FROM = 4096  # values; smaller matrices are not worth their nodes


@dataclass(frozen=True)
class Activation:
    """A value of a graph [B, width] and the largest absolute value it can have; None if there is no bound."""

    name: str
    width: int
    bound: float | None


class Products(Protocol):
    """How a matrix product is computed."""

    def add(
        self, writer: GraphWriter, inputs: Sequence[Activation], weight: Matrix, bias: Array | None, output: str = ""
    ) -> str:
        """concat(inputs) [B, K] @ weight [K, N] + bias [N] → name of the result."""

    def joins(self, inputs: Sequence[Activation]) -> bool:
        """Whether one product of all inputs is better than one of each and a sum."""


class StaticProducts:
    """Eight-bit weights with one scale a column, and uint8 activations by their bound."""

    def __init__(self) -> None:
        self._rounded: dict[tuple[str, float], str] = {}

    def add(
        self, writer: GraphWriter, inputs: Sequence[Activation], weight: Matrix, bias: Array | None, output: str = ""
    ) -> str:
        """See ``Products``. Inputs of other bounds make products of their own, for the sake of the columns' scales."""
        if weight.size < ROUNDED_FROM or any(item.bound is None for item in inputs):
            return _float_product(writer, inputs, weight, bias, output)
        parts, first = [], 0
        for bound, group in groupby(inputs, key=lambda item: item.bound or 1.0):
            members = list(group)
            last = first + sum(item.width for item in members)
            columns = to_columns(weight[first:last])
            values = writer.constant(columns.values, "weight_int8")
            x = self.rounded(writer, members, bound)
            parts.append(self.integer_product(writer, x, bound, values, columns.scales))
            first = last
        # Behind the first product the bias can be part of it (``rnn_edge.fusion``).
        terms = [parts[0], *([] if bias is None else [writer.constant(bias, "bias")]), *parts[1:]]
        for index, term in enumerate(terms[1:], start=2):
            terms[0] = writer.add("Add", [terms[0], term], output=output if index == len(terms) else "")
        return terms[0] if len(terms) > 1 or not output else writer.add("Identity", terms, output=output)

    def joins(self, inputs: Sequence[Activation]) -> bool:
        """See ``Products``. Inputs of other bounds are rounded on their own."""
        return len({item.bound for item in inputs}) == 1 and inputs[0].bound is not None

    def rounded(self, writer: GraphWriter, inputs: Sequence[Activation], bound: float) -> str:
        """concat(inputs) as uint8; what several products read is rounded once."""
        return _concat(writer, [self._round(writer, item.name, bound) for item in inputs])

    def integer_product(self, writer: GraphWriter, x: str, bound: float, values: str, scales: Array) -> str:
        """Rounded x [B, K] @ int8 weights named ``values`` [K, N] with ``scales`` [N] → name."""
        exact = writer.add("MatMulInteger", [x, values, writer.constant(np.array(_ZERO, np.uint8))])
        scale = writer.constant((scales * np.float32(bound / 127)).astype(np.float32), "scales")
        return writer.add("Mul", [writer.add("Cast", [exact], to=onnx.TensorProto.FLOAT), scale])

    def _round(self, writer: GraphWriter, name: str, bound: float) -> str:
        if (name, bound) not in self._rounded:
            scale, zero = np.array(bound / 127, np.float32), np.array(_ZERO, np.uint8)
            self._rounded[name, bound] = writer.add(
                "QuantizeLinear", [name, writer.constant(scale), writer.constant(zero)]
            )
        return self._rounded[name, bound]


class BlockProducts:
    """Four-bit weights with one scale for each block of a column."""

    def __init__(self, block_size: int) -> None:
        """``block_size`` is the most weights of a block."""
        self._block_size = block_size

    def add(
        self, writer: GraphWriter, inputs: Sequence[Activation], weight: Matrix, bias: Array | None, output: str = ""
    ) -> str:
        """See ``Products``."""
        if weight.size < ROUNDED_FROM:
            return _float_product(writer, inputs, weight, bias, output)
        block_size = fitting_block(weight.shape[0], self._block_size)
        blocks = to_blocks(weight, block_size)
        names = [_concat(writer, [item.name for item in inputs]), writer.constant(blocks.values, "weight_int4")]
        names += [writer.constant(blocks.scales, "scales")]
        names += ["", "", writer.constant(bias, "bias")] if bias is not None else []
        # Level 4 computes with 8-bit activations, rounded row by row; 0 is many times slower.
        sizes = {"K": weight.shape[0], "N": weight.shape[1], "bits": 4, "block_size": block_size}
        return writer.add("MatMulNBits", names, output=output, domain=MICROSOFT, accuracy_level=4, **sizes)

    def joins(self, inputs: Sequence[Activation]) -> bool:
        """See ``Products``. The runtime finds the activations' range itself."""
        return True


def fitting_block(rows: int, largest: int) -> int:
    """The largest block that fills up columns of so many rows with the fewest zeros; below 32 only if asked for."""
    sizes = [largest >> shift for shift in range(4) if largest >> shift >= min(32, largest)]
    return min(sizes, key=lambda size: (-rows % size, -size))


def _float_product(
    writer: GraphWriter, inputs: Sequence[Activation], weight: Matrix, bias: Array | None, output: str
) -> str:
    """What is not rounded."""
    x = _concat(writer, [item.name for item in inputs])
    y = writer.add("MatMul", [x, writer.constant(weight, "weight")], output="" if bias is not None else output)
    return y if bias is None else writer.add("Add", [y, writer.constant(bias, "bias")], output=output)


def _concat(writer: GraphWriter, names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else writer.add("Concat", names, axis=1)
