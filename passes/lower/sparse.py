"""Matrices of which many elements are zero, as lists: how they lie in memory (`sparse_cost.py`: what they cost).

The rows of a matrix [rows, columns] are taken in blocks of `height`; a block's list names the columns in which it is
not zero throughout: each by its distance from the one before (a byte), with `height` values. Distances beyond a byte
are made of fillers, whose values are zeros. A zero weight counts as absent: it meets no infinity or NaN of x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.structure import occupied, structure

FAR = 255
"""The largest distance that a byte holds."""

MIN_ZEROS = 0.2
"""Fraction of zeros below which no list is tried."""

BREAK_EVEN = {1: 0.55, 2: 0.4, 4: 0.25}
"""Zeros in blocks, by their height, from which on lists are faster (`benchmarks/sparse.py`)."""


WINDOW_BREAK_EVEN = {1: 0.85, 2: 0.8, 4: 0.75}
"""The same of convolutions with a window, beside Winograd's form of the dense one."""


@dataclass(frozen=True, slots=True)
class Lists:
    """first: [chunks * blocks + 1] int32, entry at which each block's list begins. gaps: [entries] unsigned. values:
    [entries, height], of the matrix's type. step: all lists have lengths that it divides."""

    height: int
    first: np.ndarray
    gaps: np.ndarray
    values: np.ndarray
    step: int

    @property
    def entries(self) -> int:
        return int(self.gaps.size)


def place_lists(matrix: np.ndarray, height: int, step: int, places: np.ndarray) -> Lists:
    """The lists of a matrix whose columns lie at `places`, all different: distances between those, in 16 or 32 bits.

    Lengths as in `make_lists`.
    """
    order = np.argsort(places)
    found = _lists(matrix[:, order], height, step, places[order])
    return found if not (found.first % step).any() else _lists(matrix[:, order], height, 1, places[order])


def make_lists(matrix: np.ndarray, height: int, step: int = 1, chunk: int = 0) -> Lists:
    """The lists of a matrix, of lengths that `step` divides where columns of zeros can fill all of them up.

    None of others may: 0 times infinity is NaN. chunk: columns of which the lists of all blocks come before those of
    the next ones, each list with distances from the first column of its chunk; 0: all.
    """
    columns = matrix.shape[1]
    chunk = chunk or max(columns, 1)
    slices = [matrix[:, c : c + chunk] for c in range(0, max(columns, 1), chunk)]
    parts = [_lists(m, height, step) for m in slices]
    if any((p.first % step).any() for p in parts):
        return make_lists(matrix, height, 1, chunk)
    starts = np.cumsum([0, *(p.entries for p in parts)])
    first = [p.first[:-1] + start for p, start in zip(parts, starts[:-1], strict=True)]
    gaps, values = (np.concatenate([getattr(p, name) for p in parts]) for name in ("gaps", "values"))
    return Lists(height, np.concatenate([*first, starts[-1:]]).astype(np.int32), gaps, values, step)


def _lists(matrix: np.ndarray, height: int, step: int, places: np.ndarray | None = None) -> Lists:
    """Lists of one chunk, as many of them as can be filled up; without places columns are their own."""
    rows, columns = matrix.shape
    blocks = -(-rows // height)
    padded = np.zeros((blocks * height, columns), matrix.dtype)
    padded[:rows] = matrix
    listed = occupied(padded, height)
    while True:
        block, column = np.nonzero(listed)
        begins = np.ones(block.size, bool)
        begins[1:] = block[1:] != block[:-1]
        at = column if places is None else places[column]
        gap = at - np.where(begins, 0, np.concatenate([[0], at[:-1]])[: at.size])
        fillers = np.maximum(-(-gap // FAR) - 1, 0) if places is None else np.zeros_like(gap)
        counts = np.zeros(blocks, np.int64)
        np.add.at(counts, block, 1 + fillers)
        short = np.nonzero((counts % step > 0) & ~listed.all(1))[0]
        if not len(short):
            break
        listed[short, listed[short].argmin(1)] = True
    entries = int(counts.sum())
    place = np.arange(block.size) + np.cumsum(fillers)
    wide = np.uint16 if gap.max(initial=0) <= np.iinfo(np.uint16).max else np.uint32
    gaps = np.full(entries, FAR, np.uint8 if places is None else wide)
    gaps[place] = gap - FAR * fillers
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values = np.zeros((entries, height), matrix.dtype)
    values[place] = padded.reshape(blocks, height, columns)[block, :, column]
    return Lists(height, first, gaps, values, step)


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
    needed = BREAK_EVEN if matrix.shape[1] == weights.shape[1] else WINDOW_BREAK_EVEN
    return any(1 - entries(matrix, h) * h / matrix.size >= zeros for h, zeros in needed.items())
