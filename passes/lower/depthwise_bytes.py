"""Depthwise convolution of bytes by dot products along the row: exact 32-bit sums.

Four neighbouring pixels of a block of channels lie side by side. One shuffle brings the four bytes of each channel
together, and a dot product with taps placed to match sums what they add to one output: two outputs of three taps at
stride 1 share a shuffle. Weights are packed `[blocks][rows of the filter][placements][lanes][4]`; at the ends of a row
taps beyond it are left out of their placement, so that nothing is read from another row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TypeAlias

import numpy as np

from ...ir.loops import Buffer, Expr, cast, const, dot, shuffle
from ...ir.types import DType
from .context import Lowering
from .conv_kernel import ConvKernel, Convolution, finish, pad_operands, start
from .conv_zero import MissingTaps, shifted_bias
from .depthwise import DepthwiseWriter, Place
from .tile import Segment, Taps, split
from .window import Axis

TOGETHER = 4
"""Pixels of one dot product."""

MAX_TAPS = 8
"""Longest row of a filter."""

Placement: TypeAlias = tuple[int, ...]
"""The tap that meets each of the pixels of a dot product, -1 for none."""


def fits_bytes(conv: Convolution) -> bool:
    """Whether a depthwise convolution of blocked tensors may be computed so."""
    axis, one = conv.window.w, conv.window.d.kernel == conv.window.d.size == 1
    short = axis.kernel <= MAX_TAPS and axis.dilation == 1 and axis.size >= TOGETHER
    return conv.dtype in (DType.U8, DType.I8) and conv.channels_out == 1 and one and short


def lower_depthwise_bytes(ctx: Lowering, conv: Convolution) -> None:
    """Append the kernel (see `fits_bytes`)."""
    BytesWriter(ctx, conv, pad_operands(ctx, ctx.lanes(conv.sums)), ConvKernel(ctx)).write()


@dataclass(frozen=True, slots=True)
class Read:
    """Four pixels from `column` on, and the placements by which pixels of a tile use them."""

    column: int
    uses: tuple[tuple[int, Placement], ...]


@cache
def reads(axis: Axis, first: int, pixels: int) -> tuple[tuple[Read, ...], bool]:
    """What outputs [first, first + pixels) read; whether tiles further along the row read alike."""
    found: list[Read] = []
    alike, outputs, count = True, list(range(first, first + pixels)), -(-axis.kernel // TOGETHER)
    while outputs:
        begin = outputs[0] * axis.stride - axis.pad
        alike = alike and begin >= 0
        begin = max(begin, 0)
        mine = [o for o in outputs if o * axis.stride - axis.pad + axis.kernel <= begin + TOGETHER * count]
        for own in (range(c, c + TOGETHER) for c in range(begin, begin + TOGETHER * count, TOGETHER)):
            column = min(own.start, axis.size - TOGETHER)
            placed = [(o - first, _placement(axis, o, column, own)) for o in mine]
            if uses := tuple(u for u in placed if max(u[1]) >= 0):
                found.append(Read(column, uses))
                alike = alike and column == own.start
        outputs = outputs[len(mine) :]
    return tuple(found), alike


def _placement(axis: Axis, output: int, column: int, own: range) -> Placement:
    taps = ((c, c - (output * axis.stride - axis.pad)) for c in range(column, column + TOGETHER))
    return tuple(t if c in own and 0 <= t < axis.kernel else -1 for c, t in taps)


class BytesWriter(DepthwiseWriter):
    """Writes the kernel."""

    def __init__(self, ctx: Lowering, conv: Convolution, whole_vectors: bool, k: ConvKernel) -> None:
        self.placements: dict[Placement, int] = {}
        super().__init__(ctx, conv, whole_vectors, k)
        self.missing = MissingTaps.of(ctx, replace(conv, groups=1), self.lanes)

    def _divided(self) -> tuple[Segment, ...]:
        """Runs of tiles that read alike, and others; `taps` of those are there."""
        axis, registers = self.conv.window.w, self.ctx.target.registers
        held = max(len({p for r in reads(axis, axis.out // 2, 4)[0] for _, p in r.uses}), 1)
        most = max(4, min(registers - 4 - held, 6 if registers <= 16 else 14))
        found: list[Segment] = []
        at = 0
        for count, pixels in split(axis.out, most):
            for _ in range(count):
                what, alike = reads(axis, at, pixels)
                for _, placement in (u for r in what for u in r.uses):
                    self.placements.setdefault(placement, len(self.placements))
                if alike and found and found[-1].taps is None and found[-1].pixels == pixels:
                    found[-1] = replace(found[-1], count=found[-1].count + 1)
                else:
                    found.append(Segment(at, 1, pixels, None if alike else (Taps(0, axis.kernel, 0, pixels),)))
                at += pixels
        return tuple(found)

    def _packed(self) -> np.ndarray:
        axis, weights = self.conv.window.w, self.conv.weights
        rows = self.conv.window.h.kernel
        padded = np.zeros((self.blocks * self.lanes, rows, axis.kernel + 1), np.int8)
        padded[: len(weights), :, : axis.kernel] = weights.reshape(-1, rows, axis.kernel)
        placed = padded[:, :, np.asarray(list(self.placements)).reshape(-1, TOGETHER)]
        blocks = placed.reshape(self.blocks, self.lanes, rows, -1, TOGETHER).transpose(0, 2, 3, 1, 4)
        return np.ascontiguousarray(blocks).reshape(-1)

    def _first_sums(self) -> np.ndarray | None:
        return shifted_bias(self.conv)

    def _tile(self, place: Place, s: Segment, w: Expr, valid: int) -> None:
        k, lanes = self.k, self.lanes
        ah, aw = self.conv.window.h, self.conv.window.w
        acc = k.registers("acc", DType.I32, s.pixels, lanes)
        self._begin(place, s, acc)
        h0, h1 = (k.let(e, "r") for e in ah.tap_range(place.h))
        row, width = aw.size * lanes, lanes * TOGETHER
        origin = place.x + place.image.base(place.h * ah.stride - ah.pad, row) + w * (aw.stride * lanes)
        origin = k.let(origin, "x")
        tap = len(self.placements) * width
        filters = k.let(place.block * (ah.kernel * tap), "w")
        order = tuple(p * lanes + c for c in range(lanes) for p in range(TOGETHER))
        for r in k.loop("r", h1, h0):
            x, y = k.let(origin + place.image.step(r * ah.dilation, row), "x"), k.let(filters + r * tap, "w")
            weights: dict[Placement, Expr] = {}
            for read in reads(aw, s.start, s.pixels)[0]:
                at = x + (read.column - s.start * aw.stride) * lanes
                pixels = k.let(shuffle(k.load(self.x, at, width), None, order), "p")
                for p, placement in read.uses:
                    if placement not in weights:
                        number = self.placements[placement]
                        weights[placement] = k.let(k.load(self.w, y + number * width, width), "f")
                    k.store(acc, p, dot(pixels, weights[placement], k.load(acc, p)))
        for p in range(s.pixels):
            value = cast(k.load(acc, p), self.ctx.node.output.type.dtype)
            finish(k, (place.n, place.block * lanes, *self.conv.window.spatial(place.d, place.h, w + p)), valid, value)

    def _begin(self, place: Place, s: Segment, acc: Buffer) -> None:
        k, at = self.k, place.block * self.lanes
        first = k.let(start(k, self.bias, at, self.lanes, DType.I32), "first")
        if self.missing is not None:
            (first,) = self.missing.with_rows(k, [first], at, place.h)
        for p in range(s.pixels):
            k.store(acc, p, first)
        if self.missing is not None and s.taps:
            self.missing.add_columns(k, acc, s, at, (place.h, const(s.start)))
