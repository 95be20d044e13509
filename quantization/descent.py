"""Whole numbers of a layer's rows, chosen for the error of its *results*.

As `compression.descent`, for uniform grids and all groups at a time. target: weights [groups, d, rows], so that a
column of all rows lies together; scale: [groups, 1 or d, rows]; levels are -most to most.
"""

from __future__ import annotations

import numpy as np

from ..compression.mask import inverse_factor

_BLOCK = 64


def nearest(target: np.ndarray, scale: np.ndarray, most: int) -> np.ndarray:
    """Weight by weight."""
    return np.asarray(np.clip(np.rint(target / scale), -most, most))


def fed_forward(target: np.ndarray, gram: np.ndarray, scale: np.ndarray, most: int) -> np.ndarray:
    """Columns in descending order of their inputs' power, later ones taking over the error of earlier ones (GPTQ,
    Frantar et al. 2022). gram [groups, d, d], damped."""
    d = target.shape[1]
    order = np.argsort(-np.einsum("gii->gi", gram), 1, kind="stable")
    by_power = np.take_along_axis(np.take_along_axis(gram, order[:, :, None], 1), order[:, None, :], 2)
    upper = inverse_factor(by_power).astype(target.dtype)
    w, s = (np.take_along_axis(np.broadcast_to(a, target.shape), order[:, :, None], 1).copy() for a in (target, scale))
    levels = np.empty_like(w)
    for start in range(0, d, _BLOCK):
        stop = min(start + _BLOCK, d)
        lost = np.empty((len(w), stop - start, w.shape[2]), w.dtype)
        for j in range(start, stop):
            levels[:, j] = nearest(w[:, j], s[:, j], most)
            lost[:, j - start] = (w[:, j] - levels[:, j] * s[:, j]) / upper[:, j, j, None]
            w[:, j + 1 : stop] -= upper[:, j, j + 1 : stop, None] * lost[:, j - start, None]
        w[:, stop:] -= np.matmul(upper[:, start:stop, stop:].swapaxes(1, 2), lost)
    result = np.empty_like(levels)
    np.put_along_axis(result, order[:, :, None], levels, 1)
    return result


def swept(levels: np.ndarray, target: np.ndarray, gram: np.ndarray, scale: np.ndarray, most: int) -> np.ndarray:
    """One round of coordinate descent: each column gets its best levels while the others stay."""
    levels, s = levels.copy(), np.broadcast_to(scale, target.shape)
    slope = np.matmul(gram, levels * s - target)
    d = target.shape[1]
    power = np.maximum(np.einsum("gii->gi", gram), 1e-30)
    for start in range(0, d, _BLOCK):
        stop = min(start + _BLOCK, d)
        moved = np.empty((len(target), stop - start, target.shape[2]), target.dtype)
        for j in range(start, stop):
            chosen = nearest(levels[:, j] * s[:, j] - slope[:, j] / power[:, j, None], s[:, j], most)
            moved[:, j - start] = step = (chosen - levels[:, j]) * s[:, j]
            levels[:, j] = chosen
            slope[:, j:stop] += gram[:, j:stop, j, None] * step[:, None, :]
        slope[:, stop:] += np.matmul(gram[:, stop:, start:stop], moved)
    return levels
