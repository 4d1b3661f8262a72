"""The graph of an eight-bit bundle as ONNX Runtime computes it fastest for many streams on the CPU.

With one stream a step waits for its weights; with many, for all the passes over what stands between the products. Two
changes leave half of these out and give the same numbers bit for bit:

- MatMulInteger, Cast, Mul by a scale for each column and Add of a bias become the runtime's own MatMulIntegerToFloat,
  which does it all while the sums are in registers;
- the gates of a cell get a product each, so that none is copied out of a matrix of all.

Bundles stay as they are, with standard operators alone: this happens in memory.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rnn_edge.onnx_model import FLOAT, Model, Node, read_model, tensor

_DOMAIN, _FUSED = "com.microsoft", "MatMulIntegerToFloat"


def fuse(content: bytes, where: str) -> bytes:
    """The same graph for many streams; the same bytes where nothing is to be changed.

    Raises:
        BundleError: not an ONNX model. ``where`` names it.
    """
    model = read_model(content, where)
    if not _fuse(model):
        return content
    model.opsets[_DOMAIN] = 1
    return model.encode()


def _fuse(model: Model) -> bool:
    """Change a graph and those of its loops; whether there was anything to change."""
    within: list[bool] = []
    if not model.change_within(lambda graph: within.append(_fuse(graph))):
        return False
    fused = _fuse_products(model)
    if fused:
        _Columns(model).run()
    return fused or any(within)


def _fuse_products(model: Model) -> bool:
    users = _users(model)
    fused: dict[str, Node] = {}  # by the last output of a chain
    dropped: set[str] = set()  # the other outputs
    one = ""
    for product in model.nodes:
        if product.operator == "MatMulInteger" and (chain := _chain(model, users, product)):
            outputs = [node.outputs[0] for node in (product, *chain)]
            scales, bias = (*(_columns(model, node) for node in chain[1:]), "")[:2]
            left, right, zero_point = product.inputs
            one = one or f"rnn_edge.one.{outputs[0]}"  # a name that no graph around this one has
            inputs = (left, right, one, scales, zero_point, "", bias)
            fused[outputs[-1]] = Node(_FUSED, inputs, (outputs[-1],), domain=_DOMAIN)
            dropped |= set(outputs[:-1])
    if fused:
        model.initializers[one] = tensor(one, np.ones((), np.float32))
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


_COLUMNWISE = ("Sigmoid", "Tanh", "Add")  # what works on each number alone


class _Columns:
    """Writes the nodes anew so that what is split off is computed by itself, as far back as columns go by themselves.

    Those of a product of weights, of a row of a table, and of what works on each number alone do.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._makers = {name: node for node in model.nodes for name in node.outputs}
        self._nodes: list[Node] = []
        self._names: dict[str, str] = {}  # of values of the graph as it was, those that are there now
        self._parts: dict[tuple[str, int, int], str | None] = {}

    def run(self) -> None:
        """Change the model, unless that would compute anything twice."""
        for name in self._model.outputs:
            self._whole(name)
        needed, nodes = set(self._model.outputs), []
        for node in reversed(self._nodes):
            if needed.intersection(node.outputs):
                nodes.append(node)
                needed.update(node.inputs)
        nodes.reverse()
        if self._width(nodes) == self._width(self._model.nodes):
            self._model.nodes = nodes
        used = {name for node in self._model.nodes for name in node.inputs} | {*self._model.inputs}
        self._model.initializers = {name: item for name, item in self._model.initializers.items() if name in used}

    def _width(self, nodes: list[Node]) -> int:
        """Columns of all products."""
        scales = [self._model.constant(node.inputs[3]) for node in nodes if node.operator == _FUSED]
        return sum(item.size for item in scales if item is not None)

    def _whole(self, name: str) -> str:
        """The name of a value that is there when the nodes written so far have run."""
        if name not in self._names:
            node, found = self._makers.get(name), None
            if node and node.operator == "Split" and name not in self._model.outputs:
                found = self._split_off(node, name, 0, None)
            if node and not found:
                inputs = tuple(self._whole(item) for item in node.inputs)
                self._nodes.append(replace(node, inputs=inputs))
                self._names |= {item: item for item in node.outputs}
            self._names[name] = found or name
        return self._names[name]

    def _split_off(self, split: Node, name: str, start: int, width: int | None) -> str | None:
        """Columns of an output of a Split, None for the rest of them, as columns of what is split."""
        sizes = self._sizes(split)
        if not sizes or split.integers().get("axis") not in (1, -1):
            return None
        index = split.outputs.index(name)
        return self._part(split.inputs[0], sum(sizes[:index]) + start, sizes[index] if width is None else width)

    def _sizes(self, split: Node) -> list[int]:
        """Of the parts; empty where they are not known."""
        if len(split.inputs) > 1:
            sizes = self._model.constant(split.inputs[1])
            return [] if sizes is None else sizes.tolist()
        parts, size = len(split.outputs), self._size(split.inputs[0])
        return [size // parts] * parts if size and size % parts == 0 else []

    def _size(self, name: str) -> int:
        """Columns of a value that is computed from products; 0 where they are not known."""
        node = self._makers.get(name)
        if node is None:
            return 0
        if node.operator == _FUSED:
            scales = self._model.constant(node.inputs[3])
            return 0 if scales is None else scales.size
        if node.operator == "Split":
            return dict(zip(node.outputs, self._sizes(node), strict=False)).get(name, 0)
        return max(map(self._size, node.inputs)) if node.operator in _COLUMNWISE else 0

    def _part(self, name: str, start: int, width: int) -> str | None:
        """The name of so many columns of a value; None where they do not go by themselves."""
        key = (name, start, width)
        if key not in self._parts:
            node = self._makers.get(name)
            self._parts[key] = self._part_of(node, key) if node else self._constant_part(name, key)
        return self._parts[key]

    def _part_of(self, node: Node, key: tuple[str, int, int]) -> str | None:
        name, start, width = key
        if node.operator == "Split":
            return self._split_off(node, name, start, width)
        if node.operator in _COLUMNWISE:
            inputs = [self._part(item, start, width) for item in node.inputs]
        elif node.operator == "Gather":
            inputs = [self._constant_part(_table(self._makers, node), key), self._whole(node.inputs[1])]
        elif node.operator == _FUSED:
            left, weights, one, scales, zero_point, _, bias = node.inputs
            known = [self._constant_part(item, key) if item else "" for item in (weights, scales, bias)]
            inputs = [self._whole(left), known[0], one, known[1], zero_point, "", known[2]]
        else:
            return None
        found = [item for item in inputs if item is not None]
        if len(found) < len(inputs):
            return None
        output = f"rnn_edge.{name}.{start}.{width}"
        self._nodes.append(replace(node, inputs=tuple(found), outputs=(output,)))
        return output

    def _constant_part(self, name: str, key: tuple[str, int, int]) -> str | None:
        """Columns of a constant, as fp32 where they are fp16."""
        _, start, width = key
        whole = self._model.constant(name)
        if whole is None or whole.ndim == 0:
            return None
        part = f"rnn_edge.{name}.{start}.{width}"
        columns = whole[..., start : start + width]
        if columns.shape[-1] != width:  # numbers that stand for all columns
            return None
        columns = columns.astype(np.float32) if columns.dtype == np.float16 else np.ascontiguousarray(columns)
        self._model.initializers[part] = tensor(part, columns)
        return part


def _table(makers: dict[str, Node], gather: Node) -> str:
    """The constant from which rows are taken."""
    cast = makers.get(gather.inputs[0])
    return cast.inputs[0] if cast and cast.operator == "Cast" else gather.inputs[0]


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
