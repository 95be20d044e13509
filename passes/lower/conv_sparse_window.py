"""Convolution with a window by lists of the weights that are not zero (`sparse.py`): lanes are pixels of a row.

x is copied once, with its border, into planes [C][phases · rows][columns]: rows and columns that lie a stride apart go
side by side, in a phase of their own. A weight (c, r, s) then reads every pixel of a tile at one distance, by which
the lists name it. A task runs all lists over a tile of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from ...codegen.target import Target
from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, const
from ...ir.structure import structure
from ...ir.types import DType, TensorType
from .context import Lowering
from .conv_kernel import ConvKernel, Convolution, pad_operands, unravel
from .conv_schedules import problem, schedules
from .copies import copy_box, copy_regions
from .copy_axes import Region
from .schedule import DENSE, Schedule, choose
from .sparse import may_pay, place_lists
from .sparse_cost import HEIGHTS, VECTORS, Plan, sets_of, step_of, window_cycles
from .sparse_results import Place, Results, shares
from .sparse_sums import Source, Sums
from .sparse_tiles import Tiles, tiles_of
from .tasks import guarded, tasks
from .window import Axis, Window

MAX_PADDING = 1.2
"""Rows become whole vectors where that makes them at most so many times as long."""


@dataclass(frozen=True, slots=True)
class Grid:
    """An axis of the copy: `phases` of `size` positions each."""

    axis: Axis

    @property
    def phases(self) -> int:
        return min(self.axis.stride, self.axis.reach + 1)

    @property
    def size(self) -> int:
        return self.axis.out + self.axis.reach // self.axis.stride

    def place(self, tap: int) -> tuple[int, int]:
        """Phase and position of a tap of the first output position."""
        at = tap * self.axis.dilation
        return at % self.axis.stride, at // self.axis.stride

    def inside(self, phase: int) -> range:
        """Positions of a phase that lie inside the input."""
        first, stride = phase - self.axis.pad, self.axis.stride
        begin = min(self.size, max(0, -(first // stride)))
        return range(begin, max(begin, min(self.size, -(-(self.axis.size - first) // stride))))

    def source(self, phase: int, position: int) -> int:
        return position * self.axis.stride + phase - self.axis.pad


@dataclass(frozen=True, slots=True)
class Planes:
    """The copy of x: rows and columns; `tail`: rows that only vectors beyond a row's end reach. width: of a row, with
    what aligns the next one."""

    h: Grid
    w: Grid
    tail: int
    width: int

    @property
    def rows(self) -> int:
        return self.h.phases * self.w.phases * self.h.size + self.tail

    @property
    def size(self) -> int:
        """Elements of a plane."""
        return self.rows * self.width

    def at(self, phases: tuple[int, int], position: tuple[int, int]) -> int:
        """Element of a plane at a position of a phase."""
        row = (phases[0] * self.w.phases + phases[1]) * self.h.size + position[0]
        return row * self.width + position[1]

    def places(self, channels: int) -> np.ndarray:
        """Element that tap (c, r, s) of the first output position reads, for every column of the matrix."""
        taps = [
            self.at((h[0], w[0]), (h[1], w[1]))
            for h in map(self.h.place, range(self.h.axis.kernel))
            for w in map(self.w.place, range(self.w.axis.kernel))
        ]
        found: np.ndarray = np.arange(channels)[:, None] * self.size + np.array(taps)
        return found.reshape(-1)


def planes_of(window: Window, lanes: int) -> Planes:
    """The copy that lists read, where a row of results takes vectors of `lanes`."""
    h, w = Grid(window.h), Grid(window.w)
    whole = -(-w.size // lanes) * lanes
    width = whole if whole <= MAX_PADDING * w.size else w.size
    return Planes(h, w, 0 if w.axis.out >= lanes else -(-lanes // width), width)


def window_plan(ctx: Lowering, conv: Convolution) -> Plan | None:
    """How to compute a convolution of any window by lists, None where dense weights are thought to be faster."""
    if conv.groups != 1 or conv.dtype is not DType.F32 or conv.window.is_pointwise:
        return None
    blocked = conv.x.type.layout.block > 0, conv.y.layout.block > 0
    found = list(window_plans(ctx.target, conv.weights, conv.window, blocked))
    if not found or not conv.macs:
        return None
    whole = conv.channels_out % ctx.lanes() == 0 or conv.y.layout.block == ctx.lanes()
    dense = min(s.cycles for s in schedules(ctx, conv, whole))
    candidates: list[Schedule[Plan | None]] = [Schedule(DENSE, dense, None)]
    candidates += [Schedule(str(plan), conv.batch * cycles, plan) for plan, cycles in found]
    zeros = round(100 * structure(conv.weights).zeros)
    return choose(ctx, "conv-sparse", f"{problem(ctx, conv, whole)} zeros {zeros}%", candidates)


def window_plans(
    target: Target, weights: np.ndarray, window: Window, blocked: tuple[bool, bool]
) -> Iterator[tuple[Plan, float]]:
    """The ways to run lists of weights [K, C, 1, R, S] and their estimated cycles an image; blocked: x, y."""
    lanes, channels = target.lanes(DType.F32), weights.shape[1]
    if window.rank != 2 or lanes < 4 or not may_pay(weights):
        return
    copied, matrix = planes_of(window, lanes).size * channels, weights.reshape(len(weights), -1)
    for height in HEIGHTS:
        for vectors in (v for v in VECTORS if sets_of(target, height, v)):
            plan = Plan(height, vectors)
            tiles = [
                (t.count, t.size, channels * (t.rows + window.h.reach) / t.rows) for t in _tiles(window, plan, lanes)
            ]
            yield plan, window_cycles(target, matrix, plan, tiles, copied, blocked)


def _tiles(window: Window, plan: Plan, lanes: int) -> list[Tiles]:
    rows, width = window.h.out, window.w.out
    return tiles_of(rows, width, lanes, plan.vectors, overlaps=width >= lanes)


def lower_window(ctx: Lowering, conv: Convolution, plan: Plan) -> None:
    """Append the kernels of a float32 convolution in two dimensions (see `window_plan`)."""
    planes = planes_of(conv.window, ctx.lanes())
    copy = ctx.scratch("planes", DType.F32, conv.batch, conv.channels_in, planes.rows, planes.width)
    regions = list(_copies(conv.x, copy.type, planes))
    copy_regions(ctx, copy, regions, "planes", lambda k: const(0, DType.U32))
    _Writer(ctx, conv, plan, planes, copy).write()


def _copies(x: Value, to: TensorType, planes: Planes) -> Iterator[Region]:
    """The input in its phases, and zeros around it."""
    images, channels = to.dims[:2]
    for fh, fw in np.ndindex(planes.h.phases, planes.w.phases):
        rows, columns = planes.h.inside(fh), planes.w.inside(fw)
        first = planes.at((fh, fw), (0, 0)) // planes.width
        source = planes.h.source(fh, rows.start), planes.w.source(fw, columns.start)
        steps = (1, 1, planes.h.axis.stride, planes.w.axis.stride)
        inside = (images, channels, len(rows), len(columns))
        at = (0, 0, first + rows.start, columns.start)
        if prod(inside):
            yield from copy_box((to, at), (x.type, (0, 0, *source)), inside, steps, x)
        else:
            rows = columns = range(0)
        high, wide = planes.h.size, planes.w.size
        for (top, bottom), (left, right) in (
            ((0, rows.start), (0, wide)),
            ((rows.stop, high), (0, wide)),
            ((rows.start, rows.stop), (0, columns.start)),
            ((rows.start, rows.stop), (columns.stop, wide)),
        ):
            box = (images, channels, bottom - top, right - left)
            if prod(box):
                (zeros,) = copy_box((to, (0, 0, first + top, left)), (to, (0, 0, 0, 0)), box)
                yield zeros


class _Writer:
    def __init__(self, ctx: Lowering, conv: Convolution, plan: Plan, planes: Planes, copy: Value) -> None:
        self.ctx, self.conv, self.plan, self.planes, self.copy = ctx, conv, plan, planes, copy
        self.k, self.lanes = ConvKernel(ctx), ctx.lanes()
        self.tiles = _tiles(conv.window, plan, self.lanes)
        sets = max(sets_of(ctx.target, plan.height, t.size) for t in self.tiles)
        matrix = conv.weights.reshape(len(conv.weights), -1)
        step = step_of(ctx.target, plan.height, sets)
        lists = place_lists(matrix, plan.height, step, planes.places(conv.channels_in))
        whole = bool(conv.y.layout.block) and pad_operands(ctx, self.lanes)
        self.results = Results(self.k, plan.height, conv.channels_out, whole=whole)
        self.sums = Sums(self.k, lists, conv.bias, -(-conv.channels_out // plan.height))

    def write(self) -> None:
        k, conv = self.k, self.conv
        count = sum(t.count for t in self.tiles)
        group = self.lanes if conv.y.layout.block else self.plan.height
        parts = shares(conv, group, count, self.ctx.threads)
        dims = (conv.batch, count, parts.count)
        for t in tasks(k, conv.macs, prod(dims)):
            n, index, share = unravel(k, t, dims)
            end = parts.end(share)
            for kind in self.tiles:
                cond = (index >= kind.index) & (index < kind.index + kind.count)
                for _ in guarded(k, cond, len(self.tiles) > 1):
                    place = Place(n, *kind.corner(k, index, self.lanes), kind)
                    source = self._source(place)
                    for g in k.loop("g", end, share * parts.each):
                        self._group(source, place, g)
        k.done("conv_sparse")

    def _source(self, place: Place) -> Source:
        width = self.planes.width
        at = tuple(s.row * width + s.column for s in place.kind.spots(self.lanes))
        image = place.n * (self.conv.channels_in * self.planes.size)
        base = self.k.let(image + place.row * width + place.column, "base")
        return Source(self.k.tensor(self.copy, "planes"), base, 1, at)

    def _group(self, source: Source, place: Place, group: Expr) -> None:
        """One list's output channels or, where the result is blocked, one block's."""

        def sums(block: Expr) -> Buffer:
            start = [row for row in self.sums.bias(block) for _ in range(place.kind.size)]
            return self.sums.run(source, block, start)

        if self.conv.y.layout.block:
            self.results.group(place, group, sums)
        else:
            self.results.rows(sums(group), place, group)
