"""Pooling by sliding windows: MaxPool, AveragePool, LpPool, over blocked or plain tensors.

Blocked tensors: lanes are channels, a tile is a run of pixels. Plain tensors: lanes run along the width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, broadcast, cast, const, ramp
from ...ir.types import DType, TensorType
from .context import INDEX, KernelBuilder, Lowering, Site, lowers, offset, strides
from .conv_kernel import ConvKernel, Image, finish, pad_operands, unravel
from .pool_indices import lower_pool_with_indices
from .pool_reduction import ACCUMULATORS, reduction_of
from .row_schedules import row_schedules, steps
from .schedule import choose
from .tasks import guarded, tasks
from .tile import Run, Segment, runs, segments, tap_runs
from .window import Axis, Window, window

TILE = 8
"""Pixels of a tile: enough results in flight to hide the latency of one."""


VECTORS = 4
"""Vectors along a plain row that share what a tap costs."""

POOLS = ("MaxPool", "AveragePool", "LpPool")


@dataclass(frozen=True, slots=True)
class Pooling:
    """y[n, c] = the reduction of x[n, c] over a sliding window; y: type of the result."""

    op: str
    x: Value
    y: TensorType
    window: Window

    @property
    def batch(self) -> int:
        return self.x.type.dims[0]

    @property
    def macs(self) -> int:
        """Elements that are reduced."""
        return self.batch * self.y.dims[1] * self.window.pixels * self.window.taps

    @property
    def weight_bytes(self) -> int:
        return 0

    @property
    def reads_planes(self) -> bool:
        return True

    def __str__(self) -> str:
        """Kernel, shape of the result and channels; it decides how the layer is chained."""
        return f"{self.op}{self.window.kernel} {self.batch}x{self.window.image} {self.y.dims[1]}"


def read_pooling(ctx: Lowering) -> Pooling | None:
    """A pooling with one result; None where indices are wanted as well."""
    node = ctx.node
    x = node.inputs[0]
    assert x is not None
    if len(node.outputs) > 1:
        return None
    y = node.output.type
    return Pooling(node.op, x, y, window(node, x.type, y, tuple(node.attrs["kernel_shape"])))


@lowers(*POOLS)
def lower_pool(ctx: Lowering) -> None:
    """Pooling over a sliding window; MaxPool's second output is the index of the maximum in the flat input."""
    pooling = read_pooling(ctx)
    if pooling is None:
        return lower_pool_with_indices(ctx)
    block = pooling.x.type.layout.block
    if block and ctx.output.type.layout.block == block:
        BlockedPool(ctx, pooling, pad_operands(ctx, block), ConvKernel(ctx)).write()
    else:
        _Planar(ctx, pooling, ctx.kernel()).write()


class _Pool:
    """What both forms of a window share."""

    def __init__(self, ctx: Lowering, pooling: Pooling, k: KernelBuilder) -> None:
        self.ctx, self.window, self.k, self.x = ctx, pooling.window, k, pooling.x
        self.dtype = self.x.type.dtype
        exact = ctx.node.op == "MaxPool" and self.dtype is DType.F16 and ctx.target.has_fp16
        self.acc = self.dtype if exact else ACCUMULATORS.get(self.dtype, self.dtype)
        self.reduction = reduction_of(ctx.node.op, self.dtype, ctx.node.attrs.get("p", 2))
        self.source = k.tensor(self.x, "x")
        include = ctx.node.attrs.get("count_include_pad", 0)
        self.counted = [a.padded() if include else a for a in self.window.axes]

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


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the result: image, block of channels, depth, height; the input image and the plane's element offset."""

    n: Expr
    block: Expr
    d: Expr
    h: Expr
    image: Image
    x: Expr


class BlockedPool(_Pool):
    """Lanes are channels. Writes a kernel, or rows of its result as a part of the kernel `k`."""

    def __init__(self, ctx: Lowering, pooling: Pooling, whole_vectors: bool, k: ConvKernel) -> None:
        super().__init__(ctx, pooling, k)
        self.conv_kernel, self.lanes = k, self.x.type.layout.block
        channels = self.x.type.dims[1]
        self.blocks = -(-channels // self.lanes)
        self.valid = self.lanes if whole_vectors else channels - (self.blocks - 1) * self.lanes
        self.segments = segments(self.window.w, TILE)
        self.rows_in = k.image(self.x, INDEX, self.window.h.size).rows
        self.plane = self.window.d.size * self.rows_in * self.window.w.size * self.lanes

    def write(self) -> None:
        k, view = self.k, self.window
        dims = (self.x.type.dims[0], self.blocks, view.d.out, view.h.out)
        work = prod(dims) * view.w.out * view.taps * self.lanes
        self.segments = segments(view.w, self._pixels(prod(dims)))
        for t in tasks(k, work, prod(dims)):
            n, block, d, h = unravel(k, t, dims)
            self._row(n, block, d, h)
        k.done("pool")

    def write_rows(self, n: Expr, begin: Expr, end: Expr) -> None:
        """Rows [begin, end) of the result of image `n`."""
        for block in self.k.loop("block", self.blocks):
            for h in self.k.loop("row", end, begin):
                self._row(n, block, INDEX, h)

    def _pixels(self, rows: int) -> int:
        """Pixels of a tile."""
        ctx, view = self.ctx, self.window
        channels = f"{self.x.type.dims[0]} of {self.x.type.dims[1]} {self.dtype}"
        problem = f"{ctx.node.op} {view} {channels} blocks {self.lanes} threads {ctx.threads}"
        found = row_schedules(
            view.w, TILE, ctx.target.registers - 2, lambda pixels: view.taps * steps(ctx.target, pixels, 1, pixels, 1)
        )
        return choose(ctx, "pool", problem, [replace(s, cycles=s.cycles * rows) for s in found])

    def _row(self, n: Expr, block: Expr, d: Expr, h: Expr) -> None:
        k, height = self.k, self.window.h
        whole = self.conv_kernel.image(self.x, n, self.rows_in)
        x = k.let(whole.first + block * self.plane, "x")
        self.conv_kernel.enter_row(self.ctx.output, h)
        width = self.window.w.size * self.lanes
        row = _Row(n, block, d, h, whole.enter(k, h * height.stride - height.pad, height.reach, width), x)
        for last in (False, True) if self.valid < self.lanes else (True,):
            cond = block >= self.blocks - 1 if last else block < self.blocks - 1
            for _ in guarded(k, cond, self.valid < self.lanes):
                for s in self.segments:
                    for i in k.loop("tile", s.count):
                        valid = self.valid if last else self.lanes
                        self._tile(row, s, k.let(i * s.pixels + s.start, "w"), valid)

    def _tile(self, at: _Row, s: Segment, w: Expr, valid: int) -> None:
        k, lanes, (ad, ah, aw) = self.k, self.lanes, self.window.axes
        acc = k.registers("acc", self.acc, s.pixels, lanes)
        for p in range(s.pixels):
            k.store(acc, p, const(self.reduction.begin, self.acc, lanes))
        (d0, d1), (h0, h1) = self.rows(at.d, at.h)
        row = aw.size * lanes
        place = at.x + (at.d * ad.stride - ad.pad) * (ah.size * row) + at.image.base(at.h * ah.stride - ah.pad, row)
        origin = k.let(place + (w * aw.stride - aw.pad) * lanes, "x")
        for q in k.loop("q", d1, d0):
            for r in k.loop("r", h1, h0):
                line = at.image.step(r * ah.dilation, row)
                x = k.let(origin + q * (ad.dilation * ah.size * row) + line, "x")
                self._taps(s, w, x, acc)
        for p in range(s.pixels):
            o = w + p
            value = self.finished(k.load(acc, p), at.d, at.h, self._width(s, o, p))
            finish(k, (at.n, at.block * lanes, *self.window.spatial(at.d, at.h, o)), valid, value)

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

    def __init__(self, ctx: Lowering, pooling: Pooling, k: KernelBuilder) -> None:
        super().__init__(ctx, pooling, k)
        operands = [v for n in ctx.tail for v in n.inputs if v is not None]
        blocked = any(v.type.layout.block for v in (self.x, ctx.output, *operands))
        self.lanes = 1 if blocked else ctx.lanes(self.acc)

    def write(self) -> None:
        k, view = self.k, self.window
        dims = (*self.x.type.dims[:2], view.d.out, view.h.out)
        for t in tasks(k, prod(dims) * view.w.out * view.taps, prod(dims)):
            n, c, d, h = unravel(k, t, dims)
            for run in _overlapping(view.w, self.lanes, self.ctx.copies(VECTORS)):
                for w in k.loop("w", run.end, run.begin, run.step):
                    self._vectors((n, c, d, h), w, run)
        k.done("pool_planar")

    def _vectors(self, at: tuple[Expr, ...], w: Expr, run: Run) -> None:
        n, c, d, h = at
        lanes, border = run.lanes, run.border
        k, (ad, ah, aw) = self.k, self.window.axes
        acc = k.registers("acc", self.acc, run.vectors, lanes)
        for v in range(run.vectors):
            k.store(acc, v, const(self.reduction.begin, self.acc, lanes))
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
                    first = k.let(row + (w * aw.stride - aw.pad + s * aw.dilation) * pixel, "at")
                    step = aw.stride * pixel
                    for v in range(run.vectors):
                        index = first + v * lanes * step
                        loaded = k.load(self.source, index if step == 1 else ramp(index, step, lanes), lanes)
                        value = k.let(cast(loaded, self.acc), "v")
                        k.store(acc, v, self.reduction.step(k.load(acc, v), value))
        counted: Axis = self.counted[2]
        begin, end = counted.tap_range(w) if border else (const(0), const(aw.kernel))
        for v in range(run.vectors):
            value = self.finished(k.load(acc, v), d, h, end - begin)
            site = Site((n, c, *self.window.spatial(d, h, w + v * lanes)), -1, lanes)
            k.write(self.ctx.output, site, self.ctx.epilogue(k, site, value))


def _overlapping(axis: Axis, lanes: int, vectors: int) -> Iterator[Run]:
    """A row in whole vectors where it has one, the last perhaps over the one before it; border pixels singly."""
    inside, row = axis.interior(), runs(axis, lanes, vectors)
    if len(inside) < lanes:
        yield from row
        return
    yield from (run for run in row if run.border or run.lanes == lanes)
    if len(inside) % lanes:
        yield Run(inside.stop - lanes, inside.stop, 1, lanes)
