"""Matrix products whose constant factor has few levels: words of indices are read, weights made of them in registers.

The form is that of `gemm_kernel`: tiles of rows × vectors accumulators over panels, here of words; each word gives one
vector of weights for every index in it, by a shift and a lookup in the book. Products are those of the dense matrix, in
float32. With few rows the bytes of the weights take the time, and indices are 4 to 16 times fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from ...codegen.target import Target
from ...ir.loops import Buffer, Expr, binary, bitcast, broadcast, const, lookup
from ...ir.types import DType
from .book_panels import MEMORY_WORTH, expanding_cycles, fits
from .books import WORD, Book, book_of, expand_cycles, stream_cycles
from .context import Lowering
from .gemm_kernel import tiles
from .micro import prefetches
from .panels import pack_panels
from .product import Product, begin_sums, finish_lanes, multiply_add, offset_at, tree_sum, unravel, whole_and_rest
from .schedule import DENSE, Schedule, choose
from .tasks import tasks
from .tile import LATENCY, Tile

MAX_VECTORS = 8
MIN_ROWS = 4
"""Rows from which on panels may win."""
WORD_BYTES = WORD // 8
AHEAD_BYTES = 8 << 10
"""How far before it is read a word is asked for, where that pays: half the time from memory, nothing lost when near."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A book product: its book, and the tile of rows × vectors of columns whose factors are looked up in registers;
    None where whole panels are expanded for many rows."""

    book: Book
    tile: Tile | None

    def __str__(self) -> str:
        return f"book={self.book.entries.size} {'panels' if self.tile is None else f'tile={self.tile}'}"


def book_plan(ctx: Lowering, p: Product) -> Plan | None:
    """How to compute a product by its book, None where dense weights are thought to be faster."""
    book = book_of(p.b.value.data) if p.acc is DType.F32 and not any(p.b.batch) else None
    if book is None or p.a.value.type.dtype is not DType.F32 or p.macs == 0:
        return None
    batch, plans = prod(p.batch), _plans(ctx.target, book, p.m, p.n, p.k, MEMORY_WORTH if ctx.for_memory else 1.0)
    if not plans:
        return None
    dense = batch * _dense_cycles(ctx.target, p.m, p.n, p.k)
    candidates: list[Schedule[Plan | None]] = [Schedule(DENSE, dense, None)]
    candidates += [Schedule(str(plan), batch * cycles, plan) for plan, cycles in plans]
    problem = f"{batch} of {p.m}x{p.n}x{p.k} {p.acc} levels {book.entries.size} threads {ctx.threads}"
    return choose(ctx, "book", problem, candidates)


def matrix_cycles(target: Target, matrix: np.ndarray, rows: int) -> float:
    """Cycles that a product of rows and a float32 matrix [K, N] is expected to take, by its book or without."""
    (length, columns), book = matrix.shape, book_of(matrix)
    dense = _dense_cycles(target, rows, columns, length)
    plans = [] if book is None else _plans(target, book, rows, columns, length)
    return min([dense, *(cycles for _, cycles in plans)])


def _plans(target: Target, book: Book, m: int, n: int, k: int, worth: float = 1.0) -> list[tuple[Plan, float]]:
    """Plans with their cycles times `worth`: by lookups at every use and, of several rows, by panels."""
    cost = expand_cycles(target, book.entries.size)
    if cost is None:
        return []
    vectors = -(-n // target.lanes())
    tile, streamed = _tile(target, m, vectors), stream_cycles(target, book.field * k * vectors * target.lanes() // 8)
    expanding = k * vectors * (-(-m // tile.rows) * cost + m / target.fma_per_cycle)
    found = [(Plan(book, tile), worth * max(expanding, streamed))]
    best = min(tiles(target, DType.F32, m, n, k), key=lambda s: s.cycles)
    storing = expanding_cycles(target, book.entries.size, k * vectors)
    if storing is not None and m >= MIN_ROWS and fits(target, best.plan.vectors, k):
        found.append((Plan(book, None), worth * (best.cycles + max(storing, streamed))))
    return found


def _dense_cycles(target: Target, m: int, n: int, k: int) -> float:
    """The first tile of rows waits for the weights, those after it find them near."""
    best = min(tiles(target, DType.F32, m, n, k), key=lambda s: s.cycles)
    first = best.cycles * min(1.0, best.plan.rows / m)
    streamed = stream_cycles(target, DType.F32.nbytes * k * -(-n // target.lanes()) * target.lanes())
    return max(first, streamed) + best.cycles - first


def _tile(target: Target, m: int, vectors: int) -> Tile:
    """Rows × vectors whose accumulators, words, factors and book fit the registers."""
    spare = 4 if target.registers >= 32 else 5
    fits = [
        Tile(r, v)
        for r in range(1, min(m, 8) + 1)
        for v in range(1, min(vectors, MAX_VECTORS) + 1)
        if r * v + v + r + spare <= target.registers
    ]
    return min(fits, key=lambda t: (-(-m // t.rows), -t.rows * t.vectors))


def multiply_by_book(ctx: Lowering, p: Product, book: Book, tile: Tile, family: str) -> None:
    """Append the kernel of a product (see `book_plan`)."""
    _Writer(ctx, p, book, tile).write(family)


class _Writer:
    def __init__(self, ctx: Lowering, p: Product, book: Book, tile: Tile) -> None:
        self.ctx, self.p, self.k = ctx, p, ctx.kernel()
        self.lanes, self.tile, self.book = ctx.lanes(), tile, book
        self.width = tile.vectors * self.lanes
        self.depth = -(-p.k // self.book.in_word)
        self.words = ctx.pack("words", self._words())
        self.entries = ctx.pack("book", self.book.entries)

    def _words(self) -> np.ndarray:
        p, data = self.p, self.p.b.value.data
        assert data is not None
        indices = np.lib.stride_tricks.as_strided(self.book.indices, (p.k, p.n), (p.b.row, p.b.col))
        words = pack_panels(self.book.words(indices), self.width, self.lanes).astype("<u4")
        return np.append(words, np.uint32(0)).view(np.uint8)

    def write(self, family: str) -> None:
        k, p = self.k, self.p
        panels, rows = -(-p.n // self.width), -(-p.m // self.tile.rows)
        for t in tasks(k, p.macs, prod(p.batch) * panels):
            panel = k.let(t % panels, "panel")
            batch = tuple(k.let(b, "batch") for b in unravel(t / panels, p.batch))
            source = k.let(offset_at(p.a.batch, batch), "a")
            table = k.let(k.load(k.tensor(self.entries, "book"), 0, self.book.entries.size), "table")
            for columns, mine in whole_and_rest(k, panel, p.n, self.width):
                for _ in mine:
                    at = k.let(panel * (self.depth * self.width * WORD_BYTES), "words")
                    for i in k.loop("i", rows):
                        self._rows(table, at, source, batch, i, panel * self.width, columns)
        k.done(family)

    def _rows(
        self, table: Expr, words: Expr, source: Expr, batch: tuple[Expr, ...], i: Expr, column: Expr, columns: int
    ) -> None:
        """A tile of rows over a panel."""
        k, p = self.k, self.p
        for rows, mine in whole_and_rest(k, i, p.m, self.tile.rows):
            for _ in mine:
                m = k.let(i * self.tile.rows, "m")
                row = k.let(source + m * p.a.row, "row")
                sums = _Sums(self, table, words, row, rows, -(-columns // self.lanes))
                sums.begin(column)
                sums.add()
                for r in range(rows):
                    for v in range(sums.vectors):
                        valid = min(self.lanes, columns - v * self.lanes)
                        finish_lanes(k, p, (*batch, m + r, column + v * self.lanes), valid, sums.total(r, v))


class _Sums:
    """rows × vectors accumulators, in as many sets as hide the latency of a multiply-add."""

    def __init__(self, writer: _Writer, table: Expr, words: Expr, row: Expr, rows: int, vectors: int) -> None:
        self.writer, self.k, self.p = writer, writer.k, writer.p
        self.table, self.words, self.row, self.rows, self.vectors = table, words, row, rows, vectors
        needed = LATENCY * writer.ctx.target.fma_per_cycle
        self.sets = max(1, min(needed // (rows * vectors), writer.book.in_word))
        self.acc: Buffer = self.k.registers("acc", self.p.acc, rows * vectors * self.sets, writer.lanes)

    def begin(self, column: Expr) -> None:
        lanes = self.writer.lanes
        for s in range(self.sets):
            for i in range(self.rows * self.vectors):
                first = begin_sums(self.k, self.p, column + i % self.vectors * lanes, lanes)
                self.k.store(self.acc, s * self.rows * self.vectors + i, const(0, self.p.acc, lanes) if s else first)

    def add(self) -> None:
        """All products along k."""
        k, fields = self.k, self.writer.book.in_word
        whole, rest = divmod(self.p.k, fields)
        for w in k.loop("w", whole) if whole else ():
            self._word(w, fields)
        if rest:
            self._word(const(whole), rest)

    def _word(self, w: Expr, count: int) -> None:
        """The products of the first `count` indices of words w of all vectors."""
        k, p, writer = self.k, self.p, self.writer
        lanes, fields, field = writer.lanes, writer.book.in_word, writer.book.field
        buffer, a = k.tensor(writer.words, "words"), k.tensor(p.a.value, "a")
        start = k.let(self.words + w * (self.vectors * lanes * WORD_BYTES), "at")
        for v in range(self.vectors) if prefetches(writer.ctx.target) else ():
            k.prefetch(buffer, start + (v * lanes * WORD_BYTES + AHEAD_BYTES))
        shifted: list[Expr] = []
        for j in range(count):
            byte, shift = divmod(j * field, 8)
            if not shift:
                shifted = [self._indices(buffer, start, v, byte) for v in range(self.vectors)]
            at = [self.row + r * p.a.row + (w * fields + j) * p.a.col for r in range(self.rows)]
            factors = [k.let(broadcast(k.load(a, i), lanes), "x") for i in at]
            for v, word in enumerate(shifted):
                weight = k.let(lookup(self.table, binary("shr", word, shift) if shift else word), "weight")
                for r, x in enumerate(factors):
                    i = (j % self.sets * self.rows + r) * self.vectors + v
                    k.store(self.acc, i, multiply_add(x, weight, k.load(self.acc, i)))

    def _indices(self, buffer: Buffer, start: Expr, vector: int, byte: int) -> Expr:
        """Words from a byte of them on, whose lowest bits are an index: a load takes the place of a shift."""
        lanes = self.writer.lanes * WORD_BYTES
        return self.k.let(bitcast(self.k.load(buffer, start + (vector * lanes + byte), lanes), DType.U32), "word")

    def total(self, r: int, v: int) -> Expr:
        step = self.rows * self.vectors
        return tree_sum([self.k.load(self.acc, s * step + r * self.vectors + v) for s in range(self.sets)])
