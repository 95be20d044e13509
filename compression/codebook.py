"""Code books: at most 256 levels, one of them 0, with the bits that an entropy coder spends on each.

Indices are entropy coded in the file, so a level is chosen by error + price · bits (entropy-constrained scalar
quantisation, Chou, Lookabaugh and Gray 1989). A near-uniform grid is what such a coder wants (Gish and Pierce 1968);
its levels are then moved to where they cost the layer least (`refit`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_LEVELS = 256
PRICE = np.log(2) / 6
"""Error per bit that an entropy-coded uniform step of 1 trades at: the slope of the error step²/12 over its bits."""

_RARE_BITS = 16.0
_COMPANDED = 64
_FEW_SAMPLE, _FEW_BINS, _FEW_ROUNDS = 1 << 17, 512, 30


@dataclass(frozen=True, slots=True)
class Book:
    """levels: ascending, holding 0. bits: what each costs."""

    levels: np.ndarray
    bits: np.ndarray

    @property
    def zero(self) -> int:
        """Index of the level 0."""
        return int(np.searchsorted(self.levels, 0.0))


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Bits of each symbol, -log2 of its frequency; rare ones do not cost without bound."""
    total = max(float(counts.sum()), 1.0)
    return np.asarray(np.minimum(-np.log2(np.maximum(counts, 1e-9) / total), _RARE_BITS))


def uniform(values: np.ndarray, step: float, levels: int = MAX_LEVELS) -> Book:
    """The grid of `step` over the range of `values`. Where that would take more than `levels`, the step is widened
    until three quarters of them hold all but the outermost 2 %, and the levels beyond are further and further apart;
    few levels lie where they lose least (`fewest_lost`)."""
    low, high = min(float(values.min(initial=0.0)), 0.0), max(float(values.max(initial=0.0)), 0.0)
    if low == high:
        return Book(np.zeros(1), np.zeros(1))
    if levels < _COMPANDED and step < (high - low) / (levels - 2):
        grid = fewest_lost(values, levels)
    else:
        reach = min(high - low, 2 * float(np.quantile(np.abs(values), 0.98)) / 0.75)
        step = max(step, reach / (levels - 2)) if levels >= _COMPANDED else step
        budget = levels - 1
        below = round(budget * -low / (high - low))
        grid = np.concatenate([-_side(-low, step, below)[::-1], [0.0], _side(high, step, budget - below)])
    near = np.searchsorted((grid[1:] + grid[:-1]) / 2, values)
    counts = np.bincount(near.ravel(), minlength=len(grid)).astype(np.float64)
    return Book(grid, code_lengths(counts + 0.5))


def fewest_lost(values: np.ndarray, levels: int) -> np.ndarray:
    """At most so many levels, 0 among them, that lose the least squared error: as dense as the cube root of the values'
    density (Panter and Dite 1951), then Lloyd's iterations. Ascending."""
    some = np.sort(values.ravel()[:: values.size // _FEW_SAMPLE + 1].astype(np.float64))
    counts, edges = np.histogram(some, _FEW_BINS)
    share = np.cumsum(np.cbrt(counts))
    grid = np.interp((np.arange(levels) + 0.5) / levels * share[-1], share, edges[1:])
    sums = np.concatenate([[0.0], np.cumsum(some)])
    for _ in range(_FEW_ROUNDS):
        grid[np.abs(grid).argmin()] = 0.0
        ends = np.concatenate([[0], np.searchsorted(some, (grid[1:] + grid[:-1]) / 2), [some.size]])
        held = np.diff(ends)
        grid = np.where(held > 0, np.diff(sums[ends]) / np.maximum(held, 1), grid)
    grid[np.abs(grid).argmin()] = 0.0
    return np.unique(grid)


def _side(reach: float, step: float, count: int) -> np.ndarray:
    """At most `count` positive levels up to `reach`: multiples of `step`, or three quarters of them and then steps that
    grow by one factor."""
    whole = int(np.round(reach / step)) if reach < step * 1e9 else 10**9
    if whole <= count:
        return np.arange(1, whole + 1) * step
    inner = max(3 * count // 4, 1)
    outer = np.geomspace(inner * step, reach, count - inner + 1)[1:] if inner * step < reach else np.zeros(0)
    return np.concatenate([np.arange(1, inner + 1) * step, outer])[:count]


def assign(values: np.ndarray, book: Book, price: np.ndarray | float) -> np.ndarray:
    """Index of the level of least (value - level)² + price · bits, among the nearest, its neighbour toward 0, and 0."""
    levels, bits = book.levels, book.bits
    zero = book.zero
    near = np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
    inner = np.where(near > zero, near - 1, np.minimum(near + 1, zero))
    best, cost = near, (values - levels[near]) ** 2 + price * bits[near]
    for other in (inner, np.full_like(near, zero)):
        c = (values - levels[other]) ** 2 + price * bits[other]
        better = c < cost
        best, cost = np.where(better, other, best), np.where(better, c, cost)
    return best


def fit(
    values: np.ndarray, weights: np.ndarray, step: float, price: float, levels: int = MAX_LEVELS, rounds: int = 12
) -> tuple[Book, np.ndarray]:
    """Weighted entropy-constrained k-means of single numbers, from the uniform grid: (book, indices).

    price: of a bit, in units of weight · error².
    """
    book = uniform(values, step, levels)
    scaled = price / np.maximum(weights, 1e-30)
    index = assign(values, book, scaled)
    for _ in range(rounds):
        counts = np.bincount(index.ravel(), minlength=len(book.levels))
        mass = np.bincount(index.ravel(), weights=np.broadcast_to(weights, values.shape).ravel(), minlength=len(counts))
        total = np.bincount(index.ravel(), weights=(weights * values).ravel(), minlength=len(counts))
        moved = np.where(mass > 0, total / np.maximum(mass, 1e-300), book.levels)
        moved[book.zero] = 0.0
        book, before = compact(Book(moved, book.bits), index)
        index = assign(values, book, scaled)
        if np.array_equal(index, before):
            break
    return compact(book, index)


def compact(book: Book, index: np.ndarray) -> tuple[Book, np.ndarray]:
    """Without unused levels (0 stays); indices renumbered, bits of the final frequencies."""
    counts = np.bincount(index.ravel(), minlength=len(book.levels)).astype(np.float64)
    keep = counts > 0
    keep[book.zero] = True
    renumber = np.cumsum(keep) - 1
    return Book(book.levels[keep], code_lengths(counts[keep])), renumber[index]
