"""Products of rows of bytes and a constant matrix, with exact 32-bit sums, by register tiles.

Rows come as products of the target take them: bytes as they are, in fours, or i16 without their zero point, in pairs;
they are copied where type or length do not fit. Weights are packed `[N / (V·lanes)][K / together][V·lanes][together]`.
Of bytes Σ (a - zero) w = Σ a w - zero Σ w, and the last term is where the sums begin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Expr, binary, broadcast, cast, const, minimum, shuffle
from ...ir.types import DType
from .context import KernelBuilder, Lowering, Site
from .conv_kernel import unravel
from .micro import multiply, packed, products_together, rows_of
from .packing import spans
from .tasks import PARALLEL_MACS, guarded, pieces, tasks
from .tile import Tile, choose_tile

Finish: TypeAlias = Callable[[KernelBuilder, Site, Expr], None]
"""Stores a vector of 32-bit sums at its site."""

ROWS = 64
"""Rows of a task at least where there is more than one."""

IN_FLIGHT = 10
"""Sums that have to be worked on at once to hide the latency of a product."""


@dataclass(frozen=True, slots=True)
class Rows:
    """`count` rows of `length` elements, a whole number of products that are added together; `zero`: what is still to
    be taken from each, and `shift` beside it."""

    value: Value
    count: int
    length: int
    zero: Value | None
    shift: int


def multiply_rows(ctx: Lowering, a: Value, zero: Value | None, weights: np.ndarray, finish: Finish) -> None:
    """Append the kernels of (a - zero) · weights: a [..., K], zero a scalar, weights [K, N] without zero points."""
    form = ctx.target.byte_levels
    if form is None or weights.min(initial=0) < -128 or weights.max(initial=0) > 127:
        form = DType.I16
    rows = _rows(ctx, a, zero, form)
    _Writer(ctx, rows, weights.astype(np.int16 if form is DType.I16 else np.int8), finish).write()


def _rows(ctx: Lowering, a: Value, zero: Value | None, form: DType) -> Rows:
    """The rows in a type."""
    count, length = prod(a.type.dims[:-1]), a.type.dims[-1]
    whole = -(-length // products_together(ctx.target, form)) * products_together(ctx.target, form)
    if a.type.dtype is form and length == whole:
        return Rows(a, count, length, zero, 0)
    out = ctx.scratch("rows", form, count * whole)
    lanes = min(64, ctx.lanes(form))
    k = ctx.kernel()
    for t in tasks(k, count * length * 16, count):
        if form is DType.I16 and zero is not None:
            offset = k.let(cast(k.load(k.tensor(zero), 0), DType.I16), "zero")
        for i, width in spans(k, length, lanes):
            value = k.load(k.tensor(a), t * length + i, width)
            if form is DType.I16:
                value = cast(value, DType.I16)
                value = value if zero is None else value - broadcast(offset, width)
            elif a.type.dtype is not form:
                value = binary("xor", cast(value, form), const(128 if form is DType.U8 else -128, form, width))
            k.store(k.tensor(out), t * whole + i, value)
        for rest in range(length, whole):
            k.store(k.tensor(out), t * whole + rest, const(0, form))
    k.done("integer_rows")
    if form is DType.I16:
        return Rows(out, count, whole, None, 0)
    shift = 0 if a.type.dtype is form else 128 if form is DType.U8 else -128
    return Rows(out, count, whole, zero, shift)


class _Writer:
    def __init__(self, ctx: Lowering, rows: Rows, weights: np.ndarray, finish: Finish) -> None:
        self.ctx, self.rows, self.finish, self.k = ctx, rows, finish, ctx.kernel()
        self.n, self.lanes = weights.shape[1], ctx.lanes(DType.I32)
        self.together = products_together(ctx.target, rows.value.type.dtype)
        self.vectors = -(-self.n // self.lanes)
        self.tile = choose_tile(ctx.target, DType.I32, rows.count, self.n, depth=rows.length)
        self.weights = ctx.pack("weights", self._packed(weights))
        taken = weights.astype(np.int64).sum(0)
        fixed = rows.zero is None or rows.zero.data is not None
        if fixed:
            zero = rows.shift + (
                0 if rows.zero is None or rows.zero.data is None else int(rows.zero.data.reshape(-1)[0])
            )
            taken = -zero * taken
        self.fixed, self.sums = fixed, None
        if np.any(taken):
            padded = np.zeros(self.vectors * self.lanes, np.int64)
            padded[: self.n] = taken
            self.sums = ctx.pack("sums", padded.astype(np.uint32).view(np.int32))

    def _packed(self, weights: np.ndarray) -> np.ndarray:
        length, total = self.rows.length, self.vectors * self.lanes
        whole = np.zeros((length, total), weights.dtype)
        whole[: len(weights), : self.n] = weights
        parts = []
        for first in range(0, total, self.tile.vectors * self.lanes):
            part = whole[:, first : first + self.tile.vectors * self.lanes]
            steps = part.reshape(length // self.together, self.together, part.shape[1])
            parts.append(steps.transpose(0, 2, 1).reshape(-1))
        return np.concatenate(parts)

    def write(self) -> None:
        k, rows, tile = self.k, self.rows, self.tile
        panels, rest = divmod(self.vectors, tile.vectors)
        macs = rows.count * rows.length * self.n
        spread = self.ctx.threads > 1 and macs >= PARALLEL_MACS
        step = -(-min(rows.count, max(ROWS, tile.rows)) // tile.rows) * tile.rows if spread else rows.count
        count = panels + (rest > 0)
        for t in tasks(k, macs, -(-rows.count // step) * count):
            block, panel = unravel(k, t, (-(-rows.count // step), count))
            for vectors, cond in ((tile.vectors, panel < panels), (rest, panel >= panels)):
                if vectors and (vectors == rest or panels):
                    for _ in guarded(k, cond, bool(rest and panels)):
                        self._panel(block * step, step, panel, vectors)
        k.done("integer_product")

    def _panel(self, begin: Expr, step: int, panel: Expr, vectors: int) -> None:
        """Rows from `begin` on times one panel."""
        k, rows, tile = self.k, self.rows, self.tile
        end = k.let(minimum(begin + step, rows.count) if rows.count % step else begin + step, "end")
        column = k.let(panel * (tile.vectors * self.lanes), "n")
        at = k.let(column * rows.length, "w")
        whole = rows.count // tile.rows
        last = k.let(minimum(end / tile.rows, whole), "last")
        if whole:
            for i in k.loop("i", last, begin / tile.rows):
                self._tile(k.let(i * tile.rows, "m"), column, at, Tile(tile.rows, vectors))
        if left := rows.count % tile.rows:
            for _ in guarded(k, end >= rows.count, step < rows.count):
                self._tile(const(whole * tile.rows), column, at, Tile(left, vectors))

    def _tile(self, m: Expr, column: Expr, at: Expr, tile: Tile) -> None:
        k, rows, lanes, size = self.k, self.rows, self.lanes, tile.rows * tile.vectors
        steps = rows.length // self.together
        sets = 1 if tile.rows > 1 else max(1, min(IN_FLIGHT // size, steps, self.ctx.target.registers // 2 // size))
        acc = k.registers("acc", DType.I32, size * sets, lanes)
        for v in range(tile.vectors):
            first = self._first(column + v * lanes)
            for r in range(tile.rows):
                k.store(acc, r * tile.vectors + v, first)
        for i in range(size, size * sets):
            k.store(acc, i, const(0, DType.I32, lanes))
        x = rows_of(k.tensor(rows.value), k.let(m * rows.length, "x"), rows.length, tile.rows)
        w = packed(k.tensor(self.weights), at, tile.vectors, lanes)
        unroll = self.together * sets
        multiply(k, x, w, rows.length, acc, sets=sets, unroll=unroll, together=self.together)
        for r in range(tile.rows):
            for v in range(tile.vectors):
                value = k.load(acc, r * tile.vectors + v)
                for s in range(1, sets):
                    value = value + k.load(acc, s * size + r * tile.vectors + v)
                self._finish(m + r, column + v * lanes, v, tile.vectors, value)

    def _first(self, column: Expr) -> Expr:
        """Where the sums of a vector of columns begin."""
        k, lanes = self.k, self.lanes
        if self.sums is None:
            return const(0, DType.I32, lanes)
        sums = k.load(k.tensor(self.sums), column, lanes)
        if self.fixed:
            return k.let(sums, "first")
        assert self.rows.zero is not None
        zero = cast(k.load(k.tensor(self.rows.zero), 0), DType.I32) + self.rows.shift
        return k.let(const(0, DType.I32, lanes) - broadcast(zero, lanes) * sums, "first")

    def _finish(self, row: Expr, column: Expr, vector: int, vectors: int, value: Expr) -> None:
        """Store the columns that there are: only the last vector of all may be ragged."""
        k, lanes, ragged = self.k, self.lanes, self.n % self.lanes
        coords = unravel(k, k.let(row, "row"), self.ctx.node.output.type.dims[:-1]) if self.rows.count > 1 else []
        coords = coords or [const(0)] * (self.ctx.node.output.type.rank - 1)
        value = k.let(value, "y")
        maybe = ragged > 0 and vector == vectors - 1
        whole = column <= self.n - lanes
        if self.n >= lanes or not maybe:
            for _ in guarded(k, whole, maybe):
                self.finish(k, Site((*coords, column), -1, lanes), value)
        if maybe:
            for _ in guarded(k, column > self.n - lanes, self.n >= lanes):
                for first, width in pieces(ragged):
                    part = shuffle(value, None, tuple(range(first, first + width)))
                    self.finish(k, Site((*coords, const(self.n - ragged + first)), -1, width), part)
