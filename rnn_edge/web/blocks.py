"""Four-bit products for a runtime without a kernel for them: int8 constants, widened when the graph is loaded."""

from __future__ import annotations

import numpy as np

from rnn_edge.onnx_model import FLOAT, Model, Node, integer, tensor

OPERATOR = "com.microsoft::MatMulNBits"
_OURS = "page.blocks."


def with_wide_blocks(model: Model) -> None:
    """Turn each MatMulNBits of ``model`` over constant four-bit weights into a MatMul over what they stand for.

    The weights are stored in eight bits, twice as many. The native kernel rounds its inputs to eight bits too, this
    product does not: results differ by that rounding.
    """
    result: list[Node] = []
    for node in model.nodes:
        nodes = _widened(model, node) if node.name == OPERATOR else None
        result += [node] if nodes is None else nodes
    model.nodes = result
    used = {name for node in result for name in node.inputs} | set(model.outputs)
    model.initializers = {name: item for name, item in model.initializers.items() if name in used}


def _widened(model: Model, node: Node) -> list[Node] | None:
    sizes = node.integers()
    inner, columns, block = sizes.get("K", 0), sizes.get("N", 0), sizes.get("block_size", 0)
    inputs = [*node.inputs, "", "", "", ""][:6]
    packed, scales = model.constant(inputs[1]), model.constant(inputs[2])
    if sizes.get("bits") != 4 or inputs[3] or inputs[4] or packed is None or scales is None or not block:
        return None
    count = -(-inner // block)
    if packed.dtype != np.uint8 or packed.shape != (columns, count, block // 2):
        return None
    if scales.dtype != np.float32 or scales.size != columns * count:
        return None
    pairs = packed.view(np.uint8)
    values = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(columns, count, block).astype(np.int8) - np.int8(8)
    names = {part: f"{_OURS}{node.outputs[0]}.{part}" for part in ("values", "scales", "shape", "axis", "start", "end")}
    constants: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
        "values": values,
        "scales": scales.reshape(columns, count, 1),
        "shape": np.array([columns, count * block], np.int64),
    }
    if count * block > inner:
        constants |= {"axis": np.array([1], np.int64), "start": np.array([0], np.int64)}
        constants["end"] = np.array([inner], np.int64)
    for part, array in constants.items():
        model.initializers[names[part]] = tensor(names[part], array)
    stages = iter(f"{_OURS}{node.outputs[0]}.{stage}" for stage in range(8))
    nodes = [Node("Cast", (names["values"],), (next(stages),), (integer("to", FLOAT),))]
    nodes.append(Node("Mul", (nodes[-1].outputs[0], names["scales"]), (next(stages),)))
    nodes.append(Node("Reshape", (nodes[-1].outputs[0], names["shape"]), (next(stages),)))
    if count * block > inner:
        cut = (nodes[-1].outputs[0], names["start"], names["end"], names["axis"])
        nodes.append(Node("Slice", cut, (next(stages),)))
    nodes.append(Node("Transpose", (nodes[-1].outputs[0],), (next(stages),)))
    product = next(stages) if inputs[5] else node.outputs[0]
    nodes.append(Node("MatMul", (inputs[0], nodes[-1].outputs[0]), (product,)))
    if inputs[5]:
        nodes.append(Node("Add", (product, inputs[5]), node.outputs))
    return nodes
