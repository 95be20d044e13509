"""Weights of a product in blocks of levels along k, each with its own scale and zero point (MatMulNBits).

In the graph they are `MatMul(x, DequantizeLinear(levels, scales, zeros; axis 0, block_size))` of constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from ..ir.graph import Node
from ..ir.types import DType

MOST_ROWS = 8
"""Rows of x up to which weights are expanded where they are used; more share weights that are expanded once."""


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """levels u8 [K, N]; scales f32 and zeros u8 [blocks, N]; blocks of `size` along K."""

    levels: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    size: int


def is_block_weights(node: Node) -> bool:
    """Whether a node dequantises constant weights [K, N] in blocks along K."""
    return node.op == "DequantizeLinear" and bool(node.attrs.get("block_size", 0)) and node.attrs.get("axis", 1) == 0


def block_weights(product: Node) -> Node | None:
    """The node that dequantises the weights of a product of few rows; None where there is none."""
    x, w = product.input(0), product.input(1)
    made = None if w is None else w.producer
    if product.op != "MatMul" or made is None or x is None or not x.type.is_static or x.type.rank < 2:
        return None
    levels, scales, zeros = made.constant(0), made.constant(1), made.constant(2)
    if not is_block_weights(made) or levels is None or scales is None or zeros is None or levels.ndim != 2:
        return None
    few = prod(x.type.dims[:-1]) <= MOST_ROWS and x.type.dtype is DType.F32
    return made if few and levels.dtype == np.uint8 and scales.dtype == np.float32 else None


def read_block_weights(node: Node) -> BlockWeights:
    """The constants of such a node."""
    levels, scales, zeros = node.constant(0), node.constant(1), node.constant(2)
    assert levels is not None and scales is not None and zeros is not None
    return BlockWeights(levels, scales, zeros, int(node.attrs["block_size"]))
