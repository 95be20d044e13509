"""Products of few rows by work-groups: each makes some columns of one row, whose sums its threads share by depth.

The row is brought into shared memory piece by piece, so that a work-group reads it once and the matrix once; slices of
the depth keep as many threads busy as the matrix has no rows for (Sørensen, High-Performance Matrix-Vector
Multiplication on the GPU, Euro-Par 2011 workshops).
"""

from __future__ import annotations

from ....ir.loops import Buffer, Expr, cast, const, minimum, select
from ....ir.types import DType
from ..context import Lowering
from ..tasks import guarded
from .tiles import GridProduct, Read

FEW = 4
"""Rows, or columns that take their place: tiles would be mostly empty with fewer."""
COLUMNS = 16
"""Of a work-group: neighbours, a line of memory."""
SLICES = 8
PIECE = COLUMNS * SLICES
"""Elements of the row in shared memory: one a thread."""


def multiply_rows(ctx: Lowering, p: GridProduct, family: str) -> None:
    """Append the kernel of a product to the node's calls."""
    _Rows(ctx, p).write(family)


class _Rows:
    def __init__(self, ctx: Lowering, p: GridProduct) -> None:
        self.p, self.k = p, ctx.kernel()
        self.sum = p.acc if p.exact is None else p.total

    def write(self, family: str) -> None:
        k, p = self.k, self.p
        for z in k.loop("batch", p.batch, kind="grid"):
            for row in k.loop("row", p.m, kind="grid"):
                for x in k.loop("columns", -(-p.n // COLUMNS), kind="grid"):
                    near = k.alloc("piece", p.near, PIECE, "shared"), k.alloc("parts", self.sum, PIECE, "shared")
                    for s in k.loop("slice", SLICES, kind="thread"):
                        for t in k.loop("column", COLUMNS, kind="thread"):
                            self._thread((z, row), x * COLUMNS, (s, t), near)
        k.done(family)

    def _thread(
        self, at: tuple[Expr, Expr], first: Expr, thread: tuple[Expr, Expr], near: tuple[Buffer, Buffer]
    ) -> None:
        k, p, (piece, parts) = self.k, self.p, near
        (batch, row), (s, t) = at, thread
        number = k.let(s * COLUMNS + t, "number")
        column = k.let(first + t, "place")
        inside = k.let(minimum(column, p.n - 1), "inside")
        total = self._zero("total", p.acc)
        settled = total if p.exact is None else self._zero("settled", self.sum)
        for step in k.loop("step", -(-p.depth // PIECE)):
            begin = k.let(step * PIECE, "begin")
            k.store(piece, number, self._inside(p.a.read, batch, begin + number, row))
            k.barrier()
            for d in k.loop("d", COLUMNS):
                depth = k.let(d * SLICES + s, "depth")
                weight = self._inside(p.b.read, batch, begin + depth, inside)
                k.store(total, 0, p.multiply(k.load(piece, depth), weight, k.load(total, 0)))
            if p.exact is not None:
                k.store(settled, 0, k.load(settled, 0) + cast(k.load(total, 0), self.sum))
                k.store(total, 0, const(0, p.acc))
            k.barrier()
        k.store(parts, number, k.load(settled, 0))
        k.barrier()
        for _ in guarded(k, (s < 1) & (column < p.n), True):
            whole = k.alloc("whole", self.sum, 1, "register")
            k.store(whole, 0, const(0, self.sum) if p.start is None else p.start(k, batch, row, column))
            for i in k.loop("i", SLICES):
                k.store(whole, 0, k.load(whole, 0) + k.load(parts, i * COLUMNS + t))
            p.finish(k, batch, row, column, k.let(k.load(whole, 0), "value"))

    def _zero(self, name: str, dtype: DType) -> Buffer:
        made = self.k.alloc(name, dtype, 1, "register")
        self.k.store(made, 0, const(0, dtype))
        return made

    def _inside(self, read: Read, batch: Expr, depth: Expr, place: Expr) -> Expr:
        """An element of a factor, zero beyond the depth."""
        k, p, depth = self.k, self.p, self.k.let(depth, "at")
        loaded = cast(read(k, batch, minimum(depth, p.depth - 1), place), p.near)
        return loaded if not p.depth % PIECE else select(depth < p.depth, loaded, const(0, p.near))
