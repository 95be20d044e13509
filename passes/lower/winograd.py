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

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, cast, const, minimum
from .context import Lowering, lowers
from .conv import lower_conv, read_convolution
from .conv_kernel import Convolution, finish, pad_operands, padded_bias, start, unravel
from .micro import AT_ONCE, in_turns, multiply, packed, rows_of
from .tasks import guarded, tasks
from .tile import Tile
from .winograd_input import InputTransform
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


class Phases(InputTransform):
    """Writes the phases into one kernel or three. together: see `micro.multiply`."""

    together = 1

    def __init__(self, ctx: Lowering, plan: Plan, weights: Value, bias: Value | None, v: Value, m: Value) -> None:
        super().__init__(ctx, plan, v)
        self.weights, self.bias, self.m_value = weights, bias, m
        self.m_base: Expr = const(0)

    @property
    def m(self) -> Buffer:
        return self.k.tensor(self.m_value, "m")

    def write_phase(self, phase: int) -> None:
        """One phase over all tiles."""
        plan, k = self.plan, self.k
        macs = plan.n**2 * plan.tiles * plan.conv.channels_in * plan.conv.channels_out
        if phase == 0:
            for t in tasks(k, macs, sum(s.count for s in self.sections)):
                self.transform(t, const(0), const(plan.tiles))
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
            self.transform_all(first, last)
            for p in k.loop("p", plan.n**2):
                for group in k.loop("g", sum(count for _, count, _ in plan.groups)):
                    self._products(p, group)
            for o in k.loop("o", plan.blocks_out):
                self._outputs(o, first, last)
        k.done("winograd")

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
