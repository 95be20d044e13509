"""Depthwise convolution of blocked tensors: lanes are channels, a row of the filter stays in registers.

A tile is a run of pixels of one row and one block of channels. For each row of the filter its weights are loaded once;
each input vector is loaded once and feeds all its taps. Rows beyond the input are left out by the loop's bounds, taps
beyond it by leaving out their products in the first and last tiles. Integers are summed as floats, exact below 2^24; a
bias beyond that is added to the sums as i32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ...codegen.target import Target
from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, broadcast, cast, fma, minimum, shuffle
from ...ir.types import DType
from .context import INDEX, Lowering
from .conv_kernel import ConvKernel, Convolution, Image, finish, pad_operands, padded_bias, start, unravel
from .conv_schedules import problem
from .row_schedules import row_schedules, steps
from .schedule import Schedule, choose
from .tasks import guarded, tasks
from .tile import Segment, segments, tap_runs
from .window import Axis

MAX_UNROLLED = 7
"""Longest row of a filter whose weights are kept in registers."""


def is_depthwise(ctx: Lowering, conv: Convolution) -> bool:
    """One input channel a group, both tensors blocked, a channel multiplier that blocks divide or that divides them."""
    lanes, multiplier = ctx.lanes(conv.sums), conv.channels_out
    if conv.channels_in != 1 or conv.groups == 1 or not (conv.x.type.layout.block == conv.y.layout.block == lanes):
        return False
    return lanes % multiplier == 0 or multiplier % lanes == 0


def is_exact(conv: Convolution, largest: int, *, biased: bool = False) -> bool:
    """Whether all sums over integers of up to `largest` are whole numbers that f32 holds, with the bias or without."""
    sums = np.abs(conv.weights.astype(np.int64)).reshape(len(conv.weights), -1).sum(1) * largest
    bias = 0 if conv.bias is None or not biased else np.abs(conv.bias.astype(np.int64))
    return bool(np.all(sums + bias < 1 << 24))


def lower_depthwise(ctx: Lowering, conv: Convolution) -> None:
    """Append the kernel of a depthwise convolution (see `is_depthwise`)."""
    whole = pad_operands(ctx, ctx.lanes(conv.sums))
    note = "integers in floats, which hold their sums" if conv.dtype.is_int else ""
    pixels = choose(ctx, "depthwise", problem(ctx, conv, whole), schedules(ctx, conv), note=note)
    apart = conv.dtype.is_int and not is_exact(conv, ctx.node.attrs.get("largest", 1 << 15), biased=True)
    DepthwiseWriter(ctx, conv, whole, ConvKernel(ctx), pixels, bias_apart=apart).write()


def schedules(ctx: Lowering, conv: Convolution) -> list[Schedule[int]]:
    """Pixels of a tile, the usual number first."""
    window, axis, target = conv.window, conv.window.w, ctx.target

    def cycles(pixels: int) -> float:
        loads = (pixels - 1) * axis.stride + axis.reach + 1 + axis.kernel
        return window.taps // axis.kernel * steps(target, pixels, axis.kernel, loads, axis.kernel)

    rows = conv.batch * window.d.out * window.h.out * -(-conv.groups * conv.channels_out // ctx.lanes(conv.sums))
    found = row_schedules(axis, usual_pixels(target, axis), most_pixels(target, axis), cycles)
    return [replace(s, cycles=s.cycles * rows) for s in found]


def most_pixels(target: Target, axis: Axis) -> int:
    """Pixels whose sums fit the registers beside a row of the filter and an input."""
    return max(4, target.registers - 1 - (axis.kernel if axis.kernel <= MAX_UNROLLED else 1))


def usual_pixels(target: Target, axis: Axis) -> int:
    """Pixels of a tile where nothing was measured: their code stays small."""
    return min(most_pixels(target, axis), 8 if target.registers <= 16 else 14)


@dataclass(frozen=True, slots=True)
class Place:
    """Image, block of output channels, output row; input image; element offsets of the input plane and the weights."""

    n: Expr
    block: Expr
    d: Expr
    h: Expr
    image: Image
    x: Expr
    weights: Expr


class DepthwiseWriter:
    """Writes a kernel of tiles of `pixels`, or rows of its result as a part of the kernel `k`.

    bias_apart: sums of integers are held by f32, and the bias, added to them in i32, is not.
    """

    def __init__(
        self,
        ctx: Lowering,
        conv: Convolution,
        whole_vectors: bool,
        k: ConvKernel,
        pixels: int | None = None,
        *,
        bias_apart: bool = False,
    ) -> None:
        self.ctx, self.conv, self.k, self.lanes = ctx, conv, k, ctx.lanes(conv.sums)
        self.pixels = pixels or usual_pixels(ctx.target, conv.window.w)
        self.acc = DType.F32 if conv.dtype.is_int else conv.sums
        channels = conv.groups * conv.channels_out
        self.blocks = -(-channels // self.lanes)
        self.valid = self.lanes if whole_vectors else channels - (self.blocks - 1) * self.lanes
        self.unrolled = conv.window.w.kernel <= MAX_UNROLLED
        self.segments = self._divided()
        self.rows_in = k.image(conv.x, INDEX, conv.window.h.size).rows
        self.plane = conv.window.d.size * self.rows_in * conv.window.w.size * self.lanes
        self.x: Buffer = self.k.tensor(conv.x, "x")
        self.w: Buffer = self.k.tensor(ctx.pack("weights", self._packed()), "w")
        self.apart = padded_bias(ctx, conv.bias, 1, self.lanes) if bias_apart else None
        first = None if bias_apart else self._first_sums()
        self.bias: Value | None = padded_bias(ctx, first, 1, self.lanes)

    def _divided(self) -> tuple[Segment, ...]:
        """A row as tiles."""
        return segments(self.conv.window.w, self.pixels)

    def _packed(self) -> np.ndarray:
        return self._pack(self.conv.weights.astype(self.acc.numpy))

    def _first_sums(self) -> np.ndarray | None:
        return None if self.conv.bias is None else self.conv.bias.astype(self.acc.numpy)

    def _pack(self, weights: np.ndarray) -> np.ndarray:
        """[blocks, taps, lanes]."""
        taps = self.conv.window.taps
        padded = np.zeros((self.blocks * self.lanes, taps), weights.dtype)
        padded[: weights.shape[0]] = weights.reshape(-1, taps)
        return np.ascontiguousarray(padded.reshape(self.blocks, self.lanes, taps).transpose(0, 2, 1)).reshape(-1)

    def write(self) -> None:
        k, conv = self.k, self.conv
        height = conv.window.h
        total = conv.window.d.out * height.out
        wanted = -(-4 * self.ctx.threads // (conv.batch * self.blocks)) if self.ctx.threads > 1 else 1
        rows = -(-total // min(total, wanted))
        dims = (conv.batch, self.blocks, -(-total // rows))
        for t in tasks(k, conv.macs, prod(dims)):
            n, block, chunk = unravel(k, t, dims)
            begin = chunk * rows
            end = begin + rows if total % rows == 0 else minimum(begin + rows, total)
            self._rows(n, block, begin, end)
        k.done("conv_depthwise")

    def write_rows(self, n: Expr, begin: Expr, end: Expr) -> None:
        """Rows [begin, end) of the result of image `n`."""
        for block in self.k.loop("block", self.blocks):
            self._rows(n, block, begin, end)

    def _rows(self, n: Expr, block: Expr, begin: Expr, end: Expr) -> None:
        k, conv = self.k, self.conv
        height = conv.window.h
        total = conv.window.d.out * height.out
        whole = k.image_of(conv, n, self.rows_in)
        x = k.let(whole.first + self._source(block), "x")
        w = k.let(block * (conv.window.taps * self.lanes), "w")
        for row in k.loop("row", end, begin) if total > 1 else (INDEX,):
            d, h = (k.let(row / height.out, "d"), k.let(row % height.out, "h")) if total > height.out else (INDEX, row)
            k.enter_row(self.ctx.output, h)
            for image in k.entered(conv, whole, h):
                place = Place(n, block, d, h, image, x, w)
                for last in (False, True) if self.valid < self.lanes else (True,):
                    cond = block >= self.blocks - 1 if last else block < self.blocks - 1
                    for _ in guarded(k, cond, self.valid < self.lanes):
                        self._row(place, self.valid if last else self.lanes)

    def _source(self, block: Expr) -> Expr:
        """Element offset, in an image, of the first input channel of a block of output channels."""
        plane, m, b = self.plane, self.conv.channels_out, self.lanes
        if m == 1:
            return block * plane
        if m % b == 0:
            channel = self.k.let(block / (m // b), "channel")
            return channel / b * plane + channel % b
        return block / m * plane + block % m * (b // m)

    def _load(self, index: Expr) -> Expr:
        """The inputs of a vector of output channels at one position."""
        return cast(self._loaded(index), self.acc)

    def _loaded(self, index: Expr) -> Expr:
        m, b = self.conv.channels_out, self.lanes
        if m == 1:
            return self.k.load(self.x, index, b)
        if m % b == 0:
            return broadcast(self.k.load(self.x, index), b)
        return shuffle(self.k.load(self.x, index, b // m), None, tuple(i // m for i in range(b)))

    def _row(self, place: Place, valid: int) -> None:
        k = self.k
        for s in self.segments:
            for i in k.loop("tile", s.count):
                self._tile(place, s, k.let(i * s.pixels + s.start, "w"), valid)

    def _tile(self, place: Place, s: Segment, w: Expr, valid: int) -> None:
        k, lanes = self.k, self.lanes
        ad, ah, aw = self.conv.window.axes
        acc = k.registers("acc", self.acc, s.pixels, lanes)
        first = k.let(start(k, self.bias, place.block * lanes, lanes, self.acc), "first")
        for p in range(s.pixels):
            k.store(acc, p, first)
        d0, d1 = ad.tap_range(place.d)
        h0, h1 = (k.let(e, "r") for e in self.conv.rows.tap_range(place.h))
        row = aw.size * lanes
        above = place.h * ah.stride - ah.pad
        origin = (
            place.x
            + (place.d * ad.stride - ad.pad) * (ah.size * row)
            + place.image.base(above, row)
            + (w * aw.stride - aw.pad) * lanes
        )
        origin = k.let(origin, "x")
        for q in k.loop("q", d1, d0):
            for r in k.loop("r", h1, h0):
                line = place.image.step(r * ah.dilation, row)
                x = k.let(origin + q * (ad.dilation * ah.size * row) + line, "x")
                y = k.let(place.weights + (q * ah.kernel + r) * (aw.kernel * lanes), "w")
                if self.unrolled and not s.dynamic:
                    goes_on = s.taps is not None and self.conv.around is not None
                    (self._beyond if goes_on else self._filter_row)(s, x, y, acc)
                else:
                    self._filter_loop(s, w, x, y, acc)
        for p in range(s.pixels):
            spatial = self.conv.window.spatial(place.d, place.h, w + p)
            value = cast(self._biased(place, k.load(acc, p)), self.ctx.node.output.type.dtype)
            finish(k, (place.n, place.block * lanes, *spatial), valid, value)

    def _biased(self, place: Place, sums: Expr) -> Expr:
        """With what is added apart."""
        if self.apart is None:
            return sums
        bias = self.k.load(self.k.tensor(self.apart), place.block * self.lanes, self.lanes)
        return cast(cast(sums, DType.I32) + bias, DType.F32)

    def _filter_row(self, s: Segment, x: Expr, w: Expr, acc: Buffer) -> None:
        """All taps of a filter's row at once."""
        k, axis, lanes = self.k, self.conv.window.w, self.lanes
        users: dict[int, list[tuple[int, int]]] = {}
        for p in range(s.pixels):
            for t in axis.taps(s.start + p) if s.taps is not None else range(axis.kernel):
                users.setdefault(p * axis.stride + t * axis.dilation, []).append((p, t))
        weights = [k.let(k.load(self.w, w + t * lanes, lanes), "f") for t in range(axis.kernel)]
        for column in sorted(users):
            value = k.let(self._load(x + column * lanes), "p")
            for p, t in users[column]:
                k.store(acc, p, fma(value, weights[t], k.load(acc, p)))

    def _beyond(self, s: Segment, x: Expr, w: Expr, acc: Buffer) -> None:
        """`_filter_row` where the image goes on beyond its border."""
        k, lanes, loaded = self.k, self.lanes, dict[int, Expr]()
        for t in range(self.conv.window.w.kernel):
            weight = k.let(k.load(self.w, w + t * lanes, lanes), "f")
            for p, column in enumerate(self.conv.columns(s.start, t, range(s.pixels))):
                if column not in loaded:
                    loaded[column] = k.let(self._load(x + column * lanes), "p")
                k.store(acc, p, fma(loaded[column], weight, k.load(acc, p)))

    def _filter_loop(self, s: Segment, w: Expr, x: Expr, y: Expr, acc: Buffer) -> None:
        """Tap by tap: for long filters and for pixels whose taps are known at run time only."""
        k, axis, lanes = self.k, self.conv.window.w, self.lanes
        for begin, end, first, last in tap_runs(s, axis, w):
            for t in k.loop("s", end, begin):
                weight = k.let(k.load(self.w, y + t * lanes, lanes), "f")
                for p in range(first, last):
                    value = self._load(x + t * (axis.dilation * lanes) + p * axis.stride * lanes)
                    k.store(acc, p, fma(value, weight, k.load(acc, p)))
