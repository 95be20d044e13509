"""Matrices of which many elements are zero, as lists: how they lie in memory, and what a product by them costs.

The rows of a matrix [rows, columns] are taken in blocks of `height`; a block's list names the columns in which it is
not zero throughout: each by its distance from the one before (a byte), with `height` values. Distances beyond a byte
are made of fillers, whose values are zeros. A zero weight counts as absent: it meets no infinity or NaN of x.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...codegen.target import Target
from ...ir.structure import occupied, structure
from ...ir.types import DType
from .micro import splats_lanes
from .tile import LATENCY, split

FAR = 255
"""The largest distance that a byte holds."""

HEIGHTS = (1, 2, 4)
"""Rows of a block: with more, one vector of x serves more products, but fewer blocks are empty."""

VECTORS = (2, 3, 4, 5, 6, 8, 10)
"""Vectors of pixels in a tile that are tried."""

MIN_ZEROS = 0.2
"""Fraction of zeros below which no list is tried."""

BREAK_EVEN = {1: 0.55, 2: 0.4, 4: 0.25}
"""Zeros in blocks, by their height, from which on lists are faster (`benchmarks/sparse.py`)."""

BLOCK_CYCLES = 40
"""What a list costs beside its entries: its first sums and the mispredicted end of its loop."""

TURNS_SAVE = 15
"""Of these what turns of several entries save on 512 bits: their end is foreseen more often (see `step_of`)."""

PACK_CYCLES = {False: 1.0, True: 2.5}
"""Cycles to bring one vector of x into a tile, by whether it is transposed for that."""

FINISH_CYCLES = {False: 2.0, True: 4.0}
"""Cycles to store one vector of results, likewise."""


@dataclass(frozen=True, slots=True)
class Lists:
    """first: [blocks + 1] int32, entry at which each block's list begins. gaps: [entries] uint8. values: [entries,
    height], of the matrix's type. step: all lists have lengths that it divides."""

    height: int
    first: np.ndarray
    gaps: np.ndarray
    values: np.ndarray
    step: int

    @property
    def entries(self) -> int:
        return int(self.gaps.size)


def make_lists(matrix: np.ndarray, height: int, step: int = 1) -> Lists:
    """The lists of a matrix, of lengths that `step` divides where columns of zeros can fill all of them up.

    None of others may: 0 times infinity is NaN.
    """
    rows, columns = matrix.shape
    blocks = -(-rows // height)
    padded = np.zeros((blocks * height, columns), matrix.dtype)
    padded[:rows] = matrix
    listed = occupied(padded, height)
    while True:
        block, column = np.nonzero(listed)
        begins = np.ones(block.size, bool)
        begins[1:] = block[1:] != block[:-1]
        gap = column - np.where(begins, 0, np.concatenate([[0], column[:-1]])[: column.size])
        fillers = np.maximum(-(-gap // FAR) - 1, 0)
        counts = np.zeros(blocks, np.int64)
        np.add.at(counts, block, 1 + fillers)
        short = np.nonzero((counts % step > 0) & ~listed.all(1))[0]
        if not len(short):
            break
        listed[short, listed[short].argmin(1)] = True
    entries = int(counts.sum())
    place = np.arange(block.size) + np.cumsum(fillers)
    gaps = np.full(entries, FAR, np.uint8)
    gaps[place] = gap - FAR * fillers
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values = np.zeros((entries, height), matrix.dtype)
    values[place] = padded.reshape(blocks, height, columns)[block, :, column]
    return Lists(height, first, gaps, values, 1 if (first % step).any() else step)


def entries(matrix: np.ndarray, height: int) -> int:
    """Entries of a matrix's lists, fillers left out of account."""
    return int(np.count_nonzero(occupied(matrix, height)))


def may_pay(weights: np.ndarray) -> bool:
    """Whether there are zeros enough to think about lists."""
    return weights.ndim >= 2 and structure(weights).zeros >= MIN_ZEROS


def likely_pays(weights: np.ndarray) -> bool:
    """Whether lists beat dense weights by a margin, from the zeros alone: BREAK_EVEN has what was measured."""
    if not may_pay(weights):
        return False
    matrix = weights.reshape(weights.shape[0], -1)
    return any(1 - entries(matrix, h) * h / matrix.size >= zeros for h, zeros in BREAK_EVEN.items())


def sets_of(target: Target, height: int, vectors: int) -> int:
    """Copies of the sums, one for every other entry, that hide the latency of multiply-adds: 1 or 2; 0: none fits."""
    spare = (vectors if height > 1 else 0) + 1
    sets = 2 if height * vectors < LATENCY * target.fma_per_cycle else 1
    return next((s for s in (sets, 1) if s * height * vectors + spare <= target.registers), 0)


def step_of(target: Target, height: int, sets: int) -> int:
    """Entries in a turn of a list's loop: of single rows, which are bound by loads, as many as one load reads gaps."""
    return 4 if height == 1 and not splats_lanes(target) else sets


def is_near(target: Target, columns: int, vectors: int) -> bool:
    """Whether a tile of x stays about in the first cache, as it has to where every product loads its own x; where
    every instruction counts a larger one has fewer of them."""
    tile = columns * vectors * target.vector_bits // 8
    return splats_lanes(target) or vectors <= 3 or tile <= 1.5 * target.l1_bytes


def entry_cycles(target: Target, height: int, vectors: int, columns: int, density: float) -> float:
    """Estimated cycles of one entry of a list: bound by multiply-adds, loads, instructions or the first cache.

    A tile larger than that is read through the second cache, the more of it the more of its rows a list reads.
    Where x is else read as vectors along k every instruction counts, as in `tile.step_cycles`.
    """
    sets = sets_of(target, height, vectors)
    work = max(height * vectors / target.fma_per_cycle, LATENCY / sets)
    if splats_lanes(target):
        weights = 1 if height * DType.F32.bits == target.vector_bits else height
        return work + (-(-vectors // 2) + weights + 3 + 2 / sets) / target.fma_per_cycle
    issue = (height * vectors + (vectors if height > 1 else 0) + height + 4) / 5.5
    tile = columns * vectors * target.vector_bits // 8
    missed = min(1.0, 0.25 + 2 * density) * max(0.0, 1 - target.l1_bytes / tile)
    if target.vector_bits == 512:
        far = missed * vectors * 64 / target.l2_bytes_per_cycle
        return max(work, (vectors + height + 0.4 * (height > 1)) / 2, issue) + far / 2
    far = missed * vectors * target.vector_bits / 8 / 32
    return max(work, (vectors + height) / 2, issue) + far + 1.0


def list_plans(target: Target, matrix: np.ndarray, pixels: int, transposed: int) -> Iterator[tuple[int, int, float]]:
    """(height, vectors, estimated cycles) of the ways to run a matrix's lists over pixels (see `list_cycles`)."""
    total = -(-pixels // target.lanes(DType.F32))
    for height in HEIGHTS:
        fits = [v for v in VECTORS if sets_of(target, height, v) and is_near(target, matrix.shape[1], v)]
        for vectors in sorted({min(v, total) for v in fits}):
            yield height, vectors, list_cycles(target, matrix, pixels, height, split(total, vectors), transposed)


def list_cycles(
    target: Target, matrix: np.ndarray, pixels: int, height: int, tiles: list[tuple[int, int]], transposed: int
) -> float:
    """Estimated cycles of a product by lists over tiles of pixels (count, vectors); `transposed`: sides of two that
    lie in blocks of channels."""
    rows, columns = matrix.shape
    blocks, found = -(-rows // height), entries(matrix, height)
    density = found / max(1, blocks * columns)
    block_cycles = BLOCK_CYCLES - TURNS_SAVE if height == 1 and target.vector_bits == 512 else BLOCK_CYCLES
    lists = sum(
        n * (found * entry_cycles(target, height, v, columns, density) + blocks * block_cycles) for n, v in tiles
    )
    vectors = -(-pixels // target.lanes(DType.F32))
    sides = columns * PACK_CYCLES[transposed > 0] + rows * FINISH_CYCLES[transposed > 1]
    return float(lists + vectors * sides)
