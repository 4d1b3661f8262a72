"""Graphs as a page runs them: exact sums in fp32, and a loop that chooses its own tokens.

The WASM kernels of integer products are slow, those of fp32 are fast. A product of integers is the same number in
fp32 as long as no partial sum can leave the 24 bits of a significand, in whatever order it is added:

    128 · Σ_k |W[k, j]| < 2²⁴        for each column j

So where this holds, which is checked here for every column, ``MatMulInteger`` becomes ``MatMul`` over the integers as
floats, and gives the same bits. Weights stay int8 in the file: a Cast widens them when the graph is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rnn_edge.errors import BundleError
from rnn_edge.onnx_model import (
    BOOL,
    FLOAT,
    INT64,
    Model,
    Node,
    constant_nodes,
    graph_message,
    integer,
    renamed,
    subgraph,
    tensor,
    value,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rnn_edge.manifest import StatePair

_EXACT = 2**24
_LARGEST = 128  # of a uint8 less its zero point of 128
_MOVES = {"Concat": None, "Reshape": 1, "Gather": 1}  # how many of their inputs they move, all of them for None
_OURS = "page."  # before names of values that are made here; a dot keeps them apart from the exporter's


def with_exact_products(model: Model) -> int:
    """Turn each quantised product of ``model`` whose sums are exact in fp32 into one in fp32.

    Those of the graphs within do, too; where one of these reads values of the graph around it, all stays as it is.
    Returns the number of products that stay as they are.
    """
    kept: list[int] = []
    hoisted: list[Node] = []

    def change(graph: Model) -> None:
        kept.append(with_exact_products(graph))
        hoisted.extend(_hoisted(graph, model))

    if not model.change_within(change):
        return sum(item.operator == "MatMulInteger" for item in model.nodes)
    model.nodes = [*hoisted, *model.nodes]
    producers = {name: node for node in model.nodes for name in node.outputs}
    users: dict[str, list[Node]] = {}
    for node in model.nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)
    products = [node for node in model.nodes if node.operator == "MatMulInteger"]
    movable = {id(node): _movable(model, node, producers, users) for node in products}
    # A quantised value that any other operator reads must stay an integer for all of its readers.
    blocked = True
    while blocked:
        moved = [node for node in products if movable[id(node)]]
        sources = {name for node in moved for name in _quantised(node.inputs[0], producers)}
        blocked = False
        for node in moved:
            names = _quantised(node.inputs[0], producers)
            allowed = {id(item) for item in moved} | {
                id(producers[name]) for name in sources if producers[name].operator in _MOVES
            }
            if any(id(user) not in allowed for name in names for user in users.get(name, ())):
                movable[id(node)] = False
                blocked = True
    result: list[Node] = []
    casts: set[str] = set()  # what was made of sums, which are floats now
    floats: dict[str, str] = {}  # integer weights → the same as floats
    for node in model.nodes:
        if node.outputs[0] in sources and node.operator == "QuantizeLinear":
            result += _rounded(model, node)
        elif node.operator == "MatMulInteger" and movable[id(node)]:
            result += _float_weights(model, node.inputs[1], producers, floats)
            (cast,) = users[node.outputs[0]]
            result.append(Node("MatMul", (node.inputs[0], floats[node.inputs[1]]), cast.outputs))
            casts.add(cast.outputs[0])
        elif node.outputs[0] not in casts:
            result.append(node)
    model.nodes = result
    used = {name for node in result for name in node.inputs} | set(model.outputs)
    model.initializers = {name: item for name, item in model.initializers.items() if name in used}
    return sum(kept) + sum(not movable[id(node)] for node in products)


def looped(model: Model, state: Sequence[StatePair], vocabulary: int) -> bytes:
    """A step graph of one stream as a loop over steps, each of which chooses the token of the next. Changes ``model``.

    Inputs: ``count`` int64 [], ``token`` int64 [1], ``temperature`` float32 [1], ``noise`` float32 [count, vocabulary],
    and the state. Outputs: ``tokens`` int64 [count, 1], the likeliest after temperature and noise; ``all_logits``
    float32 [count, 1, vocabulary]; ``hidden`` float32 [count, 1, width], the state that the output layer reads; and
    ``…_next``, the state after the last step.
    """
    with_exact_products(model)
    constant, body = constant_nodes(model)
    inner = {name: f"{_OURS}{name}" for name in ["token", *(pair.input for pair in state)]}
    inner |= {pair.output: f"{_OURS}{pair.output}" for pair in state}
    carried = [(pair.input, pair.output, pair.width) for pair in state]
    hidden = _top(state)
    body = [renamed(node, inner) for node in body]
    body += [
        Node("Div", ("logits", "temperature"), (f"{_OURS}scaled",)),
        Node("Gather", ("noise", f"{_OURS}index"), (f"{_OURS}row",)),
        Node("Add", (f"{_OURS}scaled", f"{_OURS}row"), (f"{_OURS}noisy",)),
        Node("ArgMax", (f"{_OURS}noisy",), (f"{_OURS}choice",), (integer("axis", 1), integer("keepdims", 0))),
        Node("Identity", (f"{_OURS}choice",), (f"{_OURS}chosen",)),
        Node("Identity", (f"{_OURS}{hidden.output}",), (f"{_OURS}seen",)),
        Node("Identity", (f"{_OURS}on",), (f"{_OURS}still_on",)),
    ]
    inputs = [value(f"{_OURS}index", INT64, ()), value(f"{_OURS}on", BOOL, ()), value(inner["token"], INT64, (1,))]
    inputs += [value(inner[name], FLOAT, (1, width)) for name, _, width in carried]
    outputs = [value(f"{_OURS}still_on", BOOL, ()), value(f"{_OURS}choice", INT64, (1,))]
    outputs += [value(inner[name], FLOAT, (1, width)) for _, name, width in carried]
    outputs += [
        value(f"{_OURS}chosen", INT64, (1,)),
        value("logits", FLOAT, (1, vocabulary)),
        value(f"{_OURS}seen", FLOAT, (1, hidden.width)),
    ]
    loop = Node(
        "Loop",
        ("count", "", "token", *(name for name, _, _ in carried)),
        (f"{_OURS}last", *(name for _, name, _ in carried), "tokens", "all_logits", "hidden"),
        (subgraph("body", graph_message(body, inputs, outputs)),),
    )
    model.nodes = [*constant, loop]
    model.inputs = {
        "count": value("count", INT64, ()),
        "token": value("token", INT64, (1,)),
        "temperature": value("temperature", FLOAT, (1,)),
        "noise": value("noise", FLOAT, ("count", vocabulary)),
        **{name: value(name, FLOAT, (1, width)) for name, _, width in carried},
    }
    model.outputs = {
        "tokens": value("tokens", INT64, ("count", 1)),
        "all_logits": value("all_logits", FLOAT, ("count", 1, vocabulary)),
        "hidden": value("hidden", FLOAT, ("count", 1, hidden.width)),
        **{name: value(name, FLOAT, (1, width)) for _, name, width in carried},
    }
    return model.encode()


def exact(model: Model) -> bytes:
    """The same graph with products in fp32 wherever that changes no bit."""
    with_exact_products(model)
    return model.encode()


def _top(state: Sequence[StatePair]) -> StatePair:
    """The hidden state of the last layer; an LSTM's ``c`` comes behind its ``h``."""
    found = [pair for pair in state if pair.input.startswith("h")]
    if not found:
        raise BundleError("no state of the graph is a hidden state that the page could show", "export the bundle again")
    return found[-1]


def _movable(model: Model, node: Node, producers: dict[str, Node], users: dict[str, list[Node]]) -> bool:
    following = users.get(node.outputs[0], [])
    if [item.operator for item in following] != ["Cast"] or following[0].integers().get("to") != FLOAT:
        return False
    if len(node.inputs) != 3 or node.outputs[0] in model.outputs:
        return False
    quantised = _quantised(node.inputs[0], producers)
    if not quantised or any(name in model.outputs for name in quantised):
        return False
    for name in quantised:
        source = producers[name]
        if source.operator == "QuantizeLinear":
            zero = model.constant(source.inputs[2]) if len(source.inputs) == 3 else None
            scale = model.constant(source.inputs[1])
            same = source.inputs[2] == node.inputs[2] if len(source.inputs) == 3 else False
            if not same or zero is None or zero.dtype != np.uint8 or zero.shape != () or int(zero) != _LARGEST:
                return False
            if scale is None or scale.shape != () or source.attributes:
                return False
    weights = _weights(model, node.inputs[1], producers)
    if weights is None or weights.dtype != np.int8 or weights.ndim != 2:
        return False
    sums = np.abs(weights.astype(np.int64)).sum(axis=0)
    return bool(_LARGEST * sums.max() < _EXACT)


def _quantised(name: str, producers: dict[str, Node]) -> list[str]:
    """A quantised value and what it is put together or moved from; empty where anything else has made it."""
    node = producers.get(name)
    if node is None or node.operator not in ("QuantizeLinear", *_MOVES):
        return []
    found = [name]
    if node.operator in _MOVES:
        for part in node.inputs[: _MOVES[node.operator]]:
            parts = _quantised(part, producers)
            if not parts:
                return []
            found += parts
    return found


def _hoisted(graph: Model, outer: Model) -> list[Node]:
    """What a loop would widen in every step, taken out of it."""
    constant, graph.nodes = constant_nodes(graph)
    for name in {name for node in constant for name in node.inputs}.intersection(graph.initializers):
        outer.initializers[name] = graph.initializers.pop(name)
    return constant


def _weights(
    model: Model, name: str, producers: dict[str, Node]
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    node = producers.get(name)
    if node is not None:
        table = model.constant(node.inputs[0]) if node.operator == "Transpose" else None
        return None if table is None or table.ndim != 2 else table.T
    return model.constant(name)


def _float_weights(model: Model, name: str, producers: dict[str, Node], done: dict[str, str]) -> list[Node]:
    """What widens integer weights, once for all who read them."""
    if name in done:
        return []
    node = producers.get(name)
    source = node.inputs[0] if node else name
    wide = f"{_OURS}{name}.wide"
    nodes = [Node("Cast", (source,), (wide,), (integer("to", FLOAT),))]
    if node:
        nodes.append(replace(node, inputs=(wide,), outputs=(f"{wide}.turned",)))
        wide = f"{wide}.turned"
    done[name] = wide
    return nodes


def _rounded(model: Model, node: Node) -> list[Node]:
    """QuantizeLinear less its zero point, in fp32: divide, round half to even, cut off what eight bits cannot hold."""
    (name,) = node.outputs
    low, high = f"{_OURS}{name}.low", f"{_OURS}{name}.high"
    for bound, limit in ((low, -128.0), (high, 127.0)):
        model.initializers[bound] = tensor(bound, np.array(limit, np.float32))
    return [
        Node("Div", node.inputs[:2], (f"{_OURS}{name}.divided",)),
        Node("Round", (f"{_OURS}{name}.divided",), (f"{_OURS}{name}.round",)),
        Node("Clip", (f"{_OURS}{name}.round", low, high), (name,)),
    ]
