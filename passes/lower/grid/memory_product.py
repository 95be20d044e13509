"""Products of strided matrices straight from memory (`registers.py`): vectors lie along the result's columns.

A constant second factor is packed into panels as wide as a tile, one after another along the depth; another one whose
columns do not lie side by side is copied first.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from ....ir.loops import Expr, cast, minimum
from ....ir.types import DType
from ..context import KernelBuilder, Lowering
from ..product import Matrix, Product, offset_at, unravel
from ..schedule import Schedule, choose
from ..tasks import guarded
from .registers import IN_FLIGHT, Columns, RegisterTile, Sums, busy, register_tiles

STREAMS = 4
"""Parts of the depth that are read at a time."""
LONG = 64
"""Depth from which on they pay."""


def multiply_from_memory(ctx: Lowering, p: Product, family: str, exact: int | None = None) -> None:
    """Append the kernels of a product to the node's calls. exact: sums hold so many products exactly, and are added up
    in i32, which `p.finish` takes."""
    packs = p.b.value.data is not None
    if not packs and p.b.col != 1:
        p = replace(p, b=turned(ctx, p))
    tile = choose(ctx, "grid-product", _problem(p), _candidates(ctx, p, packs))
    b = _packed(ctx, p, tile) if packs else p.b
    _Kernel(ctx, p, tile, b, packs, exact).write(family)


def _problem(p: Product) -> str:
    batch = f"{prod(p.batch)} x " if prod(p.batch) > 1 else ""
    return f"{batch}{p.m}x{p.n}x{p.k} {p.acc}"


def _candidates(ctx: Lowering, p: Product, packs: bool) -> list[Schedule[RegisterTile]]:
    """Tiles by the steps that all of them take; a result is worth two of them, and a row starts a panel anew."""
    found: list[Schedule[RegisterTile]] = []
    for t in register_tiles(ctx.target, p.m, p.n, p.acc):
        if not packs and t.lanes > p.n:
            t = replace(t, lanes=1 << (p.n.bit_length() - 1))
        threads = prod(p.batch) * -(-p.m // t.rows) * -(-p.n // t.width)
        cost = threads * (p.k * t.step + 4 * t.rows * t.vectors) * busy(threads)
        found.append(Schedule(str(t), cost, t))
    return list({s.name: s for s in found}.values())


def turned(ctx: Lowering, p: Product) -> Matrix:
    """The second factor with its columns side by side, by a call."""
    batch = tuple(d if s else 1 for d, s in zip(p.batch, p.b.batch, strict=True))
    out = ctx.scratch("turned", p.b.value.type.dtype, prod(batch), p.k, p.n)
    k = ctx.kernel()
    for z in k.loop("batch", prod(batch)):
        base = offset_at(p.b.batch, unravel(z, batch))
        for d in k.loop("d", p.k):
            for n in k.loop("column", p.n):
                value = k.load(k.tensor(p.b.value), base + d * p.b.row + n * p.b.col)
                k.store(k.tensor(out), z * (p.k * p.n) + d * p.n + n, value)
    k.done("turned")
    return Matrix(out, _steps(p, p.k * p.n), p.n, 1)


def _steps(p: Product, size: int) -> tuple[int, ...]:
    """Strides over the batch of matrices that lie one after another, 0 where one serves many."""
    found, step = [], size
    for dim, own in zip(reversed(p.batch), reversed(p.b.batch), strict=True):
        found.append(step if own else 0)
        step *= dim if own else 1
    return tuple(reversed(found))


def _packed(ctx: Lowering, p: Product, tile: RegisterTile) -> Matrix:
    """The constant second factor as panels [n / width][k][width], zero beyond the last column; `row`: a panel's."""
    data = p.b.value.data
    assert data is not None
    flat = np.ascontiguousarray(data).reshape(-1)
    shape = (*(d if s else 1 for d, s in zip(p.batch, p.b.batch, strict=True)), p.k, p.n)
    steps = [s * flat.itemsize for s in (*p.b.batch, p.b.row, p.b.col)]
    view = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
    panels = -(-p.n // tile.width)
    packed = np.zeros((prod(shape[:-2]), p.k, panels * tile.width), flat.dtype)
    packed[:, :, : p.n] = view.reshape(-1, p.k, p.n)
    packed = packed.reshape(-1, p.k, panels, tile.width).transpose(0, 2, 1, 3)
    made = ctx.pack("panels", np.ascontiguousarray(packed).reshape(-1))
    return Matrix(made, _steps(p, panels * p.k * tile.width), tile.width, 1)


class _Kernel:
    """Writes one kernel: a thread a tile, threads along the rows first, which share a panel."""

    def __init__(
        self, ctx: Lowering, p: Product, tile: RegisterTile, b: Matrix, packed: bool, exact: int | None
    ) -> None:
        self.exact = exact
        self.p, self.tile, self.b, self.packed, self.k = p, tile, b, packed, ctx.kernel()
        self.columns = Columns(p.n, tile.lanes, packed)

    def write(self, family: str) -> None:
        k, p, tile = self.k, self.p, self.tile
        for z in k.loop("batch", prod(p.batch), kind="grid"):
            for x in k.loop("panel", -(-p.n // tile.width), kind="grid"):
                for y in k.loop("row_tile", -(-p.m // tile.rows), kind="grid"):
                    for _ in k.loop("thread", 1, kind="thread"):
                        self._thread(k, unravel(z, p.batch), y, x)
        k.done(family)

    def _thread(self, k: KernelBuilder, batch: tuple[Expr, ...], y: Expr, x: Expr) -> None:
        p, tile = self.p, self.tile
        first_row, first_column = k.let(y * tile.rows, "first_row"), k.let(x * tile.width, "first_column")
        base = offset_at(p.a.batch, batch)
        rows = [k.let(base + self._row(first_row + i) * p.a.row, "row") for i in range(tile.rows)]
        at = k.let(offset_at(self.b.batch, batch) + (x * (p.k * tile.width) if self.packed else 0), "panel")
        places = [k.let(at + self._place(first_column, j), "place") for j in range(tile.vectors)]
        sums = self._sums(k, rows, places)
        self._finish(k, sums, batch, first_row, first_column)

    def _sums(self, k: KernelBuilder, rows: list[Expr], places: list[Expr]) -> Sums:
        """The tile's sums; of one row by several parts of the depth at a time, since one stream of memory is slow."""
        p, tile, b = self.p, self.tile, self.b
        parts = min(STREAMS, IN_FLIGHT // tile.vectors) if tile.rows == 1 and p.k >= LONG else 1
        if self.exact is not None:
            parts = 1
        sums = [Sums(k, tile, p.acc, None if self.exact is None else DType.I32) for _ in range(parts)]
        left, right, each = k.tensor(p.a.value), k.tensor(b.value), p.k // parts

        def step(of: Sums, d: Expr) -> None:
            columns = [cast(k.load(right, place + d * b.row, tile.lanes), p.acc) for place in places]
            of.add((cast(k.load(left, row + d * p.a.col), p.acc) for row in rows), columns)

        for d in sums[0].pieces("d", each, self.exact or each):
            for part, of in enumerate(sums):
                step(of, d + part * each)
        for d in k.loop("d", p.k, each * parts) if p.k % parts else ():
            step(sums[0], d)
        for of in sums[1:]:
            sums[0].join(of)
        return sums[0]

    def _row(self, row: Expr) -> Expr:
        return row if not self.p.m % self.tile.rows else minimum(row, self.p.m - 1)

    def _place(self, first_column: Expr, j: int) -> Expr | int:
        lanes = self.tile.lanes
        return j * lanes if self.packed else self.columns.read_from(first_column + j * lanes, self.tile.vectors)

    def _finish(
        self, k: KernelBuilder, sums: Sums, batch: tuple[Expr, ...], first_row: Expr, first_column: Expr
    ) -> None:
        p, tile = self.p, self.tile
        for i, j, value in sums.results():
            row, column = k.let(first_row + i, "row"), k.let(first_column + j * tile.lanes, "column")

            def write(at: Expr, lanes: int, part: Expr, row: Expr = row) -> None:
                if p.start is not None:
                    part = part + cast(k.load(k.tensor(p.start), at, lanes), p.acc)
                p.finish(k, (*batch, row, at), lanes, part)

            for _ in guarded(k, row < p.m, p.m % tile.rows > 0):
                self.columns.store(k, column, tile.vectors, value, write)
