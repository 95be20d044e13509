"""Constant weights of a product of few rows as levels with a scale for each column, or for each block along k of it.

In the graph they are DequantizeLinear of constants, read by a MatMul or by a Gemm: weights alone are quantised, x is of
floats (MatMulNBits, `c2c quantize --form weights`).
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
    """Whether a node dequantises constant weights with several scales."""
    scales = node.constant(1) if node.op == "DequantizeLinear" else None
    return scales is not None and scales.size > 1 and node.constant(0) is not None


def block_weights(product: Node) -> Node | None:
    """The node that dequantises the weights of a product of few rows; None where there is none."""
    x, w = product.input(0), product.input(1)
    made = None if w is None else w.producer
    if product.op not in ("MatMul", "Gemm") or made is None or x is None or not is_block_weights(made):
        return None
    if not x.type.is_static or x.type.rank < 2 or x.type.dtype is not DType.F32 or prod(x.type.dims[:-1]) > MOST_ROWS:
        return None
    attrs = product.attrs
    if attrs.get("transA", 0) or attrs.get("alpha", 1.0) != 1.0 or attrs.get("beta", 1.0) != 1.0:
        return None
    return made if read_block_weights(made, product) is not None else None


def read_block_weights(node: Node, product: Node) -> BlockWeights | None:
    """The weights of `product` as [K, N]; None where they have another form."""
    levels, scales, zeros = node.constant(0), node.constant(1), node.constant(2)
    if levels is None or scales is None or levels.ndim != 2 or scales.dtype != np.float32:
        return None
    if levels.dtype not in (np.int8, np.uint8) or node.input(2) is not None and zeros is None:
        return None
    along = 1 if product.attrs.get("transB", 0) else 0
    axis, size = node.attrs.get("axis", 1) % 2, int(node.attrs.get("block_size", 0))
    offset = np.zeros((), levels.dtype) if zeros is None else zeros
    if size and axis != along or not size and axis == along:
        return None
    if not size:
        scales, size = np.expand_dims(scales.reshape(-1), along), levels.shape[along]
        offset = offset if offset.ndim == 0 else np.expand_dims(offset.reshape(-1), along)
    offset = np.broadcast_to(offset, scales.shape)
    least = min(0, int(levels.min(initial=0)), int(offset.min()))
    shift = 0 if least == 0 else 8 if least >= -8 else 128
    parts = (levels.astype(np.int16) + shift, scales, offset.astype(np.int16) + shift)
    levels, scales, offset = (p.T if along else p for p in parts)
    return BlockWeights(levels.astype(np.uint8), scales, offset.astype(np.uint8), size)
