"""Matrices as panels `[n / (V·lanes)][k][V·lanes]`, at compile time and at run time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ...ir.loops import Expr, broadcast, const, minimum, ramp
from .context import KernelBuilder, Lowering
from .product import Product, offset_at, stacked, unravel
from .tile import Tile
from .transposes import transposed


@dataclass(frozen=True, slots=True)
class Panels:
    """How the panel form divides a product: whole panels, panels in all, row tiles in all and a task."""

    tile: Tile
    lanes: int
    whole: int
    panels: int
    row_tiles: int
    tiles_a_task: int
    row_tasks: int


def pack_panels(data: np.ndarray, width: int, lanes: int) -> np.ndarray:
    """[..., k, n] as panels [..., n / width][k][width], then one panel of as many vectors of `lanes` as the rest needs.

    Flat; the last vector is padded with zeros. `data` may be any view: it is copied once.
    """
    *batch, k, n = data.shape
    whole = n // width * width
    rest = -(-(n - whole) // lanes) * lanes
    out = np.empty((*batch, k * (whole + rest)), data.dtype)
    for first in range(0, whole, width):
        out[..., k * first : k * (first + width)].reshape(*batch, k, width)[...] = data[..., first : first + width]
    if rest:
        tail = out[..., k * whole :].reshape(*batch, k, rest)
        tail[..., : n - whole] = data[..., whole:]
        tail[..., n - whole :] = 0
    return out.reshape(-1)


def tail_vectors(p: Product, plan: Panels) -> int:
    """Vectors of the last, narrower panel."""
    return -(-(p.n - plan.whole * plan.tile.vectors * plan.lanes) // plan.lanes)


def pack_at_run_time(ctx: Lowering, p: Product, plan: Panels) -> Product:
    """A call that packs `b` of any strides into the arena; columns beyond n repeat the last one."""
    width, rest = plan.tile.vectors * plan.lanes, tail_vectors(p, plan) * plan.lanes
    size = plan.whole * p.k * width + p.k * rest
    used = [1 if s else 0 for s in p.b.batch]
    dims = [d if u else 1 for d, u in zip(p.batch, used, strict=True)]
    target = ctx.scratch("panels", p.b.value.type.dtype, prod(dims) * size)
    packed = stacked(p, target, size, used)
    k = ctx.kernel()
    for t in k.parallel("t", prod(dims)) if ctx.threads > 1 and prod(dims) > 1 else k.loop("t", prod(dims)):
        at = unravel(t, tuple(dims))
        source, sink = k.let(offset_at(p.b.batch, at), "from"), k.let(offset_at(packed.batch, at), "to")
        for first, end, columns in ((0, plan.whole, width), (plan.whole, plan.panels, rest)):
            for nb in k.loop("panel", end, first) if first < end else ():
                start = k.let(sink + nb * (p.k * width), "start")
                for v in range(columns // plan.lanes):
                    n = k.let(nb * width + v * plan.lanes, "n")
                    for kk, vector in _columns(k, p, plan, source, n):
                        k.store(k.tensor(target), start + (kk * columns + v * plan.lanes), vector)
    k.done("pack")
    return replace(p, b=packed)


def _columns(k: KernelBuilder, p: Product, plan: Panels, source: Expr, n: Expr) -> Iterator[tuple[Expr, Expr]]:
    """Every k, and the elements of `lanes` columns from n on: exchanged in registers where k is the fast axis."""
    b, lanes = k.tensor(p.b.value), plan.lanes
    whole = p.k // lanes * lanes if p.b.row == 1 and p.b.col != 1 and lanes > 1 else 0
    for kk in k.loop("k", whole, step=lanes) if whole else ():
        columns = [k.let(minimum(n + i, const(p.n - 1)) * p.b.col + source, "column") for i in range(lanes)]
        block = transposed(k, [k.let(k.load(b, c + kk, lanes), "x") for c in columns])
        yield from ((kk + j, row) for j, row in enumerate(block))
    for kk in k.loop("k", p.k, whole) if whole < p.k else ():
        at = k.let(source + kk * p.b.row, "at")
        if p.b.col == 1 and p.n % lanes == 0:
            yield kk, k.load(b, at + n, lanes)
        else:
            yield kk, k.load(b, minimum(ramp(n, 1, lanes), p.n - 1) * p.b.col + broadcast(at, lanes))
