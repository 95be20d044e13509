"""From what a tensor was seen to hold to the range that its levels span.

minmax: all of it. percentile: all but a share at each end. mse: the range of least squared error, of what is cut off
and of what is rounded. entropy: the one whose levels' distribution is nearest to the values' (Kullback-Leibler, Migacz
2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.errors import OptionsError
from .grid import LEVELS, WIDE, Grid, grid_of

KEPT = 1 << 17
"""Values of a tensor that are remembered."""

TAIL = 1e-4
"""Share of the values that percentile cuts off at each end."""

HEADROOM = 1.25
"""What wide levels span over what was seen: other samples reach farther, and there are levels in plenty."""

_BINS = 2048
_SHARES = np.linspace(1.0, 0.3, 36)


@dataclass(frozen=True, slots=True)
class Observation:
    """low, high: the extremes. values: some of it, ascending."""

    low: float
    high: float
    values: np.ndarray


def observe(tensor: np.ndarray, seed: int) -> Observation:
    flat = tensor.reshape(-1)
    some = flat if flat.size <= KEPT else flat[np.random.default_rng(seed).integers(0, flat.size, KEPT)]
    return Observation(float(flat.min(initial=0.0)), float(flat.max(initial=0.0)), np.sort(some).astype(np.float32))


def merged(parts: Sequence[Observation]) -> Observation:
    """Of several tensors that share their levels; each counts alike."""
    if len(parts) == 1:
        return parts[0]
    count = min(len(p.values) for p in parts)
    even = [p.values[np.linspace(0, len(p.values) - 1, count).astype(np.int64)] for p in parts]
    return Observation(min(p.low for p in parts), max(p.high for p in parts), np.sort(np.concatenate(even)))


def choose_grid(method: str, seen: Observation, *, wide: bool = False) -> Grid:
    """The levels of a tensor by one of METHODS, for wide ones all of it and more; raises OptionsError."""
    if method not in METHODS:
        raise OptionsError(f"there is no method '{method}'", remedy=f"one of {', '.join(METHODS)}")
    return grid_of(HEADROOM * seen.low, HEADROOM * seen.high, WIDE) if wide else METHODS[method](seen)


def _minmax(seen: Observation) -> Grid:
    return grid_of(seen.low, seen.high)


def _percentile(seen: Observation) -> Grid:
    low, high = np.quantile(seen.values, [TAIL, 1 - TAIL])
    return grid_of(float(low), float(high))


def _mse(seen: Observation) -> Grid:
    """Both ends drawn in together, then each by itself."""

    def error(low: float, high: float) -> float:
        grid = grid_of(low, high)
        return float(np.square(grid.rounded(seen.values) - seen.values, dtype=np.float64).sum())

    return _search(seen, error)


def _entropy(seen: Observation) -> Grid:
    counts, edges = np.histogram(seen.values, _BINS, (min(seen.low, 0.0), max(seen.high, 1e-12)))
    centres = (edges[1:] + edges[:-1]) / 2

    def divergence(low: float, high: float) -> float:
        return _divergence(counts, centres, grid_of(low, high))

    return _search(seen, divergence)


def _divergence(counts: np.ndarray, centres: np.ndarray, grid: Grid) -> float:
    """Of the values inside the range, what is outside counted at its ends, from what the levels tell of them: each
    level's count spread over the bins that it holds."""
    inside = (centres >= grid.low - grid.scale / 2) & (centres <= grid.high + grid.scale / 2)
    if not inside.any():
        return np.inf
    kept = counts[inside].astype(np.float64)
    wanted = kept.copy()
    first = int(np.argmax(inside))
    wanted[0] += counts[:first].sum()
    wanted[-1] += counts[first + len(kept) :].sum()
    level = np.clip(np.rint(centres[inside] / grid.scale) + grid.zero, 0, LEVELS).astype(np.int64)
    filled = kept > 0
    mass = np.bincount(level, weights=kept, minlength=LEVELS + 1)
    bins = np.bincount(level, weights=filled.astype(np.float64), minlength=LEVELS + 1)
    told = np.where(filled, mass[level] / np.maximum(bins[level], 1), 0.0)
    p, q = wanted / wanted.sum(), (told + 1e-6) / (told + 1e-6).sum()
    return float(np.where(p > 0, p * np.log(np.maximum(p, 1e-30) / q), 0.0).sum())


def _search(seen: Observation, cost: Callable[[float, float], float]) -> Grid:
    low, high = seen.low, seen.high
    share = min(_SHARES, key=lambda s: cost(s * low, s * high))
    low, high = share * low, share * high
    for _ in range(2):
        low = low * min(_SHARES / _SHARES[0], key=lambda s: cost(s * low, high)) if low < 0 else 0.0
        high = high * min(_SHARES, key=lambda s: cost(low, s * high)) if high > 0 else 0.0
    return grid_of(low, high)


METHODS: dict[str, Callable[[Observation], Grid]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
