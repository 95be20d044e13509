"""Register tiles of convolutions: pixels × vectors accumulators, and how a row of pixels divides into tiles.

A tile fits when pixels·vectors + vectors + 1 <= registers: the accumulators, one weight vector for each output vector
and one broadcast input element. Where multiply-adds take a lane of a vector (`splats_lanes`), the pixels' channels are
held as vectors instead (`Lined`), and one load brings four weight vectors in neighbouring registers: pixels·vectors +
vectors of x + 4 <= registers - 3, since those four must be found in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from ...codegen.target import Target
from ...ir.loops import Expr, const
from ...ir.types import DType
from .tasks import pieces
from .window import Axis

LATENCY = 4
"""Cycles from a multiply-add to the use of its result, on every core of interest."""

TILE_OVERHEAD = 8
"""Cycles to begin and end a tile beyond what each of its results takes."""

PRODUCT = 4
"""Registers that products of integers need beside accumulators and weights where no instruction adds to them: an input,
products before they are added, and weights that LLVM loads early."""

MAX_BORDER_TILES = 12
"""Border tiles of a row that get code of their own; rows with more fall back to single pixels."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Accumulators of the innermost loop: pixels, or rows of a matrix product, by vectors of results."""

    pixels: int
    vectors: int

    @property
    def rows(self) -> int:
        return self.pixels

    def __str__(self) -> str:
        return f"{self.pixels}x{self.vectors}"


@dataclass(frozen=True, slots=True)
class Taps:
    """Taps [begin, end) along a row that pixels [first, last) of a tile have inside the input."""

    begin: int
    end: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Segment:
    """`count` equal tiles of `pixels` output pixels from `start` on; `taps` where they read beyond the input.

    `dynamic`: single pixels whose tap range is computed at run time.
    """

    start: int
    count: int
    pixels: int
    taps: tuple[Taps, ...] | None = None
    dynamic: bool = False

    @property
    def end(self) -> int:
        return self.start + self.count * self.pixels


@dataclass(frozen=True, slots=True)
class Lined:
    """How x is read where multiply-adds take a lane of a vector as a factor: as vectors along k.

    `steps` products of each result in one go, whose factors lie side by side; `row` elements from pixel to pixel.
    """

    steps: int
    row: int
    lanes: int

    def vectors(self, pixels: int) -> int:
        """Registers that hold the factors of one go."""
        if self.row >= self.steps + self.lanes:
            return pixels * -(-self.steps // self.lanes)
        return -(-((pixels - 1) * self.row + self.steps) // self.lanes)


def step_cycles(target: Target, pixels: int, vectors: int, lined: Lined | None = None) -> float:
    """Estimated cycles of one input channel of one tap: bound by multiply-adds, loads or latency.

    Where x is lined every instruction counts: a load brings four registers, a loop turns once for `steps` products.
    """
    if lined is not None:
        x = lined.vectors(pixels)
        loads = (-(-x // 4) if lined.row < lined.steps + lined.lanes else x) + -(-lined.steps * vectors // 4)
        return (max(pixels * vectors, 2 * LATENCY) + (loads + 2) / lined.steps) / target.fma_per_cycle
    return bound(target, pixels, vectors) + 0.25


def bound(target: Target, rows: int, vectors: int, rate: int = 0) -> float:
    """Cycles below which no step of a sum can be: multiply-adds (`rate` a cycle), loads (two a cycle) or latency."""
    return max(rows * vectors / (rate or target.fma_per_cycle), (rows + vectors) / 2, float(LATENCY))


def fits(target: Target, pixels: int, vectors: int, lined: Lined | None) -> bool:
    if lined is not None:
        return pixels * vectors + lined.vectors(pixels) + 4 <= target.registers - 3
    return pixels * vectors + vectors + 1 <= target.registers


def choose_tile(
    target: Target, dtype: DType, pixels: int, channels: int, *, lined: Lined | None = None, depth: int = 256
) -> Tile:
    """The tile with the least estimated time for a row of `pixels` and `channels` output channels (see `tiles`)."""
    return tiles(target, dtype, pixels, channels, lined=lined, depth=depth)[0][0]


@cache
def tiles(
    target: Target, dtype: DType, pixels: int, channels: int, *, lined: Lined | None = None, depth: int = 256
) -> tuple[tuple[Tile, float], ...]:
    """Tiles for a row of `pixels` and `channels` output channels with estimated cycles for each step of the sum.

    The fastest first. `depth`: products summed for one result, over which a tile's own overhead is spread where every
    instruction counts.
    """
    vectors = -(-channels // target.lanes(dtype))
    found = [
        Tile(p, v)
        for v in range(1, min(vectors, 6) + 1)
        for p in range(1, min(pixels, target.registers) + 1)
        if fits(target, p, v, lined)
        and (dtype is not DType.I32 or target.has_dot_prod or p * v + v + PRODUCT <= target.registers)
    ]
    turn = TILE_OVERHEAD / depth if lined else 0.0
    adds = dtype is DType.I32 and target.has_dot_prod

    def step(p: int, v: int) -> float:
        return bound(target, p, v, target.dots_per_cycle) + 0.25 if adds else step_cycles(target, p, v, lined)

    def cycles(t: Tile) -> float:
        parts = [(t.vectors, vectors // t.vectors), (vectors % t.vectors, 1)]
        row = split(pixels, t.pixels)
        return sum(n * sum(m * (step(p, v) + turn) for m, p in row) for v, n in parts if v)

    timed = [(t, cycles(t)) for t in found]
    timed.sort(key=lambda tc: (round(tc[1], 3), len(split(pixels, tc[0].pixels)), -tc[0].pixels * tc[0].vectors))
    return tuple(timed)


def split(total: int, size: int) -> list[tuple[int, int]]:
    """`total` as (count, size) of nearly equal parts of at most `size`, larger ones first."""
    parts = -(-total // size)
    small, larger = divmod(total, parts)
    return [(n, s) for n, s in ((larger, small + 1), (parts - larger, small)) if n]


@cache
def segments(axis: Axis, pixels: int) -> tuple[Segment, ...]:
    """A row of output pixels as tiles: runs of interior tiles as one segment, each border tile as its own."""
    inside = axis.interior()
    tiles: list[tuple[int, int]] = []
    for count, size in split(axis.out, pixels):
        at = sum(tiles[-1]) if tiles else 0
        tiles += [(at + i * size, size) for i in range(count)]
    border = [t for t in tiles if t[0] not in inside or sum(t) - 1 not in inside]
    if len(border) > MAX_BORDER_TILES:
        return _dynamic_segments(axis, pixels)
    out: list[Segment] = []
    for start, size in tiles:
        if (start, size) in border:
            out.append(Segment(start, 1, size, tap_groups(axis, start, size)))
        elif out and out[-1].taps is None and out[-1].pixels == size:
            out[-1] = Segment(out[-1].start, out[-1].count + 1, size)
        else:
            out.append(Segment(start, 1, size))
    return tuple(out)


def _dynamic_segments(axis: Axis, pixels: int) -> tuple[Segment, ...]:
    inside = axis.interior()
    out = [Segment(0, inside.start, 1, dynamic=True)] if inside.start else []
    at = inside.start
    for count, size in split(len(inside), pixels) if inside else ():
        out.append(Segment(at, count, size))
        at += count * size
    return tuple([*out, Segment(at, axis.out - at, 1, dynamic=True)] if at < axis.out else out)


def tap_runs(segment: Segment, axis: Axis, at: Expr) -> list[tuple[Expr, Expr, int, int]]:
    """The taps of a tile at output position `at`, as (first tap, end, first pixel, end): every tap of a run applies to
    all its pixels."""
    if segment.dynamic:
        return [(*axis.tap_range(at), 0, 1)]
    if segment.taps is None:
        return [(const(0), const(axis.kernel), 0, segment.pixels)]
    return [(const(g.begin), const(g.end), g.first, g.last) for g in segment.taps]


@cache
def tap_groups(axis: Axis, start: int, size: int) -> tuple[Taps, ...]:
    """Taps grouped by the pixels of a tile that have them; the pixels are contiguous for every tap."""
    ranges = [axis.taps(o) for o in range(start, start + size)]
    groups: list[Taps] = []
    for t in range(axis.kernel):
        mine = [p for p, r in enumerate(ranges) if t in r]
        if not mine:
            continue
        first, last = mine[0], mine[-1] + 1
        if groups and groups[-1].end == t and (groups[-1].first, groups[-1].last) == (first, last):
            groups[-1] = Taps(groups[-1].begin, t + 1, first, last)
        else:
            groups.append(Taps(t, t + 1, first, last))
    return tuple(groups)


@dataclass(frozen=True, slots=True)
class Run:
    """Pixels [begin, end) of a row in steps of vectors · lanes; `border`: their taps are known at run time only."""

    begin: int
    end: int
    vectors: int
    lanes: int
    border: bool = False

    @property
    def step(self) -> int:
        return self.vectors * self.lanes


def runs(axis: Axis, lanes: int, vectors: int) -> Iterator[Run]:
    """A row with lanes along it: interior pixels as vectors, `vectors` at a time, what is left of them at once, border
    pixels singly."""
    inside = axis.interior()
    if not inside:
        yield Run(0, axis.out, 1, 1, True)
        return
    if inside.start:
        yield Run(0, inside.start, 1, 1, True)
    at, left = inside.start, len(inside)
    for v in (vectors, left // lanes % vectors):
        whole = left // (v * lanes) * v * lanes if v else 0
        if whole:
            yield Run(at, at + whole, v, lanes)
        at, left = at + whole, left - whole
    for skip, width in pieces(left):
        yield Run(at + skip, at + skip + width, 1, width)
    if inside.stop < axis.out:
        yield Run(inside.stop, axis.out, 1, 1, True)
