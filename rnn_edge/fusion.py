"""The graph of an eight-bit bundle as ONNX Runtime computes it fastest for many streams on the CPU.

With one stream a step waits for its weights; with many, for all the passes over what stands between the products. Two
changes leave half of these out and give the same numbers bit for bit:

- MatMulInteger, Cast, Mul by a scale for each column and Add of a bias become the runtime's own MatMulIntegerToFloat,
  which does it all while the sums are in registers;
- the gates of an LSTM cell get a product each, so that none is copied out of a matrix of all four.

Bundles stay as they are, with standard operators alone: this happens in memory.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rnn_edge.onnx_model import FLOAT, Model, Node, read_model, tensor

_DOMAIN, _FUSED, _ONE = "com.microsoft", "MatMulIntegerToFloat", "rnn_edge.one"


def fuse(content: bytes, where: str) -> bytes:
    """The same graph for many streams; the same bytes where nothing is to be changed.

    Raises:
        BundleError: not an ONNX model. ``where`` names it.
    """
    model = read_model(content, where)
    if not _fuse_products(model):
        return content
    model.initializers[_ONE] = tensor(_ONE, np.ones((), np.float32))
    model.opsets[_DOMAIN] = 1
    _separate_gates(model)
    return model.encode()


def _fuse_products(model: Model) -> bool:
    users = _users(model)
    fused: dict[str, Node] = {}  # by the last output of a chain
    dropped: set[str] = set()  # the other outputs
    for product in model.nodes:
        if product.operator == "MatMulInteger" and (chain := _chain(model, users, product)):
            outputs = [node.outputs[0] for node in (product, *chain)]
            scales, bias = (*(_columns(model, node) for node in chain[1:]), "")[:2]
            left, right, zero_point = product.inputs
            inputs = (left, right, _ONE, scales, zero_point, "", bias)
            fused[outputs[-1]] = Node(_FUSED, inputs, (outputs[-1],), domain=_DOMAIN)
            dropped |= set(outputs[:-1])
    model.nodes = [fused.get(node.outputs[0], node) for node in model.nodes if node.outputs[0] not in dropped]
    return bool(fused)


def _chain(model: Model, users: dict[str, list[Node]], product: Node) -> list[Node]:
    """Cast, Mul and where there is one Add, each the only reader of what is before it; empty for another graph."""
    if len(product.inputs) != 3:  # the weights' zero point is 0
        return []
    chain: list[Node] = []
    for operator in ("Cast", "Mul", "Add"):
        reader = _only_reader(model, users, (chain or [product])[-1].outputs[0], operator)
        if reader is None or not (reader.integers().get("to") == FLOAT if not chain else _columns(model, reader)):
            break
        chain.append(reader)
    return chain if len(chain) >= 2 else []


def _separate_gates(model: Model) -> None:
    """Product (→ Add of a row of a table) → Split → Sigmoid → Split beside Tanh becomes four of each."""
    users, makers = _users(model), {name: node for node in model.nodes for name in node.outputs}
    added: dict[str, list[Node]] = {}  # in place of what splits, by its first output
    dropped: set[str] = set()  # outputs
    for split in model.nodes:
        if split.operator != "Split" or len(split.outputs) != 2:
            continue
        sigmoid = _only_reader(model, users, split.outputs[0], "Sigmoid")
        tanh = _only_reader(model, users, split.outputs[1], "Tanh")
        inner = _only_reader(model, users, sigmoid.outputs[0], "Split") if sigmoid else None
        if tanh is None or inner is None or sigmoid is None:
            continue
        if _shares(model, split) != [3, 1] or _shares(model, inner) != [1, 1, 1]:
            continue
        add = makers.get(split.inputs[0])
        parts = [makers.get(name) for name in add.inputs] if add and add.operator == "Add" else [add]
        product = next((node for node in parts if node and node.operator == _FUSED), None)
        row = next((node for node in parts if node and node.operator == "Gather"), None)
        if product is None or len(parts) != 1 + (row is not None):
            continue
        read_once = [node for node in (product, row) if node and len(users[node.outputs[0]]) == 1]
        table = _table(model, makers, row) if row else None
        constants = [model.constant(product.inputs[index]) for index in (1, 3)]
        bias = model.constant(product.inputs[6])
        if len(read_once) != len(parts) or any(one is None for one in constants) or (row and table is None):
            continue
        gates = _Gates(model, product, row, [*constants, bias, table])
        outputs = [*inner.outputs, tanh.outputs[0]]
        added[split.outputs[0]] = [node for index, name in enumerate(outputs) for node in gates.nodes(index, name)]
        gone = (product, row, add, split, sigmoid, inner, tanh)
        dropped |= {name for node in gone if node for name in node.outputs}
    nodes: list[Node] = []
    for node in model.nodes:
        nodes += added.get(node.outputs[0], [] if node.outputs[0] in dropped else [node])
    read = {name for node in nodes for name in node.inputs} | set(model.outputs)
    model.nodes = [node for node in nodes if read.intersection(node.outputs)]  # whole tables were widened
    used = {name for node in model.nodes for name in node.inputs} | set(model.outputs) | set(model.inputs)
    model.initializers = {name: item for name, item in model.initializers.items() if name in used}


class _Gates:
    """The nodes of each of four gates, with its columns of all that is constant."""

    def __init__(
        self, model: Model, product: Node, row: Node | None, constants: list[NDArray[np.generic] | None]
    ) -> None:
        self._model, self._product, self._row, self._constants = model, product, row, constants

    def nodes(self, index: int, output: str) -> list[Node]:
        """Gate ``index`` of i, o, f, c, as ``output``."""
        weights, scales, bias, table = (self._part(index, part, output) for part in range(4))
        left, zero_point = self._product.inputs[0], self._product.inputs[4]
        names = [f"rnn_edge.{output}.{step}" for step in ("product", "row", "sum")]
        found = [Node(_FUSED, (left, weights, _ONE, scales, zero_point, "", bias), (names[0],), domain=_DOMAIN)]
        if self._row:
            gather = replace(self._row, inputs=(table, *self._row.inputs[1:]), outputs=(names[1],))
            found += [gather, Node("Add", (names[0], names[1]), (names[2],))]
        return [*found, Node("Sigmoid" if index < 3 else "Tanh", found[-1].outputs, (output,))]

    def _part(self, index: int, part: int, output: str) -> str:
        whole = self._constants[part]
        if whole is None:
            return ""
        name, width = f"rnn_edge.{output}.{part}", whole.shape[-1] // 4
        columns = np.ascontiguousarray(whole[..., index * width : (index + 1) * width])
        self._model.initializers[name] = tensor(name, columns)
        return name


def _table(model: Model, makers: dict[str, Node], row: Node) -> NDArray[np.generic] | None:
    """What rows are taken from, in fp32."""
    cast = makers.get(row.inputs[0])
    table = model.constant(cast.inputs[0] if cast and cast.operator == "Cast" else row.inputs[0])
    return None if table is None else table.astype(np.float32)


def _shares(model: Model, split: Node) -> list[float]:
    """How wide each part is, in widths of the last."""
    if len(split.inputs) == 1:
        return [1.0] * len(split.outputs)
    sizes = model.constant(split.inputs[1])
    return [] if sizes is None else (sizes.astype(np.float64) / int(sizes[-1])).tolist()


def _users(model: Model) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for node in model.nodes:
        for name in node.inputs:
            found.setdefault(name, []).append(node)
    return found


def _only_reader(model: Model, users: dict[str, list[Node]], name: str, operator: str) -> Node | None:
    readers = users.get(name, [])
    if len(readers) != 1 or readers[0].operator != operator or name in model.outputs:
        return None
    return readers[0]


def _columns(model: Model, node: Node) -> str:
    """The input that is one number for each column; empty where there is none."""
    for name in node.inputs:
        values = model.constant(name)
        if values is not None and values.ndim == 1 and values.dtype == np.float32:
            return name
    return ""
