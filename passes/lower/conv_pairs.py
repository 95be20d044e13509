"""Pointwise convolutions of levels that are not negative, by products of bytes that are first added in i16.

Where no instruction sums products of bytes in i32, the one that adds pairs of them in i16 does more in a cycle than
products of i16, but saturates. It cannot where the levels of a sum are 256 or less together, as nearly all are that an
activation leaves. A first kernel copies the levels into bytes, with zeros in the blocks of channels of a tile of pixels
where they are not, and lists these; the second kernel multiplies bytes, and what the list names as i16. Sums are exact
whatever the levels are; only the time depends on them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, broadcast, cast, const, dot, maximum, reduce, select, shuffle
from ...ir.types import DType
from .context import Lowering
from .conv_direct import DirectWriter, Place, flattened
from .conv_kernel import ConvKernel, Convolution, unravel
from .conv_plan import Inputs, Outputs, Plan, make_plan, packed_together
from .micro import multiply, packed, rows_of
from .tasks import guarded, tasks
from .tile import PRODUCT, Segment, Taps, Tile

FITS = 256
"""Levels of at most this sum times weights of i8 stay in i16."""

TOGETHER = 4
"""Products of bytes that are added into one sum."""

MANY = 4
"""A tile whose blocks do not fit, but for less than this part of them, is multiplied as i16 throughout."""

PIXELS = 4
"""Of a tile."""

SAVED = 0.3
"""Part of the direct form's time that is saved where nearly all levels fit."""

NARROWED = 0.45
"""Cycles that a level takes in the first kernel, by vectors of 32 bytes."""

MISSED = 40
"""Cycles of a tile whose lists end where that was not foreseen."""


def groups_of(ctx: Lowering) -> int:
    """Groups of four products that are added in i16: where a tile is of more and wider vectors too many do not fit."""
    return 2 if ctx.target.vector_bits == 256 else 1


def fits_pairs(ctx: Lowering, conv: Convolution) -> bool:
    """Whether a convolution may be computed so."""
    attrs, lanes = ctx.node.attrs, ctx.lanes(conv.sums)
    small = attrs.get("least", -1) == 0 and attrs.get("largest", 256) <= 255
    is_i8 = conv.weights.min(initial=0) >= -128 and conv.weights.max(initial=0) <= 127
    plain = conv.window.is_pointwise and conv.groups == 1 and conv.channels_in >= lanes and conv.window.d.size == 1
    of_levels = conv.dtype is DType.I16 and not conv.zero and conv.x.type.layout.block == lanes
    return ctx.target.adds_byte_pairs and small and is_i8 and plain and of_levels


def pair_cycles(ctx: Lowering, conv: Convolution, direct: float) -> float:
    """Estimated cycles, `direct` being those of the direct form."""
    tile, narrowed = _tile(ctx, conv), NARROWED * conv.x.type.size * 256 / ctx.target.vector_bits
    blocks = -(-conv.channels_out // (tile.vectors * ctx.lanes(conv.sums)))
    tiles = -(-conv.batch * conv.window.pixels // tile.pixels) * blocks
    return direct * (1 - SAVED) + narrowed + MISSED * tiles


def lower_pairs(ctx: Lowering, conv: Convolution) -> None:
    """Append the kernels (see `fits_pairs`)."""
    missing = -conv.channels_in % TOGETHER
    conv = replace(conv, weights=np.pad(conv.weights, [(0, 0), (0, missing), *[(0, 0)] * 3]))
    conv, whole = flattened(ctx, conv)
    plan = make_plan(ctx, conv, whole, _tile(ctx, conv))
    PairsWriter(ctx, plan, ConvKernel(ctx), _narrowed(ctx, plan)).write()


def _tile(ctx: Lowering, conv: Convolution) -> Tile:
    """Few pixels, since all that are in a tile have to fit, by as many vectors as the registers hold."""
    vectors = -(-conv.channels_out // ctx.lanes(conv.sums))
    most = (ctx.target.registers - PRODUCT) // (PIXELS + groups_of(ctx))
    blocks = -(-vectors // most)
    return Tile(min(PIXELS, conv.window.w.out), -(-vectors // blocks))


@dataclass(frozen=True, slots=True)
class Narrowed:
    """The levels as bytes, zeros in blocks of channels of a tile whose levels do not fit; for each tile, at its first
    pixel, how many blocks do not, and their numbers."""

    bytes: Value
    counts: Value
    blocks: Value

    @staticmethod
    def pixel(k: ConvKernel, conv: Convolution, n: Expr, h: Expr, w: Expr) -> Expr:
        """A pixel's number."""
        height, width = conv.window.h.size, conv.window.w.size
        return k.let((n * height + h) * width + w, "pixel")


def _narrowed(ctx: Lowering, plan: Plan) -> Narrowed:
    """The call that narrows the levels."""
    conv, whole = plan.conv, plan.inputs[0]
    pixels, height = conv.batch * conv.window.pixels, conv.window.h.size
    found = Narrowed(
        ctx.scratch("bytes", DType.U8, conv.x.type.nbytes // conv.x.type.dtype.nbytes),
        ctx.scratch("counts", DType.I32, pixels),
        ctx.scratch("blocks", DType.U16, pixels * whole.count),
    )
    k = ConvKernel(ctx)
    for t in tasks(k, conv.x.type.size * 2, conv.batch * height * plan.tiles_of_row):
        n, h, tile = unravel(k, t, (conv.batch, height, plan.tiles_of_row))
        skip = 0
        for s in plan.segments:
            here = (tile >= skip) & (tile < skip + s.count)
            for _ in guarded(k, here, len(plan.segments) > 1):
                _narrow(k, plan, found, s, (n, h, k.let((tile - skip) * s.pixels + s.start, "w")))
            skip += s.count
    k.done("narrow_levels")
    return found


def _narrow(k: ConvKernel, plan: Plan, found: Narrowed, s: Segment, at: tuple[Expr, Expr, Expr]) -> None:
    """The blocks of one tile."""
    conv, blocks, lanes = plan.conv, plan.inputs[0].count, plan.lanes
    n, h, w = at
    height, width = conv.window.h.size, conv.window.w.size
    pixel, x = Narrowed.pixel(k, conv, n, h, w), k.tensor(conv.x, "x")
    first = k.image(conv.x, n, height).first + (h * width + w) * lanes
    others = k.registers("others", DType.I64, 1, 1)
    k.store(others, 0, const(0))
    for c in k.loop("cb", blocks):
        origin = k.let(first + c * (height * width * lanes), "x")
        levels = [k.let(k.load(x, origin + i * lanes, lanes), "levels") for i in range(s.pixels)]
        most = _sums(k, levels[0], lanes)
        for value in levels[1:]:
            most = k.let(maximum(most, _sums(k, value, lanes)), "most")
        fits = k.let(reduce("max", most) <= FITS, "fits")
        mask = broadcast(k.let(select(fits, const(255, DType.I16), const(0, DType.I16)), "mask"), lanes)
        for i, value in enumerate(levels):
            k.store(k.tensor(found.bytes), origin + i * lanes, cast(value & mask, DType.U8))
        count = k.let(k.load(others, 0), "count")
        k.store(k.tensor(found.blocks), pixel * blocks + count, cast(c, DType.U16))
        k.store(others, 0, select(fits, count, count + 1))
    count = k.let(k.load(others, 0), "count")
    for _ in k.when(count * MANY > blocks):
        for c in k.loop("cb", blocks):
            k.store(k.tensor(found.blocks), pixel * blocks + c, cast(c, DType.U16))
    count = select(count * MANY > blocks, const(blocks), count)
    k.store(k.tensor(found.counts), pixel, cast(count, DType.I32))


def _sums(k: ConvKernel, levels: Expr, lanes: int) -> Expr:
    """What is added in i16: pairs, of NARROW groups."""
    ones = const(1, DType.I16, lanes)
    pairs = k.let(dot(levels, ones, const(0, DType.I32, lanes // 2)), "pairs")
    return pairs + shuffle(pairs, None, tuple(i ^ 2 for i in range(lanes // 2))) if groups_of(k.ctx) > 1 else pairs


class PairsWriter(DirectWriter):
    """Writes the kernel; its own weights are those of i16, `narrow` those of bytes."""

    def __init__(self, ctx: Lowering, plan: Plan, k: ConvKernel, found: Narrowed) -> None:
        super().__init__(ctx, plan, k)
        self.found = found
        self.narrow = ctx.pack("bytes", packed_together(plan, TOGETHER).astype(np.int8))

    def _channels(
        self, out: Outputs, place: Place, channels: Inputs, groups: tuple[Taps, ...], w: Expr, acc: Buffer,
        dynamic: bool,
    ) -> None:  # fmt: skip
        if channels is not self.plan.inputs[0]:
            super()._channels(out, place, channels, groups, w, acc, dynamic)
            return
        k, lanes, found = self.k, self.plan.lanes, self.found
        pixel = Narrowed.pixel(k, self.conv, place.n, place.h, w)
        origin = k.let(place.x + (place.h * self.conv.window.w.size + w) * lanes, "x")
        tap = channels.size * out.vectors * lanes
        source, weights = k.tensor(found.bytes), k.tensor(self.narrow)
        others = k.let(cast(k.load(k.tensor(found.counts), pixel), DType.I64), "others")
        for c in k.loop("cb", select(others < channels.count, const(channels.count), const(0))):
            rows = rows_of(source, k.let(origin + c * self.plane, "x"), lanes, groups[0].last)
            narrow = packed(weights, k.let(place.weights + c * tap, "w"), out.vectors, lanes)
            multiply(k, rows, narrow, lanes, acc, unroll=lanes, together=TOGETHER, narrow=groups_of(self.ctx))
        for j in k.loop("j", others):
            c = k.let(cast(k.load(k.tensor(found.blocks), pixel * channels.count + j), DType.I64), "cb")
            rows = rows_of(self.x, k.let(origin + c * self.plane, "x"), lanes, groups[0].last)
            wide = packed(self.w, k.let(place.weights + c * tap, "w"), out.vectors, lanes)
            multiply(k, rows, wide, lanes, acc, unroll=lanes, together=self.together)
