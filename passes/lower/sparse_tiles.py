"""Tiles of an image whose lanes are pixels: parts of its rows, in vectors; where each lies and what of it is valid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...ir.loops import Expr, const
from .context import KernelBuilder
from .tile import split


@dataclass(frozen=True, slots=True)
class Spot:
    """A vector of a tile: its number, the row and the column at which it begins, and its valid lanes."""

    number: int
    row: int
    column: int
    valid: int


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of one kind: `down` · `across` of them from tile `index` on, the first at (row, column) of the image; each
    has `valid` pixels in `vectors` vectors of each of `rows` rows. overlaps: a vector that the row's end would cut
    begins earlier, so that all lanes of it are valid."""

    index: int
    down: int
    across: int
    row: int
    column: int
    rows: int
    vectors: int
    valid: int
    overlaps: bool = False

    @property
    def count(self) -> int:
        return self.down * self.across

    @property
    def size(self) -> int:
        """Vectors of a tile."""
        return self.rows * self.vectors

    def spots(self, lanes: int) -> Iterator[Spot]:
        for row in range(self.rows):
            for v in range(self.vectors):
                column = min(v * lanes, self.valid - lanes) if self.overlaps else v * lanes
                yield Spot(row * self.vectors + v, row, column, min(lanes, self.valid - column))

    def corner(self, k: KernelBuilder, index: Expr, lanes: int) -> tuple[Expr, Expr]:
        """Row and column at which tile `index` begins."""
        t = index - self.index
        down = t if self.across == 1 else t / self.across
        across = t if self.down == 1 else t % self.across
        row = const(self.row) if self.down == 1 else k.let(down * self.rows + self.row, "row")
        wide = self.vectors * lanes
        column = const(self.column) if self.across == 1 else k.let(across * wide + self.column, "column")
        return row, column


def tiles_of(rows: int, width: int, lanes: int, most: int, *, overlaps: bool = False) -> list[Tiles]:
    """All tiles of an image of `rows` rows, each of at most `most` vectors; parts of a row that are not full, and the
    last rows, are kinds of their own. overlaps: see Tiles; rows then have `lanes` pixels or more."""
    per_row = -(-width // lanes)
    high = max(1, min(rows, most // per_row))
    found: list[Tiles] = []
    index = 0
    for row, down, size in _bands(rows, high):
        for column, across, vectors, valid in _parts(width, lanes, most):
            found.append(Tiles(index, down, across, row, column, size, vectors, valid, overlaps))
            index += down * across
    return found


def _bands(rows: int, high: int) -> Iterator[tuple[int, int, int]]:
    """(first row, count, rows of each) of equal bands and a rest."""
    if rows >= high:
        yield 0, rows // high, high
    if rows % high:
        yield rows - rows % high, 1, rows % high


def _parts(width: int, lanes: int, most: int) -> Iterator[tuple[int, int, int, int]]:
    """(first column, count, vectors, valid pixels) of the parts of a row; one that is not full by itself."""
    column = 0
    for count, vectors in split(-(-width // lanes), most):
        full = vectors * lanes
        whole = min(count, (width - column) // full)
        if whole:
            yield column, whole, vectors, full
        if whole < count:
            rest = column + whole * full
            yield rest, 1, vectors, width - rest
        column += count * full
