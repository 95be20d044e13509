"""Which weights stay: magnitude, or what their removal costs the layer's result, single or in patterns.

ExactOBS removes one weight of a row after another, each time the cheapest, w² / [H⁻¹]ⱼⱼ, and updates the others and
H⁻¹ by rank one (Frantar, Singh and Alistarh 2022, Lemma 1). It takes rows · d³; above `EXACT_WORK` blocks of columns
are decided at a time with the inverse of what follows (SparseGPT, Frantar and Alistarh 2023).
"""

from __future__ import annotations

import numpy as np

from ..ir.errors import OptionsError

PATTERNS = ("unstructured", "4x1", "2:4")
EXACT_WIDTH = 600
EXACT_WORK = 2e10

_BLOCK = 128
_ROWS = 16


def choose_mask(weights: np.ndarray, gram: np.ndarray, sparsity: float, pattern: str = "unstructured") -> np.ndarray:
    """Mask (True stays) of weights [rows, d] with inputs' second moments gram [d, d] (damped), a fraction `sparsity`
    removed. 4x1: blocks of four rows (output channels) of a column; 2:4: two of four neighbours in a row, whatever the
    sparsity."""
    rows, d = weights.shape
    if pattern == "2:4":
        return _n_of_m(weights**2 / np.diag(np.linalg.inv(gram)), 2, 4)
    if pattern == "4x1":
        return _blocks(weights**2 / np.diag(np.linalg.inv(gram)), sparsity)
    if pattern != "unstructured":
        raise OptionsError(f"there is no pattern '{pattern}'", remedy=f"one of {', '.join(PATTERNS)}")
    if d <= EXACT_WIDTH and rows * d**3 <= EXACT_WORK:
        return exact_obs(weights, gram, sparsity)
    return sparse_gpt(weights, gram, sparsity)


def magnitude(weights: np.ndarray, sparsity: float) -> np.ndarray:
    """The largest stay."""
    return _keep_largest(np.abs(weights), sparsity)


def exact_obs(weights: np.ndarray, gram: np.ndarray, sparsity: float) -> np.ndarray:
    """The traces of all rows, then the removals that cost least over all of them."""
    rows, d = weights.shape
    inverse = np.linalg.inv(gram)
    costs, order = np.empty((rows, d)), np.empty((rows, d), np.int64)
    for start in range(0, rows, _ROWS):
        part = slice(start, start + _ROWS)
        costs[part], order[part] = _traces(weights[part].copy(), inverse)
    # a removal is taken with all those before it in its row: the cost of a prefix is what counts
    rising = np.maximum.accumulate(costs, 1)
    drop = ~_keep_largest(rising, sparsity)
    mask = np.ones((rows, d), bool)
    np.put_along_axis(mask, order, ~drop, 1)
    return mask


def _traces(w: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the costs of its removals and the columns, in order of removal."""
    rows, d = w.shape
    h = np.repeat(inverse[None], rows, 0)
    costs, order = np.empty((rows, d)), np.empty((rows, d), np.int64)
    gone = np.zeros((rows, d), bool)
    at = np.arange(rows)
    for step in range(d):
        diagonal = np.maximum(np.einsum("rii->ri", h), 1e-30)
        price = np.where(gone, np.inf, w**2 / diagonal)
        j = price.argmin(1)
        costs[:, step], order[:, step] = price[at, j], j
        column, pivot = h[at, :, j], diagonal[at, j]
        w -= column * (w[at, j] / pivot)[:, None]
        h -= (column / pivot[:, None])[:, :, None] * column[:, None, :]
        gone[at, j] = True
        w[at, j] = 0.0
    return costs, order


def sparse_gpt(weights: np.ndarray, gram: np.ndarray, sparsity: float, block: int = _BLOCK) -> np.ndarray:
    """Columns in blocks: of each block the cheapest go, and later columns take over what their removal loses."""
    w, d = weights.astype(np.float64).copy(), weights.shape[1]
    upper = inverse_factor(gram)
    mask = np.ones(w.shape, bool)
    for start in range(0, d, block):
        part = slice(start, min(start + block, d))
        diagonal = np.diag(upper)[part]
        mask[:, part] = _keep_largest(w[:, part] ** 2 / diagonal**2, sparsity)
        lost = np.zeros((len(w), part.stop - start))
        for i, j in enumerate(range(start, part.stop)):
            lost[:, i] = np.where(mask[:, j], 0.0, w[:, j] / upper[j, j])
            w[:, j : part.stop] -= lost[:, i : i + 1] * upper[j, j : part.stop]
        w[:, part.stop :] -= lost @ upper[part, part.stop :]
    return mask


def inverse_factor(gram: np.ndarray) -> np.ndarray:
    """Upper triangular U with UᵀU = gram⁻¹, of [.., d, d] matrices."""
    flipped = np.linalg.cholesky(gram[..., ::-1, ::-1])[..., ::-1, ::-1]
    return np.asarray(np.linalg.inv(flipped))


def refit(target: np.ndarray, gram: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The survivors' least squares: for each row w with [gram w]_S = [gram target]_S and zeros elsewhere."""
    wanted = target @ gram
    fitted = np.zeros(target.shape)
    for r, keep in enumerate(mask):
        s = np.flatnonzero(keep)
        if len(s):
            fitted[r, s] = np.linalg.solve(gram[np.ix_(s, s)], wanted[r, s])
    return fitted


def _keep_largest(score: np.ndarray, sparsity: float) -> np.ndarray:
    """True for all but the round(sparsity · size) least, ties by position."""
    drop = int(round(sparsity * score.size))
    mask = np.ones(score.size, bool)
    mask[np.argsort(score, axis=None, kind="stable")[:drop]] = False
    return mask.reshape(score.shape)


def _blocks(score: np.ndarray, sparsity: float) -> np.ndarray:
    rows, d = score.shape
    whole = -(-rows // 4) * 4
    padded = np.zeros((whole, d))
    padded[:rows] = score
    keep = _keep_largest(padded.reshape(-1, 4, d).sum(1), sparsity)
    return np.repeat(keep, 4, 0)[:rows]


def _n_of_m(score: np.ndarray, n: int, m: int) -> np.ndarray:
    """The n best of each m neighbours; a rest shorter than m stays."""
    rows, d = score.shape
    whole = d // m * m
    mask = np.ones((rows, d), bool)
    order = score[:, :whole].reshape(rows, -1, m).argsort(2, kind="stable")
    mask[:, :whole] = (order.argsort(2, kind="stable") >= m - n).reshape(rows, whole)
    return mask
