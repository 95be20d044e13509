"""Bytes that a model's constants take once packed: indices by streams of one type, in zstd frames."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import zstandard

from .reconstruct import Coded

_LEVELS = (1, 3, 19)
_DENSE = 0.6
_ESCAPE = 255


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes: of everything, and of the indices alone beside Shannon's bound of them."""

    total: int
    indices: int
    bound: int


def packed_size(coded: Iterable[Coded], rest: Iterable[np.ndarray]) -> Size:
    """coded: the layers. rest: the model's other constants."""
    dense, gaps, kept, tables = [], [], [], []
    bound = 0.0
    for c in coded:
        flat = c.index.ravel()
        zero = int(np.flatnonzero(c.levels == 0)[0])
        bound += c.bound * flat.size / 8
        if 1 - c.zeros > _DENSE:
            dense.append(flat.tobytes())
        else:
            at = np.flatnonzero(flat != zero)
            gaps.append(_gap_bytes(at))
            kept.append(flat[at].tobytes())
        tables += [a for a in (c.levels, c.scale, c.bias) if a is not None]
    indices = sum(_zstd(b"".join(stream)) for stream in (dense, gaps, kept) if stream)
    others = sum(_planes(a) for a in (_joined(tables), *rest) if a.size)
    return Size(indices + others, indices, int(np.ceil(bound)))


def _gap_bytes(at: np.ndarray) -> bytes:
    """Distances between non-zeros, 255 standing for 255 zeros more."""
    gaps = np.diff(at, prepend=-1) - 1
    escapes = gaps // _ESCAPE
    out = np.full(int(escapes.sum()) + len(gaps), _ESCAPE, np.uint8)
    out[np.cumsum(escapes + 1) - 1] = gaps % _ESCAPE
    return out.tobytes()


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([a.ravel().astype(np.float32) for a in arrays]) if arrays else np.zeros(0, np.float32)


def _planes(array: np.ndarray) -> int:
    """Raw or byte planes, whichever is smaller."""
    raw = np.ascontiguousarray(array)
    planes = raw.reshape(-1).view(np.uint8).reshape(-1, raw.itemsize).T.tobytes()
    return min(_zstd(planes), _zstd(raw.tobytes()), raw.nbytes)


def _zstd(data: bytes) -> int:
    return min(len(zstandard.ZstdCompressor(level=k).compress(data)) for k in _LEVELS)
