"""Products of strided matrices on a grid."""

from __future__ import annotations

from math import prod

from ....ir.loops import Expr, cast
from ..context import KernelBuilder, Lowering
from ..product import Matrix, Product, offset_at, unravel
from .memory_product import multiply_from_memory
from .rows import multiply_rows
from .tiles import Factor, GridProduct, multiply_on_grid

FEW_ROWS = 4
"""Products of fewer rows: tiles would be mostly empty."""


def multiply_matrices(ctx: Lowering, p: Product, family: str) -> None:
    """Append the kernel of a product to the node's calls."""
    device = ctx.target.device
    assert device is not None
    if not device.shares:
        return multiply_from_memory(ctx, p, family)
    if p.m < FEW_ROWS:
        return multiply_rows(ctx, p, family)

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
