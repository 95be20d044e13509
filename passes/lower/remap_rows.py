"""Rows of a remapped image: each row of the source is found in a table, its pixels are written in a few pieces.

A piece is a run of neighbouring pixels, forwards, backwards or each repeated, that loads and stores as vectors; what is
no such run goes through a table of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ...ir.loops import Expr, const, maximum, minimum, shuffle
from ...ir.types import DType
from .context import INDEX, Lowering, strides
from .conv_kernel import ConvKernel
from .copies import copy_row, store_row, vectors
from .micro import LINE_BYTES
from .remap import OUTSIDE, Remap
from .tasks import guarded

MAX_PIECES = 8
"""Pieces of a row that get code of their own."""

MAX_REPEATED = 8
"""How often one pixel is repeated by shuffles of a vector of plain pixels."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions from `start` on: `pixels` source pixels from `first` on, `step` (1 or -1) apart, each `times` times.

    table: their number in a table of columns instead. first OUTSIDE: filled.
    """

    start: int
    first: int
    pixels: int
    step: int = 1
    times: int = 1
    table: bool = False

    @property
    def size(self) -> int:
        return self.pixels * self.times


def row_pieces(columns: Sequence[int]) -> list[Piece]:
    """The source columns of a row as pieces; one table in place of too many."""
    found: list[Piece] = []
    at = 0
    for column, group in groupby(columns):
        times = len(list(group))
        last = found[-1] if found else None
        step = column - (last.first + (last.pixels - 1) * last.step) if last else 0
        if last is None or OUTSIDE in (column, last.first) or not _goes_on(last, step, times):
            found.append(Piece(at, column, 1, 1, times))
        else:
            found[-1] = Piece(last.start, last.first, last.pixels + 1, step, times)
        at += times
    inside = [p for p in found if p.first != OUTSIDE]
    if len(inside) <= MAX_PIECES:
        return found
    begin, end = inside[0].start, inside[-1].start + inside[-1].size
    if OUTSIDE in columns[begin:end]:
        return found
    filled = [p for p in found if p.first == OUTSIDE]
    return sorted([*filled, Piece(begin, 0, end - begin, table=True)], key=lambda p: p.start)


def _goes_on(piece: Piece, step: int, times: int) -> bool:
    return times == piece.times and abs(step) == 1 and (piece.pixels == 1 or step == piece.step)


class RemapWriter:
    """Writes rows of a remapped image as a part of the kernel `k`; both images lie in one layout."""

    def __init__(self, ctx: Lowering, remap: Remap, k: ConvKernel) -> None:
        self.ctx, self.remap, self.k = ctx, remap, k
        self.block = remap.x.type.layout.block or 1
        self.x = k.tensor(remap.x, "x")
        self.y = k.tensor(ctx.output, "y")
        self.pieces = row_pieces(remap.columns)
        self.row_table = k.tensor(ctx.pack("rows", np.array(remap.rows, np.int64)), "rows")
        columns = ctx.pack("columns", np.array(remap.columns, np.int64))
        self.column_table = k.tensor(columns, "columns") if any(p.table for p in self.pieces) else None

    def write_rows(self, n: Expr, begin: Expr, end: Expr) -> None:
        """Rows [begin, end) of the result of image `n`."""
        k, type_ = self.k, self.remap.x.type
        steps = strides(type_)
        for plane in k.loop("plane", type_.physical[1]):
            source = k.let(n * steps[0] + plane * steps[1], "x")
            for h in k.loop("row", end, begin):
                k.enter_row(self.ctx.output, h)
                to = k.let(k.place(self.ctx.output, (n, plane * self.block, h, INDEX)), "to")
                row = k.let(k.load(self.row_table, h), "row")
                is_filled = OUTSIDE in self.remap.rows
                for _ in guarded(k, row >= 0, is_filled):
                    self._row(k.let(source + row * steps[2], "from"), to)
                for _ in k.otherwise() if is_filled else ():
                    self._fill(to, len(self.remap.columns))

    def _row(self, source: Expr, to: Expr) -> None:
        for piece in self.pieces:
            at = to + piece.start * self.block
            if piece.first == OUTSIDE:
                self._fill(at, piece.size)
            elif piece.table:
                self._gathered(piece, source, at)
            elif self.block > 1:
                self._pixels(piece, source, at)
            elif piece.times == 1:
                copy_row(self.k, (self.y, at, 1), (self.x, source + piece.first, piece.step), piece.pixels)
            elif piece.step == 1 and piece.pixels > 1 and piece.times <= MAX_REPEATED:
                self._repeated(piece, source + piece.first, at)
            else:
                self._elements(piece, source, at)

    def _fill(self, at: Expr, positions: int) -> None:
        store_row(self.k, self.y, at, positions * self.block, 1, const(self.remap.fill, DType.F32))

    def _pixels(self, piece: Piece, source: Expr, to: Expr) -> None:
        """Blocked pixels, each a vector or a few."""
        k, b = self.k, self.block
        if piece.times == 1 and piece.step == 1:
            copy_row(k, (self.y, to, 1), (self.x, source + piece.first * b, 1), piece.pixels * b)
            return
        for i in k.loop("i", piece.pixels):
            column = i * piece.step + piece.first
            value = k.let(k.load(self.x, source + column * b, b), "p")
            for j in k.loop("j", piece.times) if piece.times > MAX_REPEATED else map(const, range(piece.times)):
                k.store(self.y, to + (i * piece.times + j) * b, value)

    def _repeated(self, piece: Piece, source: Expr, to: Expr) -> None:
        """Neighbouring elements, each a few times: a load, and a shuffle and a store for each vector of results."""
        k, times = self.k, piece.times
        for i, lanes in vectors(k, piece.pixels, self.ctx.lanes()):
            loaded = k.let(k.load(self.x, source + i, lanes), "p")
            for part in range(times):
                order = tuple((part * lanes + lane) // times for lane in range(lanes))
                k.store(self.y, to + i * times + part * lanes, shuffle(loaded, None, order))

    def _elements(self, piece: Piece, source: Expr, to: Expr) -> None:
        """Elements that no vector holds, one by one."""
        k = self.k
        for i in k.loop("i", piece.pixels):
            value = k.let(k.load(self.x, source + (i * piece.step + piece.first)), "p")
            for j in k.loop("j", piece.times):
                k.store(self.y, to + i * piece.times + j, value)

    def _gathered(self, piece: Piece, source: Expr, to: Expr) -> None:
        """Pixels by the table of columns."""
        k, b, table = self.k, self.block, self.column_table
        assert table is not None
        if b > 1:
            for i in k.loop("i", piece.pixels):
                column = k.let(k.load(table, i + piece.start), "column")
                k.store(self.y, to + i * b, k.load(self.x, source + column * b, b))
            return
        for i, lanes in vectors(k, piece.pixels, self.ctx.lanes()):
            index = k.let(k.load(table, i + piece.start, lanes), "columns")
            k.store(self.y, to + i, k.load(self.x, index + source, lanes))


class RowsAhead:
    """Asks for the source of `rows` rows of a remapped image, a share at each of `pauses` pauses of their reader."""

    def __init__(self, k: ConvKernel, writer: RemapWriter, rows: int, pauses: int) -> None:
        self.k, self.writer = k, writer
        self.planes, _, width, block = (*writer.remap.x.type.physical, 1)[1:5]
        self.row = width * block
        lines = -(-self.row * DType.F32.nbytes // LINE_BYTES)
        self.share = min(lines, -(-rows * self.planes * lines // pauses))
        self.parts = -(-lines // self.share)
        self.asked = k.alloc("asked", DType.I64, 1)

    def begin(self, n: Expr, first: Expr) -> None:
        """Rows from `first` on, of image `n`, are the next."""
        self.image, self.first = n, first
        self.k.store(self.asked, 0, const(0))

    def ask(self) -> None:
        """The next share: a part of a row of a plane."""
        k, remap = self.k, self.writer.remap
        number = k.let(k.load(self.asked, 0), "ask")
        k.store(self.asked, 0, number + 1)
        of = k.let(number / self.parts, "of")
        h = minimum(self.first + of / self.planes, len(remap.rows) - 1)
        row = k.let(maximum(k.load(self.writer.row_table, h), 0), "row")
        steps = strides(remap.x.type)
        at = self.image * steps[0] + of % self.planes * steps[1] + row * steps[2]
        line = LINE_BYTES // DType.F32.nbytes
        at = k.let(at + number % self.parts * (self.share * line), "ahead")
        for i in range(self.share):
            k.prefetch(self.writer.x, at + i * line)
