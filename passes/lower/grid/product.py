"""Products of strided matrices on a grid."""

from __future__ import annotations

from math import prod

from ....ir.loops import Expr, cast, const
from ..context import KernelBuilder, Lowering
from ..product import Matrix, Product, multiply_add, offset_at, unravel
from .memory_product import multiply_from_memory
from .tiles import Factor, GridProduct, multiply_on_grid

FEW_ROWS = 4
"""Results of fewer rows are made by a thread each: tiles would be mostly empty."""


def multiply_matrices(ctx: Lowering, p: Product, family: str) -> None:
    """Append the kernel of a product to the node's calls."""
    device = ctx.target.device
    assert device is not None
    if not device.shares:
        return multiply_from_memory(ctx, p, family)
    if p.m < FEW_ROWS:
        return _rows(ctx, p, family)

    def reader(matrix: Matrix, *, rows: bool) -> Factor:
        steps = (matrix.row, matrix.col) if rows else (matrix.col, matrix.row)

        def read(k: KernelBuilder, batch: Expr, depth: Expr, place: Expr) -> Expr:
            base = offset_at(matrix.batch, unravel(batch, p.batch))
            return k.load(k.tensor(matrix.value), base + place * steps[0] + depth * steps[1])

        return Factor(read, steps[1] == 1)

    def start(k: KernelBuilder, batch: Expr, row: Expr, column: Expr) -> Expr:
        assert p.start is not None
        return cast(k.load(k.tensor(p.start), column), p.acc)

    def finish(k: KernelBuilder, batch: Expr, row: Expr, column: Expr, value: Expr) -> None:
        p.finish(k, (*unravel(batch, p.batch), row, column), 1, value)

    a, b = reader(p.a, rows=True), reader(p.b, rows=False)
    multiply_on_grid(
        ctx, GridProduct(prod(p.batch), p.m, p.n, p.k, a, b, p.acc, start if p.start else None, finish), family
    )


def _rows(ctx: Lowering, p: Product, family: str) -> None:
    """A thread a result."""
    k = ctx.kernel()
    for t in k.loop("batch", prod(p.batch)):
        coords = unravel(t, p.batch)
        for row in k.loop("row", p.m):
            for column in k.loop("column", p.n):
                total = k.alloc("total", p.acc, 1, "register")
                k.store(
                    total, 0, const(0, p.acc) if p.start is None else cast(k.load(k.tensor(p.start), column), p.acc)
                )
                for d in k.loop("d", p.k):
                    a = k.load(k.tensor(p.a.value), offset_at(p.a.batch, coords) + row * p.a.row + d * p.a.col)
                    b = k.load(k.tensor(p.b.value), offset_at(p.b.batch, coords) + d * p.b.row + column * p.b.col)
                    k.store(total, 0, multiply_add(cast(a, p.acc), cast(b, p.acc), k.load(total, 0)))
                p.finish(k, (*coords, row, column), 1, k.load(total, 0))
    k.done(family)
