"""Indices into a code book for a whole layer, chosen for the error of its *results*, not of its weights.

First column by column, later columns taking over the error of earlier ones (GPTQ, Frantar et al. 2022); then cyclic
coordinate descent on the quadratic error itself (as in QuantEase, Behdin et al. 2023), the levels moved to their
least-squares place between the sweeps. Arrays are [groups, d, rows], so that a column of all rows lies together.
"""

from __future__ import annotations

import numpy as np

from .codebook import Book, assign, code_lengths, compact
from .mask import inverse_factor

FEEDBACK_WIDTH = 1600
"""Up to this d the first pass feeds errors forward; beyond, the inverse would take longer than more descent."""

_BLOCK = 64
_SOLVES = 8


def first_pass(target: np.ndarray, gram: np.ndarray, book: Book, price: float, mask: np.ndarray | None) -> np.ndarray:
    """Indices by error feedback, columns in descending order of their inputs' power.

    target [groups, d, rows], gram [groups, d, d] (damped), price of a bit in units of the results' squared error.
    """
    groups, d, rows = target.shape
    index = np.empty(target.shape, np.int64)
    for g in range(groups):
        order = np.argsort(-np.diag(gram[g]), kind="stable")
        upper = inverse_factor(gram[g][np.ix_(order, order)]).astype(target.dtype)
        w = target[g][order].copy()
        keep = None if mask is None else mask[g][order]
        for start in range(0, d, _BLOCK):
            stop = min(start + _BLOCK, d)
            lost = np.empty((stop - start, rows), target.dtype)
            for j in range(start, stop):
                chosen = assign(w[j], book, price * upper[j, j] ** 2)
                if keep is not None:
                    chosen = np.where(keep[j], chosen, book.zero)
                index[g, order[j]] = chosen
                lost[j - start] = (w[j] - book.levels[chosen]) / upper[j, j]
                w[j + 1 : stop] -= upper[j, j + 1 : stop, None] * lost[j - start]
            w[stop:] -= upper[start:stop, stop:].T @ lost
    return index


def nearest(target: np.ndarray, gram: np.ndarray, book: Book, price: float, mask: np.ndarray | None) -> np.ndarray:
    """Indices weight by weight."""
    power = np.maximum(np.einsum("gii->gi", gram), 1e-30)[:, :, None]
    index = assign(target, book, price / power)
    return index if mask is None else np.where(mask, index, book.zero)


def sweep(
    index: np.ndarray, target: np.ndarray, gram: np.ndarray, book: Book, price: float, mask: np.ndarray | None
) -> np.ndarray:
    """One round over all columns: each index gets its best value while the others stay."""
    index = index.copy()
    levels = book.levels.astype(target.dtype)
    slope = np.matmul(gram, levels[index] - target)
    d = target.shape[1]
    power = np.maximum(np.einsum("gii->gi", gram), 1e-30)
    for start in range(0, d, _BLOCK):
        stop = min(start + _BLOCK, d)
        moved = np.empty((len(target), stop - start, target.shape[2]), target.dtype)
        for j in range(start, stop):
            h = power[:, j, None]
            old = levels[index[:, j]]
            chosen = assign(old - slope[:, j] / h, book, price / h)
            if mask is not None:
                chosen = np.where(mask[:, j], chosen, book.zero)
            index[:, j] = chosen
            moved[:, j - start] = step = levels[chosen] - old
            slope[:, j:stop] += gram[:, j:stop, j, None] * step[:, None, :]
        slope[:, stop:] += np.matmul(gram[:, stop:, start:stop], moved)
    return index


def refit(index: np.ndarray, target: np.ndarray, gram: np.ndarray, book: Book) -> Book:
    """Levels of least squared error of the results with these indices: the normal equations of the levels, solved by
    conjugate gradients from where they are; 0 stays."""
    count, zero = len(book.levels), book.zero

    def gathered(results: np.ndarray) -> np.ndarray:
        sums = np.bincount(index.ravel(), weights=results.ravel(), minlength=count)
        sums[zero] = 0.0
        return sums

    def applied(levels: np.ndarray) -> np.ndarray:
        return gathered(np.matmul(gram, levels.astype(target.dtype)[index]))

    used = np.bincount(index.ravel(), minlength=count)
    preconditioner = np.einsum("gii->gi", gram)[:, :, None]
    diagonal = gathered(np.broadcast_to(preconditioner, index.shape))
    inverse = np.where((used > 0) & (diagonal > 0), 1 / np.maximum(diagonal, 1e-30), 0.0)
    levels = book.levels.copy()
    residual = gathered(np.matmul(gram, target - levels.astype(target.dtype)[index]))
    scaled = inverse * residual
    direction, size = scaled.copy(), float(residual @ scaled)
    for _ in range(min(_SOLVES, count)):
        if size <= 1e-12:
            break
        image = applied(direction)
        curvature = float(direction @ image)
        if curvature <= 0:
            break
        levels = levels + size / curvature * direction
        residual = residual - size / curvature * image
        scaled = inverse * residual
        after = float(residual @ scaled)
        direction, size = scaled + after / size * direction, after
    return Book(levels, book.bits)


def ordered(book: Book, index: np.ndarray) -> tuple[Book, np.ndarray]:
    """Levels ascending again after a refit, unused ones gone, bits of the frequencies."""
    order = np.argsort(book.levels, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    sorted_, renamed = compact(Book(book.levels[order], book.bits[order]), rank[index])
    if np.count_nonzero(sorted_.levels == 0) != 1:
        raise AssertionError("a code book holds 0 once")
    return sorted_, renamed


def squared_error(values: np.ndarray, target: np.ndarray, gram: np.ndarray) -> float:
    """Sum over groups and rows of (v - t)ᵀ gram (v - t)."""
    off = (values - target).astype(target.dtype)
    return float(np.sum(off * np.matmul(gram, off), dtype=np.float64))


def quantise(
    target: np.ndarray, gram: np.ndarray, book: Book, price: float, mask: np.ndarray | None = None, sweeps: int = 2
) -> tuple[Book, np.ndarray]:
    """Indices and levels for least error + price · bits from a first book; see the module."""
    start = first_pass if target.shape[1] <= FEEDBACK_WIDTH else nearest
    index = nearest(target, gram, book, price, mask)
    counts = np.bincount(index.ravel(), minlength=len(book.levels)).astype(np.float64)
    index = start(target, gram, Book(book.levels, code_lengths(counts + 0.5)), price, mask)
    for _ in range(sweeps):
        book, index = compact(book, index)
        book, index = ordered(refit(index, target, gram, book), index)
        index = sweep(index, target, gram, book, price, mask)
    book, index = compact(book, index)
    return ordered(refit(index, target, gram, book), index)
