"""Rounding of products' factors to 8 bits: levels of weights, and what the rounding of both factors does to results."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir.structure import structure

REACH = 127
"""The largest level of weights."""
SIGNED_STEPS, UNSIGNED_STEPS = 127, 255
"""Levels from 0 to the largest magnitude of a row: of both signs, of rows without negative elements."""


@dataclass(frozen=True, slots=True)
class ByteWeights:
    """A matrix [K, N] as `levels` (int8) times `scale` (float32, a scalar or [N]); `lost`: what it is more than that
    (None for nothing)."""

    levels: np.ndarray
    scale: np.ndarray
    lost: np.ndarray | None = None

    @property
    def error(self) -> float:
        """Root of the mean square of what is lost, relative to that of the weights."""
        if self.lost is None:
            return 0.0
        whole = np.square(self.levels * self.scale + self.lost, dtype=np.float64).sum()
        return float(np.sqrt(np.square(self.lost, dtype=np.float64).sum() / whole)) if whole else 0.0


def rounded_book(matrix: np.ndarray) -> ByteWeights | None:
    """A float32 matrix of few levels with the levels rounded to multiples of the step that loses least; None where it
    has too many, or one that is not finite."""
    found = structure(matrix)
    if found.levels is None or found.indices is None or not np.isfinite(found.levels).all():
        return None
    levels = found.levels.astype(np.float64)
    counts = np.bincount(found.indices.reshape(-1), minlength=levels.size)
    step = _step(levels, counts)
    whole = np.round(levels / step)
    lost = (levels - whole * step).astype(np.float32)
    return ByteWeights(
        whole.astype(np.int8)[found.indices],
        np.asarray(step, np.float32),
        lost[found.indices] if lost.any() else None,
    )


def _step(levels: np.ndarray, counts: np.ndarray) -> np.float32:
    """Of the steps that give the largest level a whole number, the one of least squared error over all elements."""
    reach = np.abs(levels).max(initial=0.0)
    if not reach:
        return np.float32(1)
    steps = (reach / np.arange(REACH, REACH // 2, -1)).astype(np.float32)
    steps = steps[np.abs(np.round(reach / steps.astype(np.float64))) <= REACH]
    errors = levels - np.round(levels / steps[:, None]) * steps[:, None]
    return np.float32(steps[int((np.square(errors) * counts).sum(1).argmin())])


def largest_error(weights: ByteWeights, steps: int) -> float:
    """What no result [N] is wrong by more than, where no element of a row is larger than 1: Σ |w| half a level each,
    and what the weights lost."""
    sums = np.abs(weights.levels.astype(np.float64) * weights.scale).sum(0) / (2 * steps)
    if weights.lost is not None:
        sums += np.abs(weights.lost.astype(np.float64)).sum(0)
    return float(sums.max(initial=0.0))


def block_errors(levels: np.ndarray, scales: np.ndarray, zeros: np.ndarray, size: int) -> tuple[float, float]:
    """(expected, largest) error as below and above, where elements are rounded by the largest of their block of `size`
    along K. levels [K, N], scales and zeros [blocks, N]."""
    block = np.arange(levels.shape[0]) // size
    whole = np.abs(levels.astype(np.int16) - zeros[block].astype(np.int16)) * scales[block]
    peak = np.sqrt(2 * np.log(max(2 * min(size, levels.shape[0]), 2)))
    largest = whole.sum(0, dtype=np.float64).max() / (2 * SIGNED_STEPS)
    return float(peak / (SIGNED_STEPS * np.sqrt(12))), float(largest)


def expected_error(weights: ByteWeights, steps: int) -> float:
    """Root mean square error of results relative to theirs, for independent normal elements of a row (with `steps` of
    rows without negative elements, normal ones whose negative half is cut off)."""
    length = weights.levels.shape[0]
    cut = steps == UNSIGNED_STEPS
    peak = np.sqrt(2 * np.log(max(length if cut else 2 * length, 2))) * (np.sqrt(2) if cut else 1)
    return float(np.hypot(peak / (steps * np.sqrt(12)), weights.error))
