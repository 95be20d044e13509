"""ConvTranspose whose kernel is its stride: each pixel becomes a patch of its own, by products like a pointwise Conv.

Lanes of an accumulator are the elements of a pixel's patch in all maps, where these fit a vector. The patches of
neighbouring pixels are then interleaved to rows of the plain result, so that the tail works on whole vectors of it.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, const, minimum, shuffle
from ...ir.types import DType
from .context import Site
from .conv_kernel import ConvKernel, unravel
from .conv_transpose_facts import Transposed
from .micro import multiply, packed, rows_of
from .tasks import tasks

PIXELS = 8
"""Pixels of a tile at least: so many sums are under way at once."""


def makes_patches(t: Transposed) -> bool:
    """Whether a node is computed here: float32, blocked to plain, constant weights, small patches side by side."""
    node, x, y = t.ctx.node, t.x.type, t.ctx.output.type
    if t.rank > 2 or x.layout.block != t.lanes or y.layout.block or not x.dtype is t.acc is DType.F32:
        return False
    if node.constant(1) is None or (node.input(2) is not None and node.constant(2) is None) or t.groups > 1:
        return False
    apart = all(a.kernel == a.stride and a.dilation == 1 and not a.pad and a.out == a.size * a.stride for a in t.axes)
    _, h, w = t.axes
    return apart and t.maps * h.kernel * w.kernel <= t.lanes and t.lanes % w.kernel == 0 and w.size >= _pixels(t)


def _pixels(t: Transposed) -> int:
    return max(PIXELS, t.lanes)


def lower_patches(t: Transposed) -> None:
    """Append the kernel of a node that `makes_patches`: a task is a row of pixels."""
    k, pixels, lanes = ConvKernel(t.ctx), _pixels(t), t.lanes
    _, h, w = t.axes
    weights, bias = _packed(t)
    x = k.tensor(t.x, "x")
    for task in tasks(k, t.macs, t.batch * h.size):
        n, row = unravel(k, task, (t.batch, h.size))
        blocks = -(-t.channels // lanes)
        line = k.let((n * (blocks * h.size) + row) * (w.size * lanes), "x")
        for tile in k.loop("tile", -(-w.size // pixels)):
            at = tile * pixels if w.size % pixels == 0 else minimum(tile * pixels, w.size - pixels)
            column = k.let(at, "w")
            acc = k.registers("acc", DType.F32, pixels, lanes)
            first = k.let(const(0, DType.F32, lanes) if bias is None else k.load(k.tensor(bias), 0, lanes), "first")
            for p in range(pixels):
                k.store(acc, p, first)
            _sums(t, k, x, weights, line + column * lanes, acc)
            _store(t, k, (n, row, column), [k.let(k.load(acc, p), "y") for p in range(pixels)])
    k.done("conv_transpose")


def _packed(t: Transposed) -> tuple[Value, Value | None]:
    """Weights [C][lanes] and bias [lanes], a lane for each element of a patch."""
    weights, bias = t.ctx.node.constant(1), t.ctx.node.constant(2)
    assert weights is not None
    size = t.axes[1].kernel * t.axes[2].kernel
    table = np.zeros((t.channels, t.lanes), np.float32)
    table[:, : t.maps * size] = weights.reshape(t.channels, -1)
    if bias is None:
        return t.ctx.pack("weights", table), None
    padded = np.zeros(t.lanes, np.float32)
    padded[: t.maps * size] = np.repeat(bias, size)
    return t.ctx.pack("weights", table), t.ctx.pack("bias", padded)


def _sums(t: Transposed, k: ConvKernel, x: Buffer, weights: Value, origin: Expr, acc: Buffer) -> None:
    """The products of all channels."""
    lanes, pixels = t.lanes, _pixels(t)
    plane = t.axes[1].size * t.axes[2].size * lanes
    origin, w = k.let(origin, "x"), k.tensor(weights, "w")
    whole, rest = divmod(t.channels, lanes)
    for c in k.loop("cb", whole):
        rows = rows_of(x, k.let(origin + c * plane, "x"), lanes, pixels)
        multiply(k, rows, packed(w, k.let(c * (lanes * lanes), "w"), 1, lanes), lanes, acc, unroll=lanes)
    if rest:
        rows = rows_of(x, k.let(origin + whole * plane, "x"), lanes, pixels)
        multiply(k, rows, packed(w, const(whole * lanes * lanes), 1, lanes), rest, acc, unroll=rest)


def _store(t: Transposed, k: ConvKernel, at: tuple[Expr, Expr, Expr], patches: list[Expr]) -> None:
    """Rows of the result from the patches of neighbouring pixels."""
    (n, row, column), width = at, t.axes[2].kernel
    count = t.lanes // width
    for m, i in product(range(t.maps), range(t.axes[1].kernel)):
        lane = (m * t.axes[1].kernel + i) * width
        for p in range(0, len(patches), count):
            value = k.let(_row(patches[p : p + count], lane, width), "row")
            h, w = row * t.axes[1].kernel + i, column * width + p * width
            site = Site((n, const(m), *t.coords(const(0), h, w)), -1, t.lanes)
            k.write(t.ctx.output, site, t.ctx.epilogue(k, site, value))


def _row(patches: list[Expr], lane: int, width: int) -> Expr:
    """Lanes [lane, lane + width) of all patches, side by side."""
    parts = [shuffle(v, None, tuple(range(lane, lane + width))) for v in patches]
    while len(parts) > 1:
        both = tuple(range(2 * parts[0].lanes))
        parts = [shuffle(a, b, both) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
