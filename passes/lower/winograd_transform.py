"""Small constant matrices times vectors of registers, as few operations as their symmetry allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir.loops import Expr, const
from ...ir.loops_builder import Builder
from .product import multiply_add


def apply(k: Builder, matrix: np.ndarray, values: Sequence[Expr]) -> list[Expr]:
    """matrix [rows, columns] times one vector of registers a column.

    Neighbouring columns that agree up to signs enter as their sum and their difference. Neighbouring rows that agree
    up to the signs of some columns share their even and odd parts: (e + o, e - o) instead of two full sums.
    """
    matrix, values = _folded(k, matrix, values)
    out: list[Expr] = []
    row = 0
    while row < len(matrix):
        pair = _parts(matrix[row], matrix[row + 1]) if row + 1 < len(matrix) else None
        if pair is None:
            out.append(k.let(_combine(matrix[row], values), "t"))
            row += 1
            continue
        even, odd = pair
        factor = _common(odd)
        e, o = k.let(_combine(even, values), "e"), k.let(_combine(odd / factor, values), "o")
        out += [k.let(_add(e, o, factor), "t"), k.let(_add(e, o, -factor), "t")]
        row += 2
    return out


def _folded(k: Builder, matrix: np.ndarray, values: Sequence[Expr]) -> tuple[np.ndarray, list[Expr]]:
    """The same product with a + b and a - b in place of columns a and b."""
    matrix, values = matrix.copy(), list(values)
    for j in range(matrix.shape[1] - 1):
        pair = _parts(matrix[:, j], matrix[:, j + 1])
        if pair is not None:
            a, b = values[j], values[j + 1]
            values[j : j + 2] = k.let(a + b, "s"), k.let(a - b, "d")
            matrix[:, j], matrix[:, j + 1] = pair
    return matrix, values


def _parts(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """a = even + odd where b = even - odd, each element in one of them only; None unless both have some."""
    if not np.array_equal(np.abs(a), np.abs(b)):
        return None
    even, odd = (a + b) / 2, (a - b) / 2
    return (even, odd) if even.any() and odd.any() else None


def _common(row: np.ndarray) -> float:
    """The magnitude of all elements but zeros, 1 where they differ."""
    found = np.unique(np.abs(row[row != 0]))
    return float(found[0]) if len(found) == 1 else 1.0


def _combine(row: np.ndarray, values: Sequence[Expr]) -> Expr:
    """Σ row[i] · values[i], that with a factor of 1 first, so that each other is one operation."""
    total: Expr | None = None
    for i in sorted(np.flatnonzero(row).tolist(), key=lambda i: (row[i] != 1, abs(row[i]) != 1)):
        factor, value = float(row[i]), values[i]
        if total is None:
            total = value if factor == 1 else -value if factor == -1 else value * _number(factor, value)
        else:
            total = _add(total, value, factor)
    return total if total is not None else const(0, values[0].dtype, values[0].lanes)


def _add(total: Expr, value: Expr, factor: float) -> Expr:
    """total + value · factor."""
    if abs(factor) == 1:
        return total + value if factor == 1 else total - value
    return multiply_add(value, const(_number(factor, value), value.dtype, value.lanes), total)


def _number(factor: float, value: Expr) -> float | int:
    return factor if value.dtype.is_float else int(factor)
