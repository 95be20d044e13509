"""The first phase of Winograd convolutions: tiles of an image, transformed, into V.

The image may have sources of its own behind pads, enlargements and a concatenation (`passes/reading.py`): each is
transformed where its channels belong.
"""

from __future__ import annotations

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, binary, broadcast, const, maximum, minimum, select, shuffle
from ...ir.types import DType
from ..reading import Reading
from ..winograd_math import input_matrix, output_matrix
from .context import Lowering, strides
from .conv_kernel import ConvKernel, unravel
from .conv_reading import inside, pixel, read_directly, read_through, sections
from .micro import splats_lanes
from .tasks import guarded
from .winograd_plan import Plan
from .winograd_transform import apply


class InputTransform:
    """Writes V as a part of a kernel, for some tiles and channels at a time."""

    def __init__(self, ctx: Lowering, plan: Plan, v: Value) -> None:
        self.ctx, self.plan, self.k, self.v_value = ctx, plan, ConvKernel(ctx), v
        readings = read_through(ctx) if ctx.head else (read_directly(plan.conv.x, plan.conv.window),)
        self.sections = [s for r in readings for s in sections(r, plan.conv.channels_in, plan.lanes)]
        self.section = self.sections[0]
        self.matrices = input_matrix(plan.m), output_matrix(plan.m)
        self.v_base: Expr = const(0)

    @property
    def dtype(self) -> DType:
        """Type of V."""
        return self.plan.conv.dtype

    @property
    def reading(self) -> Reading:
        """What is read of the channels that are transformed."""
        return self.section.reading

    def _pixel(self, at: Expr) -> Expr:
        """A vector of channels of the input."""
        return self.k.load(self.k.tensor(self.reading.source, "x"), at, self.plan.lanes)

    @property
    def v(self) -> Buffer:
        return self.k.tensor(self.v_value, "v")

    def transform_all(self, first: Expr, last: Expr) -> None:
        """All channels of tiles [first, last)."""
        for section in self.sections:
            self.section = section
            for c in self.k.loop("c", section.block + section.count, section.block):
                self._transform(c, first, last)

    def transform(self, number: Expr, first: Expr, last: Expr) -> None:
        """One block of channels, counted through all sections, of tiles [first, last)."""
        before = 0
        for section in self.sections:
            self.section = section
            here = (number >= before) & (number < before + section.count)
            for _ in guarded(self.k, here, len(self.sections) > 1):
                self._transform(self.k.let(number + (section.block - before), "c"), first, last)
            before += section.count

    def _transform(self, c: Expr, first: Expr, last: Expr) -> None:
        """Block `c` of the section's source."""
        k, plan, lanes = self.k, self.plan, self.plan.lanes
        block = c + self.reading.first // lanes
        _, rows, columns = plan.grid
        h, w = self.reading.rows, self.reading.columns
        whole = h.holds(plan.grid[1] * plan.m + 2) and w.holds(plan.grid[2] * plan.m + 2)
        width = w.pixels * lanes
        places = [h.offset(i) * width for i in range(plan.n)], [w.offset(j) * lanes for j in range(plan.n)]
        for t in k.loop("t", last, first):
            image, row, column = unravel(k, t, (plan.conv.batch, rows, columns))
            top, left = k.let(row * plan.m - h.before, "top"), k.let(column * plan.m - w.before, "left")
            steps = strides(self.reading.source.type)
            source = k.let(image * steps[0] + c * steps[1], "x")
            target = k.let(self.v_base + (block * plan.block + (t - first)) * lanes, "to")
            if plan.m % h.factor:
                self._transform_border(source, source, top, left, target)
                continue
            at = k.let(source + row * (plan.m // h.factor * width) + column * (plan.m // w.factor * lanes), "x")
            inside = (top >= 0) & (left >= 0) & (top <= h.size - plan.n) & (left <= w.size - plan.n)
            inside = k.let(inside, "inside")
            for _ in guarded(k, inside, not whole):
                self._transform_input(at, places, target)
            if not whole:
                for _ in k.when(~inside):
                    self._transform_border(source, source + row * (plan.m // h.factor * width), top, left, target)

    def _transform_input(self, at: Expr, places: tuple[list[int], list[int]], target: Expr) -> None:
        """The tile whose rows and columns lie at `places` from `at` on; several may be the same."""
        k, plan, n, matrix = self.k, self.plan, self.plan.n, self.matrices[0]
        k.tensor(self.reading.source, "x")
        columns: dict[int, list[Expr]] = {}
        for j in dict.fromkeys(places[1]):
            loaded = {i: k.let(self._pixel(at + (i + j)), "d") for i in dict.fromkeys(places[0])}
            columns[j] = apply(k, matrix, [loaded[i] for i in places[0]])
        targets = self._places(target, plan.stride_v)
        for i in range(n):
            for j, value in enumerate(apply(k, matrix, [columns[place][i] for place in places[1]])):
                self._keep(targets[i][j], value)

    def _transform_border(self, source: Expr, line: Expr, top: Expr, left: Expr, target: Expr) -> None:
        """The same beyond the image, from `line` on: columns one by one, then rows."""
        k, plan, n, lanes = self.k, self.plan, self.plan.n, self.plan.lanes
        half, matrix = k.alloc("half", self.dtype, n * n * lanes), self.matrices[0]
        if self.reading.rows.mode == "zero":
            self._columns_inside(line, top, left, half)
        else:
            self._columns_mirrored(source, top, left, half)
        for i in k.loop("i", n):
            values = [k.let(k.load(half, i * lanes + j * (n * lanes), lanes), "d") for j in range(n)]
            to = k.let(target + i * (n * plan.stride_v), "to")
            for column, value in enumerate(apply(k, matrix, values)):
                self._keep(to + column * plan.stride_v, value)

    def _keep(self, to: Expr, value: Expr) -> None:
        """A vector of channels in V, where those of the section's source may begin inside a block."""
        k, lanes = self.k, value.lanes
        if self.section.pieces == ((0, lanes, 0, 0),):
            k.store(self.v, to, value)
            return
        value = k.let(value, "t")
        for first, width, block, lane in self.section.pieces:
            part = shuffle(value, None, tuple(range(first, first + width)))
            k.store(self.v, to + (block * self.plan.block * lanes + lane), part)

    def _columns_inside(self, lines: Expr, top: Expr, left: Expr, half: Buffer) -> None:
        """Columns with zeros around the image: those inside it by the rows that they have."""
        k, n, lanes = self.k, self.plan.n, self.plan.lanes
        h, w = self.reading.rows, self.reading.columns
        k.tensor(self.reading.source, "x")
        matrix = self.matrices[0]
        i0, i1 = k.let(maximum(-top, 0), "i"), k.let(minimum(h.size - top, n), "i")
        j0 = k.let(minimum(maximum(-left, 0), n), "j")
        j1 = k.let(maximum(minimum(w.size - left, n), 0), "j")
        for begin, end in ((const(0), j0), (j1, const(n))):
            for i in k.loop("j", end * n, begin * n):
                k.store(half, i * lanes, const(0, self.dtype, lanes))
        for first, last in self._row_ranges():
            for _ in k.when(binary("eq", i0, first) & binary("eq", i1, last)):
                for j in k.loop("j", j1, j0):
                    rows = range(first, max(first, last))
                    column = k.let(lines + pixel(k, w, left + j) * lanes, "x")
                    values = [k.let(self._pixel(column + h.offset(i) * (w.pixels * lanes)), "d") for i in rows]
                    found = apply(k, matrix[:, rows], values) if rows else [const(0, self.dtype, lanes)] * n
                    for row, value in enumerate(found):
                        k.store(half, j * (n * lanes) + row * lanes, value)

    def _columns_mirrored(self, source: Expr, top: Expr, left: Expr, half: Buffer) -> None:
        """Columns of an image that goes on beyond its border."""
        k, n, lanes = self.k, self.plan.n, self.plan.lanes
        h, w = self.reading.rows, self.reading.columns
        k.tensor(self.reading.source, "x")
        matrix = input_matrix(self.plan.m)
        lines = [k.let(source + pixel(k, h, top + i) * (w.pixels * lanes), "line") for i in range(n)]
        rows = [inside(k, h, top + i) for i in range(n)]
        for j in k.loop("j", n):
            column, known = k.let(pixel(k, w, left + j) * lanes, "column"), inside(k, w, left + j)
            values = [self._pixel(line + column) for line in lines]
            if known is not None:
                fill = const(self.reading.fill, self.dtype, lanes)
                values = [
                    v if row is None else select(broadcast(row & known, lanes), v, fill)
                    for row, v in zip(rows, values, strict=True)
                ]
            values = [k.let(v, "d") for v in values]
            for i, value in enumerate(apply(k, matrix, values)):
                k.store(half, j * (n * lanes) + i * lanes, value)

    def _places(self, at: Expr, stride: int) -> list[list[Expr]]:
        """Where a tile's n × n elements lie, `stride` apart.

        Instructions of AArch64 cannot hold such offsets: made of constants each would take two more. Read from a table,
        they stay in registers.
        """
        k, n = self.k, self.plan.n
        if not splats_lanes(self.ctx.target):
            return [[at + (i * n + j) * stride for j in range(n)] for i in range(n)]
        table = k.tensor(self.ctx.pack("offsets", np.arange(n * n, dtype=np.int64) * stride), "offsets")
        rows = [k.let(at + k.load(table, i * n), "at") for i in range(n)]
        return [[row + k.load(table, j) if j else row for j in range(n)] for row in rows]

    def _row_ranges(self) -> list[tuple[int, int]]:
        """Rows [first, last) of a tile that lie inside the image, for all rows of tiles, each range once."""
        plan, h = self.plan, self.reading.rows
        tops = [r * plan.m - h.before for r in range(plan.grid[1])]
        return sorted({(max(-top, 0), min(h.size - top, plan.n)) for top in tops})
