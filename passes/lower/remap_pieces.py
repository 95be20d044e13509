"""Pieces of a row of a remapped image: neighbouring pixels, forwards, backwards, repeated, by a table, or filled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ...ir.loops import Buffer, Expr, broadcast, const, shuffle
from ...ir.types import DType
from .context import Lowering
from .conv_kernel import ConvKernel
from .copies import copy_row, store_row, vectors
from .remap import OUTSIDE, Part

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


class RowWriter:
    """Writes rows of a remapped image as a part of the kernel `k`, out of rows whose pixels lie as far apart: `pixel`
    elements, of which `width` are written."""

    def __init__(self, ctx: Lowering, part: Part, k: ConvKernel, y: Buffer, pixel: int) -> None:
        self.ctx, self.part, self.k, self.y, self.pixel = ctx, part, k, y, pixel
        self.pieces = row_pieces(part.columns)
        columns = ctx.pack("columns", np.array(part.columns, np.int64))
        self.table = k.tensor(columns, "columns") if any(p.table for p in self.pieces) else None

    def fill(self, to: Expr, width: int) -> None:
        """A whole row of what lies around the source."""
        self._fill(to, len(self.part.columns), width)

    def write(self, x: Buffer, source: Expr, to: Expr, width: int) -> None:
        """A row of `x` from element `source` on."""
        for piece in self.pieces:
            at = to + piece.start * self.pixel
            if piece.first == OUTSIDE:
                self._fill(at, piece.size, width)
            elif piece.table:
                self._gathered(piece, x, source, at, width)
            elif self.pixel > 1:
                self._pixels(piece, x, source, at, width)
            elif piece.times == 1:
                copy_row(self.k, (self.y, at, 1), (x, source + piece.first, piece.step), piece.pixels)
            elif piece.step == 1 and piece.pixels > 1 and piece.times <= MAX_REPEATED:
                self._repeated(piece, x, source + piece.first, at)
            else:
                self._elements(piece, x, source, at)

    def _fill(self, at: Expr, positions: int, width: int) -> None:
        k, value = self.k, const(self.part.fill, DType.F32)
        if width == self.pixel:
            store_row(k, self.y, at, positions * width, 1, value)
            return
        for i in k.loop("i", positions):
            k.store(self.y, at + i * self.pixel, broadcast(value, width))

    def _pixels(self, piece: Piece, x: Buffer, source: Expr, to: Expr, width: int) -> None:
        """Pixels of several elements, each a vector or a few."""
        k, b = self.k, self.pixel
        if piece.times == 1 and piece.step == 1 and width == b:
            copy_row(k, (self.y, to, 1), (x, source + piece.first * b, 1), piece.pixels * b)
            return
        for i in k.loop("i", piece.pixels):
            column = i * piece.step + piece.first
            value = k.let(k.load(x, source + column * b, width), "p")
            for j in k.loop("j", piece.times) if piece.times > MAX_REPEATED else map(const, range(piece.times)):
                k.store(self.y, to + (i * piece.times + j) * b, value)

    def _repeated(self, piece: Piece, x: Buffer, source: Expr, to: Expr) -> None:
        """Neighbouring elements, each a few times: a load, and a shuffle and a store for each vector of results."""
        k, times = self.k, piece.times
        for i, lanes in vectors(k, piece.pixels, self.ctx.lanes()):
            loaded = k.let(k.load(x, source + i, lanes), "p")
            for part in range(times):
                order = tuple((part * lanes + lane) // times for lane in range(lanes))
                k.store(self.y, to + i * times + part * lanes, shuffle(loaded, None, order))

    def _elements(self, piece: Piece, x: Buffer, source: Expr, to: Expr) -> None:
        """Elements that no vector holds, one by one."""
        k = self.k
        for i in k.loop("i", piece.pixels):
            value = k.let(k.load(x, source + (i * piece.step + piece.first)), "p")
            for j in k.loop("j", piece.times):
                k.store(self.y, to + i * piece.times + j, value)

    def _gathered(self, piece: Piece, x: Buffer, source: Expr, to: Expr, width: int) -> None:
        """Pixels by the table of columns."""
        k, b, table = self.k, self.pixel, self.table
        assert table is not None
        if b > 1:
            for i in k.loop("i", piece.pixels):
                column = k.let(k.load(table, i + piece.start), "column")
                k.store(self.y, to + i * b, k.load(x, source + column * b, width))
            return
        for i, lanes in vectors(k, piece.pixels, self.ctx.lanes()):
            index = k.let(k.load(table, i + piece.start, lanes), "columns")
            k.store(self.y, to + i, k.load(x, index + source, lanes))
