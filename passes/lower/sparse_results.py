"""Results of sparse convolutions, through the fused tail: sums over vectors of pixels into plain or blocked tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...ir.loops import Buffer, Expr, const, minimum, shuffle
from ...ir.types import DType
from .context import INDEX, Site
from .conv_kernel import ConvKernel, Convolution, finish
from .sparse_tiles import Tiles
from .tasks import guarded, pieces
from .transposes import transposed


@dataclass(frozen=True, slots=True)
class Place:
    """A tile of image `n`: where it begins, and what its kind has in common."""

    n: Expr
    row: Expr
    column: Expr
    kind: Tiles


@dataclass(frozen=True, slots=True)
class Shares:
    """Groups of channels, and how many of them a task takes."""

    groups: int
    each: int

    @property
    def count(self) -> int:
        return -(-self.groups // self.each)

    def end(self, share: Expr) -> Expr:
        """The group behind the last one of a share."""
        return const(self.groups) if self.count == 1 else minimum(share * self.each + self.each, self.groups)


def shares(conv: Convolution, group: int, tiles: int, threads: int) -> Shares:
    """Groups of `group` channels for tasks of each of `tiles` tiles: few of them in a task where tiles are few."""
    groups = -(-conv.channels_out // group)
    wanted = -(-2 * threads // (conv.batch * tiles)) if threads > 1 else 1
    return Shares(groups, -(-groups // min(groups, wanted)))


class Results:
    """Writes blocks of `height` channels, of `channels` in all; whole: lanes beyond the last channel may be written."""

    def __init__(self, k: ConvKernel, height: int, channels: int, *, whole: bool) -> None:
        self.k, self.height, self.channels, self.whole, self.lanes = k, height, channels, whole, k.ctx.lanes()
        self.rank = k.ctx.node.output.type.rank - 2
        self.blocks = -(-channels // height)

    def rows(self, acc: Buffer, place: Place, block: Expr) -> None:
        """Vectors of pixels into a plain tensor."""
        last = self.channels - (self.blocks - 1) * self.height
        for is_last in (False, True) if last < self.height and self.blocks > 1 else (True,):
            cond = block >= self.blocks - 1 if is_last else block < self.blocks - 1
            for _ in guarded(self.k, cond, last < self.height and self.blocks > 1):
                self._rows(acc, place, block, last if is_last else self.height)

    def _rows(self, acc: Buffer, place: Place, block: Expr, rows: int) -> None:
        k, lanes = self.k, self.lanes
        for h in range(rows):
            for spot in place.kind.spots(lanes):
                value = k.load(acc, h * place.kind.size + spot.number)
                value = value if spot.valid == lanes else k.let(value, "y")
                for first, width in pieces(spot.valid):
                    part = value if width == lanes else shuffle(value, None, tuple(range(first, first + width)))
                    pixel = self._pixel(place.row + spot.row, place.column + (spot.column + first))
                    site = Site((place.n, block * self.height + h, *pixel), -1, width)
                    k.write(k.ctx.output, site, k.ctx.epilogue(k, site, part))

    def group(self, place: Place, group: Expr, sums: Callable[[Expr], Buffer]) -> None:
        """A block of channels of a blocked tensor; sums: the accumulators of the block of rows of a number."""
        k, lanes, height = self.k, self.lanes, self.height
        row = place.kind.size * lanes
        found = k.alloc("sums", DType.F32, lanes * row)
        each = lanes // height
        end: Expr = const(each) if self.blocks % each == 0 else minimum(self.blocks - group * each, each)
        for i in k.loop("i", end):
            acc = sums(k.let(group * each + i, "block"))
            for h in range(height):
                for v in range(place.kind.size):
                    k.store(found, (i * height + h) * row + v * lanes, k.load(acc, h * place.kind.size + v))
        groups = -(-self.channels // lanes)
        last = self.channels - (groups - 1) * lanes
        ragged = last < lanes and not self.whole
        for is_last in (False, True) if ragged and groups > 1 else (True,):
            cond = group >= groups - 1 if is_last else group < groups - 1
            for _ in guarded(k, cond, ragged and groups > 1):
                self._channels(found, place, group, last if ragged and is_last else lanes)

    def _channels(self, sums: Buffer, place: Place, group: Expr, channels: int) -> None:
        """Vectors of channels, transposed from those of pixels."""
        k, lanes = self.k, self.lanes
        row = place.kind.size * lanes
        for spot in place.kind.spots(lanes):
            rows = [k.let(k.load(sums, c * row + spot.number * lanes, lanes), "r") for c in range(lanes)]
            for i, vector in enumerate(transposed(k, rows)[: spot.valid]):
                pixel = self._pixel(place.row + spot.row, place.column + (spot.column + i))
                finish(k, (place.n, group * lanes, *pixel), channels, vector)

    def _pixel(self, row: Expr, column: Expr) -> tuple[Expr, ...]:
        """Coordinates; where all pixels are one row, its number is 0."""
        return (*(INDEX,) * (self.rank - 2), row, column)[-self.rank :]
