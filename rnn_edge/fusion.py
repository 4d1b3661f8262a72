"""Eight-bit products and what follows each as one operator, which ONNX Runtime has for the CPU.

A bundle has standard operators alone: MatMulInteger, Cast, Mul by a scale for each column, Add of a bias. The runtime's
own MatMulIntegerToFloat does it all while the sums are in registers, and gives the same numbers bit for bit; at 32
streams a step takes a tenth less time. Bundles stay as they are: this happens when one is opened.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rnn_edge.onnx_model import FLOAT, Model, Node, read_model, tensor

_DOMAIN, _ONE = "com.microsoft", "rnn_edge.one"


def fuse_products(content: bytes, where: str) -> bytes:
    """The same graph with products in one operator each; the same bytes where there are none.

    Raises:
        BundleError: not an ONNX model. ``where`` names it.
    """
    model = read_model(content, where)
    users: dict[str, list[Node]] = {}
    for node in model.nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)
    replaced: dict[str, Node] = {}  # by the last output of a chain
    dropped: set[str] = set()  # the other outputs
    for product in model.nodes:
        if product.operator == "MatMulInteger" and (chain := _chain(model, users, product)):
            outputs = [node.outputs[0] for node in (product, *chain)]
            constants = [_constant(model, node) for node in chain[1:]]  # scale, and bias where there is one
            left, right, zero_point = product.inputs[:3]
            inputs = (left, right, _ONE, constants[0], zero_point, "", *constants[1:])
            replaced[outputs[-1]] = Node("MatMulIntegerToFloat", inputs, (outputs[-1],), domain=_DOMAIN)
            dropped |= set(outputs[:-1])
    if not replaced:
        return content
    nodes = [replaced.get(node.outputs[0], node) for node in model.nodes if node.outputs[0] not in dropped]
    return replace(
        model,
        nodes=nodes,
        initializers=model.initializers | {_ONE: tensor(_ONE, np.ones((), np.float32))},
        opsets=model.opsets | {_DOMAIN: 1},
    ).encode()


def _chain(model: Model, users: dict[str, list[Node]], product: Node) -> list[Node]:
    """Cast, Mul and where there is one Add, each the only reader of what is before it; empty for another graph."""
    if len(product.inputs) != 3:  # the weights' zero point is 0
        return []
    chain: list[Node] = []
    for operator in ("Cast", "Mul", "Add"):
        output = (chain or [product])[-1].outputs[0]
        readers = users.get(output, [])
        if len(readers) != 1 or readers[0].operator != operator or output in model.outputs:
            break
        fits = readers[0].integers().get("to") == FLOAT if operator == "Cast" else _constant(model, readers[0])
        if not fits:
            break
        chain.append(readers[0])
    return chain if len(chain) >= 2 else []


def _constant(model: Model, node: Node) -> str:
    """The input that is one number for each column; empty where there is none."""
    for name in node.inputs:
        values = model.constant(name)
        if values is not None and values.ndim == 1 and values.dtype == np.float32:
            return name
    return ""
