"""Products of strided matrices on a grid."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from ....ir.loops import Expr, cast
from ..context import KernelBuilder, Lowering
from ..product import Matrix, Product, offset_at, unravel
from .halves import in_halves
from .memory_product import multiply_from_memory
from .multiply import multiply_on_grid
from .rows import FEW, multiply_rows
from .tiles import Factor, GridProduct


def multiply_matrices(ctx: Lowering, p: Product, family: str) -> None:
    """Append the kernel of a product to the node's calls."""
    device = ctx.target.device
    assert device is not None
    if not device.shares:
        return multiply_from_memory(ctx, p, family)
    few = p.m < FEW
    if few:
        p = replace(p, b=_by_columns(ctx, p))

    product = on_grid(p)
    product = in_halves(ctx, product, p.a.value.type.dtype, p.b.value.type.dtype)
    (multiply_rows if few else multiply_on_grid)(ctx, product, family)


def on_grid(p: Product) -> GridProduct:
    """The product with its batch as one dimension, elements of its factors by depth and row or column."""

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
    return GridProduct(prod(p.batch), p.m, p.n, p.k, a, b, p.acc, start if p.start else None, finish)


def _by_columns(ctx: Lowering, p: Product) -> Matrix:
    """The second factor, turned so that columns are neighbours where it is a constant matrix."""
    data = p.b.value.data
    if p.b.col == 1 or data is None or any(p.b.batch):
        return p.b
    flat = np.ascontiguousarray(data).reshape(-1)
    steps = (p.b.row * flat.itemsize, p.b.col * flat.itemsize)
    turned = np.lib.stride_tricks.as_strided(flat, (p.k, p.n), steps, writeable=False)
    return Matrix(ctx.pack("turned", np.ascontiguousarray(turned).reshape(-1)), p.b.batch, p.n, 1)
