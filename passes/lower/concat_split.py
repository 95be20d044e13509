"""Concat, Split and Slice: boxes copied between tensors, in any layout."""

from __future__ import annotations

from .context import Lowering, lowers
from .copies import copy_box, copy_regions
from .movement import constant_input, operand, required_constant


@lowers("Concat")
def lower_concat(ctx: Lowering) -> None:
    """Every input copied to its place; channels of a blocked layout need not end at a block."""
    y = ctx.output
    axis = ctx.node.attrs["axis"] % y.type.rank
    first = [0] * y.type.rank
    regions = []
    for x in ctx.node.inputs:
        assert x is not None
        regions += copy_box((y.type, first), (x.type, (0,) * x.type.rank), x.type.dims, source=x)
        first = [*first[:axis], first[axis] + x.type.dims[axis], *first[axis + 1 :]]
    copy_regions(ctx, y, regions, "concat")


@lowers("Split")
def lower_split(ctx: Lowering) -> None:
    """Each result a slice along `axis`."""
    x = operand(ctx, 0)
    axis = ctx.node.attrs.get("axis", 0) % x.type.rank
    begin = 0
    for y in ctx.node.outputs:
        first = tuple(begin if i == axis else 0 for i in range(x.type.rank))
        copy_regions(ctx, y, copy_box((y.type, (0,) * x.type.rank), (x.type, first), y.type.dims, source=x), "split")
        begin += y.type.dims[axis]


@lowers("Slice")
def lower_slice(ctx: Lowering) -> None:
    """Constant starts, ends, axes and steps (of either sign)."""
    x, y = operand(ctx, 0), ctx.output
    begin, steps = slice_bounds(ctx)
    zeros = (0,) * x.type.rank
    copy_regions(ctx, y, copy_box((y.type, zeros), (x.type, begin), y.type.dims, steps, source=x), "slice")


def slice_bounds(ctx: Lowering) -> tuple[list[int], list[int]]:
    """First coordinate and step along every axis of a Slice, bounds clamped as ONNX does."""
    dims = operand(ctx, 0).type.dims
    rank = len(dims)
    starts = required_constant(ctx, 1).reshape(-1)
    axes, steps = constant_input(ctx, 3), constant_input(ctx, 4)
    order = range(len(starts)) if axes is None else [int(a) % rank for a in axes.reshape(-1)]
    first, step = [0] * rank, [1] * rank
    for i, axis in enumerate(order):
        size = dims[axis]
        step[axis] = 1 if steps is None else int(steps.reshape(-1)[i])
        start = int(starts[i]) + (size if starts[i] < 0 else 0)
        first[axis] = min(max(start, 0), size if step[axis] > 0 else size - 1)
    return first, step
