"""Products of rows of bytes and a constant matrix, with exact 32-bit sums, by register tiles.

Rows come as products of the target take them: bytes as they are, in fours, or i16 without their zero point, in pairs;
they are copied where type or length do not fit. Weights are packed `[N / (V·lanes)][K / together][V·lanes][together]`.
Of bytes Σ (a - zero) w = Σ a w - zero Σ w, and the last term is where the sums begin.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np

from ...codegen.target import Target
from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, binary, broadcast, cast, const, minimum, shuffle
from ...ir.types import DType
from .books import stream_cycles
from .byte_books import ByteBook, CodedBytes, book_cycles, byte_book, byte_form
from .context import KernelBuilder, Lowering, Site
from .conv_kernel import unravel
from .grid.integer_rows import multiply_integer_rows
from .grid.levels import Levels, largest_of
from .integer_sums import Finish
from .micro import Rows as MicroRows
from .micro import multiply, packed, products_together, rows_of
from .packing import spans
from .schedule import DENSE, Schedule, choose
from .tasks import PARALLEL_MACS, guarded, pieces, tasks
from .tile import Tile, choose_tile, tiles

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
    if ctx.target.device is not None:
        return multiply_integer_rows(ctx, Levels(a, zero, largest_of(a, zero)), weights, finish)
    plan = _plan(ctx, prod(a.type.dims[:-1]), weights)
    form = _dense_form(ctx.target, weights) if plan is None else byte_form(ctx.target)
    together = products_together(ctx.target, form) if plan is None else plan[0].together
    rows = _rows(ctx, a, zero, form, together)
    factor: Factor
    if plan is None:
        factor = _Dense(ctx, rows, weights.astype(np.int16 if form is DType.I16 else np.int8))
    else:
        factor = CodedBytes(ctx, *plan, rows.length)
    _Writer(ctx, rows, weights, factor, finish).write()


def _plan(ctx: Lowering, rows: int, weights: np.ndarray) -> tuple[ByteBook, Tile] | None:
    """The book and tile of a product by indices, None where weights are better read byte by byte."""
    (length, columns), book = weights.shape, byte_book(weights)
    found = None if book is None else book_cycles(ctx.target, book, rows, length, columns)
    if book is None or found is None:
        return None
    tile, cycles = found
    problem = f"{rows}x{columns}x{length} bytes levels {book.entries.size} threads {ctx.threads}"
    candidates: list[Schedule[Tile | None]] = [
        Schedule(DENSE, dense_cycles(ctx.target, rows, weights), None),
        Schedule(f"book={book.entries.size} bytes tile={tile}", cycles, tile),
    ]
    chosen = choose(ctx, "book", problem, candidates)
    return None if chosen is None else (book, chosen)


def product_cycles(target: Target, rows: int, weights: np.ndarray) -> float:
    """Cycles that `multiply_rows` is expected to take by its best schedule."""
    book = byte_book(weights)
    found = None if book is None else book_cycles(target, book, rows, *weights.shape)
    dense = dense_cycles(target, rows, weights)
    return dense if found is None else min(dense, found[1])


def dense_cycles(target: Target, rows: int, weights: np.ndarray) -> float:
    """Cycles of a product whose weights are read byte by byte, or as i16."""
    length, columns = weights.shape
    form = _dense_form(target, weights)
    together, lanes = products_together(target, form), target.lanes(DType.I32)
    steps = -(-length // together)
    nbytes = steps * together * -(-columns // lanes) * lanes * (2 if form is DType.I16 else 1)
    computed = steps * tiles(target, DType.I32, rows, columns, depth=length)[0][1]
    return float(max(computed, stream_cycles(target, nbytes)))


def _dense_form(target: Target, weights: np.ndarray) -> DType:
    form = target.byte_levels
    fits = weights.min(initial=0) >= -128 and weights.max(initial=0) <= 127
    return form if form is not None and fits else DType.I16


def _rows(ctx: Lowering, a: Value, zero: Value | None, form: DType, together: int) -> Rows:
    """The rows in a type, of a length that is a multiple of `together`."""
    count, length = prod(a.type.dims[:-1]), a.type.dims[-1]
    whole = -(-length // together) * together
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


class Factor(Protocol):
    """A constant factor [K, N]: how it lies in memory, and the inner loop over it.

    tile: rows × vectors of sums. together: steps of k that cannot be parted. column: elements of panels a column.
    """

    @property
    def tile(self) -> Tile: ...
    @property
    def together(self) -> int: ...
    @property
    def column(self) -> int: ...

    def sets(self, size: int, needed: int) -> int:
        """How many copies of `size` sums are worked on, where `needed` sums hide the latency."""

    def multiply(
        self, k: KernelBuilder, x: MicroRows, at: Expr, tile: Tile, acc: Buffer, count: int, sets: int
    ) -> None:
        """acc[r·vectors + v] += Σ x[r, i] · w[i, v] for i below `count`, of a panel at `at`, in `sets` copies."""


class _Dense:
    """Weights element by element."""

    def __init__(self, ctx: Lowering, rows: Rows, weights: np.ndarray) -> None:
        self.n, self.lanes, self.column = weights.shape[1], ctx.lanes(DType.I32), rows.length
        self.together = products_together(ctx.target, rows.value.type.dtype)
        self.tile = choose_tile(ctx.target, DType.I32, rows.count, self.n, depth=rows.length)
        self.most, self.steps = ctx.target.registers // 2, rows.length // self.together
        self.weights = ctx.pack("weights", self._packed(weights))

    def _packed(self, weights: np.ndarray) -> np.ndarray:
        length, total = self.column, -(-self.n // self.lanes) * self.lanes
        whole = np.zeros((length, total), weights.dtype)
        whole[: len(weights), : self.n] = weights
        parts = []
        for first in range(0, total, self.tile.vectors * self.lanes):
            part = whole[:, first : first + self.tile.vectors * self.lanes]
            steps = part.reshape(length // self.together, self.together, part.shape[1])
            parts.append(steps.transpose(0, 2, 1).reshape(-1))
        return np.concatenate(parts)

    def sets(self, size: int, needed: int) -> int:
        return max(1, min(needed // size, self.steps, self.most // size))

    def multiply(
        self, k: KernelBuilder, x: MicroRows, at: Expr, tile: Tile, acc: Buffer, count: int, sets: int
    ) -> None:
        w = packed(k.tensor(self.weights), at, tile.vectors, self.lanes)
        multiply(k, x, w, count, acc, sets=sets, unroll=self.together * sets, together=self.together)


class _Writer:
    def __init__(self, ctx: Lowering, rows: Rows, weights: np.ndarray, factor: Factor, finish: Finish) -> None:
        self.ctx, self.rows, self.factor, self.finish, self.k = ctx, rows, factor, finish, ctx.kernel()
        self.n, self.lanes, self.tile = weights.shape[1], ctx.lanes(DType.I32), factor.tile
        self.vectors = -(-self.n // self.lanes)
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
        at = k.let(column * self.factor.column, "w")
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
        sets = 1 if tile.rows > 1 else self.factor.sets(size, IN_FLIGHT)
        acc = k.registers("acc", DType.I32, size * sets, lanes)
        for v in range(tile.vectors):
            first = self._first(column + v * lanes)
            for r in range(tile.rows):
                k.store(acc, r * tile.vectors + v, first)
        for i in range(size, size * sets):
            k.store(acc, i, const(0, DType.I32, lanes))
        x = rows_of(k.tensor(rows.value), k.let(m * rows.length, "x"), rows.length, tile.rows)
        self.factor.multiply(k, x, at, tile, acc, rows.length, sets)
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
