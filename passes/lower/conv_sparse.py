"""Pointwise convolution by lists of the weights that are not zero (`sparse.py`): lanes are pixels.

A task takes a tile of pixels. It copies all input channels of them, transposed where x is blocked, so that rows lie
side by side whatever the size of the image, or reads a plain x in place; then each block of output channels runs
through its list: a vector of x serves all channels of the block. Between chunks of input channels sums lie in memory.
Where the result is blocked, sums of a block of its channels are collected first and transposed. Loops stream the lists:
code for each weight would not fit the instruction cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from ...ir.loops import Buffer, Expr, const, minimum
from ...ir.structure import structure
from ...ir.types import DType
from .context import INDEX, Lowering, strides
from .conv_kernel import ConvKernel, Convolution, flattens, pad_operands, unravel
from .conv_schedules import problem, schedules
from .schedule import DENSE, Schedule, choose
from .sparse import make_lists, may_pay
from .sparse_cost import Plan, Sides, chunk_columns, list_plans, sets_of, step_of
from .sparse_results import Place, Results, shares
from .sparse_sums import Source, Sums
from .sparse_tiles import tiles_of
from .tasks import PARALLEL_MACS, guarded, pieces, tasks
from .transposes import transposed


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
    sides = Sides(conv.window.pixels, conv.x.type.layout.block > 0, conv.y.layout.block > 0)
    for plan, cycles in list_plans(target, matrix, sides):
        candidates.append(Schedule(str(plan), conv.batch * cycles, plan))
    zeros = round(100 * structure(conv.weights).zeros)
    return choose(ctx, "conv-sparse", f"{problem(ctx, conv, whole)} zeros {zeros}%", candidates)


def lower_sparse(ctx: Lowering, conv: Convolution, plan: Plan) -> None:
    """Append the kernel of a pointwise float32 convolution (see `sparse_plan`)."""
    _Writer(ctx, conv, plan).write()


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Input channels [index · step, index · step + columns), of the first or the last chunk or of neither or both."""

    index: Expr
    columns: int
    is_first: bool
    is_last: bool


class _Writer:
    def __init__(self, ctx: Lowering, conv: Convolution, plan: Plan) -> None:
        self.ctx, self.conv, self.plan, self.k = ctx, conv, plan, ConvKernel(ctx)
        self.lanes, self.pixels = ctx.lanes(), conv.window.pixels
        self.tiles = tiles_of(1, self.pixels, self.lanes, plan.vectors, overlaps=plan.in_place)
        self.row = max(t.size for t in self.tiles) * self.lanes
        self.blocks = -(-conv.channels_out // plan.height)
        self.columns = chunk_columns(conv.channels_in, plan.chunks, self.lanes)
        sets = max(sets_of(ctx.target, plan.height, t.size) for t in self.tiles)
        matrix = conv.weights.reshape(conv.weights.shape[:2])
        lists = make_lists(matrix, plan.height, step_of(ctx.target, plan.height, sets), self.columns)
        whole = bool(conv.y.layout.block) and pad_operands(ctx, self.lanes)
        self.results = Results(self.k, plan.height, conv.channels_out, whole=whole)
        self.sums = Sums(self.k, lists, conv.bias, self.blocks)

    def write(self) -> None:
        k, conv = self.k, self.conv
        count = sum(t.count for t in self.tiles)
        group = self.lanes if conv.y.layout.block else self.plan.height
        parts = shares(conv, group, count, self.ctx.threads)
        dims = (conv.batch, count, parts.count)
        spread = self.ctx.threads > 1 and prod(dims) > 1 and conv.macs >= PARALLEL_MACS
        tile, partial = self._scratch("tile", spread), self._scratch("partial", spread)
        for t in tasks(k, conv.macs, prod(dims)):
            n, index, share = unravel(k, t, dims)
            end = parts.end(share)
            for kind in self.tiles:
                cond = (index >= kind.index) & (index < kind.index + kind.count)
                for _ in guarded(k, cond, len(self.tiles) > 1):
                    place = Place(n, *kind.corner(k, index, self.lanes), kind)
                    for chunk in self._chunks():
                        source = self._source(tile, place, chunk)
                        for g in k.loop("g", end, share * parts.each):
                            self._group(source, partial, place, chunk, g)
        k.done("conv_sparse")

    def _scratch(self, hint: str, spread: bool) -> tuple[Buffer, Expr] | None:
        """Memory of a worker and where it begins, where the plan needs it: x of a tile, or its sums between chunks."""
        if self.plan.in_place if hint == "tile" else self.plan.chunks == 1:
            return None
        columns = -(-self.columns // self.lanes) * self.lanes
        size = self.row * (columns if hint == "tile" else self.blocks * self.plan.height)
        buffer = self.k.tensor(self.ctx.scratch(hint, DType.F32, size * (self.ctx.threads if spread else 1)))
        return buffer, self.k.worker * size if spread else INDEX

    def _chunks(self) -> Iterator[_Chunk]:
        """All chunks of input channels, those between the first and the last as a loop."""
        count, last = self.plan.chunks, self.conv.channels_in - (self.plan.chunks - 1) * self.columns
        if count > 1:
            yield _Chunk(const(0), self.columns, True, False)
        for q in self.k.loop("q", count - 1, 1) if count > 2 else ():
            yield _Chunk(q, self.columns, False, False)
        yield _Chunk(const(count - 1), last, count == 1, True)

    # ---- x ----

    def _source(self, tile: tuple[Buffer, Expr] | None, place: Place, chunk: _Chunk) -> Source:
        """The tile's pixels of a chunk's channels: in place, or copied."""
        k, at = self.k, tuple(s.column for s in place.kind.spots(self.lanes))
        image = k.let(place.n * strides(self.conv.x.type)[0], "image")
        first = k.let(image + chunk.index * (self.columns * self.pixels), "first")
        x = k.tensor(self.conv.x, "x")
        if tile is None:
            return Source(x, k.let(first + place.column, "base"), self.pixels, at)
        buffer, base = tile
        row = place.kind.size * self.lanes
        source = Source(buffer, k.let(base, "base"), row, at)
        (self._transpose if self.conv.x.type.layout.block else self._copy)(x, first, source, place, chunk.columns)
        return source

    def _copy(self, x: Buffer, first: Expr, tile: Source, place: Place, columns: int) -> None:
        """Rows of a plain x."""
        k, lanes = self.k, self.lanes
        for c in k.loop("c", columns):
            source = k.let(first + c * self.pixels + place.column, "source")
            to = k.let(tile.base + c * tile.step, "to")
            for spot in place.kind.spots(lanes):
                if spot.valid < lanes:
                    k.store(tile.x, to + spot.column, const(0, DType.F32, lanes))
                for start, width in pieces(spot.valid):
                    at = spot.column + start
                    k.store(tile.x, to + at, k.load(x, source + at, width))

    def _transpose(self, x: Buffer, first: Expr, tile: Source, place: Place, columns: int) -> None:
        """Blocks of channels of a blocked x."""
        k, lanes = self.k, self.lanes
        for block in k.loop("c", -(-columns // lanes)):
            source = k.let(first + (block * self.pixels + place.column) * lanes, "source")
            to = k.let(tile.base + block * (lanes * tile.step), "to")
            for spot in place.kind.spots(lanes):
                rows = [
                    k.let(k.load(x, source + (spot.column + i) * lanes, lanes), "r")
                    if i < spot.valid
                    else const(0, DType.F32, lanes)
                    for i in range(lanes)
                ]
                for i, vector in enumerate(transposed(k, rows)):
                    k.store(tile.x, to + (i * tile.step + spot.column), vector)

    # ---- results ----

    def _group(
        self, source: Source, partial: tuple[Buffer, Expr] | None, place: Place, chunk: _Chunk, group: Expr
    ) -> None:
        """One list's output channels or, where the result is blocked, one block's."""
        k, height = self.k, self.plan.height

        def sums(block: Expr) -> Buffer:
            if chunk.is_first:
                start = [row for row in self.sums.bias(block) for _ in range(place.kind.size)]
            else:
                assert partial is not None
                start = [k.load(*at, self.lanes) for at in self._kept(partial, place, block)]
            return self.sums.run(source, k.let(chunk.index * self.blocks + block, "list"), start)

        if chunk.is_last and self.conv.y.layout.block:
            return self.results.group(place, group, sums)
        if chunk.is_last:
            return self.results.rows(sums(group), place, group)
        assert partial is not None
        each = self.lanes // height if self.conv.y.layout.block else 1
        end = const(each) if self.blocks % each == 0 else minimum(self.blocks - group * each, each)
        for i in k.loop("i", end):
            block = k.let(group * each + i, "block")
            acc = sums(block)
            for number, (buffer, at) in enumerate(self._kept(partial, place, block)):
                k.store(buffer, at, k.load(acc, number))

    def _kept(self, partial: tuple[Buffer, Expr], place: Place, block: Expr) -> Iterator[tuple[Buffer, Expr]]:
        """Where a block's sums lie between chunks."""
        buffer, base = partial
        first = self.k.let(base + block * (self.plan.height * self.row), "kept")
        for i in range(self.plan.height * place.kind.size):
            yield buffer, first + i * self.lanes
