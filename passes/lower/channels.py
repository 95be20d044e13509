"""Per-channel operands of results in a blocked layout, completed to whole blocks of channels.

Vectors of a blocked result reach beyond the last channel; an operand in plain layout would be read beyond its end.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ...ir.graph import Value
from ...ir.types import TensorType

if TYPE_CHECKING:
    from .context import Lowering


def whole_blocks(ctx: Lowering, value: Value, type_: TensorType) -> tuple[Value, TensorType]:
    """An operand that vectors along channels of `ctx.output` may read up to whole blocks: itself, or a padded copy.

    `type_` is the type by which it broadcasts; the result's goes with the result.
    """
    out = ctx.output.type
    axis = 1 - (out.rank - type_.rank)
    block = out.layout.block
    if not block or type_.layout.block or axis < 0:
        return value, type_
    channels = type_.dims[axis]
    if channels == 1 or channels % block == 0:
        return value, type_
    padded = type_.with_shape((*type_.shape[:axis], -(-channels // block) * block, *type_.shape[axis + 1 :]))
    key = (value, padded)
    if key not in ctx.memo:
        ctx.memo[key] = _padded(ctx, value, type_, padded, axis)
    return ctx.memo[key], padded


def _padded(ctx: Lowering, value: Value, type_: TensorType, padded: TensorType, axis: int) -> Value:
    """A constant, or a copy in scratch memory whose added channels are undefined."""
    if value.data is not None:
        missing = [(0, b - a) for a, b in zip(type_.dims, padded.dims, strict=True)]
        return ctx.pack("channels", np.pad(value.data.reshape(type_.dims), missing))
    copy = ctx.scratch("channels", type_.dtype, padded.size)
    count, below = prod(type_.dims[:axis]), prod(type_.dims[axis + 1 :])
    size, room = type_.dims[axis] * below, padded.dims[axis] * below
    k = ctx.kernel()
    lanes = ctx.lanes(type_.dtype)
    whole = size // lanes * lanes
    for i in k.loop("i", count):
        for j in k.loop("j", whole, step=lanes) if whole else ():
            k.store(k.tensor(copy), i * room + j, k.load(k.tensor(value), i * size + j, lanes))
        for j in k.loop("j", size, whole) if whole < size else ():
            k.store(k.tensor(copy), i * room + j, k.load(k.tensor(value), i * size + j))
    k.done("channels")
    return copy
