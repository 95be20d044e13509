"""Uniform grids of levels: value = scale · (level - zero)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = 255
"""The highest level of u8."""

WIDE = 4095
"""The highest level of tensors with 16 bits: of 12, so that sums of products with weights stay inside an i32."""

SHARES = np.linspace(1.0, 0.7, 13)
"""Of a row's largest weight, that its levels may reach to."""

SMALLEST = 1e-7
"""Of a scale, relative to 1: a tensor that is always 0 needs one as well."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Levels 0 to `most` of a tensor; 0.0 is one of them exactly."""

    scale: np.float32
    zero: int
    most: int = LEVELS

    @property
    def is_wide(self) -> bool:
        """Whether the levels take 16 bits in the file."""
        return self.most > LEVELS

    @property
    def largest(self) -> int:
        """The largest magnitude of a level less the zero point."""
        return max(self.zero, self.most - self.zero)

    @property
    def low(self) -> float:
        return float(self.scale) * (0 - self.zero)

    @property
    def high(self) -> float:
        return float(self.scale) * (self.most - self.zero)

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """What QuantizeLinear and DequantizeLinear make of x, in f32."""
        levels = np.rint(x / self.scale)
        np.clip(levels, -self.zero, self.most - self.zero, out=levels)
        levels *= self.scale
        return np.asarray(levels, np.float32)


def grid_of(low: float, high: float, most: int = LEVELS) -> Grid:
    """The grid whose levels 0 to `most` span low to high and 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max((high - low) / most, SMALLEST))
    return Grid(scale, int(np.clip(np.rint(-low / scale), 0, most)), most)


def block_scales(rows: np.ndarray, power: np.ndarray, most: int, block: int) -> np.ndarray:
    """Scales [groups, rows, blocks] of weights [groups, rows, d], for each `block` columns, 0 for all of them: of those
    that cut off the largest weights more and more the one of least squared error, each column weighted by the power
    [groups, d] of its input. Levels are -most to most."""
    groups, count, d = rows.shape
    size = block or d
    short = -d % size
    parts = np.pad(rows, ((0, 0), (0, 0), (0, short))).reshape(groups, count, -1, size)
    weight = np.pad(power, ((0, 0), (0, short))).reshape(groups, 1, -1, size)
    peak = np.maximum(np.abs(parts).max(3), SMALLEST)
    best, least = peak / most, np.full(peak.shape, np.inf)
    for share in SHARES:
        scale = (share * peak / most)[..., None]
        error = np.square(np.clip(np.rint(parts / scale), -most, most) * scale - parts)
        cost = (error * weight).sum(3)
        best, least = np.where(cost < least, scale[..., 0], best), np.minimum(cost, least)
    return np.asarray(best)
