"""Rounding of matrices: by hand, and what ONNX Runtime makes of the packed form."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rnn_edge_export.quantisation.products import fitting_block
from rnn_edge_export.quantisation.weights import Blocks, Matrix, from_blocks, rounded_to, to_blocks, to_columns


def _matrix(*rows: list[float]) -> Matrix:
    return np.array(rows, np.float32)


def _random(rows: int, columns: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def test_columns_by_hand() -> None:
    """Largest values 2.54, 0 and 1.27: steps of 0.02, anything, and 0.01."""
    columns = to_columns(_matrix([2.54, 0, -1.27], [-0.05, 0, 0.014], [1.0, 0, 0.016]))
    assert columns.values.dtype == np.int8
    assert columns.values.tolist() == [[127, 0, -127], [-2, 0, 1], [50, 0, 2]]  # 2.5 goes to the even neighbour
    assert columns.scales == pytest.approx([0.02, 1, 0.01], rel=1e-6)


def test_no_value_of_a_column_is_off_by_more_than_half_a_step() -> None:
    weight = _random(70, 9)
    columns = to_columns(weight)
    error = np.abs(columns.values * columns.scales - weight)
    assert (error <= columns.scales * 0.5001).all()
    assert (np.abs(columns.values).max(axis=0) == 127).all()


def test_blocks_by_hand() -> None:
    """Two columns of three rows, blocks of 16: the rest are zeros. The largest stands at −8, whatever its sign."""
    blocks = to_blocks(_matrix([-8, 0.5], [7, 4], [0, -2]), 16)
    assert blocks.values.shape == (2, 1, 8)
    assert blocks.scales == pytest.approx([1, -0.5])
    # Value v is stored as v + 8; the first of two in the low half.
    assert blocks.values[0, 0].tolist() == [0 | 15 << 4, 8 | 8 << 4, *[8 | 8 << 4] * 6]
    assert blocks.values[1, 0].tolist() == [7 | 0 << 4, 12 | 8 << 4, *[8 | 8 << 4] * 6]
    assert from_blocks(blocks, 3).tolist() == [[-8, 0.5], [7, 4], [0, -2]]


def test_unpacking_by_hand() -> None:
    """Rows follow one another through the blocks of a column."""
    values = np.arange(0x90, 0xA0, dtype=np.uint8).reshape(1, 2, 8)
    weight = from_blocks(Blocks(values, np.array([1, 10], np.float32), 16), 20)
    assert weight.shape == (20, 1)
    expected = [part for low in range(8) for part in (low - 8, 1)] + [0, 10, 10, 10]
    assert weight[:, 0].tolist() == expected


def test_columns_of_zeros() -> None:
    weight = np.zeros((40, 3), np.float32)
    weight[:, 1] = 1
    assert from_blocks(to_blocks(weight, 32), 40) == pytest.approx(weight)
    assert np.isfinite(to_blocks(weight, 32).scales).all()
    columns = to_columns(weight)
    assert (columns.values * columns.scales).tolist() == weight.tolist()


@pytest.mark.parametrize("block_size", [16, 32, 64])
@pytest.mark.parametrize("rows", [64, 70, 5])
def test_blocks_are_never_worse_than_plain_rounding(rows: int, block_size: int) -> None:
    weight = _random(rows, 40, seed=rows)
    blocks = to_blocks(weight, block_size)
    count = -(-rows // block_size)
    assert blocks.values.shape == (40, count, block_size // 2)
    found = from_blocks(blocks, rows)
    assert found.shape == weight.shape
    better = 0
    for column in range(40):
        for first in range(0, rows, block_size):
            block = weight[first : first + block_size, column]
            largest = block[np.abs(block).argmax()]
            plain = rounded_to(block[None], np.array([largest / -8], np.float32))[0]
            mine = found[first : first + block_size, column]
            errors = [float(((values - block).astype(np.float64) ** 2).sum()) for values in (mine, plain)]
            assert errors[0] <= errors[1] * 1.00001
            better += errors[0] < errors[1] * 0.95
    assert better > 20 * count * min(1, rows / block_size)  # more than half of the blocks gain from another scale


def _matmulnbits(blocks: Blocks, rows: int, columns: int) -> onnxruntime.InferenceSession:
    node = helper.make_node(
        "MatMulNBits",
        ["x", "values", "scales"],
        ["y"],
        domain="com.microsoft",
        K=rows,
        N=columns,
        bits=4,
        block_size=blocks.block_size,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", columns])],
        [numpy_helper.from_array(blocks.values, "values"), numpy_helper.from_array(blocks.scales, "scales")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("rows", "block_size"), [(96, 32), (70, 16), (70, 64), (256, 128)])
def test_the_runtime_multiplies_by_what_the_blocks_stand_for(rows: int, block_size: int) -> None:
    """Its activations have eight bits, one scale a row and block: |error| ≤ half a step for every value, summed."""
    blocks = to_blocks(_random(rows, 24), block_size)
    weight = from_blocks(blocks, rows).astype(np.float64)
    x = _random(5, rows, seed=1)
    (found,) = _matmulnbits(blocks, rows, 24).run(None, {"x": x})
    expected = x @ weight
    step = np.abs(x).max() / 127
    # Errors of single values are independent: four standard deviations of a uniform one of this step.
    allowed = 4 * step / np.sqrt(12) * np.sqrt((weight**2).sum(axis=0))
    assert (np.abs(found - expected) < allowed).all()
    assert np.abs(expected).max() > 20 * allowed.max()


@pytest.mark.parametrize(
    ("rows", "largest", "expected"),
    [(512, 128, 128), (512, 256, 256), (296, 128, 64), (160, 128, 32), (100, 128, 128), (40, 16, 16), (1000, 32, 32)],
)
def test_blocks_fit_the_rows(rows: int, largest: int, expected: int) -> None:
    assert fitting_block(rows, largest) == expected
