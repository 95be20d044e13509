"""Direct convolution by register tiles of pixels × output vectors.

Weights are packed `[group][K / (V·b)][C / c][D][H][W][c][V·b]`, in the order in which they are read. Loops, from the
outside: chunk of rows, block of output channels, row, tile of pixels, block of input channels, depth, height, width,
channel; only the tile is unrolled, and up to CHANNELS channels. Taps beyond the input are left out: by the bounds of
the depth and height loops for a whole row, and by leaving out pixels of the first and last tiles along the width.
Blocked input is read one block of channels at a time; plain input, one channel.

What comes from far is fetched ahead (`conv_ahead`): the weights of the next pass by shares of a tile, the pixels of the
next tile while the first block of outputs reads them, and the lines of the results where an operand of the tail does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, cast, const, maximum, minimum
from .book_expand import pack_coded
from .context import INDEX, Lowering
from .conv_ahead import Ahead, Soon
from .conv_kernel import (
    ConvKernel,
    Convolution,
    Image,
    finish,
    flattens,
    overwritable,
    pad_operands,
    padded_bias,
    start,
    unravel,
)
from .conv_plan import MAX_TAPS, Inputs, Outputs, Plan, pack_weights, products_of, reads_row_of_taps
from .conv_schedules import choose_plan
from .conv_zero import MissingTaps, shifted_bias
from .micro import Rows, in_turns, multiply, packed, rows_of
from .tasks import guarded, tasks
from .tile import Segment, Taps

CHANNELS = 8
"""Channels of a tap whose products are written out; a loop around each of them costs its mispredicted end."""


def lower_direct(ctx: Lowering, conv: Convolution) -> None:
    """Append the kernel of a float32 convolution with constant weights.

    Input and output are plain or blocked by the target's lanes; blocked ones hold whole blocks in every group.
    """
    DirectWriter(ctx, choose_plan(ctx, *flattened(ctx, conv)), ConvKernel(ctx)).write()


def flattened(ctx: Lowering, conv: Convolution) -> tuple[Convolution, bool]:
    """The convolution, its pixels as one row where they may be, and whether whole vectors may be stored; pads operands
    of the tail."""
    whole = pad_operands(ctx, ctx.lanes(conv.sums)) and (
        conv.groups == 1 or conv.channels_out % ctx.lanes(conv.sums) == 0
    )
    if conv.window.is_pointwise and flattens(ctx):
        conv = replace(conv, window=conv.window.merged())
    elif conv.window.is_column and conv.around is None and flattens(ctx):
        conv = replace(conv, window=conv.window.turned(), weights=conv.weights.swapaxes(3, 4))
    return conv, whole


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tile stands: image, block of outputs, first output channel, output row, input image, elements offsets of
    the first input channel in it, of weights and of the bias; what its products fetch: weights, and lines from where
    the results of each vector begin. beyond: the first output of a tile that reads what goes on around the image."""

    n: Expr
    block: Expr
    channel: Expr
    d: Expr
    h: Expr
    image: Image
    x: Expr
    weights: Expr
    bias: Expr
    chunk: Expr
    soon: Soon | None = None
    beyond: int | None = None
    results: tuple[Expr, ...] = ()


@dataclass(frozen=True, slots=True)
class Raster:
    """Rows and columns of the result that are written: number i is `first` + i·`step`."""

    first: tuple[int, int] = (0, 0)
    step: tuple[int, int] = (1, 1)


class DirectWriter:
    """Writes the kernel of a plan, or rows of its result as a part of the kernel `k`, to the places of `raster`."""

    def __init__(self, ctx: Lowering, plan: Plan, k: ConvKernel, raster: Raster | None = None) -> None:
        self.ctx, self.plan, self.conv, self.k = ctx, plan, plan.conv, k
        self.raster = raster or Raster()
        self.x: Buffer = self.k.tensor(plan.conv.x, "x")
        self.w: Buffer = self.k.tensor(pack_coded(ctx, "weights", pack_weights(plan, ctx.target), hidden=True), "w")
        self.bias: Value | None = padded_bias(ctx, shifted_bias(plan.conv), plan.conv.groups, plan.lanes)
        self.missing = MissingTaps.of(ctx, plan.conv, plan.lanes)
        self.together = products_of(ctx.target, plan.conv)
        self.ahead = Ahead(k, plan, self.x, self.w, self.raster.step[1])
        block = plan.conv.x.type.layout.block
        self.along_taps = reads_row_of_taps(ctx.target, plan.conv)
        self.pixel = block or 1
        axes = plan.conv.window.axes
        self.rows_in = self.k.image(plan.conv.x, INDEX, axes[1].size).rows
        self.plane = axes[0].size * self.rows_in * axes[2].size * self.pixel

    def write(self) -> None:
        k, plan = self.k, self.plan
        count = int(np.prod(plan.dims))
        height = self.conv.window.d.out * self.conv.window.h.out
        for t in tasks(k, self.conv.macs, count):
            n, rows, tiles, group, blocks = unravel(k, t, plan.dims)
            first = rows * plan.rows
            last = first + plan.rows if height % plan.rows == 0 else minimum(first + plan.rows, height)
            begin, end = blocks * plan.blocks, blocks * plan.blocks + plan.blocks
            if plan.blocks_out % plan.blocks:
                end = minimum(end, plan.blocks_out)
            for chunk in k.loop("chunk", plan.chunks):
                for block in k.loop("block", end, begin) if plan.blocks > 1 else (blocks,):
                    self._block(n, first, last, tiles, group, block, chunk)
        # A partial sum would be in the operand's place; without fetching ahead, loads that may pass stores gain more.
        waits = plan.chunks > 1 or any(o.valid < plan.lanes for o in plan.outputs) or not self.ahead.asks
        k.done("conv", over=() if waits else overwritable(k, self.conv.x))

    @property
    def pauses(self) -> int:
        """Calls of `meanwhile` in a row of the result."""
        plan = self.plan
        return self.conv.groups * plan.blocks_out * plan.tiles_of_row * sum(i.count for i in plan.inputs)

    def write_rows(self, n: Expr, first: Expr, last: Expr) -> None:
        """Rows [first, last) of the result of image `n`."""
        for group in self.k.loop("group", self.conv.groups):
            for block in self.k.loop("block", self.plan.blocks_out):
                for chunk in self.k.loop("chunk", self.plan.chunks):
                    self._block(n, first, last, INDEX, group, block, chunk)

    def _block(self, n: Expr, first: Expr, last: Expr, tiles: Expr, group: Expr, block: Expr, chunk: Expr) -> None:
        """One block of output channels."""
        several = len(self.plan.outputs) > 1
        for i, out in enumerate(self.plan.outputs):
            cond = block < out.first + out.count if i == 0 else block >= out.first
            for _ in guarded(self.k, cond, several):
                self._rows(out, chunk, n, (first, last), tiles, group, block)

    def _rows(
        self, out: Outputs, chunk: Expr, n: Expr, rows: tuple[Expr, Expr], tiles: Expr, group: Expr, block: Expr
    ) -> None:
        k, plan, conv, lanes = self.k, self.plan, self.conv, self.plan.lanes
        total = -(-conv.channels_out // lanes) * lanes
        per_vector = conv.channels_in * conv.window.taps * lanes
        blocks_in = conv.channels_in // lanes if self.pixel > 1 else conv.channels_in
        at = block * (plan.tile.vectors * lanes)
        whole = k.image_of(conv, n, self.rows_in)
        place = Place(
            n,
            block,
            group * conv.channels_out + at,
            INDEX,
            INDEX,
            whole,
            whole.first + group * (blocks_in * self.plane),
            k.let(group * (total // lanes * per_vector) + block * (plan.tile.vectors * per_vector), "w"),
            k.let(group * total + at, "b"),
            chunk,
        )
        height = conv.window.h
        last = conv.window.d.out * height.out
        for row in k.loop("row", rows[1], rows[0]) if last > 1 else (INDEX,):
            several = last > height.out
            d, h = (k.let(row / height.out, "d"), k.let(row % height.out, "h")) if several else (INDEX, row)
            k.enter_row(self.ctx.output, h)
            for image in k.entered(conv, place.image, h):
                self._row(out, replace(place, d=d, h=h, image=image), tiles, row - rows[0])

    def _row(self, out: Outputs, place: Place, tiles: Expr, number: Expr) -> None:
        """A row, or a task's tiles of it; `number`: rows of the task before it."""
        k, plan, skip = self.k, self.plan, 0
        for s in plan.segments:
            lo: Expr = const(0)
            hi: Expr = const(s.count)
            if plan.tile_tasks > 1:
                first = k.let(tiles * plan.tiles - skip, "first")
                lo, hi = first if skip == 0 else _at_least(first), minimum(first + plan.tiles, s.count)
            for i in k.loop("tile", hi, lo):
                tile = number * plan.tiles_of_row + (i - lo + skip)
                soon = self.ahead.weights(out, place.weights, place.chunk, tile)
                self._tile(out, replace(place, soon=soon), s, k.let(i * s.pixels + s.start, "w"))
            skip += s.count

    def _tile(self, out: Outputs, place: Place, s: Segment, w: Expr) -> None:
        k, axis, plan = self.k, self.conv.window.w, self.plan
        acc = k.registers("acc", self.conv.sums, s.pixels * out.vectors, plan.lanes)
        place = self._fetch_results(out, place, s, w)
        self._begin(out, place, s, w, acc)
        groups = s.taps
        if groups is None or self.conv.around is not None:
            groups = (Taps(0, axis.kernel, 0, s.pixels),)
        if s.taps is not None and self.conv.around is not None:
            place = replace(place, beyond=s.start)
        for number, channels in enumerate(plan.inputs if groups else ()):
            for _ in guarded(k, place.chunk >= plan.chunks - 1, number > 0 and plan.chunks > 1):
                self._channels(out, place, channels, groups, w, acc, s.dynamic)
        self._end(out, place, s, w, acc)

    def _fetch_results(self, out: Outputs, place: Place, s: Segment, w: Expr) -> Place:
        """Ask for the tile's results, or have the place tell what its blocks of channels are to ask for."""
        k, y = self.k, self.ctx.output
        if not y.type.layout.block or k.tensor(y, "y").space != "param" or not self.ahead.waits_for_results():
            return place
        starts = []
        for v in range(out.vectors):
            coords = (place.n, place.channel + v * self.plan.lanes, *self._spatial(place, w))
            starts.append(k.let(k.place(y, coords), "at"))
        left = self.ahead.results(k.tensor(y, "y"), starts, s.pixels)
        return replace(place, results=tuple(starts)) if left else place

    def _begin(self, out: Outputs, place: Place, s: Segment, w: Expr, acc: Buffer) -> None:
        """First values of the accumulators: the bias, or the sums over the chunks before."""
        k, plan = self.k, self.plan
        for _ in guarded(k, place.chunk < 1, plan.chunks > 1):
            firsts = [
                k.let(start(k, self.bias, place.bias + v * plan.lanes, plan.lanes, self.conv.sums), "first")
                for v in range(out.vectors)
            ]
            if self.missing is not None:
                firsts = self.missing.with_rows(k, firsts, place.bias, place.h)
            for p in range(s.pixels):
                for v, first in enumerate(firsts):
                    k.store(acc, p * out.vectors + v, first)
            if self.missing is not None and (s.taps is not None or s.dynamic):
                self.missing.add_columns(k, acc, s, place.bias, (place.h, w))
        for _ in k.otherwise() if plan.chunks > 1 else ():
            for i, at in self._results(out, place, s, w):
                k.store(acc, i, k.load(k.tensor(self.ctx.output, "y"), at, plan.lanes))

    def _end(self, out: Outputs, place: Place, s: Segment, w: Expr, acc: Buffer) -> None:
        """Store sums for the next chunk, results after the last one."""
        k, plan = self.k, self.plan
        for _ in k.when(place.chunk < plan.chunks - 1) if plan.chunks > 1 else ():
            for i, at in self._results(out, place, s, w):
                k.store(k.tensor(self.ctx.output, "y"), at, k.load(acc, i))
        for _ in k.otherwise() if plan.chunks > 1 else (None,):
            for p in range(s.pixels):
                for v in range(out.vectors):
                    valid = out.valid if v == out.vectors - 1 else plan.lanes
                    coords = (place.n, place.channel + v * plan.lanes, *self._spatial(place, w + p))
                    value = cast(k.load(acc, p * out.vectors + v), self.ctx.node.output.type.dtype)
                    finish(k, coords, valid, value)

    def _results(self, out: Outputs, place: Place, s: Segment, w: Expr) -> Iterator[tuple[int, Expr]]:
        """Each accumulator's index and where its result lies."""
        for p in range(s.pixels):
            for v in range(out.vectors):
                coords = (place.n, place.channel + v * self.plan.lanes, *self._spatial(place, w + p))
                yield p * out.vectors + v, self.k.place(self.ctx.output, coords)

    def _spatial(self, place: Place, w: Expr) -> tuple[Expr, ...]:
        (top, left), (down, right) = self.raster.first, self.raster.step
        return self.conv.window.spatial(place.d, place.h * down + top, w * right + left)

    def _channels(
        self,
        out: Outputs,
        place: Place,
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
        above = place.h * ah.stride - ah.pad
        origin = k.let(
            place.x
            + channels.first * self.plane
            + (place.d * ad.stride - ad.pad) * (ah.size * row)
            + place.image.base(above, row)
            + (w * aw.stride - aw.pad) * pixel,
            "x",
        )
        weights = k.let(place.weights + channels.skip * window.taps * out.vectors * self.plan.lanes, "w")
        d0, d1 = ad.tap_range(place.d)
        h0, h1 = (k.let(e, "r") for e in self.conv.rows.tap_range(place.h))
        lo: Expr = const(0)
        hi: Expr = const(channels.count)
        if self.plan.chunks > 1 and channels is self.plan.inputs[0]:
            lo = place.chunk * self.plan.chunk
            hi = (
                minimum(lo + self.plan.chunk, channels.count)
                if channels.count % self.plan.chunk
                else lo + self.plan.chunk
            )
        extent = channels.count if self.plan.chunks == 1 else self.plan.chunk
        even = window.taps == 1 and channels.size > 1 and channels.count % extent == 0
        pixels = groups[-1].last
        for c in in_turns(k, "cb", lo, hi, extent) if even else k.loop("cb", hi, lo):
            k.meanwhile()
            if window.taps == 1 and not place.image.ring and self.ahead.asks:
                self._fetch_pixels(place, origin + c * self.plane, pixels)
            if place.results and channels is self.plan.inputs[0]:
                self.ahead.share(k.tensor(self.ctx.output, "y"), place.results, c - lo, extent, pixels)
            for q in k.loop("q", d1, d0):
                for r in k.loop("r", h1, h0):
                    line = place.image.step(r * ah.dilation, row)
                    x = k.let(origin + c * self.plane + q * (ad.dilation * ah.size * row) + line, "x")
                    y = k.let(weights + c * (window.taps * tap) + (q * ah.kernel + r) * (aw.kernel * tap), "w")
                    number = ((c - lo) * ad.kernel + q) * (ah.kernel * aw.kernel) + r * aw.kernel
                    for column in range(aw.kernel) if place.beyond is not None else ():
                        ws = k.let(y + column * tap, "w")
                        self._ask(place, channels, number + column)
                        self._beyond(out, replace(place, x=x, weights=ws), channels.size, column, pixels, acc)
                    for g in groups if place.beyond is None else ():
                        if self.along_taps and not dynamic and channels.size == pixel:
                            self._row_of_taps(out, g, x, y, acc)
                            continue
                        begin, end = aw.tap_range(w) if dynamic else (const(g.begin), const(g.end))
                        for s in k.loop("s", end, begin):
                            xs, ws = x + s * (aw.dilation * pixel), y + s * tap
                            xs, ws = k.let(xs, "x"), k.let(ws, "w")
                            self._ask(place, channels, number + s)
                            self._products(out, channels.size, g, xs, ws, acc)

    def _ask(self, place: Place, channels: Inputs, number: Expr) -> None:
        """What a tap of the whole blocks of channels fetches of the weights of the next pass."""
        if place.soon is not None and channels is self.plan.inputs[0]:
            self.ahead.taps(place.soon, number)

    def _fetch_pixels(self, place: Place, x: Expr, pixels: int) -> None:
        """The pixels of the next tile, when they are read for the first time: planes are far apart."""
        for _ in guarded(self.k, place.block < 1, self.plan.blocks_out > 1):
            self.ahead.pixels(x, pixels)

    def _products(self, out: Outputs, size: int, taps: Taps, x: Expr, w: Expr, acc: Buffer) -> None:
        """One tap: `size` channels of the tile's pixels times their weights."""
        step = self.conv.window.w.stride * self.pixel
        rows = rows_of(self.x, x, step, taps.last - taps.first, first=taps.first)
        self._multiply(out, size, rows, w, acc, taps.first)

    def _beyond(self, out: Outputs, place: Place, size: int, tap: int, pixels: int, acc: Buffer) -> None:
        """One tap of a tile that reads what goes on around the image, from the place's pixels and weights on."""
        assert place.beyond is not None
        columns = self.conv.columns(place.beyond, tap, range(pixels))
        rows = Rows(self.x, tuple((place.x, column * self.pixel) for column in columns))
        self._multiply(out, size, rows, place.weights, acc, 0)

    def _multiply(self, out: Outputs, size: int, rows: Rows, w: Expr, acc: Buffer, first: int) -> None:
        weights = packed(self.w, w, out.vectors, self.plan.lanes)
        unroll = self.together if self.together > 2 else min(size, CHANNELS)
        multiply(self.k, rows, weights, size, acc, first=first, unroll=unroll, together=self.together)

    def _row_of_taps(self, out: Outputs, taps: Taps, x: Expr, w: Expr, acc: Buffer) -> None:
        """All taps of a row of one plain channel or of a block, whose inputs are lanes of a few vectors."""
        axis, count = self.conv.window.w, (taps.end - taps.begin) * self.pixel
        first = taps.begin * self.pixel
        x, w = x + first, w + first * (out.vectors * self.plan.lanes)
        rows = rows_of(self.x, self.k.let(x, "x"), axis.stride * self.pixel, taps.last - taps.first, first=taps.first)
        weights = packed(self.w, self.k.let(w, "w"), out.vectors, self.plan.lanes)
        unroll = count if count <= MAX_TAPS * self.pixel else self.plan.lanes
        multiply(self.k, rows, weights, count, acc, first=taps.first, unroll=unroll, together=self.together)


def _at_least(first: Expr) -> Expr:
    return maximum(first, 0)
