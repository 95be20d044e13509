"""Pad: the index along every axis is piecewise affine, so a padded tensor is a grid of strided copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from ...ir.loops import Expr, const
from .context import KernelBuilder, Lowering, lowers, strides
from .copies import RAW, copy_regions, raw
from .copy_axes import Dim, Region
from .movement import constant_input, operand, required_constant

Segment = tuple[int, int, int]
"""First source index, step (-1, 0 or 1) and length; first source index -1: filled."""

_MAX_REGIONS = 4096


@lowers("Pad")
def lower_pad(ctx: Lowering) -> None:
    """Modes constant, edge, reflect and wrap; negative pads crop. In a blocked layout batch and spatial axes only."""
    x, y = operand(ctx, 0), ctx.output
    mode = ctx.node.attrs.get("mode", "constant")
    grid = [segments(mode, n, *pads) for n, pads in zip(x.type.dims, pad_amounts(ctx), strict=True)]
    if x.type.layout.block:
        b = x.type.layout.block
        assert y.type.layout == x.type.layout and len(grid[1]) == 1 and grid[1][0][:2] == (0, 1)
        grid = [grid[0], [(0, 1, x.type.physical[1])], *grid[2:], [(0, 1, b)]]
    if prod(len(g) for g in grid) > _MAX_REGIONS:
        raise ctx.unsupported("Pad repeats the tensor too often", "use Tile")
    copy_regions(ctx, y, pad_regions(ctx, grid), "pad", _fill(ctx))


def pad_amounts(ctx: Lowering) -> list[tuple[int, int]]:
    """Elements before and after, by axis."""
    rank = operand(ctx, 0).type.rank
    pads, axes = required_constant(ctx, 1).reshape(-1), constant_input(ctx, 3)
    order = list(range(rank)) if axes is None else [int(a) % rank for a in axes.reshape(-1)]
    amounts = [(0, 0)] * rank
    for i, axis in enumerate(order):
        amounts[axis] = (int(pads[i]), int(pads[i + len(order)]))
    return amounts


def segments(mode: str, n: int, before: int, after: int) -> list[Segment]:
    """The source indices of a padded axis of `n` elements, cut into affine pieces."""
    return affine_pieces(positions(mode, n, before, after))


def positions(mode: str, n: int, before: int, after: int) -> np.ndarray:
    """The source index of each position of a padded axis of `n` elements, -1 where it is filled."""
    index = np.arange(-before, n + after)
    if mode == "constant":
        return np.where((index < 0) | (index >= n), -1, index)
    if mode == "edge":
        return np.clip(index, 0, n - 1)
    if mode == "wrap":
        return index % n
    period = max(2 * (n - 1), 1)
    index = index % period
    return np.where(index >= n, period - index, index)


def affine_pieces(index: np.ndarray) -> list[Segment]:
    """Runs of constant step -1, 0 or 1; runs of -1 (filled) by themselves."""
    out: list[Segment] = []
    i = 0
    while i < len(index):
        end, step = i + 1, 0
        if end < len(index) and abs(index[end] - index[i]) <= 1 and (index[i] < 0) == (index[end] < 0):
            step = int(index[end] - index[i])
            while end < len(index) and index[end] - index[end - 1] == step and (index[end] < 0) == (index[i] < 0):
                end += 1
        out.append((int(index[i]), step, end - i))
        i = end
    return out


def pad_regions(ctx: Lowering, grid: Sequence[Sequence[Segment]]) -> list[Region]:
    """One region for each cell of the grid; a filled segment spans everything inside its axis."""
    x, y = operand(ctx, 0), ctx.output
    to, of, sizes = strides(y.type), strides(x.type), y.type.physical
    regions: list[Region] = []

    def visit(axis: int, dims: tuple[Dim, ...], at: int, begin: int) -> None:
        if axis == len(grid):
            regions.append(Region(dims, at, begin, x))
            return
        for first, step, length in grid[axis]:
            if first < 0:
                inner = tuple(Dim(n, t, 0) for n, t in zip(sizes[axis + 1 :], to[axis + 1 :], strict=True))
                regions.append(Region((*dims, Dim(length, to[axis], 0), *inner), at))
            else:
                piece = Dim(length, to[axis], step * of[axis])
                visit(axis + 1, (*dims, piece), at, begin + first * of[axis])
            at += length * to[axis]

    visit(0, (), 0, 0)
    return regions


def _fill(ctx: Lowering) -> Callable[[KernelBuilder], Expr]:
    """The padding value as raw bits: of a constant, of a run-time scalar, or zero."""
    value, dtype = ctx.node.input(2), ctx.output.type.dtype
    if value is None or (value.data is not None and value.data.size == 0):
        return lambda k: const(0, RAW[dtype.bits])
    if value.data is None:
        return lambda k: k.load(raw(k, value), 0)
    bits = int(np.ascontiguousarray(value.data).reshape(-1)[:1].view(RAW[dtype.bits].numpy)[0])
    return lambda k: const(bits, RAW[dtype.bits])
