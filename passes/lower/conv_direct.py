"""Direct convolution by register tiles of pixels × output vectors.

Weights are packed `[group][K / (V·b)][C / c][D][H][W][c][V·b]`, in the order in which they are read. Loops, from the
outside: chunk of rows, block of output channels, row, tile of pixels, block of input channels, depth, height, width,
channel; only the tile is unrolled. Taps beyond the input are left out: by the bounds of the depth and height loops for
a whole row, and by leaving out pixels of the first and last tiles along the width. Blocked input is read one block of
channels at a time; plain input, one channel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, broadcast, const, fma, maximum, minimum, shuffle
from ...ir.types import DType
from .context import INDEX, Lowering, strides
from .conv_kernel import (
    ConvKernel,
    Convolution,
    finish,
    flattens,
    guarded,
    pad_operands,
    padded_bias,
    start,
    tasks,
    unravel,
)
from .tile import Segment, Taps, Tile, choose_tile, segments, splats_lanes


@dataclass(frozen=True, slots=True)
class Outputs:
    """`count` blocks of `vectors` output vectors from block `first` on; `valid` lanes of the last vector are stored."""

    first: int
    count: int
    vectors: int
    valid: int


@dataclass(frozen=True, slots=True)
class Inputs:
    """`count` blocks of `size` input channels from block `first` on; `skip`: input channels before them."""

    first: int
    count: int
    size: int
    skip: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Schedule of one convolution. A task is `rows` rows (or `tiles` tiles of a single row) by one block of outputs."""

    conv: Convolution
    tile: Tile
    lanes: int
    outputs: tuple[Outputs, ...]
    inputs: tuple[Inputs, ...]
    segments: tuple[Segment, ...]
    rows: int
    row_tasks: int
    tiles: int
    tile_tasks: int

    @property
    def blocks_out(self) -> int:
        return sum(o.count for o in self.outputs)

    @property
    def dims(self) -> tuple[int, ...]:
        """Tasks: image, rows, tiles, group, block of outputs."""
        return self.conv.batch, self.row_tasks, self.tile_tasks, self.conv.groups, self.blocks_out


def lower_direct(ctx: Lowering, conv: Convolution) -> None:
    """Append the kernel of a float32 convolution with constant weights.

    Input and output are plain or blocked by the target's lanes; blocked ones hold whole blocks in every group.
    """
    whole = pad_operands(ctx, ctx.lanes()) and (conv.groups == 1 or conv.channels_out % ctx.lanes() == 0)
    if conv.window.is_pointwise and flattens(ctx):
        conv = replace(conv, window=conv.window.merged())
    plan = make_plan(ctx, conv, whole)
    _Writer(ctx, plan).write()


def make_plan(ctx: Lowering, conv: Convolution, whole_vectors: bool) -> Plan:
    """`whole_vectors`: lanes beyond the last channel may be stored."""
    lanes, axis = ctx.lanes(), conv.window.w
    splat = splats_lanes(ctx.target) and conv.x.type.layout.block == lanes
    tile = choose_tile(ctx.target, DType.F32, axis.out, conv.channels_out, splat=splat)
    row = segments(axis, tile.pixels)
    outputs = _outputs(conv.channels_out, tile.vectors, lanes, whole_vectors)
    inputs = _inputs(conv, lanes)
    plan = Plan(conv, tile, lanes, outputs, inputs, row, 1, 1, 1, 1)
    return _divided(ctx, plan)


def _outputs(channels: int, vectors: int, lanes: int, whole_vectors: bool) -> tuple[Outputs, ...]:
    total = -(-channels // lanes)
    last = lanes if whole_vectors else channels - (total - 1) * lanes
    count, rest = divmod(total, vectors)
    found = [Outputs(0, count, vectors, lanes)] if count else []
    if rest:
        return (*found, Outputs(count, 1, rest, last))
    if last == lanes:
        return tuple(found)
    whole = [Outputs(0, count - 1, vectors, lanes)] if count > 1 else []
    return (*whole, Outputs(count - 1, 1, vectors, last))


def _inputs(conv: Convolution, lanes: int) -> tuple[Inputs, ...]:
    channels = conv.channels_in
    if not conv.x.type.layout.block:
        return (Inputs(0, channels, 1, 0),)
    count, rest = divmod(channels, lanes)
    whole = (Inputs(0, count, lanes, 0),) if count else ()
    return (*whole, Inputs(count, 1, rest, count * lanes)) if rest else whole


def _divided(ctx: Lowering, plan: Plan) -> Plan:
    """Rows of a task so that their input stays in half of the second cache, and all threads have work."""
    conv, w = plan.conv, plan.conv.window
    room = max(1, _room(ctx, plan))
    rows = w.d.out * w.h.out
    others = conv.batch * conv.groups * plan.blocks_out
    wanted = -(-4 * ctx.threads // others) if ctx.threads > 1 else 1
    if rows == 1 and len(plan.segments) <= 2 and not any(s.taps or s.dynamic for s in plan.segments):
        tiles = sum(s.count for s in plan.segments)
        tile_bytes = plan.tile.pixels * w.w.stride * conv.channels_in * 4
        step = max(1, min(tiles, room // tile_bytes, -(-tiles // wanted)))
        return replace(plan, tiles=step, tile_tasks=-(-tiles // step))
    row_bytes = w.w.size * conv.channels_in * 4 * w.h.stride
    halo = (w.h.reach + 1 - w.h.stride) * w.w.size * conv.channels_in * 4
    step = max(1, min(rows, (room - halo) // max(1, row_bytes), -(-rows // wanted)))
    step = -(-rows // -(-rows // step))
    return replace(plan, rows=step, row_tasks=-(-rows // step))


def _room(ctx: Lowering, plan: Plan) -> int:
    """Bytes that a task's input may take: half the second cache, or half the first where all weights stay in the second
    but those of a block of outputs do not stay in the first, so that only they are read from the second.
    """
    conv, target = plan.conv, ctx.target
    per_channel = conv.channels_in * conv.window.taps * 4
    block, all_blocks = plan.tile.vectors * plan.lanes * per_channel, conv.channels_out * per_channel
    near = all_blocks <= target.l2_bytes * 5 // 8 and conv.x.type.nbytes <= target.l2_bytes
    if conv.window.is_pointwise and block > target.l1_bytes // 2 and near:
        return target.l1_bytes // 2
    return target.l2_bytes // 2


def pack_weights(plan: Plan) -> np.ndarray:
    """Weights in the order in which the kernel reads them, zero beyond the last output channel."""
    conv, lanes = plan.conv, plan.lanes
    taps, cin, cout = conv.window.taps, conv.channels_in, conv.channels_out
    total = -(-cout // lanes) * lanes
    w = np.zeros((conv.groups, total, cin, taps), np.float32)
    w[:, :cout] = conv.weights.reshape(conv.groups, cout, cin, taps)
    parts = []
    for group in w:
        for out in plan.outputs:
            width = out.vectors * lanes
            for block in range(out.count):
                first = out.first * plan.tile.vectors * lanes + block * width
                mine = group[first : first + width]
                for i in plan.inputs:
                    part = mine[:, i.skip : i.skip + i.count * i.size]
                    parts.append(part.reshape(width, i.count, i.size, taps).transpose(1, 3, 2, 0).reshape(-1))
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tile stands: image, first output channel, output row, elements offsets of x, weights and bias."""

    n: Expr
    channel: Expr
    d: Expr
    h: Expr
    x: Expr
    weights: Expr
    bias: Expr


class _Writer:
    """Writes the kernel of a plan."""

    def __init__(self, ctx: Lowering, plan: Plan) -> None:
        self.ctx, self.plan, self.conv = ctx, plan, plan.conv
        self.k = ConvKernel(ctx)
        self.x: Buffer = self.k.tensor(plan.conv.x, "x")
        self.w: Buffer = self.k.tensor(ctx.pack("weights", pack_weights(plan)), "w")
        self.bias: Value | None = padded_bias(ctx, plan.conv.bias, plan.conv.groups, plan.lanes)
        block = plan.conv.x.type.layout.block
        self.pixel = block or 1
        self.plane = plan.conv.window.pixels_in * self.pixel
        self.splat = splats_lanes(ctx.target) and block == plan.lanes

    def write(self) -> None:
        k, plan = self.k, self.plan
        count = int(np.prod(plan.dims))
        for t in tasks(self.ctx, k, self.conv.macs, count):
            n, rows, tiles, group, block = unravel(k, t, plan.dims)
            for i, out in enumerate(plan.outputs):
                several = len(plan.outputs) > 1
                cond = block < out.first + out.count if i == 0 else block >= out.first
                for _ in guarded(k, cond, several):
                    self._rows(out, n, rows, tiles, group, block)
        k.done("conv")

    def _rows(self, out: Outputs, n: Expr, rows: Expr, tiles: Expr, group: Expr, block: Expr) -> None:
        k, plan, conv, lanes = self.k, self.plan, self.conv, self.plan.lanes
        total = -(-conv.channels_out // lanes) * lanes
        per_vector = conv.channels_in * conv.window.taps * lanes
        blocks_in = conv.channels_in // lanes if self.pixel > 1 else conv.channels_in
        at = block * (plan.tile.vectors * lanes)
        place = _Place(
            n,
            group * conv.channels_out + at,
            INDEX,
            INDEX,
            n * strides(conv.x.type)[0] + group * (blocks_in * self.plane),
            k.let(group * (total // lanes * per_vector) + block * (plan.tile.vectors * per_vector), "w"),
            k.let(group * total + at, "b"),
        )
        height = conv.window.h
        last = conv.window.d.out * height.out
        begin = rows * plan.rows
        end = begin + plan.rows if last % plan.rows == 0 else minimum(begin + plan.rows, last)
        for row in k.loop("row", end, begin) if last > 1 else (INDEX,):
            d, h = (k.let(row / height.out, "d"), k.let(row % height.out, "h")) if last > height.out else (INDEX, row)
            self._row(out, replace(place, d=d, h=h), tiles)

    def _row(self, out: Outputs, place: _Place, tiles: Expr) -> None:
        k, plan, skip = self.k, self.plan, 0
        for s in plan.segments:
            lo: Expr = const(0)
            hi: Expr = const(s.count)
            if plan.tile_tasks > 1:
                first = k.let(tiles * plan.tiles - skip, "first")
                lo, hi = first if skip == 0 else _at_least(first), minimum(first + plan.tiles, s.count)
            for i in k.loop("tile", hi, lo):
                self._tile(out, place, s, k.let(i * s.pixels + s.start, "w"))
            skip += s.count

    def _tile(self, out: Outputs, place: _Place, s: Segment, w: Expr) -> None:
        k, axis, lanes = self.k, self.conv.window.w, self.plan.lanes
        acc = k.registers("acc", DType.F32, s.pixels * out.vectors, lanes)
        for v in range(out.vectors):
            first = k.let(start(k, self.bias, place.bias + v * lanes, lanes), "first")
            for p in range(s.pixels):
                k.store(acc, p * out.vectors + v, first)
        groups = s.taps or (Taps(0, axis.kernel, 0, s.pixels),)
        for channels in self.plan.inputs:
            self._channels(out, place, channels, groups, w, acc, s.dynamic)
        for p in range(s.pixels):
            for v in range(out.vectors):
                valid = out.valid if v == out.vectors - 1 else lanes
                coords = (place.n, place.channel + v * lanes, *self._spatial(place, w + p))
                finish(k, coords, valid, k.load(acc, p * out.vectors + v))

    def _spatial(self, place: _Place, w: Expr) -> tuple[Expr, ...]:
        return self.conv.window.spatial(place.d, place.h, w)

    def _channels(
        self,
        out: Outputs,
        place: _Place,
        channels: Inputs,
        groups: tuple[Taps, ...],
        w: Expr,
        acc: Buffer,
        dynamic: bool,
    ) -> None:
        k, window, pixel = self.k, self.conv.window, self.pixel
        ad, ah, aw = window.axes
        tap = channels.size * out.vectors * self.plan.lanes
        row = aw.size * pixel
        origin = k.let(
            place.x
            + channels.first * self.plane
            + (place.d * ad.stride - ad.pad) * (ah.size * row)
            + (place.h * ah.stride - ah.pad) * row
            + (w * aw.stride - aw.pad) * pixel,
            "x",
        )
        weights = k.let(place.weights + channels.skip * window.taps * out.vectors * self.plan.lanes, "w")
        d0, d1 = ad.tap_range(place.d)
        h0, h1 = (k.let(e, "r") for e in ah.tap_range(place.h))
        for c in k.loop("cb", channels.count):
            for q in k.loop("q", d1, d0):
                for r in k.loop("r", h1, h0):
                    x = k.let(
                        origin + c * self.plane + q * (ad.dilation * ah.size * row) + r * (ah.dilation * row), "x"
                    )
                    y = k.let(weights + c * (window.taps * tap) + (q * ah.kernel + r) * (aw.kernel * tap), "w")
                    for g in groups:
                        lo, hi = aw.tap_range(w) if dynamic else (const(g.begin), const(g.end))
                        for s in k.loop("s", hi, lo):
                            xs, ws = x + s * (aw.dilation * pixel), y + s * tap
                            self._products(out, channels.size, g, k.let(xs, "x"), k.let(ws, "w"), acc)

    def _products(self, out: Outputs, size: int, taps: Taps, x: Expr, w: Expr, acc: Buffer) -> None:
        """One tap: `size` channels of the tile's pixels times their weights."""
        k, lanes, width = self.k, self.plan.lanes, out.vectors * self.plan.lanes
        step = self.conv.window.w.stride * self.pixel
        if self.splat and size == lanes:
            pixels = [k.let(k.load(self.x, x + p * step, lanes), "p") for p in range(taps.first, taps.last)]
            for j in range(lanes):
                self._multiply(out, taps, [shuffle(p, None, (j,) * lanes) for p in pixels], w + j * width, acc)
            return
        for c in k.loop("c", size):
            pixels = [broadcast(k.load(self.x, x + c + p * step), lanes) for p in range(taps.first, taps.last)]
            self._multiply(out, taps, pixels, w + c * width, acc)

    def _multiply(self, out: Outputs, taps: Taps, pixels: list[Expr], w: Expr, acc: Buffer) -> None:
        k, lanes = self.k, self.plan.lanes
        vectors = [k.let(k.load(self.w, w + v * lanes, lanes), "v") for v in range(out.vectors)]
        for p, pixel in enumerate(pixels, taps.first):
            x = k.let(pixel, "p") if out.vectors > 1 else pixel
            for v, vector in enumerate(vectors):
                i = p * out.vectors + v
                k.store(acc, i, fma(x, vector, k.load(acc, i)))


def _at_least(first: Expr) -> Expr:
    return maximum(first, 0)
