"""What products by lists (`sparse.py`) cost, and the plans that are worth a try.

Lists read x at random: the rows of a tile that a list may name should lie in the first cache. Where every product loads
its own x (height 1) that decides, and columns go in chunks, whose sums lie in memory meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

from ...codegen.target import Target
from ...ir.types import DType
from .micro import splats_lanes
from .sparse import entries
from .tile import LATENCY, split

HEIGHTS = (1, 2, 4)
"""Rows of a block: with more, one vector of x serves more products, but fewer blocks are empty."""

VECTORS = (2, 3, 4, 5, 6, 8, 10)
"""Vectors of pixels in a tile that are tried."""

SET_BYTES = 4096
"""Bytes after which addresses fall into the same set of the first cache."""

UNALIGNED = 4
"""A distance of rows, in bytes, at which vectors lie across lines."""

ACROSS = 1.55, 1.3
"""Times that lists of single rows, and of others, take through such vectors over what their instructions say."""

COPIED = 2
"""Times that a copy with a border takes over one of whole vectors."""

DEPENDENT = 1.15
"""What chains of dependent multiply-adds take over their latency."""

HELD = 0.7
"""Part of the first cache that rows of x keep from lists and results, which stream by."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Cycles beside a list's entries. list_: to begin and end one, of single rows and of others. copy, place, finish:
    to copy a vector of a plain x into a tile, to read one in place for the first time, and to store one of results,
    each where x and y fit half of the second cache, all of it, and not. Blocked tensors are transposed: transpose_in,
    transpose_out. partial: to store a vector of sums after a chunk of columns and load it before the next one.
    """

    list_: tuple[float, float]
    copy: tuple[float, float, float]
    place: tuple[float, float, float]
    finish: tuple[float, float, float]
    transpose_in: float
    transpose_out: float
    partial: float


COSTS = {
    512: Costs((3.0, 3.0), (3.1, 4.2, 5.5), (2.2, 5.1, 8.7), (1.4, 2.4, 6.0), 2.5, 4.0, 4.7),
    256: Costs((40, 40), (1.0, 1.0, 1.0), (2.0, 4.0, 4.0), (2.0, 2.0, 2.0), 2.5, 4.0, 3.0),
    128: Costs((40, 40), (1.0, 1.0, 1.0), (2.0, 4.0, 4.0), (2.0, 2.0, 2.0), 2.5, 4.0, 3.0),
}
"""By bits of a vector; 512 and 256 as measured (`benchmarks/sparse.py --all`)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """height: output channels of a list. vectors: most vectors of pixels in a tile. chunks: of input channels, one
    after the other. in_place: x is read where it lies, not from a copy of its tile."""

    height: int
    vectors: int
    chunks: int = 1
    in_place: bool = False

    def __str__(self) -> str:
        chunks = f" chunks={self.chunks}" if self.chunks > 1 else ""
        return f"sparse={self.height}x1 vectors={self.vectors}{chunks}{' in place' if self.in_place else ''}"


@dataclass(frozen=True, slots=True)
class Sides:
    """x and y of a product [rows, columns] by pixels: how many pixels, and which of both lie in blocks of channels."""

    pixels: int
    blocked_x: bool
    blocked_y: bool = False

    def may_stay(self, target: Target) -> bool:
        """Whether vectors of x may be read where they lie."""
        return not self.blocked_x and self.pixels >= target.lanes(DType.F32)


def chunk_columns(columns: int, chunks: int, lanes: int) -> int:
    """Columns of a chunk: whole blocks of channels."""
    return -(-columns // (chunks * lanes)) * lanes if chunks > 1 else columns


def sets_of(target: Target, height: int, vectors: int) -> int:
    """Copies of the sums, one for every other entry, that hide the latency of multiply-adds: 1 or 2; 0: none fits."""
    spare = (vectors if height > 1 else 0) + 1
    sets = 2 if height * vectors < LATENCY * target.fma_per_cycle else 1
    return next((s for s in (sets, 1) if s * height * vectors + spare <= target.registers), 0)


def step_of(target: Target, height: int, sets: int) -> int:
    """Entries in a turn of a list's loop: of single rows, which are bound by loads, as many as one load reads gaps."""
    return 4 if height == 1 and not splats_lanes(target) else sets


def list_plans(target: Target, matrix: np.ndarray, sides: Sides) -> Iterator[tuple[Plan, float]]:
    """The ways to run a matrix's lists over pixels and their estimated cycles (see `list_cycles`)."""
    lanes, columns = target.lanes(DType.F32), matrix.shape[1]
    total = -(-sides.pixels // lanes)
    for height in HEIGHTS:
        for vectors in sorted({min(v, total) for v in VECTORS if sets_of(target, height, v)}):
            tile = columns * vectors * target.vector_bits // 8
            chunks = 1 if height > 1 or splats_lanes(target) else -(-tile // target.l1_bytes)
            for n in sorted({1, chunks}) if chunks <= columns // lanes else [1]:
                if n > 1 or splats_lanes(target) or vectors <= 3 or tile <= 1.5 * target.l1_bytes:
                    for in_place in (False, True) if sides.may_stay(target) else (False,):
                        plan = Plan(height, vectors, n, in_place)
                        yield plan, list_cycles(target, matrix, plan, split(total, vectors), sides)


def list_cycles(target: Target, matrix: np.ndarray, plan: Plan, tiles: list[tuple[int, int]], sides: Sides) -> float:
    """Estimated cycles of a product by lists over tiles of pixels (count, vectors)."""
    (rows, columns), costs = matrix.shape, COSTS[target.vector_bits]
    blocks, found = -(-rows // plan.height), entries(matrix, plan.height)
    density = found / max(1, blocks * columns)
    stride = sides.pixels * 4 if plan.in_place else 0
    deep = -(-columns // plan.chunks)
    begin = blocks * plan.chunks * costs.list_[plan.height > 1]
    lists = sum(n * (found * entry_cycles(target, plan.height, v, density, deep, stride) + begin) for n, v in tiles)
    footprint = (rows + columns) * sides.pixels * 4
    level = (2 * footprint > target.l2_bytes) + (footprint > target.l2_bytes)
    copy = costs.transpose_in if sides.blocked_x else costs.copy[level]
    finish = costs.transpose_out if sides.blocked_y else costs.finish[level]
    each = columns * (costs.place[level] if plan.in_place else copy)
    each += rows * (finish + (plan.chunks - 1) * costs.partial)
    return float(lists + -(-sides.pixels // target.lanes(DType.F32)) * each)


def window_cycles(
    target: Target,
    matrix: np.ndarray,
    plan: Plan,
    tiles: Sequence[tuple[int, int, float]],
    copied: int,
    blocked: tuple[bool, bool],
) -> float:
    """Estimated cycles of a convolution by lists over tiles (count, vectors, rows of a column that they read over those
    that they make, times channels); copied: elements of x with its border; blocked: x, y."""
    (rows, columns), costs, lanes = matrix.shape, COSTS[target.vector_bits], target.lanes(DType.F32)
    blocks, found = -(-rows // plan.height), entries(matrix, plan.height)
    density = found / max(1, blocks * columns)
    begin = blocks * costs.list_[plan.height > 1]
    entry = [entry_cycles(target, plan.height, v, density, deep, UNALIGNED) for _, v, deep in tiles]
    lists = sum(n * (found * e + begin) for e, (n, _, _) in zip(entry, tiles, strict=True))
    lists *= 1.0 if splats_lanes(target) else ACROSS[plan.height > 1]
    level = (8 * copied > target.l2_bytes) + (4 * copied > target.l2_bytes)
    copy = COPIED * (costs.transpose_in if blocked[0] else costs.copy[level])
    finish = costs.transpose_out if blocked[1] else costs.finish[level]
    return float(lists + copied / lanes * copy + rows * finish * sum(n * v for n, v, _ in tiles))


def entry_cycles(target: Target, height: int, vectors: int, density: float, columns: float, stride: int) -> float:
    """Estimated cycles of one entry of a list: bound by multiply-adds, loads, instructions or the first cache.

    A tile larger than that is read through the second cache, the more of it the more of its rows a list reads. stride:
    bytes from one of its rows to the next, 0: they lie side by side. Where x is else read as vectors along k every
    instruction counts, as in `tile.step_cycles`.
    """
    sets = sets_of(target, height, vectors)
    work = max(height * vectors / target.fma_per_cycle, DEPENDENT * LATENCY / sets)
    if splats_lanes(target):
        weights = 1 if height * DType.F32.bits == target.vector_bits else height
        return work + (-(-vectors // 2) + weights + 3 + 2 / sets) / target.fma_per_cycle
    issue = (height * vectors + (vectors if height > 1 else 0) + height + 4) / 5.5
    row = vectors * target.vector_bits // 8
    loads = vectors * (1 + (stride % (row // vectors) > 0) * target.vector_bits / 512) + height
    held = target.l1_bytes * min(1.0, row / gcd(stride, SET_BYTES)) if stride else target.l1_bytes
    if target.vector_bits == 512:
        missed = min(1.0, 0.2 + density) * max(0.0, 1 - HELD * held / (columns * row))
        return max(work, (loads + 1.2) / 2, issue) + missed * vectors
    missed = min(1.0, 0.25 + 2 * density) * max(0.0, 1 - held / (columns * row))
    return max(work, loads / 2, issue) + missed * vectors * target.vector_bits / 256 + 1.0
