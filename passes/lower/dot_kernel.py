"""Matrix products with lanes along k: rows of `a` times columns of `b`, summed across lanes at the end.

For few columns, or a `b` that is stored by columns and used too little to be worth packing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np

from ...ir.loops import Expr, cast, const, reduce
from .context import KernelBuilder, Lowering
from .product import Product, multiply_add, offset_at, stacked, tree_sum, unravel, whole_and_rest
from .tasks import pieces, tasks


def prefers_dots(ctx: Lowering, p: Product) -> bool:
    lanes = ctx.lanes(p.acc)
    if p.a.col != 1 or p.k < 2 * lanes:
        return False
    by_columns = p.b.row == 1 and p.b.value.data is None
    return p.n <= lanes // 2 and (by_columns or p.b.value.data is not None) or by_columns and p.b.col != 1 and p.m <= 4


def multiply_by_dots(ctx: Lowering, p: Product, family: str) -> None:
    """Lanes along k: rows of `a` times columns of `b`, summed across lanes at the end."""
    if p.b.value.data is not None:
        p = _by_columns(ctx, p)
    many = ctx.target.registers >= 32
    rows = min(p.m, 8 if p.n == 1 else 4)
    cols = min(p.n, 8 if p.m == 1 else 4 if many else 2)
    row_tasks, col_tasks = -(-p.m // rows), -(-p.n // cols)
    k = ctx.kernel()
    for t in tasks(k, p.macs, prod(p.batch) * row_tasks * col_tasks):
        nb, rest = k.let(t % col_tasks, "nb"), k.let(t / col_tasks, "rest")
        mb = k.let(rest % row_tasks, "mb")
        batch = tuple(k.let(b, "batch") for b in unravel(rest / row_tasks, p.batch))
        for height, mine in whole_and_rest(k, mb, p.m, rows):
            for _ in mine:
                for width, also in whole_and_rest(k, nb, p.n, cols):
                    for _ in also:
                        _dot_tile(k, p, batch, mb * rows, nb * cols, height, width)
    k.done(family)


def _by_columns(ctx: Lowering, p: Product) -> Product:
    data = p.b.value.data
    assert data is not None
    used = [1 if s else 0 for s in p.b.batch]
    dims = (*(d if u else 1 for d, u in zip(p.batch, used, strict=True)), p.n, p.k)
    steps = tuple(s * data.itemsize for s in (*p.b.batch, p.b.col, p.b.row))
    columns = np.lib.stride_tricks.as_strided(np.ascontiguousarray(data), dims, steps)
    value = ctx.pack("columns", np.ascontiguousarray(columns).reshape(-1))
    return replace(p, b=replace(stacked(p, value, p.n * p.k, used), row=1, col=p.k))


def _dot_tile(k: KernelBuilder, p: Product, batch: tuple[Expr, ...], m: Expr, n: Expr, rows: int, cols: int) -> None:
    """rows × cols sums of products along k."""
    lanes, total = k.ctx.lanes(p.acc), rows * cols
    row = k.let(offset_at(p.a.batch, batch) + m * p.a.row, "row")
    column = k.let(offset_at(p.b.batch, batch) + n * p.b.col, "column")
    sets = max(1, min(8 // total, p.k // lanes))
    acc = k.registers("acc", p.acc, total * sets, lanes)
    for i in range(total * sets):
        k.store(acc, i, const(0, p.acc, lanes))

    def products(kk: Expr, width: int) -> Iterator[tuple[int, Expr, Expr]]:
        a, b = k.tensor(p.a.value), k.tensor(p.b.value)
        xs = [k.let(cast(k.load(a, row + kk + r * p.a.row, width), p.acc), "x") for r in range(rows)]
        for c in range(cols):
            w = k.let(cast(k.load(b, column + kk + c * p.b.col, width), p.acc), "w")
            yield from ((r * cols + c, xs[r], w) for r in range(rows))

    def accumulate(kk: Expr, at: int) -> None:
        for i, x, w in products(kk, lanes):
            k.store(acc, at + i, multiply_add(x, w, k.load(acc, at + i)))

    step = lanes * sets
    main, vectors = p.k // step * step, p.k // lanes * lanes
    for kk in k.loop("k", main, step=step):
        for s in range(sets):
            accumulate(kk + s * lanes, s * total)
    for kk in k.loop("k", vectors, main, step=lanes) if main < vectors else ():
        accumulate(kk, 0)
    sums = [
        k.let(reduce("add", tree_sum([k.load(acc, s * total + i) for s in range(sets)])), "sum") for i in range(total)
    ]
    for first, width in pieces(p.k - vectors):
        for i, x, w in products(const(vectors + first), width):
            sums[i] = k.let(sums[i] + reduce("add", x * w), "sum")
    for i, value in enumerate(sums):
        if p.start is not None:
            value = value + cast(k.load(k.tensor(p.start), n + i % cols), p.acc)
        p.finish(k, (*batch, m + i // cols, n + i % cols), 1, value)
