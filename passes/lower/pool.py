"""Pooling by sliding windows: MaxPool, AveragePool, LpPool, over blocked or plain tensors.

Blocked tensors: lanes are channels, a tile is a run of pixels. Plain tensors: lanes run along the width.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from ...ir.loops import Buffer, Expr, broadcast, cast, const, ramp, select
from ...ir.types import DType
from .context import INDEX, KernelBuilder, Lowering, Site, lowers, offset, strides
from .conv_kernel import ConvKernel, finish, pad_operands, unravel
from .pool_reduction import ACCUMULATORS, reduction_of
from .row_schedules import row_schedules, steps
from .schedule import choose
from .tasks import guarded, tasks
from .tile import Segment, runs, segments, tap_runs
from .window import Axis, Window, window

TILE = 8
"""Pixels of a tile: enough results in flight to hide the latency of one."""


@lowers("MaxPool", "AveragePool", "LpPool")
def lower_pool(ctx: Lowering) -> None:
    """Pooling over a sliding window; MaxPool's second output is the index of the maximum in the flat input."""
    node = ctx.node
    x = node.inputs[0]
    assert x is not None
    view = window(node, x.type, node.output.type, tuple(node.attrs["kernel_shape"]))
    if len(node.outputs) > 1:
        return _max_pool_with_indices(ctx, view)
    block = x.type.layout.block
    writer = _Blocked if block and ctx.output.type.layout.block == block else _Planar
    writer(ctx, view).write()


class _Pool:
    """What both forms of a window share."""

    def __init__(self, ctx: Lowering, view: Window, k: KernelBuilder) -> None:
        x = ctx.node.inputs[0]
        assert x is not None
        self.ctx, self.window, self.k, self.x = ctx, view, k, x
        self.dtype = x.type.dtype
        self.acc = ACCUMULATORS.get(self.dtype, self.dtype)
        self.reduction = reduction_of(ctx.node.op, self.dtype, ctx.node.attrs.get("p", 2))
        self.source = k.tensor(x, "x")
        include = ctx.node.attrs.get("count_include_pad", 0)
        self.counted = [a.padded() if include else a for a in view.axes]

    def rows(self, d: Expr, h: Expr) -> tuple[tuple[Expr, Expr], tuple[Expr, Expr]]:
        """Ranges of the depth and height taps, named."""
        k = self.k
        d0, d1 = (k.let(e, "q") for e in self.window.d.tap_range(d))
        h0, h1 = (k.let(e, "r") for e in self.window.h.tap_range(h))
        return (d0, d1), (h0, h1)

    def finished(self, value: Expr, d: Expr, h: Expr, width: Expr) -> Expr:
        """The reduction's last step; `width`: how many taps count along the width."""
        if self.reduction.average:
            (d0, d1), (h0, h1) = self.counted[0].tap_range(d), self.counted[1].tap_range(h)
            count = cast(width * (d1 - d0) * (h1 - h0), self.acc)
            value = value / broadcast(count, value.lanes)
        return cast(self.reduction.end(value), self.dtype)


class _Blocked(_Pool):
    """Lanes are channels."""

    def __init__(self, ctx: Lowering, view: Window) -> None:
        super().__init__(ctx, view, ConvKernel(ctx))
        self.lanes = self.x.type.layout.block
        channels = self.x.type.dims[1]
        self.blocks = -(-channels // self.lanes)
        self.valid = self.lanes if pad_operands(ctx, self.lanes) else channels - (self.blocks - 1) * self.lanes

    def write(self) -> None:
        k, view = self.k, self.window
        dims = (self.x.type.dims[0], self.blocks, view.d.out, view.h.out)
        work = prod(dims) * view.w.out * view.taps * self.lanes
        row = segments(view.w, self._pixels(prod(dims)))
        for t in tasks(k, work, prod(dims)):
            n, block, d, h = unravel(k, t, dims)
            for last in (False, True) if self.valid < self.lanes else (True,):
                cond = block >= self.blocks - 1 if last else block < self.blocks - 1
                for _ in guarded(k, cond, self.valid < self.lanes):
                    for s in row:
                        for i in k.loop("tile", s.count):
                            valid = self.valid if last else self.lanes
                            self._tile((n, block, d, h), s, k.let(i * s.pixels + s.start, "w"), valid)
        k.done("pool")

    def _pixels(self, rows: int) -> int:
        """Pixels of a tile."""
        ctx, view = self.ctx, self.window
        channels = f"{self.x.type.dims[0]} of {self.x.type.dims[1]} {self.dtype}"
        problem = f"{ctx.node.op} {view} {channels} blocks {self.lanes} threads {ctx.threads}"
        found = row_schedules(
            view.w, TILE, ctx.target.registers - 2, lambda pixels: view.taps * steps(ctx.target, pixels, 1, pixels, 1)
        )
        return choose(ctx, "pool", problem, [replace(s, cycles=s.cycles * rows) for s in found])

    def _tile(self, at: tuple[Expr, ...], s: Segment, w: Expr, valid: int) -> None:
        n, block, d, h = at
        k, lanes, (ad, ah, aw) = self.k, self.lanes, self.window.axes
        acc = k.registers("acc", self.acc, s.pixels, lanes)
        for p in range(s.pixels):
            k.store(acc, p, const(self.reduction.begin, self.acc, lanes))
        (d0, d1), (h0, h1) = self.rows(d, h)
        row = aw.size * lanes
        steps = strides(self.x.type)
        place = n * steps[0] + block * steps[1] + (d * ad.stride - ad.pad) * (ah.size * row)
        origin = k.let(place + (h * ah.stride - ah.pad) * row + (w * aw.stride - aw.pad) * lanes, "x")
        for q in k.loop("q", d1, d0):
            for r in k.loop("r", h1, h0):
                x = k.let(origin + q * (ad.dilation * ah.size * row) + r * (ah.dilation * row), "x")
                self._taps(s, w, x, acc)
        for p in range(s.pixels):
            o = w + p
            width = self._width(s, o, p)
            value = self.finished(k.load(acc, p), d, h, width)
            finish(k, (n, block * lanes, *self.window.spatial(d, h, o)), valid, value)

    def _width(self, s: Segment, o: Expr, p: int) -> Expr:
        axis = self.counted[2]
        if s.dynamic:
            begin, end = axis.tap_range(o)
            return end - begin
        return const(len(axis.taps(s.start + p)) if s.taps is not None else axis.kernel)

    def _taps(self, s: Segment, w: Expr, x: Expr, acc: Buffer) -> None:
        k, axis, lanes = self.k, self.window.w, self.lanes
        for begin, end, first, last in tap_runs(s, axis, w):
            for t in k.loop("s", end, begin):
                for p in range(first, last):
                    at = x + t * (axis.dilation * lanes) + p * axis.stride * lanes
                    value = cast(k.load(self.source, at, lanes), self.acc)
                    k.store(acc, p, self.reduction.step(k.load(acc, p), k.let(value, "v")))


class _Planar(_Pool):
    """Lanes along the width; with mixed layouts, one element at a time."""

    def __init__(self, ctx: Lowering, view: Window) -> None:
        super().__init__(ctx, view, ctx.kernel())
        operands = [v for n in ctx.tail for v in n.inputs if v is not None]
        blocked = any(v.type.layout.block for v in (self.x, ctx.output, *operands))
        self.lanes = 1 if blocked else ctx.lanes(self.acc)

    def write(self) -> None:
        k, view = self.k, self.window
        dims = (*self.x.type.dims[:2], view.d.out, view.h.out)
        for t in tasks(k, prod(dims) * view.w.out * view.taps, prod(dims)):
            n, c, d, h = unravel(k, t, dims)
            for run in runs(view.w, self.lanes, 1):
                for w in k.loop("w", run.end, run.begin, run.step):
                    self._vector((n, c, d, h), w, run.lanes, run.border)
        k.done("pool_planar")

    def _vector(self, at: tuple[Expr, ...], w: Expr, lanes: int, border: bool) -> None:
        n, c, d, h = at
        k, (ad, ah, aw) = self.k, self.window.axes
        acc = k.registers("acc", self.acc, 1, lanes)
        k.store(acc, 0, const(self.reduction.begin, self.acc, lanes))
        (d0, d1), (h0, h1) = self.rows(d, h)
        w0, w1 = (k.let(e, "s") for e in (aw.tap_range(w) if border else (const(0), const(aw.kernel))))
        pixel = strides(self.x.type)[self.x.type.rank - 1]
        for q in k.loop("q", d1, d0):
            for r in k.loop("r", h1, h0):
                spatial = self.window.spatial(
                    d * ad.stride - ad.pad + q * ad.dilation, h * ah.stride - ah.pad + r * ah.dilation, INDEX
                )
                row = k.let(offset(self.x.type, (n, c, *spatial)), "x")
                for s in k.loop("s", w1, w0):
                    index = row + (w * aw.stride - aw.pad + s * aw.dilation) * pixel
                    step = aw.stride * pixel
                    loaded = k.load(self.source, index if step == 1 else ramp(index, step, lanes), lanes)
                    value = k.let(cast(loaded, self.acc), "v")
                    k.store(acc, 0, self.reduction.step(k.load(acc, 0), value))
        counted: Axis = self.counted[2]
        begin, end = counted.tap_range(w) if border else (const(0), const(aw.kernel))
        value = self.finished(k.load(acc, 0), d, h, end - begin)
        site = Site((n, c, *self.window.spatial(d, h, w)), -1, lanes)
        k.write(self.ctx.output, site, self.ctx.epilogue(k, site, value))


def _max_pool_with_indices(ctx: Lowering, view: Window) -> None:
    """Both outputs of MaxPool, one element at a time."""
    k, x, node = ctx.kernel(), ctx.node.inputs[0], ctx.node
    assert x is not None
    source, dtype = k.tensor(x, "x"), x.type.dtype
    lowest = reduction_of("MaxPool", dtype, 0).begin
    dims = (*x.type.dims[:2], view.d.out, view.h.out)
    for t in tasks(k, prod(dims) * view.w.out * view.taps, prod(dims)):
        n, c, d, h = unravel(k, t, dims)
        for w in k.loop("w", view.w.out):
            best = k.alloc("best", dtype, 1)
            where = k.alloc("where", DType.I64, 1)
            k.store(best, 0, const(lowest, dtype))
            k.store(where, 0, const(0))
            spans = [a.tap_range(o) for a, o in zip(view.axes, (d, h, w), strict=True)]
            for q in k.loop("q", spans[0][1], spans[0][0]):
                for r in k.loop("r", spans[1][1], spans[1][0]):
                    for s in k.loop("s", spans[2][1], spans[2][0]):
                        at = [
                            k.let(o * a.stride - a.pad + tap * a.dilation, "at")
                            for a, o, tap in zip(view.axes, (d, h, w), (q, r, s), strict=True)
                        ]
                        spatial = view.spatial(at[0], at[1], at[2])
                        value = k.let(k.load(source, offset(x.type, (n, c, *spatial))), "v")
                        index = k.let(_flat_index(ctx, view, n, c, at), "index")
                        better = k.let(value > k.load(best, 0), "better")
                        k.store(where, 0, select(better, index, k.load(where, 0)))
                        k.store(best, 0, select(better, value, k.load(best, 0)))
            coords = (n, c, *view.spatial(d, h, w))
            for output, result in zip(node.outputs, (best, where), strict=True):
                k.write(output, Site(coords), k.load(result, 0))
    k.done("pool_indices", shaped=False)


def _flat_index(ctx: Lowering, view: Window, n: Expr, c: Expr, at: list[Expr]) -> Expr:
    """Index in the flat input; storage_order 1 counts the spatial axes column by column."""
    x = ctx.node.inputs[0]
    assert x is not None
    total = (n * x.type.dims[1] + c) * view.pixels_in
    order = list(zip(view.axes, at, strict=True))
    step = 1
    for axis, position in order if ctx.node.attrs.get("storage_order", 0) else order[::-1]:
        total = total + position * step
        step *= axis.size
    return total
