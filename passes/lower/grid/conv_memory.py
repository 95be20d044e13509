"""Convolutions straight from memory (`registers.py`): vectors lie along rows of the result, or along its channels.

Rows: a tile is some output channels by vectors of neighbouring positions, of one row or of several. Channels: it is
some positions by vectors of output channels, where images are too small for the first. Images are read as `planes.py`
arranges them, so that no read needs a test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ....ir.graph import Value
from ....ir.loops import Expr, broadcast, cast, const, minimum
from ....ir.types import DType
from ..context import Lowering
from ..product import unravel
from ..schedule import Schedule, choose
from ..tasks import guarded
from .conv_shape import ConvShape
from .planes import Planes
from .registers import Columns, RegisterTile, Sums, busy, register_tiles

NEAR = 1 << 20
"""Bytes that stay in a second-level cache beside what else is read."""
APART = 0.5
"""What each row of a tile costs a step: rows of large images lie in pages of their own."""
UNROLLED = 11
"""Taps of a row that stand side by side at most."""


@dataclass(frozen=True, slots=True)
class RowTile:
    """`tile.rows` channels by `high` rows of vectors, `tile.vectors` in all."""

    tile: RegisterTile
    high: int

    @property
    def wide(self) -> int:
        return self.tile.vectors // self.high

    def __str__(self) -> str:
        t = self.tile
        return f"channels={t.rows} vectors={self.high}x{self.wide}x{t.lanes}"


@dataclass(frozen=True, slots=True)
class ChannelTile:
    """`tile.rows` positions by vectors of channels."""

    tile: RegisterTile

    def __str__(self) -> str:
        t = self.tile
        return f"positions={t.rows} channels={t.vectors}x{t.lanes}"


def convolve_from_memory(ctx: Lowering, conv: ConvShape) -> None:
    """Append the kernels of a convolution to the node's calls."""
    plan = choose(ctx, "grid-conv", conv.problem, _candidates(conv), note=conv.note)
    planes = conv.planes(plan.tile.lanes)
    if isinstance(plan, RowTile):
        _Rows(ctx, conv, planes, plan).write()
    else:
        _Channels(ctx, conv, planes, plan).write()


def _candidates(conv: ConvShape) -> list[Schedule[RowTile | ChannelTile]]:
    """Tiles by the steps that all of them take; a vector of results is worth four, a channel of a position three."""
    rows, width = conv.rows()
    outer = conv.batch * conv.groups
    found: list[Schedule[RowTile | ChannelTile]] = []
    for t in register_tiles(conv.ctx.target, conv.channels_out, prod(conv.outs), conv.acc):
        for lanes in {t.lanes, max(1, t.lanes // 2), max(1, t.lanes // 4)}:
            if conv.window.is_pointwise and lanes > width:
                lanes = 1 << (width.bit_length() - 1)
            own = replace(t, lanes=lanes)
            vectors = -(-width // lanes)
            for high in (h for h in range(1, t.vectors + 1) if t.vectors % h == 0 and (h == 1 or h <= rows)):
                wide = t.vectors // high
                threads = outer * -(-conv.channels_out // t.rows) * -(-rows // high) * -(-vectors // wide)
                cost = threads * (conv.depth * (t.step + APART * high) + 4 * t.rows * t.vectors) * busy(threads)
                found.append(Schedule(str(RowTile(own, high)), cost, RowTile(own, high)))
    for t in (
        register_tiles(conv.ctx.target, prod(conv.outs), conv.channels_out, conv.acc) if conv.w.data is not None else ()
    ):
        threads = outer * -(-prod(conv.outs) // t.rows) * -(-conv.channels_out // t.width)
        cost = threads * (conv.depth * t.step + 3 * t.rows * t.width) * busy(threads)
        found.append(Schedule(str(ChannelTile(t)), cost, ChannelTile(t)))
    return list({s.name: s for s in found}.values())


class _Kernel:
    """What both forms share."""

    def __init__(self, ctx: Lowering, conv: ConvShape, planes: Planes, tile: RegisterTile) -> None:
        self.ctx, self.conv, self.planes, self.tile, self.k = ctx, conv, planes, tile, ctx.kernel()

    def sums(self) -> Sums:
        conv = self.conv
        return Sums(self.k, self.tile, conv.acc, DType.I32 if conv.together < conv.channels_in else None)

    def depth(self, sums: Sums) -> Iterator[tuple[Expr, Expr, Expr]]:
        """(input channel of the group, tap, how far the tap is read from a position) of each step."""
        k, (d, h, w) = self.k, self.conv.taps
        for c in sums.pieces("c", self.conv.channels_in, self.conv.together):
            channel = k.let(c * self.planes.channel, "plane")
            for t in k.loop("t", d):
                for r in k.loop("r", h):
                    first = k.let((t * h + r) * w, "tap")
                    if w > UNROLLED:
                        for s in k.loop("s", w):
                            yield c, first + s, k.let(channel + self.planes.tap((t, r, s)), "far")
                    else:
                        for at in range(w):
                            yield c, first + at, k.let(channel + self.planes.tap((t, r, const(at))), "far")

    def tiles(self, blocks: int, places: int) -> Iterator[tuple[Expr, Expr, Expr, Expr]]:
        """A thread for each: (image, group, block of channels, place). Threads side by side share weights, or a tile of
        the image where that does not stay near and all weights do."""
        k, conv = self.k, self.conv
        image = conv.channels_in * prod(self.planes.sizes) * conv.x.type.dtype.nbytes
        weights = conv.channels_out * conv.depth * conv.w.type.dtype.nbytes
        far = weights > NEAR or image <= NEAR
        order = [("block", blocks), ("place", places)] if far else [("place", places), ("block", blocks)]
        for z in k.loop("image", conv.batch * conv.groups, kind="grid"):
            for slow in k.loop(*order[0], kind="grid"):
                for fast in k.loop(*order[1], kind="grid"):
                    for _ in k.loop("thread", 1, kind="thread"):
                        block, place = (slow, fast) if far else (fast, slow)
                        yield (*unravel(z, (conv.batch, conv.groups)), block, place)  # type: ignore[misc]

    def image(self, image: Expr, group: Expr) -> Expr:
        """Where the channels of a group begin."""
        channel = (image * self.conv.groups + group) * self.conv.channels_in
        return self.k.let(channel * self.planes.channel, "image")

    def packed(self, wide: int) -> Value | None:
        """Constant weights [group][channels / wide][depth][wide], zero beyond the last channel."""
        conv, data = self.conv, self.conv.w.data
        if data is None:
            return None
        blocks = -(-conv.channels_out // wide)
        packed = np.zeros((conv.groups, blocks * wide, conv.depth), data.dtype)
        packed[:, : conv.channels_out] = data.reshape(conv.groups, conv.channels_out, conv.depth)
        packed = packed.reshape(conv.groups, blocks, wide, conv.depth).transpose(0, 1, 3, 2)
        return self.ctx.pack("weights", np.ascontiguousarray(packed).reshape(-1))


class _Rows(_Kernel):
    """Vectors along rows. Where rows follow each other without a gap, they are one."""

    def __init__(self, ctx: Lowering, conv: ConvShape, planes: Planes, plan: RowTile) -> None:
        super().__init__(ctx, conv, planes, plan.tile)
        self.plan = plan
        self.count, width = conv.rows()
        self.columns = Columns(width, plan.tile.lanes, planes.slack > 0)

    def write(self) -> None:
        conv, plan = self.conv, self.plan
        across = -(-self.columns.vectors // plan.wide)
        places = -(-self.count // plan.high) * across
        for image, group, block, place in self.tiles(-(-conv.channels_out // self.tile.rows), places):
            self._thread(image, group, block, place / across, place % across)
        self.k.done("conv_rows")

    def _thread(self, image: Expr, group: Expr, block: Expr, y: Expr, x: Expr) -> None:
        k, conv, tile, plan = self.k, self.conv, self.tile, self.plan
        first_row, first_column = k.let(y * plan.high, "first_row"), k.let(x * (plan.wide * tile.lanes), "first_column")
        channel = k.let(block * tile.rows, "channel")
        base = self.image(image, group)
        places = []
        for j in range(tile.vectors):
            row = first_row + j // plan.wide
            row = row if not self.count % plan.high else minimum(row, self.count - 1)
            column = self.columns.read_from(first_column + j % plan.wide * tile.lanes, plan.wide)
            places.append(k.let(base + self._place(k.let(row, "row"), column), "place"))
        weights = self._weights(group, block, channel)
        sums = self.sums()
        source = k.tensor(self.planes.value, "x")
        for c, tap, far in self.depth(sums):
            factors = (cast(w, conv.acc) for w in weights(c, tap))
            sums.add(factors, [cast(k.load(source, at + far, tile.lanes), conv.acc) for at in places])
        for i, vector, value in sums.results():
            self._finish(image, group, k.let(channel + i, "channel"), (first_row, first_column), vector, value)

    def _place(self, row: Expr, column: Expr) -> Expr:
        if self.conv.merges:
            return column
        d, h = unravel(row, self.conv.outs[:2])
        return self.planes.place(d, h, column)

    def _weights(self, group: Expr, block: Expr, channel: Expr) -> Callable[[Expr, Expr], list[Expr]]:
        """What reads the tile's rows of weights at an input channel and a tap."""
        k, conv, tile = self.k, self.conv, self.tile
        packed = self.packed(tile.rows)
        if packed is not None:
            blocks = -(-conv.channels_out // tile.rows)
            at = k.let((group * blocks + block) * (conv.depth * tile.rows), "panel")
            buffer = k.tensor(packed, "w")

            def read(c: Expr, tap: Expr) -> list[Expr]:
                first = at + (c * conv.window.taps + tap) * tile.rows
                return [k.load(buffer, first + i) for i in range(tile.rows)]

            return read
        own = [minimum(channel + i, conv.channels_out - 1) for i in range(tile.rows)]
        rows = [k.let((group * conv.channels_out + c) * conv.depth, "panel") for c in own]
        raw = k.tensor(conv.w, "w")
        return lambda c, tap: [k.load(raw, row + c * conv.window.taps + tap) for row in rows]

    def _finish(self, image: Expr, group: Expr, channel: Expr, first: tuple[Expr, Expr], j: Expr, value: Expr) -> None:
        k, conv, tile, plan = self.k, self.conv, self.tile, self.plan
        row = k.let(first[0] + j / plan.wide, "row")
        column = k.let(first[1] + j % plan.wide * tile.lanes, "column")
        output = k.let(group * conv.channels_out + channel, "output")
        tests = [
            here < size for here, size, step in ((channel, conv.channels_out, tile.rows), (row, self.count, plan.high))
            if size % step
        ]  # fmt: skip

        def write(at: Expr, lanes: int, part: Expr) -> None:
            part = part + broadcast(conv.start(k, output), lanes) if conv.bias is not None else part
            place = unravel(at, conv.outs) if conv.merges else (*unravel(row, conv.outs[:2]), at)
            conv.store(k, image, output, [k.let(p, "at") for p in place], part)

        inside = tests[0] if len(tests) < 2 and tests else (tests[0] & tests[1] if tests else channel >= 0)
        for _ in guarded(k, inside, bool(tests)):
            self.columns.store(k, column, plan.wide, value, write)


class _Channels(_Kernel):
    """Vectors along output channels."""

    def __init__(self, ctx: Lowering, conv: ConvShape, planes: Planes, plan: ChannelTile) -> None:
        super().__init__(ctx, conv, planes, plan.tile)

    def write(self) -> None:
        conv, tile = self.conv, self.tile
        for image, group, block, place in self.tiles(
            -(-conv.channels_out // tile.width), -(-prod(conv.outs) // tile.rows)
        ):
            self._thread(image, group, block, self.k.let(place * tile.rows, "first"))
        self.k.done("conv_channels")

    def _thread(self, image: Expr, group: Expr, block: Expr, first: Expr) -> None:
        k, conv, tile = self.k, self.conv, self.tile
        base, count = self.image(image, group), prod(conv.outs)
        places = []
        for i in range(tile.rows):
            at = first + i if not count % tile.rows else minimum(first + i, count - 1)
            places.append(k.let(base + self.planes.place(*unravel(k.let(at, "at"), conv.outs)), "place"))
        packed = self.packed(tile.width)
        assert packed is not None
        blocks = -(-conv.channels_out // tile.width)
        start = k.let((group * blocks + block) * (conv.depth * tile.width), "panel")
        sums = self.sums()
        source, weights = k.tensor(self.planes.value, "x"), k.tensor(packed, "w")
        for c, tap, far in self.depth(sums):
            at = k.let(start + (c * conv.window.taps + tap) * tile.width, "panel")
            vectors = [cast(k.load(weights, at + j * tile.lanes, tile.lanes), conv.acc) for j in range(tile.vectors)]
            sums.add((cast(k.load(source, place + far), conv.acc) for place in places), vectors)
        for position, column, value in sums.elements():
            channel, place = k.let(block * tile.width + column, "channel"), k.let(first + position, "at")
            partial = conv.channels_out % tile.width or count % tile.rows
            for _ in guarded(k, (channel < conv.channels_out) & (place < count), partial > 0):
                output = k.let(group * conv.channels_out + channel, "output")
                value = value + conv.start(k, output) if conv.bias is not None else value
                conv.store(k, image, output, [k.let(p, "at") for p in unravel(place, conv.outs)], value)
