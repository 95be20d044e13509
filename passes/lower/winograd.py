"""c2c.WinogradConv: 3×3 convolution of stride 1 by F(m×m, 3×3), n = m + 2, in three phases over a block of tiles.

1. Input transform of all channels into V[n²][C/b][tiles][b].
2. n² matrix products M[p] = U[p] V[p], with register tiles of tiles × output vectors; U is read once, in order.
3. Output transform, bias and fused tail into the result; what edge tiles have beyond it is left out.

Matrices p lie one cache line more than their size apart, so that the n² streams of the transforms fall into different
sets of the first cache. With several threads and few tiles each phase is a kernel of its own, parallel over its own
work; else a task is a block of tiles with V and M of its worker.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, binary, broadcast, cast, const, maximum, minimum, select, shuffle
from ...ir.types import DType
from ..reading import Reading
from ..winograd_math import input_matrix, output_matrix
from .context import Lowering, lowers, strides
from .conv import lower_conv, read_convolution
from .conv_kernel import ConvKernel, Convolution, finish, pad_operands, padded_bias, start, unravel
from .conv_reading import inside, pixel, read_directly, read_through, sections
from .micro import AT_ONCE, in_turns, multiply, packed, rows_of, splats_lanes
from .tasks import guarded, tasks
from .tile import Tile
from .winograd_plan import LINE, Plan, choose_plan, runs
from .winograd_transform import apply
from .winograd_weights import transformed_weights


@lowers("c2c.WinogradConv")
def lower_winograd(ctx: Lowering) -> None:
    """Winograd where the input is blocked, else as Conv."""
    conv, m = read_convolution(ctx), ctx.node.attrs["m"]
    if conv is None or conv.x.type.layout.block != ctx.lanes(conv.dtype) or conv.groups > 1 or not is_winograd(conv):
        return lower_conv(ctx)
    lanes = ctx.lanes(conv.dtype)
    whole = pad_operands(ctx, lanes)
    plan = choose_plan(ctx, conv, m)
    if not whole:
        plan = replace(plan, valid=conv.channels_out - (plan.blocks_out - 1) * lanes)
    bias = padded_bias(ctx, conv.bias, 1, lanes)
    weights = transformed_weights(ctx, plan)
    copies = 1 if plan.phased else ctx.threads
    v = ctx.scratch("v", conv.dtype, plan.n**2 * plan.stride_v * copies)
    m_ = ctx.scratch("m", conv.dtype, plan.n**2 * plan.stride_m * copies)
    write(ctx, plan, Phases, (weights, bias, v, m_))


def write(ctx: Lowering, plan: Plan, phases: type[Phases], values: tuple[Value, Value | None, Value, Value]) -> None:
    """Append the kernels; `values`: transformed weights, bias, V and M."""
    if plan.phased:
        for phase in range(3):
            phases(ctx, plan, *values).write_phase(phase)
    else:
        phases(ctx, plan, *values).write_blocks()


def is_winograd(conv: Convolution) -> bool:
    w = conv.window
    plain = all(a.stride == a.dilation == 1 for a in w.axes)
    return plain and w.rank == 2 and w.h.kernel == w.w.kernel == 3


class Phases:
    """Writes the phases into one kernel or three. together: see `micro.multiply`."""

    together = 1

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

    def __init__(self, ctx: Lowering, plan: Plan, weights: Value, bias: Value | None, v: Value, m: Value) -> None:
        self.ctx, self.plan, self.k = ctx, plan, ConvKernel(ctx)
        self.weights, self.bias, self.v_value, self.m_value = weights, bias, v, m
        readings = read_through(ctx) if ctx.head else (read_directly(plan.conv.x, plan.conv.window),)
        self.sections = [s for r in readings for s in sections(r, plan.conv.channels_in, plan.lanes)]
        self.section = self.sections[0]
        self.matrices = input_matrix(plan.m), output_matrix(plan.m)
        self.v_base: Expr = const(0)
        self.m_base: Expr = const(0)

    @property
    def v(self) -> Buffer:
        return self.k.tensor(self.v_value, "v")

    @property
    def m(self) -> Buffer:
        return self.k.tensor(self.m_value, "m")

    def write_phase(self, phase: int) -> None:
        """One phase over all tiles."""
        plan, k = self.plan, self.k
        macs = plan.n**2 * plan.tiles * plan.conv.channels_in * plan.conv.channels_out
        if phase == 0:
            for t in tasks(k, macs, sum(s.count for s in self.sections)):
                self._any_inputs(t, const(0), const(plan.tiles))
        elif phase == 1:
            groups = sum(count for _, count, _ in plan.groups)
            for t in tasks(k, macs, plan.n**2 * groups):
                p, group = unravel(k, t, (plan.n**2, groups))
                self._products(p, group)
        else:
            for t in tasks(k, macs, plan.blocks_out):
                self._outputs(t, const(0), const(plan.tiles))
        k.done(("winograd_input", "winograd_product", "winograd_output")[phase])

    def write_blocks(self) -> None:
        """All phases, block of tiles by block of tiles."""
        plan, k = self.plan, self.k
        blocks = -(-plan.tiles // plan.block)
        for t in tasks(k, plan.conv.macs, blocks):
            if self.ctx.threads > 1 and blocks > 1:
                self.v_base = k.let(k.worker * (plan.n**2 * plan.stride_v), "v0")
                self.m_base = k.let(k.worker * (plan.n**2 * plan.stride_m), "m0")
            first = k.let(t * plan.block, "first")
            last = k.let(minimum(first + plan.block, plan.tiles), "last")
            for section in self.sections:
                self.section = section
                for c in k.loop("c", section.block + section.count, section.block):
                    self._inputs(c, first, last)
            for p in k.loop("p", plan.n**2):
                for group in k.loop("g", sum(count for _, count, _ in plan.groups)):
                    self._products(p, group)
            for o in k.loop("o", plan.blocks_out):
                self._outputs(o, first, last)
        k.done("winograd")

    # --- input transform

    def _any_inputs(self, number: Expr, first: Expr, last: Expr) -> None:
        """One block of channels, counted through all sections."""
        before = 0
        for section in self.sections:
            self.section = section
            here = (number >= before) & (number < before + section.count)
            for _ in guarded(self.k, here, len(self.sections) > 1):
                self._inputs(self.k.let(number + (section.block - before), "c"), first, last)
            before += section.count

    def _inputs(self, c: Expr, first: Expr, last: Expr) -> None:
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

    # --- products

    def _products(self, p: Expr, group: Expr) -> None:
        k, plan = self.k, self.plan
        groups = plan.groups
        per_vector, whole = plan.conv.channels_in * plan.lanes, plan.conv.channels_in // plan.lanes
        for i, (first, count, vectors) in enumerate(groups):
            cond = group < first + count if i == 0 else group >= first
            for _ in guarded(k, cond, len(groups) > 1):
                at = p * plan.stride_u + group * (plan.tile.vectors * per_vector)
                weights = k.let(at, "u")
                v = k.let(self.v_base + p * plan.stride_v, "v")
                to = group * (plan.tile.vectors * plan.block * plan.lanes)
                to = k.let(self.m_base + p * plan.stride_m + to, "m")
                for run in runs(plan, vectors):
                    for number in k.loop("t", run.count):
                        t = (number * run.pixels + run.begin) * plan.lanes
                        ahead = weights + (vectors * per_vector + (number * run.lines + run.line) * (whole * LINE))
                        self._product_tile(Tile(run.pixels, vectors), weights, v + t, to + t, ahead, run.lines)

    def _product_tile(self, tile: Tile, weights: Expr, v: Expr, to: Expr, ahead: Expr, lines: int) -> None:
        """Sums over all channels; each block of them fetches `lines` of U from `ahead` on."""
        k, plan, lanes = self.k, self.plan, self.plan.lanes
        acc = k.registers("acc", plan.conv.sums, tile.pixels * tile.vectors, lanes)
        for i in range(tile.pixels * tile.vectors):
            k.store(acc, i, const(0, plan.conv.sums, lanes))
        v, to = k.let(v, "v"), k.let(to, "to")
        whole, rest = divmod(plan.conv.channels_in, lanes)
        width, step = tile.vectors * lanes, plan.block * lanes
        for c in in_turns(k, "cb", const(0), const(whole), whole):
            parts = next(n for n in (1, 2, 4) if n == 4 or lines <= n * AT_ONCE)
            size = lanes // parts
            for part in range(parts):
                for i in range(part * lines // parts, (part + 1) * lines // parts):
                    k.prefetch(k.tensor(self.weights, "w"), ahead + (c * lines + i) * LINE)
                at = weights + (c * (lanes * width) + part * size * width)
                self._channels(tile, size, v + (c * step + part * size), at, acc)
        if rest:
            self._channels(tile, rest, v + whole * step, weights + whole * lanes * width, acc)
        for i in range(tile.pixels):
            for j in range(tile.vectors):
                at = to + (j * step + i * lanes)
                k.store(self.m, at, k.load(acc, i * tile.vectors + j))

    def _channels(self, tile: Tile, count: int, x: Expr, u: Expr, acc: Buffer) -> None:
        k, lanes = self.k, self.plan.lanes
        rows = rows_of(self.v, k.let(x, "x"), lanes, tile.pixels)
        weights = packed(k.tensor(self.weights, "w"), k.let(u, "u"), tile.vectors, lanes)
        multiply(k, rows, weights, count, acc, unroll=self.together, together=self.together)

    # --- output transform

    def _outputs(self, o: Expr, first: Expr, last: Expr) -> None:
        k, plan, m = self.k, self.plan, self.plan.m
        _, rows, columns = plan.grid
        h, w = plan.conv.window.h, plan.conv.window.w
        ragged = h.out % m != 0 or w.out % m != 0
        bias = k.let(start(k, self.bias, o * plan.lanes, plan.lanes, plan.conv.sums), "bias")
        for t in k.loop("t", last, first):
            image, row, column = unravel(k, t, (plan.conv.batch, rows, columns))
            top, left = k.let(row * m, "top"), k.let(column * m, "left")
            values = self._transform_output(o, t - first, bias)
            whole = k.let((top <= h.out - m) & (left <= w.out - m), "whole")
            for _ in guarded(k, whole, ragged):
                for i in range(m):
                    for j in range(m):
                        self._finish(o, (image, o * plan.lanes, top + i, left + j), values[i][j])
            if ragged:
                for _ in k.when(~whole):
                    self._cropped(o, image, top, left, values)

    def _transform_output(self, o: Expr, t: Expr, bias: Expr) -> list[list[Expr]]:
        k, plan, n, lanes = self.k, self.plan, self.plan.n, self.plan.lanes
        at = k.let(self.m_base + (o * plan.block + t) * lanes, "m")
        matrix, places = self.matrices[1], self._places(at, plan.stride_m)
        columns = []
        for j in range(n):
            values = [k.let(k.load(self.m, places[i][j], lanes), "y") for i in range(n)]
            columns.append(apply(k, matrix, values))
        rows = [apply(k, matrix, [columns[j][i] for j in range(n)]) for i in range(plan.m)]
        return [[self._result(value, bias) for value in row] for row in rows]

    def _result(self, value: Expr, bias: Expr) -> Expr:
        """An element of the product of the output transform as a result."""
        return self.k.let(value + bias, "y") if self.bias is not None else value

    def _cropped(self, o: Expr, image: Expr, top: Expr, left: Expr, values: list[list[Expr]]) -> None:
        """The results of a tile that lie inside the image."""
        k, m, lanes = self.k, self.plan.m, self.plan.lanes
        h, w = self.plan.conv.window.h, self.plan.conv.window.w
        kept = k.alloc("kept", self.plan.conv.sums, m * m * lanes)
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                k.store(kept, (i * m + j) * lanes, value)
        for y in k.loop("i", k.let(minimum(h.out - top, m), "end")):
            for z in k.loop("j", k.let(minimum(w.out - left, m), "end")):
                value = k.load(kept, (y * m + z) * lanes, lanes)
                self._finish(o, (image, o * lanes, k.let(top + y, "h"), k.let(left + z, "w")), value)

    def _finish(self, o: Expr, coords: tuple[Expr, ...], value: Expr) -> None:
        k, plan = self.k, self.plan
        value = cast(value, self.ctx.node.output.type.dtype)
        if plan.valid == plan.lanes:
            finish(k, coords, plan.lanes, value)
            return
        value = k.let(value, "y")
        for last in (False, True) if plan.blocks_out > 1 else (True,):
            cond = o >= plan.blocks_out - 1 if last else o < plan.blocks_out - 1
            for _ in guarded(k, cond, plan.blocks_out > 1):
                finish(k, coords, plan.valid if last else plan.lanes, value)
