"""Products of few rows by work-groups: each makes some columns of one row, whose sums its threads share by depth.

The row is brought into shared memory piece by piece, so that a work-group reads it once and the matrix once; slices of
the depth keep as many threads busy as the matrix has no rows for (Sørensen, High-Performance Matrix-Vector
Multiplication on the GPU, Euro-Par 2011 workshops).
"""

from __future__ import annotations

from math import prod

import numpy as np

from ....ir.graph import Value
from ....ir.loops import Buffer, Expr, cast, const, minimum, select
from ..context import KernelBuilder, Lowering
from ..product import Matrix, Product, multiply_add, offset_at, unravel
from ..tasks import guarded

COLUMNS = 16
"""Of a work-group: neighbours, a line of memory."""
SLICES = 8
PIECE = COLUMNS * SLICES
"""Elements of the row in shared memory: one a thread."""


def multiply_rows(ctx: Lowering, p: Product, family: str) -> None:
    """Append the kernel of a product to the node's calls."""
    _Rows(ctx, p).write(family)


def _by_columns(ctx: Lowering, p: Product) -> Matrix:
    """The second factor, turned so that columns are neighbours where it is a constant matrix."""
    data = p.b.value.data
    if p.b.col == 1 or data is None or any(p.b.batch):
        return p.b
    flat = np.ascontiguousarray(data).reshape(-1)
    steps = (p.b.row * flat.itemsize, p.b.col * flat.itemsize)
    turned = np.lib.stride_tricks.as_strided(flat, (p.k, p.n), steps, writeable=False)
    return Matrix(ctx.pack("turned", np.ascontiguousarray(turned).reshape(-1)), p.b.batch, p.n, 1)


class _Rows:
    def __init__(self, ctx: Lowering, p: Product) -> None:
        self.p, self.k, self.b = p, ctx.kernel(), _by_columns(ctx, p)

    def write(self, family: str) -> None:
        k, p = self.k, self.p
        for z in k.loop("batch", prod(p.batch), kind="grid"):
            for row in k.loop("row", p.m, kind="grid"):
                for x in k.loop("columns", -(-p.n // COLUMNS), kind="grid"):
                    near = k.alloc("piece", p.acc, PIECE, "shared"), k.alloc("parts", p.acc, PIECE, "shared")
                    for s in k.loop("slice", SLICES, kind="thread"):
                        for t in k.loop("column", COLUMNS, kind="thread"):
                            self._thread((*unravel(z, p.batch), row), x * COLUMNS, (s, t), near)
        k.done(family)

    def _thread(
        self, at: tuple[Expr, ...], first: Expr, thread: tuple[Expr, Expr], near: tuple[Buffer, Buffer]
    ) -> None:
        k, p, (piece, parts) = self.k, self.p, near
        *batch, row = at
        s, t = thread
        number = k.let(s * COLUMNS + t, "number")
        column = k.let(first + t, "place")
        a = k.let(offset_at(p.a.batch, tuple(batch)) + row * p.a.row, "a_row")
        b = k.let(offset_at(self.b.batch, tuple(batch)) + minimum(column, p.n - 1) * self.b.col, "b_column")
        total = k.alloc("total", p.acc, 1, "register")
        k.store(total, 0, const(0, p.acc))
        for step in k.loop("step", -(-p.k // PIECE)):
            begin = k.let(step * PIECE, "begin")
            k.store(piece, number, self._inside(k, p.a.value, a, begin + number, p.a.col))
            k.barrier()
            for d in k.loop("d", COLUMNS):
                depth = k.let(d * SLICES + s, "depth")
                weight = self._inside(k, self.b.value, b, begin + depth, self.b.row)
                k.store(total, 0, multiply_add(k.load(piece, depth), weight, k.load(total, 0)))
            k.barrier()
        k.store(parts, number, k.load(total, 0))
        k.barrier()
        for _ in guarded(k, (s < 1) & (column < p.n), True):
            whole = k.alloc("whole", p.acc, 1, "register")
            k.store(whole, 0, const(0, p.acc) if p.start is None else cast(k.load(k.tensor(p.start), column), p.acc))
            for i in k.loop("i", SLICES):
                k.store(whole, 0, k.load(whole, 0) + k.load(parts, i * COLUMNS + t))
            p.finish(k, (*at, column), 1, k.let(k.load(whole, 0), "value"))

    def _inside(self, k: KernelBuilder, value: Value, base: Expr, depth: Expr, step: int) -> Expr:
        """An element of a factor, zero beyond the depth."""
        p, depth = self.p, k.let(depth, "at")
        loaded = cast(k.load(k.tensor(value), base + minimum(depth, p.k - 1) * step), p.acc)
        return loaded if not p.k % PIECE else select(depth < p.k, loaded, const(0, p.acc))
