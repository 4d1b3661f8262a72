"""Rounding of weight matrices to few bits. Pure functions over numpy arrays.

Symbols in shape comments: K rows that a product sums over, N columns, one for each output.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
_SHRINKS = np.linspace(1.0, 0.7, 13)  # of the largest value: scales to try


@dataclass(frozen=True)
class Columns:
    """weight ≈ values · scales: int8 [K, N] in −127 … 127, float32 [N]."""

    values: NDArray[np.int8]
    scales: NDArray[np.float32]


@dataclass(frozen=True)
class Blocks:
    """Four bits as MatMulNBits reads them.

    ``values`` uint8 [N, blocks, block_size / 2], two values a byte, the first in the low half; value v means (v − 8)
    times the block's scale. ``scales`` float32 [N · blocks].
    """

    values: NDArray[np.uint8]
    scales: NDArray[np.float32]
    block_size: int


def to_columns(weight: Matrix) -> Columns:
    """Symmetric 8 bits with one scale a column, weight [K, N].

    The scale is what maps the largest value to 127: clipping was measured and gains nothing at eight bits.
    """
    scales = np.abs(weight).max(axis=0).astype(np.float32) / np.float32(127)
    scales[scales == 0] = 1
    return Columns(np.rint(weight / scales).clip(-127, 127).astype(np.int8), scales)


def to_blocks(weight: Matrix, block_size: int) -> Blocks:
    """Four bits with one scale for every ``block_size`` values of a column, weight [K, N].

    Of several scales for each block the one with the smallest squared error is taken: the largest value of a block
    need not be representable. Values are −8 … 7, so the scale's sign is that which puts the largest at −8.
    """
    rows, columns = weight.shape
    count = -(-rows // block_size)
    padded = np.zeros((columns, count * block_size), np.float32)
    padded[:, :rows] = weight.T
    blocks = padded.reshape(columns * count, block_size)
    largest = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)]
    best = np.full(len(blocks), np.inf, np.float32)
    scales = np.ones(len(blocks), np.float32)
    for shrink in _SHRINKS:
        tried = (largest * shrink / -8).astype(np.float32)
        tried[tried == 0] = 1
        rounded = np.rint(blocks / tried[:, None]).clip(-8, 7)
        # The best scale for this rounding, in the sense of least squares.
        norm = (rounded**2).sum(axis=1)
        fitted = np.where(norm > 0, (blocks * rounded).sum(axis=1) / np.maximum(norm, 1), tried).astype(np.float32)
        fitted[fitted == 0] = 1
        error = ((blocks - rounded_to(blocks, fitted)) ** 2).sum(axis=1)
        better = error < best
        best[better], scales[better] = error[better], fitted[better]
    values = (np.rint(blocks / scales[:, None]).clip(-8, 7) + 8).astype(np.uint8)
    packed = (values[:, 0::2] | (values[:, 1::2] << 4)).astype(np.uint8)
    return Blocks(packed.reshape(columns, count, block_size // 2), scales, block_size)


def rounded_to(blocks: Matrix, scales: NDArray[np.float32]) -> Matrix:
    """What four bits make of blocks [B, block_size] with scales [B]."""
    result: Matrix = np.rint(blocks / scales[:, None]).clip(-8, 7) * scales[:, None]
    return result


def from_blocks(blocks: Blocks, rows: int) -> Matrix:
    """The matrix [rows, N] that the blocks stand for."""
    columns, count, half = blocks.values.shape
    values = np.empty((columns, count, 2 * half), np.float32)
    values[:, :, 0::2] = (blocks.values & 15).astype(np.float32) - 8
    values[:, :, 1::2] = (blocks.values >> 4).astype(np.float32) - 8
    values *= blocks.scales.reshape(columns, count, 1)
    return np.ascontiguousarray(values.reshape(columns, -1)[:, :rows].T)
