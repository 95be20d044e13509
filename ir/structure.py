"""What a constant's data tells about itself: few distinct values (a code book), zeros, zeros in blocks of channels.

However a model spells it, compressed weights fold to a dense constant; what is stored compactly and which kernels read
it is decided by what its elements are. Only float constants with two axes or more have a structure worth knowing.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np

from .types import DType

MAX_LEVELS = 256
"""Distinct values that a byte names."""

ENOUGH = 512
"""Elements from which on a code book is worth its table."""

ELEMENTS_A_LEVEL = 4
"""Elements a level, at least: below, the table is as large as what it saves."""

_SAMPLE = 4096
"""Elements that are looked at before all of them are."""


@dataclass(frozen=True, slots=True)
class Structure:
    """levels: the distinct values of a coded constant, in ascending order, of its type (else None); `indices`, of its
    shape: the level of each element. zeros: fraction of elements equal to 0.

    Levels differ in their bits: 0.0 and -0.0 are two.
    """

    levels: np.ndarray | None
    indices: np.ndarray | None
    zeros: float

    @property
    def is_coded(self) -> bool:
        return self.levels is not None

    @property
    def bits(self) -> int:
        """Bits of an index of a coded constant, 0 where it is not coded."""
        return 0 if self.levels is None else max(1, (self.levels.size - 1).bit_length())


def zero_blocks(array: np.ndarray, height: int, axis: int = 0) -> float:
    """Fraction of the blocks of `height` neighbours along `axis` that are zero throughout.

    Blocks begin at multiples of `height`; a last one that is shorter counts as the others.
    """
    return 1.0 - float(occupied(array, height, axis).mean()) if array.size else 0.0


def occupied(array: np.ndarray, height: int, axis: int = 0) -> np.ndarray:
    """Which blocks of `height` neighbours along `axis` hold an element other than 0; the axis counts blocks."""
    rows = np.moveaxis(array != 0, axis, 0)
    if height == 1:
        return np.moveaxis(rows, 0, axis)
    starts = np.arange(0, rows.shape[0], height)
    found = np.logical_or.reduceat(rows, starts, axis=0) if starts.size else rows
    return np.moveaxis(found, 0, axis)


_KNOWN: dict[int, tuple[weakref.ref[np.ndarray], Structure]] = {}


def structure(array: np.ndarray) -> Structure:
    """The structure of a constant's data, remembered as long as the array lives; the data must not change."""
    known = _KNOWN.get(id(array))
    if known is not None and known[0]() is array:
        return known[1]
    found = _find(array)
    key = id(array)
    _KNOWN[key] = (weakref.ref(array, lambda _: _KNOWN.pop(key, None)), found)
    return found


def exact_half(array: np.ndarray) -> DType | None:
    """f16 or bf16 where it holds every element of a float32 constant as it is (the model was stored in it), else None.

    NaNs have no such form.
    """
    if array.dtype != np.float32 or array.size < ENOUGH:
        return None
    flat = array.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE)]
    return next((t for t in (DType.F16, DType.BF16) if _holds(t, sample) and _holds(t, flat)), None)


def _holds(dtype: DType, flat: np.ndarray) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        back = flat.astype(dtype.numpy).astype(np.float32)
    same = np.array_equal(back.view(np.uint32), np.ascontiguousarray(flat).view(np.uint32))
    return same and bool(np.isfinite(flat).all())


def is_coded(array: np.ndarray | None) -> bool:
    """Whether a constant has few enough distinct values to be named by bytes."""
    return array is not None and structure(array).is_coded


def _find(array: np.ndarray) -> Structure:
    kind = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    if not kind or array.ndim < 2 or array.size == 0:
        return Structure(None, None, 0.0)
    zeros = 1.0 - np.count_nonzero(array) / array.size
    levels = _levels(array)
    if levels is None:
        return Structure(None, None, zeros)
    return Structure(levels, _indices(array, levels), zeros)


def _bits(array: np.ndarray) -> np.ndarray:
    """The elements' bits as unsigned integers, in one axis."""
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")


def _levels(array: np.ndarray) -> np.ndarray | None:
    """Distinct values in ascending order, None where they are too many."""
    most = min(MAX_LEVELS, array.size // ELEMENTS_A_LEVEL)
    if array.size < ENOUGH:
        return None
    bits = _bits(array)
    if np.unique(bits[:: max(1, bits.size // _SAMPLE)][:_SAMPLE]).size > most:
        return None
    found = np.empty(0, bits.dtype)
    for first in range(0, bits.size, 1 << 20):
        found = np.union1d(found, bits[first : first + (1 << 20)])
        if found.size > most:
            return None
    values = found.view(array.dtype)
    order = np.argsort(values.astype(np.float64), kind="stable")
    return values[order]


def _indices(array: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The level of each element, uint8."""
    codes = _bits(levels)
    order = np.argsort(codes)
    bits = _bits(array)
    found = np.empty(bits.size, np.uint8)
    ranks = order.astype(np.uint8)
    for first in range(0, bits.size, 1 << 20):
        part = slice(first, first + (1 << 20))
        found[part] = ranks[np.searchsorted(codes[order], bits[part])]
    return found.reshape(array.shape)
