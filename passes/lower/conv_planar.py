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
from ...ir.types import DType
from .context import INDEX, Lowering, Site, offset, strides
from .conv_kernel import flattens, unravel
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
    """y = bias + x * weights, all values; `weights` [K, C / groups, *spatial] in plain layout."""

    x: Value
    weights: Value
    bias: Value | None
    groups: int
    window: Window

    @property
    def channels_in(self) -> int:
        return self.weights.type.dims[1]

    @property
    def channels_out(self) -> int:
        """Output channels of one group."""
        return self.weights.type.dims[0] // self.groups

    @property
    def macs(self) -> int:
        return self.x.type.dims[0] * self.window.pixels * self.weights.type.size


def lower_planar(ctx: Lowering, conv: PlanarConvolution) -> None:
    """Append the kernels of a convolution in planar form."""
    lanes = 1 if _is_blocked(ctx, conv) else ctx.lanes(_sums(ctx))
    wide = replace(conv, window=_without_border(conv.window))
    if lanes > 1 and _cycles(ctx.target, wide, lanes) + _copying(wide) < _cycles(ctx.target, conv, lanes):
        axes = wide.window.axes
        sizes, before = (axes[0].size, axes[1].size, axes[2].size), (0, 0, max(0, conv.window.w.pad))
        conv = replace(wide, x=bordered(ctx, conv.x, conv.x.type.dtype, before, sizes, conv.macs >= PARALLEL_MACS))
    _Writer(ctx, conv).write()


def _sums(ctx: Lowering) -> DType:
    dtype = ctx.node.output.type.dtype
    return ACCUMULATORS.get(dtype, dtype)


def _cycles(target: Target, conv: PlanarConvolution, lanes: int) -> float:
    return min(s.cycles for s in schedules(target, conv, conv.window, lanes))


def _without_border(window: Window) -> Window:
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


class _Writer:
    def __init__(self, ctx: Lowering, conv: PlanarConvolution) -> None:
        self.ctx, self.conv, self.k = ctx, conv, ctx.kernel()
        self.window = conv.window
        if conv.window.is_pointwise and flattens(ctx) and not _is_blocked(ctx, conv):
            self.window = conv.window.merged()
        self.acc = _sums(ctx)
        self.lanes = 1 if _is_blocked(ctx, conv) else ctx.lanes(self.acc)
        tile = self._tile_of_least_cycles()
        self.channels, self.vectors = tile.rows, tile.vectors

    def _tile_of_least_cycles(self) -> Tile:
        ctx, conv = self.ctx, self.conv
        found = schedules(ctx.target, conv, self.window, self.lanes)
        channels = f"{conv.x.type.dims[0]}x{conv.groups} of {conv.channels_in}->{conv.channels_out}"
        return choose(ctx, "conv-planar", f"{self.window} {channels} {self.acc} lanes {self.lanes}", found)

    def write(self) -> None:
        k, conv, window = self.k, self.conv, self.window
        batch = conv.x.type.dims[0]
        dims = (batch, conv.groups, conv.channels_out // self.channels, window.d.out, window.h.out)
        for t in tasks(k, conv.macs, prod(dims)):
            n, group, block, d, h = unravel(k, t, dims)
            self._row(n, group, k.let(group * conv.channels_out + block * self.channels, "m"), d, h)
        k.done("conv_planar")

    def _row(self, n: Expr, group: Expr, first: Expr, d: Expr, h: Expr) -> None:
        k, axis = self.k, self.window.w
        at = (n, group, first, d, h)
        for run in runs(axis, self.lanes, self.vectors):
            for w in k.loop("w", run.end, run.begin, run.step):
                taps = axis.tap_range(w) if run.border else (const(0), const(axis.kernel))
                self._tile(at, w, run.vectors, run.lanes, taps)

    def _tile(self, at: tuple[Expr, ...], w: Expr, vectors: int, lanes: int, taps: tuple[Expr, Expr]) -> None:
        n, group, first, d, h = at
        k, window = self.k, self.window
        acc = k.registers("acc", self.acc, self.channels * vectors, lanes)
        for m in range(self.channels):
            value = k.let(self._start(first + m, lanes), "first")
            for v in range(vectors):
                k.store(acc, m * vectors + v, value)
        ad, ah, aw = window.axes
        d0, d1 = ad.tap_range(d)
        h0, h1 = (k.let(e, "r") for e in ah.tap_range(h))
        s0, s1 = (k.let(e, "s") for e in taps)
        for c in k.loop("c", self.conv.channels_in):
            if vectors > 1 and ah.out > 1 and prefetches(self.ctx.target):
                self._fetch(n, group, c, (d, h, w), vectors * lanes)
            for q in k.loop("q", d1, d0):
                for r in k.loop("r", h1, h0):
                    source = self._source(n, group, c, d * ad.stride - ad.pad + q * ad.dilation,
                                          h * ah.stride - ah.pad + r * ah.dilation)  # fmt: skip
                    source, row = k.let(source, "x"), k.let((q * ah.kernel + r) * aw.kernel, "row")
                    for s in k.loop("s", s1, s0):
                        self._tap(first, c, source, row + s, w * aw.stride - aw.pad + s * aw.dilation, vectors, acc)
        for m in range(self.channels):
            for v in range(vectors):
                value = cast(k.load(acc, m * vectors + v), self.ctx.node.output.type.dtype)
                spatial = window.spatial(d, h, k.let(w + v * lanes, "w"))
                site = Site((n, first + m, *spatial), -1, lanes)
                k.write(self.ctx.output, site, self.ctx.epilogue(k, site, value))

    def _source(self, n: Expr, group: Expr, c: Expr, d: Expr, h: Expr) -> Expr:
        """Element offset of column 0 of a row of the input; `d` and `h` may be merged axes."""
        channel = group * self.conv.channels_in + c
        rank = self.window.rank
        return offset(self.conv.x.type, (n, channel, *(d, h, INDEX)[3 - rank :]))

    def _fetch(self, n: Expr, group: Expr, c: Expr, at: tuple[Expr, Expr, Expr], pixels: int) -> None:
        """The rows of the input that the tile below reads for the first time, `pixels` wide."""
        k, ah, aw = self.k, self.window.h, self.window.w
        d, h, w = (o * a.stride - a.pad for o, a in zip(at, self.window.axes, strict=True))
        for row in range(ah.stride):
            first = k.let(self._source(n, group, c, d, h + (ah.reach + 1 + row)) + w, "below")
            for line in range(0, pixels * aw.stride, LINE):
                k.prefetch(k.tensor(self.conv.x), first + line)

    def _tap(self, first: Expr, c: Expr, source: Expr, tap: Expr, column: Expr, vectors: int, acc: Buffer) -> None:
        """Products of one input channel's tap with the tile."""
        k, lanes, conv = self.k, acc.lanes, self.conv
        x, w = k.tensor(conv.x, "x"), k.tensor(conv.weights, "w")
        pixel = strides(conv.x.type)[conv.x.type.rank - 1]
        step = self.window.w.stride * pixel
        at, taps = k.let(source + column * pixel, "x"), self.window.taps
        weights = []
        for m in range(self.channels):
            index = ((first + m) * conv.channels_in + c) * taps + tap
            weights.append(k.let(broadcast(cast(k.load(w, index), self.acc), lanes), "f"))
        for v in range(vectors):
            index = at + v * lanes * step
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


def _is_blocked(ctx: Lowering, conv: PlanarConvolution) -> bool:
    operands = [v for n in ctx.tail for v in n.inputs if v is not None]
    return any(v.type.layout.block for v in (conv.x, ctx.output, *operands))
