"""Winograd's minimal filtering F(m×m, 3×3): Y = Aᵀ [(G g Gᵀ) ∘ (Bᵀ d B)] A for a tile of m×m results.

Lavin, Gray: Fast Algorithms for Convolutional Neural Networks, CVPR 2016, arXiv:1509.09308. Points 0, ±1 (and ±2), ∞.
"""

from __future__ import annotations

from functools import cache
from math import inf, sqrt

import numpy as np

_B = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}
_G = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}
_A = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}

SIZES = tuple(_A)
"""The m for which there are matrices."""


@cache
def input_matrix(m: int) -> np.ndarray:
    """Bᵀ [m + 2, m + 2], exact."""
    return np.array(_B[m], np.float64)


@cache
def weight_matrix(m: int) -> np.ndarray:
    """G [m + 2, 3], to float64 rounding."""
    return np.array(_G[m], np.float64)


@cache
def output_matrix(m: int) -> np.ndarray:
    """Aᵀ [m, m + 2], exact."""
    return np.array(_A[m], np.float64)


def transform_weights(weights: np.ndarray, m: int) -> np.ndarray:
    """U [(m + 2)², C, K] in float64 of weights [K, C, 3, 3]."""
    k, c = weights.shape[:2]
    g = weight_matrix(m)
    taps = np.ascontiguousarray(weights.transpose(2, 3, 1, 0)).astype(np.float64)
    return (np.kron(g, g) @ taps.reshape(9, c * k)).reshape(-1, c, k)


def winograd_bound(m: int, weights: np.ndarray) -> float:
    """The largest number that a layer comes by, for inputs of magnitude up to 1 and any order of its sums: transformed
    inputs, sums over channels, and both sides of the output's transform. weights: [K, C, 3, 3]."""
    n = m + 2
    rows, out = np.abs(input_matrix(m)).sum(1), np.abs(output_matrix(m))
    v = np.outer(rows, rows)
    sums = np.abs(transform_weights(weights, m)).sum(1).reshape(n, n, -1) * v[:, :, None]
    half = np.einsum("ij,jqk->iqk", out, sums)
    return float(max(v.max(), sums.max(), half.max(), np.einsum("jq,iqk->ijk", out, half).max()))


def winograd_error(m: int, weights: np.ndarray) -> float:
    """Expected rms error of float32 relative to the rms of the result, for independent inputs and these weights.

    weights: [K, C, 3, 3]. Every rounding adds an independent error of unit / sqrt(3) of its result, which later steps
    amplify. Steps: the two sides of the transforms of inputs and of weights, the sums over channels (whose partial sums
    grow), the output transform. The sums of squares of U need only the 9 x 9 sums of products of taps.
    """
    channels = weights.shape[1]
    taps = weights.reshape(-1, 9).astype(np.float64)
    with np.errstate(invalid="ignore"):
        gram = taps.T @ taps / max(len(taps), 1)
    size = float(np.trace(gram))
    if not 0 < size < inf:
        return inf if size else 0.0
    unit = 2.0**-24 / sqrt(3)
    a, b, g = output_matrix(m) ** 2, input_matrix(m) ** 2, np.kron(weight_matrix(m), weight_matrix(m))
    v = np.outer(b.sum(1), b.sum(1))
    u = np.einsum("pi,ij,pj->p", g, gram, g).reshape(v.shape)
    steps = 3.0 * 2 * 2 + channels / 2
    products = a @ (u * v * steps) @ a.T
    outputs = a @ (u * v) @ a.T * 6
    return float(unit * np.sqrt(np.mean(products + outputs) / size))
