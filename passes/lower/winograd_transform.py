"""Small constant matrices times vectors of registers, as few operations as their symmetry allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir.loops import Builder, Expr, const, fma


def apply(k: Builder, matrix: np.ndarray, values: Sequence[Expr]) -> list[Expr]:
    """matrix [rows, columns] times one vector of registers a column.

    Neighbouring rows that agree up to the signs of some columns share their even and odd parts:
    (e + o, e - o) instead of two full sums.
    """
    out: list[Expr] = []
    row = 0
    while row < len(matrix):
        pair = row + 1 < len(matrix) and np.array_equal(np.abs(matrix[row]), np.abs(matrix[row + 1]))
        same = (matrix[row] == matrix[row + 1]) & (matrix[row] != 0) if pair else matrix[row] != 0
        flipped = (matrix[row] == -matrix[row + 1]) & (matrix[row] != 0) if pair else np.zeros_like(same)
        if pair and same.any() and flipped.any():
            even = k.let(_combine(matrix[row], same, values), "e")
            odd = k.let(_combine(matrix[row], flipped, values), "o")
            out += [k.let(even + odd, "t"), k.let(even - odd, "t")]
            row += 2
        else:
            out.append(k.let(_combine(matrix[row], matrix[row] != 0, values), "t"))
            row += 1
    return out


def _combine(row: np.ndarray, used: np.ndarray, values: Sequence[Expr]) -> Expr:
    """Σ row[i] · values[i] over the columns used, those with factors of ±1 last."""
    columns = sorted(np.flatnonzero(used).tolist(), key=lambda i: (abs(row[i]) == 1, row[i] < 0))
    total: Expr | None = None
    for i in columns:
        factor, value = float(row[i]), values[i]
        if total is None:
            total = value if factor == 1 else -value if factor == -1 else value * factor
        elif abs(factor) == 1:
            total = total + value if factor == 1 else total - value
        else:
            total = fma(value, const(factor, value.dtype, value.lanes), total)
    assert total is not None
    return total
