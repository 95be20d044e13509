"""Convolution with lanes along the width: any element type, layout, group count, weights known or not.

The best form where a group has only a few output channels and tensors are plain (the last layer of an image network,
depthwise audio filters); elsewhere the form that is always right. Tile: output channels × vectors of pixels. Pixels at
the border of a row are computed singly, with the range of their taps, or where they are many as others, of rows with
zeros beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from ...codegen.target import Target
from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, broadcast, cast, const, fma, ramp
from ...ir.types import DType, TensorType
from .context import INDEX, Lowering, Site, offset, strides
from .conv_kernel import ConvKernel, Image, flattens, unravel
from .micro import prefetches
from .packing import bordered
from .row_schedules import DOUBT
from .schedule import Schedule, choose
from .tasks import PARALLEL_MACS, tasks
from .tile import TILE_OVERHEAD, Run, Tile, bound, runs
from .window import Window

LINE = 16
"""Elements of a cache line."""

COPIED = 8.0
"""Bytes of a cycle that rows are copied with."""

MAX_VECTORS = 8
"""Vectors of pixels of a tile."""

ACCUMULATORS = {DType.F16: DType.F32, DType.BF16: DType.F32}
"""Types whose sums are kept in a wider one."""


@dataclass(frozen=True, slots=True)
class PlanarConvolution:
    """y = bias + x * weights, all values, y of a given type; `weights` [K, C / groups, *spatial] in plain layout."""

    x: Value
    y: TensorType
    weights: Value
    bias: Value | None
    groups: int
    window: Window

    @property
    def batch(self) -> int:
        return self.x.type.dims[0]

    @property
    def weight_bytes(self) -> int:
        return self.weights.type.nbytes

    @property
    def reads_planes(self) -> bool:
        return False

    @property
    def channels_in(self) -> int:
        return self.weights.type.dims[1]

    @property
    def channels_out(self) -> int:
        """Output channels of one group."""
        return self.weights.type.dims[0] // self.groups

    @property
    def macs(self) -> int:
        return self.batch * self.window.pixels * self.weights.type.size

    def __str__(self) -> str:
        """Kernel, shape of the result and channels; it decides how the layer is chained."""
        channels = f"{self.channels_in * self.groups}->{self.channels_out * self.groups}"
        return f"planar{self.window.kernel} {self.batch}x{self.window.image} {channels}"


def lower_planar(ctx: Lowering, conv: PlanarConvolution) -> None:
    """Append the kernels of a convolution in planar form."""
    lanes = ctx.lanes(_sums(ctx)) if has_lanes(ctx, conv) else 1
    wide = replace(conv, window=without_border(conv.window))
    if lanes > 1 and _cycles(ctx.target, wide, lanes) + _copying(wide) < _cycles(ctx.target, conv, lanes):
        axes = wide.window.axes
        sizes, before = (axes[0].size, axes[1].size, axes[2].size), (0, 0, max(0, conv.window.w.pad))
        conv = replace(wide, x=bordered(ctx, conv.x, conv.x.type.dtype, before, sizes, conv.macs >= PARALLEL_MACS))
    PlanarWriter(ctx, conv, ConvKernel(ctx)).write()


def _sums(ctx: Lowering) -> DType:
    dtype = ctx.node.output.type.dtype
    return ACCUMULATORS.get(dtype, dtype)


def _cycles(target: Target, conv: PlanarConvolution, lanes: int) -> float:
    return min(s.cycles for s in schedules(target, conv, conv.window, lanes))


def without_border(window: Window) -> Window:
    """The window over rows with as many zeros beside them as it reads."""
    axis = window.w
    before = max(0, axis.pad)
    size = max(before + axis.size, (axis.out - 1) * axis.stride - axis.pad + before + axis.reach + 1)
    return replace(window, w=replace(axis, size=size, pad=axis.pad - before, pad_end=0))


def _copying(conv: PlanarConvolution) -> float:
    """Cycles that writing the rows takes."""
    return prod(conv.x.type.dims[:-1]) * conv.window.w.size * conv.x.type.dtype.nbytes / COPIED


def schedules(target: Target, conv: PlanarConvolution, window: Window, lanes: int) -> list[Schedule[Tile]]:
    """Output channels by vectors of pixels, the usual tile first: as many as fit the registers."""
    at_once = [c for c in (4, 3, 2, 1) if conv.channels_out % c == 0]
    rows = conv.x.type.dims[0] * conv.groups * conv.channels_out * window.d.out * window.h.out
    depth = conv.channels_in * window.taps
    found: dict[tuple[int, tuple[Run, ...]], Schedule[Tile]] = {}
    for channels in at_once:
        most = max(1, min(MAX_VECTORS, (target.registers - 1 - channels) // channels))
        for vectors in range(most, 0, -1):
            row = tuple(runs(window.w, lanes, vectors))
            if (channels, row) in found:
                continue
            cycles = sum(
                (r.end - r.begin) // r.step * (TILE_OVERHEAD + depth * bound(target, channels, r.vectors)) for r in row
            )
            total = cycles * rows / channels
            doubt = 1 + DOUBT if found else 1.0
            found[channels, row] = Schedule(f"tile={channels}x{vectors}", total * doubt, Tile(channels, vectors))
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a row of tiles of `channels` output channels stands: image, group, first channel, row, input image."""

    n: Expr
    group: Expr
    first: Expr
    d: Expr
    h: Expr
    image: Image
    channels: int


class PlanarWriter:
    """Writes a kernel, or rows of its result as a part of the kernel `k`."""

    def __init__(self, ctx: Lowering, conv: PlanarConvolution, k: ConvKernel) -> None:
        self.ctx, self.conv, self.k = ctx, conv, k
        self.window = conv.window
        self.acc = _sums(ctx)
        self.lanes = ctx.lanes(self.acc) if has_lanes(ctx, conv) else 1
        self.rows_in = k.image(conv.x, INDEX, conv.window.h.size).rows

    def _candidates(self) -> list[Schedule[Tile]]:
        return schedules(self.ctx.target, self.conv, self.window, self.lanes)

    def write(self) -> None:
        k, conv = self.k, self.conv
        if conv.window.is_pointwise and flattens(self.ctx) and has_lanes(self.ctx, conv):
            self.window, self.rows_in = conv.window.merged(), 1
        channels = f"{conv.batch}x{conv.groups} of {conv.channels_in}->{conv.channels_out}"
        problem = f"{self.window} {channels} {self.acc} lanes {self.lanes}"
        tile = choose(self.ctx, "conv-planar", problem, self._candidates())
        window = self.window
        dims = (conv.batch, conv.groups, conv.channels_out // tile.rows, window.d.out, window.h.out)
        for t in tasks(k, conv.macs, prod(dims)):
            n, group, block, d, h = unravel(k, t, dims)
            self._row(tile, n, group, block, d, h)
        k.done("conv_planar")

    @property
    def pauses(self) -> int:
        """Calls of `meanwhile` in a row of the result."""
        conv, tile = self.conv, self._likely()
        tiles = sum((r.end - r.begin) // r.step for r in runs(self.window.w, self.lanes, tile.vectors))
        return conv.groups * (conv.channels_out // tile.rows) * tiles * conv.channels_in

    def _likely(self) -> Tile:
        return min(self._candidates(), key=lambda s: s.cycles).plan

    def write_rows(self, n: Expr, begin: Expr, end: Expr) -> None:
        """Rows [begin, end) of the result of image `n`."""
        tile = self._likely()
        for group in self.k.loop("group", self.conv.groups):
            for block in self.k.loop("block", self.conv.channels_out // tile.rows):
                for h in self.k.loop("row", end, begin):
                    self._row(tile, n, group, block, INDEX, h)

    def _row(self, tile: Tile, n: Expr, group: Expr, block: Expr, d: Expr, h: Expr) -> None:
        k, height, axis = self.k, self.window.h, self.window.w
        first = k.let(group * self.conv.channels_out + block * tile.rows, "m")
        k.enter_row(self.ctx.output, h)
        whole = k.image(self.conv.x, n, self.rows_in)
        image = whole.enter(k, h * height.stride - height.pad, height.reach, axis.size)
        at = _Place(n, group, first, d, h, image, tile.rows)
        for run in runs(axis, self.lanes, tile.vectors):
            for w in k.loop("w", run.end, run.begin, run.step):
                taps = axis.tap_range(w) if run.border else (const(0), const(axis.kernel))
                self._tile(at, w, run.vectors, run.lanes, taps)

    def _tile(self, at: _Place, w: Expr, vectors: int, lanes: int, taps: tuple[Expr, Expr]) -> None:
        k, window, d, h = self.k, self.window, at.d, at.h
        acc = k.registers("acc", self.acc, at.channels * vectors, lanes)
        for m in range(at.channels):
            value = k.let(self._start(at.first + m, lanes), "first")
            for v in range(vectors):
                k.store(acc, m * vectors + v, value)
        ad, ah, aw = window.axes
        d0, d1 = ad.tap_range(d)
        h0, h1 = (k.let(e, "r") for e in ah.tap_range(h))
        s0, s1 = (k.let(e, "s") for e in taps)
        for c in k.loop("c", self.conv.channels_in):
            k.meanwhile()
            if vectors > 1 and ah.out > 1 and prefetches(self.ctx.target) and not at.image.ring:
                self._fetch(at, c, w, vectors * lanes)
            for q in k.loop("q", d1, d0):
                for r in k.loop("r", h1, h0):
                    depth = d * ad.stride - ad.pad + q * ad.dilation
                    source = self._source(at, c, depth, h * ah.stride - ah.pad, r * ah.dilation)
                    source, row = k.let(source, "x"), k.let((q * ah.kernel + r) * aw.kernel, "row")
                    for s in k.loop("s", s1, s0):
                        self._tap(at, c, source, row + s, w * aw.stride - aw.pad + s * aw.dilation, vectors, acc)
        for m in range(at.channels):
            for v in range(vectors):
                value = cast(k.load(acc, m * vectors + v), self.ctx.node.output.type.dtype)
                spatial = window.spatial(d, h, k.let(w + v * lanes, "w"))
                site = Site((at.n, at.first + m, *spatial), -1, lanes)
                k.write(self.ctx.output, site, self.ctx.epilogue(k, site, value))

    def _source(self, at: _Place, c: Expr, d: Expr, h: Expr, r: Expr) -> Expr:
        """Element offset of column 0 of row `h` + r of the input; `d` and `h` may be merged axes."""
        x, channel = self.conv.x.type, at.group * self.conv.channels_in + c
        if x.layout.block:
            return offset(x, (at.n, channel, *(d, h + r, INDEX)[3 - self.window.rank :]))
        row = self.window.w.size
        plane = channel * (self.window.d.size * self.rows_in * row)
        return at.image.first + plane + d * (self.rows_in * row) + at.image.base(h, row) + at.image.step(r, row)

    def _fetch(self, at: _Place, c: Expr, w: Expr, pixels: int) -> None:
        """The rows of the input that the tile below reads for the first time, `pixels` wide."""
        k, ah, aw = self.k, self.window.h, self.window.w
        d, h, w = (o * a.stride - a.pad for o, a in zip((at.d, at.h, w), self.window.axes, strict=True))
        for row in range(ah.stride):
            first = k.let(self._source(at, c, d, h, const(ah.reach + 1 + row)) + w, "below")
            for line in range(0, pixels * aw.stride, LINE):
                k.prefetch(k.tensor(self.conv.x), first + line)

    def _tap(self, at: _Place, c: Expr, source: Expr, tap: Expr, column: Expr, vectors: int, acc: Buffer) -> None:
        """Products of one input channel's tap with the tile."""
        k, lanes, conv = self.k, acc.lanes, self.conv
        x, w = k.tensor(conv.x, "x"), k.tensor(conv.weights, "w")
        pixel = strides(conv.x.type)[conv.x.type.rank - 1]
        step = self.window.w.stride * pixel
        first, taps = k.let(source + column * pixel, "x"), self.window.taps
        weights = []
        for m in range(at.channels):
            index = ((at.first + m) * conv.channels_in + c) * taps + tap
            weights.append(k.let(broadcast(cast(k.load(w, index), self.acc), lanes), "f"))
        for v in range(vectors):
            index = first + v * lanes * step
            loaded = k.load(x, index if step == 1 or lanes == 1 else ramp(index, step, lanes), lanes)
            value = k.let(cast(loaded, self.acc), "p")
            for m, weight in enumerate(weights):
                i = m * vectors + v
                old = k.load(acc, i)
                k.store(acc, i, fma(value, weight, old) if self.acc.is_float else value * weight + old)

    def _start(self, channel: Expr, lanes: int) -> Expr:
        if self.conv.bias is None:
            return const(0, self.acc, lanes)
        bias = self.k.load(self.k.tensor(self.conv.bias, "bias"), channel)
        return broadcast(cast(bias, self.acc), lanes)


def has_lanes(ctx: Lowering, conv: PlanarConvolution) -> bool:
    """Whether pixels of a row are computed as vectors: all tensors are plain."""
    operands = [v for n in ctx.tail for v in n.inputs if v is not None]
    return not any(v.type.layout.block for v in (conv.x, ctx.output, *operands))
