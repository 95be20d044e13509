"""Rows of a remapped image: each row of a source is found in a table, its pixels are written in a few pieces.

A source in another layout than the image's is turned row by row, into memory that stays in the nearest cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...ir.loops import Buffer, Expr, const, maximum, minimum
from ...ir.types import DType
from .context import INDEX, Lowering, strides
from .conv_kernel import ConvKernel
from .copies import copy_region
from .copy_axes import Dim, Region
from .micro import LINE_BYTES
from .remap import OUTSIDE, Part, Remap
from .remap_pieces import RowWriter
from .tasks import guarded, pieces


class RemapWriter:
    """Writes rows of a remapped image as a part of the kernel `k`."""

    def __init__(self, ctx: Lowering, remap: Remap, k: ConvKernel) -> None:
        self.parts = [PartWriter(ctx, part, k) for part in remap.parts]
        self.largest = next(p for p in self.parts if p.part.x is remap.x)

    def write_rows(self, n: Expr, begin: Expr, end: Expr) -> None:
        """Rows [begin, end) of the result of image `n`."""
        for part in self.parts:
            part.write_rows(n, begin, end)


class PartWriter:
    """Writes rows of some channels. Lanes beyond the last one of a block belong to the next part, which is written
    later, or to nobody."""

    def __init__(self, ctx: Lowering, part: Part, k: ConvKernel) -> None:
        self.ctx, self.part, self.k = ctx, part, k
        self.of, self.to = part.x.type.layout.block or 1, ctx.output.type.layout.block or 1
        self.group = max(self.of, self.to)
        self.x = k.tensor(part.x, "x")
        self.rows = RowWriter(ctx, part, k, k.tensor(ctx.output, "y"), self.to)
        self.table = k.tensor(ctx.pack("rows", np.array(part.rows, np.int64)), "rows")
        self.width = part.x.type.dims[3]
        if self.of != self.to:
            elements = self.width * self.group
            self.near = k.tensor(ctx.scratch("near", DType.F32, elements * ctx.threads), "near")
            self.near_base = k.let(k.worker * elements, "near") if ctx.threads > 1 else INDEX

    def write_rows(self, n: Expr, begin: Expr, end: Expr) -> None:
        """Rows [begin, end) of the result of image `n`."""
        whole, rest = divmod(self.part.x.type.dims[1], self.group)
        for first, count, channels in ((0, whole, self.group), (whole, min(rest, 1), rest)):
            for group in self.k.loop("plane", first + count, first) if count else ():
                self._write_group(n, group, channels, begin, end)

    def _write_group(self, n: Expr, group: Expr, channels: int, begin: Expr, end: Expr) -> None:
        """`channels` channels that lie in one block of the source or of the result."""
        k, steps, part = self.k, strides(self.part.x.type), self.part
        source = k.let(n * steps[0] + group * (self.group // self.of * steps[1]), "x")
        for h in k.loop("row", end, begin):
            k.enter_row(self.ctx.output, h)
            row = k.let(k.load(self.table, h), "row")
            for _ in guarded(k, row >= 0, OUTSIDE in part.rows):
                x, at = self._in_layout(k.let(source + row * steps[2], "from"), channels)
                for lane, width, to in self._targets(n, group, channels, h):
                    self.rows.write(x, k.let(at + lane * (1 if self.to > 1 else self.width), "from"), to, width)
            for _ in k.otherwise() if OUTSIDE in part.rows else ():
                for _, width, to in self._targets(n, group, channels, h):
                    self.rows.fill(to, width)

    def _in_layout(self, source: Expr, channels: int) -> tuple[Buffer, Expr]:
        """Buffer and first element of the source's row in the result's layout."""
        if self.of == self.to:
            return self.x, source
        plane = strides(self.part.x.type)[1]
        turned = (
            (Dim(self.width, self.to, 1), Dim(channels, 1, plane))
            if self.to > 1
            else (Dim(channels, self.width, 1), Dim(self.width, 1, self.of))
        )
        copy_region(self.k, self.near, self.x, Region(turned, self.near_base, source), near=True)
        return self.near, self.near_base

    def _targets(self, n: Expr, group: Expr, channels: int, h: Expr) -> Iterator[tuple[Expr, int, Expr]]:
        """Channel within the group, channels that are written together, and the place of row `h`."""
        k, first = self.k, self.part.first

        def place(channel: Expr) -> Expr:
            return k.let(k.place(self.ctx.output, (n, channel, h, INDEX)), "to")

        if self.to == 1:
            for lane in k.loop("lane", channels if self.of > 1 else 1):
                yield lane, 1, place(group * self.group + lane + first)
            return
        room = self.to - first % self.to
        runs = ((0, self.to),) if room == self.to else ((0, min(room, channels)), (room, channels))
        for begin, end in runs:
            for at, width in pieces(end - begin):
                yield const(begin + at), width, place(group * self.group + (first + begin + at))


class RowsAhead:
    """Asks for the source of `rows` rows of some channels, a share at each of `pauses` pauses of their reader."""

    def __init__(self, k: ConvKernel, writer: PartWriter, rows: int, pauses: int) -> None:
        self.k, self.writer = k, writer
        self.planes, _, width, block = (*writer.part.x.type.physical, 1)[1:5]
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
        k, part = self.k, self.writer.part
        number = k.let(k.load(self.asked, 0), "ask")
        k.store(self.asked, 0, number + 1)
        of = k.let(number / self.parts, "of")
        h = minimum(self.first + of / self.planes, len(part.rows) - 1)
        row = k.let(maximum(k.load(self.writer.table, h), 0), "row")
        steps = strides(part.x.type)
        at = self.image * steps[0] + of % self.planes * steps[1] + row * steps[2]
        line = LINE_BYTES // DType.F32.nbytes
        at = k.let(at + number % self.parts * (self.share * line), "ahead")
        for i in range(self.share):
            k.prefetch(self.writer.x, at + i * line)
