"""Pointwise convolution by lists of the weights that are not zero (`sparse.py`): lanes are pixels.

A task copies its pixels of all input channels into a tile [C][vectors · lanes], transposed where x is blocked, so that
rows lie side by side whatever the size of the image; then each block of output channels runs through its list: a vector
of x serves all channels of the block. Where the result is blocked, sums of a block of its channels are collected first
and transposed. Loops stream the lists: code for each weight would not fit the instruction cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from ...ir.loops import Buffer, Expr, binary, bitcast, broadcast, cast, const, minimum, shuffle
from ...ir.structure import structure
from ...ir.types import DType
from .context import INDEX, Lowering, Site, strides
from .conv_kernel import ConvKernel, Convolution, finish, flattens, pad_operands, unravel
from .conv_schedules import problem, schedules
from .micro import splats_lanes
from .product import multiply_add
from .schedule import DENSE, Schedule, choose
from .sparse import list_plans, make_lists, may_pay, sets_of, step_of
from .tasks import PARALLEL_MACS, guarded, pieces, tasks
from .tile import split
from .transposes import transposed


@dataclass(frozen=True, slots=True)
class Plan:
    """height: output channels of a list. vectors: most vectors of pixels in a tile."""

    height: int
    vectors: int

    def __str__(self) -> str:
        return f"sparse={self.height}x1 vectors={self.vectors}"


def sparse_plan(ctx: Lowering, conv: Convolution) -> Plan | None:
    """How to compute the convolution by lists, None where dense weights are thought to be faster."""
    if conv.groups != 1 or conv.dtype is not DType.F32 or not conv.window.is_pointwise or not flattens(ctx):
        return None
    if not may_pay(conv.weights) or not conv.macs:
        return None
    target, lanes = ctx.target, ctx.lanes()
    if lanes < 4:
        return None
    whole = conv.channels_out % lanes == 0 or conv.y.layout.block == lanes
    dense = min(s.cycles for s in schedules(ctx, conv, whole))
    candidates: list[Schedule[Plan | None]] = [Schedule(DENSE, dense, None)]
    matrix = conv.weights.reshape(conv.weights.shape[:2])
    blocked = (conv.x.type.layout.block > 0) + (conv.y.layout.block > 0)
    for height, vectors, cycles in list_plans(target, matrix, conv.window.pixels, blocked):
        plan = Plan(height, vectors)
        candidates.append(Schedule(str(plan), conv.batch * cycles, plan))
    zeros = round(100 * structure(conv.weights).zeros)
    return choose(ctx, "conv-sparse", f"{problem(ctx, conv, whole)} zeros {zeros}%", candidates)


def lower_sparse(ctx: Lowering, conv: Convolution, plan: Plan) -> None:
    """Append the kernel of a pointwise float32 convolution (see `sparse_plan`)."""
    _Writer(ctx, conv, plan).write()


@dataclass(frozen=True, slots=True)
class _Tiles:
    """`count` tiles of `vectors` vectors from tile `index` and pixel `pixel` on; `valid` pixels of each."""

    index: int
    count: int
    vectors: int
    pixel: int
    valid: int


@dataclass(frozen=True, slots=True)
class _Place:
    """A tile: image, its first pixel, where its copy of x begins; and what its kind has in common."""

    n: Expr
    pixel: Expr
    base: Expr
    kind: _Tiles


class _Writer:
    def __init__(self, ctx: Lowering, conv: Convolution, plan: Plan) -> None:
        self.ctx, self.conv, self.plan, self.k = ctx, conv, plan, ConvKernel(ctx)
        self.lanes = ctx.lanes()
        self.pixels = conv.window.pixels
        self.whole = bool(conv.y.layout.block) and pad_operands(ctx, self.lanes)
        self.tiles = self._tiles()
        self.channels = -(-conv.channels_in // self.lanes) * self.lanes
        self.blocks = -(-conv.channels_out // plan.height)
        sets = max(sets_of(ctx.target, plan.height, t.vectors) for t in self.tiles)
        step = step_of(ctx.target, plan.height, sets)
        self.lists = make_lists(conv.weights.reshape(conv.weights.shape[:2]), plan.height, step)

    def _tiles(self) -> list[_Tiles]:
        """All tiles of an image; the last one is a kind of its own where it is not full."""
        found, index, vector = [], 0, 0
        for count, size in split(-(-self.pixels // self.lanes), self.plan.vectors):
            pixel, full = vector * self.lanes, size * self.lanes
            whole = min(count, (self.pixels - pixel) // full)
            found += [_Tiles(index, whole, size, pixel, full)] if whole else []
            if whole < count:
                rest = pixel + whole * full
                found.append(_Tiles(index + whole, 1, size, rest, self.pixels - rest))
            index, vector = index + count, vector + count * size
        return found

    def write(self) -> None:
        k, conv = self.k, self.conv
        count = sum(t.count for t in self.tiles)
        group = self.lanes if conv.y.layout.block else self.plan.height
        groups = -(-conv.channels_out // group)
        wanted = -(-2 * self.ctx.threads // (conv.batch * count)) if self.ctx.threads > 1 else 1
        each = -(-groups // min(groups, wanted))
        shares = -(-groups // each)
        dims = (conv.batch, count, shares)
        row = max(t.vectors for t in self.tiles) * self.lanes
        size = self.channels * row
        spread = self.ctx.threads > 1 and prod(dims) > 1 and conv.macs >= PARALLEL_MACS
        tile = k.tensor(self.ctx.scratch("tile", DType.F32, size * (self.ctx.threads if spread else 1)))
        parts = self._parts()
        for t in tasks(k, conv.macs, prod(dims)):
            n, index, share = unravel(k, t, dims)
            base = k.let(k.worker * size, "base") if spread else INDEX
            end: Expr = const(groups) if shares == 1 else minimum(share * each + each, groups)
            for kind in self.tiles:
                cond = (index >= kind.index) & (index < kind.index + kind.count)
                for _ in guarded(k, cond, len(self.tiles) > 1):
                    pixel = k.let((index - kind.index) * (kind.vectors * self.lanes) + kind.pixel, "pixel")
                    place = _Place(n, pixel, base, kind)
                    self._pack(tile, place)
                    for g in k.loop("g", end, share * each):
                        self._group(tile, parts, place, g)
        k.done("conv_sparse")

    def _parts(self) -> dict[str, Buffer]:
        """The lists as parameters."""
        k, ctx, lists = self.k, self.ctx, self.lists
        parts = {"first": lists.first, "gaps": lists.gaps, "values": lists.values.reshape(-1)}
        if self.conv.bias is not None:
            padded = np.zeros(self.blocks * self.plan.height, self.conv.bias.dtype)
            padded[: self.conv.bias.size] = self.conv.bias
            parts["bias"] = padded
        return {name: k.tensor(ctx.pack(name, data), name) for name, data in parts.items()}

    # ---- x ----

    def _pack(self, tile: Buffer, place: _Place) -> None:
        """The tile's pixels of every input channel."""
        k, conv, lanes = self.k, self.conv, self.lanes
        x, kind = k.tensor(conv.x, "x"), place.kind
        image = k.let(place.n * strides(conv.x.type)[0], "image")
        row = kind.vectors * lanes
        if not conv.x.type.layout.block:
            for c in k.loop("c", conv.channels_in):
                source = k.let(image + c * self.pixels + place.pixel, "source")
                to = k.let(place.base + c * row, "to")
                for v, valid in _vectors(kind, lanes):
                    if valid == lanes:
                        k.store(tile, to + v * lanes, k.load(x, source + v * lanes, lanes))
                        continue
                    k.store(tile, to + v * lanes, const(0, DType.F32, lanes))
                    for first, width in pieces(valid):
                        at = v * lanes + first
                        k.store(tile, to + at, k.load(x, source + at, width))
            return
        for block in k.loop("c", self.channels // lanes):
            source = k.let(image + (block * self.pixels + place.pixel) * lanes, "source")
            to = k.let(place.base + block * (lanes * row), "to")
            for v, valid in _vectors(kind, lanes):
                rows = [
                    k.let(k.load(x, source + (v * lanes + i) * lanes, lanes), "r")
                    if i < valid
                    else const(0, DType.F32, lanes)
                    for i in range(lanes)
                ]
                for i, vector in enumerate(transposed(k, rows)):
                    k.store(tile, to + (i * row + v * lanes), vector)

    # ---- results ----

    def _group(self, tile: Buffer, parts: dict[str, Buffer], place: _Place, group: Expr) -> None:
        """One list's output channels or, where the result is blocked, one block's."""
        k, lanes, height = self.k, self.lanes, self.plan.height
        if not self.conv.y.layout.block:
            acc = self._sums(tile, parts, place, group)
            self._store(acc, place, group)
            return
        row = place.kind.vectors * lanes
        sums = k.alloc("sums", DType.F32, lanes * row)
        each = lanes // height
        end: Expr = const(each) if self.blocks % each == 0 else minimum(self.blocks - group * each, each)
        for i in k.loop("i", end):
            acc = self._sums(tile, parts, place, k.let(group * each + i, "block"))
            for h in range(height):
                for v in range(place.kind.vectors):
                    k.store(sums, (i * height + h) * row + v * lanes, k.load(acc, h * place.kind.vectors + v))
        last = self.conv.channels_out - (-(-self.conv.channels_out // lanes) - 1) * lanes
        groups = -(-self.conv.channels_out // lanes)
        ragged = last < lanes and not self.whole
        for is_last in (False, True) if ragged and groups > 1 else (True,):
            cond = group >= groups - 1 if is_last else group < groups - 1
            for _ in guarded(k, cond, ragged and groups > 1):
                self._store_block(sums, place, group, last if ragged and is_last else lanes)

    def _sums(self, tile: Buffer, parts: dict[str, Buffer], place: _Place, block: Expr) -> Buffer:
        """height × vectors accumulators after the whole list of a block."""
        k, lanes, height, vectors = self.k, self.lanes, self.plan.height, place.kind.vectors
        sets = min(self.lists.step, sets_of(self.ctx.target, height, vectors))
        sums = height * vectors
        acc = k.registers("acc", DType.F32, sets * sums, lanes)
        zero = const(0, DType.F32, lanes)
        for h in range(height):
            start = k.let(broadcast(k.load(parts["bias"], block * height + h), lanes), "b") if "bias" in parts else zero
            for v in range(vectors):
                for s in range(sets):
                    k.store(acc, s * sums + h * vectors + v, zero if s else start)
        at = k.registers("at", DType.I64, 1, 1)
        k.store(at, 0, place.base)
        begin, end = (k.let(cast(k.load(parts["first"], block + i), DType.I64), "list") for i in (0, 1))
        for j in k.loop("j", end, begin, self.lists.step):
            for i, gap in enumerate(self._gaps(parts["gaps"], j)):
                here = k.let(k.load(at, 0) + gap * (vectors * lanes), "here")
                k.store(at, 0, here)
                self._products(tile, here, vectors, list(self._weights(parts, j + i)), acc, i % sets * sums)
        for i in range(sums) if sets > 1 else ():
            k.store(acc, i, k.load(acc, i) + k.load(acc, sums + i))
        return acc

    def _gaps(self, gaps: Buffer, j: Expr) -> list[Expr]:
        """Those of the entries of a turn."""
        k, step = self.k, self.lists.step
        if step < 4:
            return [cast(k.load(gaps, j + i), DType.I64) for i in range(step)]
        word = k.let(bitcast(k.load(gaps, j, step), DType.U32), "gaps")
        bytes_ = [binary("shr", word, 8 * i) if i else word for i in range(step)]
        return [cast(b & 255 if i < step - 1 else b, DType.I64) for i, b in enumerate(bytes_)]

    def _products(self, tile: Buffer, here: Expr, vectors: int, weights: list[Expr], acc: Buffer, first: int) -> None:
        """One column of x times an entry's weights."""
        k, lanes = self.k, self.lanes
        xs = [k.load(tile, here + v * lanes, lanes) for v in range(vectors)]
        if len(weights) > 1:
            xs = [k.let(x, "x") for x in xs]
        for h, weight in enumerate(weights):
            for v, x in enumerate(xs):
                i = first + h * len(xs) + v
                k.store(acc, i, multiply_add(x, weight, k.load(acc, i)))

    def _weights(self, parts: dict[str, Buffer], j: Expr) -> Iterator[Expr]:
        """The values of an entry, each in all lanes."""
        k, lanes, height = self.k, self.lanes, self.plan.height
        if height == lanes and splats_lanes(self.ctx.target):
            vector = k.let(k.load(parts["values"], j * height, height), "w")
            yield from (k.let(shuffle(vector, None, (h,) * lanes), "w") for h in range(height))
            return
        for h in range(height):
            yield k.let(broadcast(k.load(parts["values"], j * height + h), lanes), "w")

    def _store(self, acc: Buffer, place: _Place, block: Expr) -> None:
        """Vectors of pixels, through the tail."""
        height, out = self.plan.height, self.conv.channels_out
        last = out - (self.blocks - 1) * height
        for is_last in (False, True) if last < height and self.blocks > 1 else (True,):
            cond = block >= self.blocks - 1 if is_last else block < self.blocks - 1
            for _ in guarded(self.k, cond, last < height and self.blocks > 1):
                self._store_rows(acc, place, block, last if is_last else height)

    def _store_rows(self, acc: Buffer, place: _Place, block: Expr, rows: int) -> None:
        k, lanes, vectors = self.k, self.lanes, place.kind.vectors
        for h in range(rows):
            for v, valid in _vectors(place.kind, lanes):
                value = k.load(acc, h * vectors + v)
                value = value if valid == lanes else k.let(value, "y")
                for first, width in pieces(valid):
                    part = value if width == lanes else shuffle(value, None, tuple(range(first, first + width)))
                    pixel = place.pixel + (v * lanes + first)
                    site = Site((place.n, block * self.plan.height + h, *self._spatial(pixel)), -1, width)
                    k.write(self.ctx.output, site, self.ctx.epilogue(k, site, part))

    def _store_block(self, sums: Buffer, place: _Place, group: Expr, channels: int) -> None:
        """Vectors of channels, through the tail."""
        k, lanes = self.k, self.lanes
        row = place.kind.vectors * lanes
        for v, valid in _vectors(place.kind, lanes):
            rows = [k.let(k.load(sums, c * row + v * lanes, lanes), "r") for c in range(lanes)]
            for i, vector in enumerate(transposed(k, rows)[:valid]):
                at = (place.n, group * lanes, *self._spatial(place.pixel + (v * lanes + i)))
                finish(k, at, channels, vector)

    def _spatial(self, pixel: Expr) -> tuple[Expr, ...]:
        """Coordinates of a pixel counted over all axes."""
        return (*(INDEX,) * (self.conv.window.rank - 1), pixel)


def _vectors(kind: _Tiles, lanes: int) -> Iterator[tuple[int, int]]:
    """(number, valid lanes) of the vectors of a tile that have any."""
    for v in range(kind.vectors):
        if (valid := min(lanes, kind.valid - v * lanes)) > 0:
            yield v, valid
