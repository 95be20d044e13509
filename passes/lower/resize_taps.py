"""Coordinates and weights of Resize along one axis, made at compile time.

The rules are those of ONNX's operator text: coordinate transformation, neighbours, coefficients (nearest, linear,
cubic; wider by 1/scale with antialias), outside neighbours dropped or clamped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Taps:
    """For every result: K source indices [O, K], their weights, and whether it lies inside [O]."""

    index: np.ndarray
    weight: np.ndarray
    inside: np.ndarray

    @property
    def count(self) -> int:
        return int(self.index.shape[1])


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: sizes, exact scale, the part of the source that is seen (tf_crop_and_resize)."""

    size: int
    result: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Interpolation:
    """The attributes of Resize."""

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False

    def taps(self, axis: Axis) -> Taps:
        """Neighbours and weights of every result along `axis`."""
        x = coordinates(self.coordinates, axis)
        inside = np.ones(axis.result, bool)
        if self.coordinates == "tf_crop_and_resize":
            inside = (x >= 0) & (x <= axis.size - 1)
        whole = np.floor(x)
        ratio = np.where(x == whole, 1.0, x - whole)
        first = np.where(x == whole, whole - 1, whole).astype(np.int64)
        index, weight = self._window(axis, first, ratio)
        if self.exclude_outside:
            weight = np.where((index < 0) | (index >= axis.size), 0.0, weight)
            total = weight.sum(axis=1, keepdims=True)
            weight = weight / np.where(total == 0, 1.0, total)
        weight = np.where(inside[:, None], weight, 0.0)
        return _trimmed(Taps(index.clip(0, axis.size - 1), weight, inside))

    def _window(self, axis: Axis, first: np.ndarray, ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source indices [O, K], unclamped, around first + ratio with ratio in (0, 1], and their coefficients."""
        if self.mode == "nearest":
            upper = _NEAREST[self.nearest](ratio) | (ratio == 1.0)
            return (first + upper)[:, None], np.ones((len(first), 1))
        reach = 1 if self.mode == "linear" else 2
        scale = min(axis.scale, 1.0) if self.antialias else 1.0
        begin = int(np.floor(-reach / scale)) + 1
        steps = np.arange(begin, 2 - begin)
        distance = np.abs(steps[None, :] - ratio[:, None]) * scale
        weight = np.clip(1 - distance, 0, 1) if reach == 1 else self._cubic(distance)
        if self.antialias:
            weight = weight / weight.sum(axis=1, keepdims=True)
        return first[:, None] + steps[None, :], weight

    def _cubic(self, d: np.ndarray) -> np.ndarray:
        """Keys' cubic convolution kernel (IEEE TASSP 29, 1981) at distances d ≥ 0."""
        a = self.cubic
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


_NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda r: r > 0.5,
    "round_prefer_ceil": lambda r: r >= 0.5,
    "floor": lambda r: np.zeros(len(r), bool),
    "ceil": lambda r: np.ones(len(r), bool),
}


def coordinates(mode: str, axis: Axis) -> np.ndarray:
    """The source coordinate of every result."""
    y = np.arange(axis.result, dtype=np.float64)
    width = axis.scale * axis.size
    half = (y + 0.5) / axis.scale - 0.5
    match mode:
        case "align_corners":
            return np.zeros_like(y) if width == 1 else y * (axis.size - 1) / (width - 1)
        case "asymmetric":
            return y / axis.scale
        case "tf_crop_and_resize":
            low, high = axis.roi
            if width == 1:
                return np.full_like(y, (high - low) * (axis.size - 1) / 2) + low * (axis.size - 1)
            return y * (high - low) * (axis.size - 1) / (width - 1) + low * (axis.size - 1)
        case "pytorch_half_pixel":
            return np.full_like(y, -0.5) if width == 1 else half
        case "half_pixel_symmetric":
            return axis.size / 2 * (1 - axis.result / width) + half
        case _:
            return half


def _trimmed(taps: Taps) -> Taps:
    """Without the columns in which every weight is zero."""
    keep = np.flatnonzero(np.any(taps.weight != 0, axis=0))
    keep = keep if len(keep) else np.array([0])
    return Taps(taps.index[:, keep], taps.weight[:, keep], taps.inside)
