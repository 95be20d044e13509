"""Operators that move elements by a fixed pattern of strides: transposes, copies, reorders, expansions."""

from __future__ import annotations

from math import prod

import numpy as np

from ...ir.graph import Value
from ...ir.loops import const
from ...ir.types import DType
from .context import Lowering, lowers, strides
from .copies import copy_box, copy_regions
from .copy_axes import Dim, Region, region


def operand(ctx: Lowering, index: int) -> Value:
    """Input `index`, which must be there."""
    value = ctx.node.input(index)
    assert value is not None, f"{ctx.node.op} without input {index}"
    return value


def constant_input(ctx: Lowering, index: int) -> np.ndarray | None:
    """Data of an optional input; raises UnsupportedOpError where it is given but not known at compile time."""
    value = ctx.node.input(index)
    if value is None:
        return None
    if value.data is None:
        raise ctx.unsupported(
            f"input '{value.name}' of {ctx.node.op} must be a constant", f"pin its value with --value {value.name}=…"
        )
    return value.data


def required_constant(ctx: Lowering, index: int) -> np.ndarray:
    """Data of an input that must be there and known."""
    operand(ctx, index)
    data = constant_input(ctx, index)
    assert data is not None
    return data


@lowers("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "c2c.Copy")
def lower_copy(ctx: Lowering) -> None:
    """The same bytes in the same order (where the result is no view)."""
    copy_whole(ctx, operand(ctx, 0), ctx.output)


def copy_whole(ctx: Lowering, source: Value, result: Value) -> None:
    """All elements of `source`, in memory order, into `result` of the same physical size."""
    assert source.type.layout == result.type.layout and source.type.nbytes == result.type.nbytes
    n = prod(source.type.physical)
    copy_regions(ctx, result, [region((n,), (1,), (1,), source=source)], "copy")


@lowers("Dropout")
def lower_dropout(ctx: Lowering) -> None:
    """Inference: the data as they are, a mask of ones; raises UnsupportedOpError in training mode."""
    training = constant_input(ctx, 2)
    ratio = constant_input(ctx, 1) if training is not None and training.any() else None
    if training is not None and training.any() and (ratio is None or ratio.any()):
        raise ctx.unsupported("Dropout in training mode is random", "export the model for inference")
    copy_whole(ctx, operand(ctx, 0), ctx.node.output)
    if len(ctx.node.outputs) > 1:
        fill(ctx, ctx.node.outputs[1], 1)


def fill(ctx: Lowering, result: Value, bits: int) -> None:
    """Every element of `result` the raw integer `bits`."""
    n = prod(result.type.physical)
    raw_type = DType(f"u{result.type.dtype.bits}")
    copy_regions(ctx, result, [region((n,), (1,), (0,))], "fill", lambda k: const(bits, raw_type))


@lowers("Transpose")
def lower_transpose(ctx: Lowering) -> None:
    """Any permutation; in a blocked layout one that leaves batch and channels where they are."""
    x, y = operand(ctx, 0), ctx.output
    rank = x.type.rank
    perm = tuple(ctx.node.attrs.get("perm") or range(rank - 1, -1, -1))
    if x.type.layout.block or y.type.layout.block:
        assert x.type.layout == y.type.layout and perm[:2] == (0, 1)
        perm = (*perm, rank)
    steps = strides(x.type)
    copy_regions(ctx, y, [region(y.type.physical, strides(y.type), [steps[p] for p in perm], source=x)], "transpose")


@lowers("c2c.Reorder")
def lower_reorder(ctx: Lowering) -> None:
    """Between layouts; lanes beyond the channels stay undefined."""
    x, y = operand(ctx, 0), ctx.output
    zeros = (0,) * x.type.rank
    copy_regions(ctx, y, copy_box((y.type, zeros), (x.type, zeros), x.type.dims, source=x), "reorder")


@lowers("Expand")
def lower_expand(ctx: Lowering) -> None:
    """numpy.broadcast_to, both ways."""
    x, y = operand(ctx, 0), ctx.output
    pad = (0,) * (y.type.rank - x.type.rank)
    steps = [0 if d == 1 else s for d, s in zip(x.type.dims, strides(x.type), strict=True)]
    copy_regions(ctx, y, [region(y.type.dims, strides(y.type), (*pad, *steps), source=x)], "expand")


@lowers("Tile")
def lower_tile(ctx: Lowering) -> None:
    """numpy.tile."""
    x, y = operand(ctx, 0), ctx.output
    repeats = [int(r) for r in required_constant(ctx, 1)]
    dims: list[Dim] = []
    for r, n, a, b in zip(repeats, x.type.dims, strides(y.type), strides(x.type), strict=True):
        dims += [Dim(r, n * a, 0), Dim(n, a, b)]
    copy_regions(ctx, y, [Region(tuple(dims), source=x)], "tile")


@lowers("DepthToSpace")
def lower_depth_to_space(ctx: Lowering) -> None:
    """[N, b*b*C, H, W] → [N, C, H*b, W*b]; mode DCR or CRD says how the channels are split."""
    x, y = operand(ctx, 0), ctx.output
    b = ctx.node.attrs["blocksize"]
    n, c, h, w = y.type.dims
    s, t = strides(x.type), strides(y.type)
    if ctx.node.attrs.get("mode", "DCR") == "DCR":
        channel, row, column = s[1], b * c * s[1], c * s[1]
    else:
        channel, row, column = b * b * s[1], b * s[1], s[1]
    copy_regions(
        ctx,
        y,
        [
            region(
                (n, c, h // b, b, w // b, b),
                (t[0], t[1], b * t[2], t[2], b, 1),
                (s[0], channel, s[2], row, 1, column),
                source=x,
            )
        ],
        "depth_to_space",
    )


@lowers("SpaceToDepth")
def lower_space_to_depth(ctx: Lowering) -> None:
    """[N, C, H, W] → [N, b*b*C, H/b, W/b]."""
    x, y = operand(ctx, 0), ctx.output
    b = ctx.node.attrs["blocksize"]
    n, c, h, w = x.type.dims
    s, t = strides(x.type), strides(y.type)
    crd = ctx.node.attrs.get("mode", "DCR") == "CRD"
    channel, row, column = (b * b * t[1], b * t[1], t[1]) if crd else (t[1], b * c * t[1], c * t[1])
    copy_regions(
        ctx,
        y,
        [
            region(
                (n, c, h // b, b, w // b, b),
                (t[0], channel, t[2], row, 1, column),
                (s[0], s[1], b * s[2], s[2], b, 1),
                source=x,
            )
        ],
        "space_to_depth",
    )
