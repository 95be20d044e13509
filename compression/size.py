"""Bytes that a model's constants take once packed (`packing`), and the code books' share beside Shannon's bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..ir.types import DType
from ..packing import Constant, pack
from .coded import Coded


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes: of everything, and of the coded weights alone beside Shannon's bound of their indices."""

    total: int
    indices: int
    bound: int


def packed_size(coded: Mapping[str, Coded], rest: int) -> Size:
    """coded: the layers by name. rest: bytes of the model's other constants, `packed_bytes` of them."""
    weights = [Constant(name, DType.F32, c.tensor) for name, c in coded.items()]
    beside = [a.ravel() for c in coded.values() for a in (c.scale, c.bias) if a is not None]
    tail = [Constant("scales and biases", DType.F32, np.concatenate(beside))] if beside else []
    packed = pack([*weights, *tail])
    rows = packed.report[: len(weights)]
    bound = sum(c.bound * c.size / 8 for c in coded.values())
    total = len(packed.bytes) + packed.table.nbytes + rest
    return Size(total, round(sum(r.packed for r in rows)), round(bound))


def packed_bytes(constants: Mapping[str, np.ndarray]) -> int:
    """Bytes of a file of these constants, those of one type side by side."""
    by_type: dict[DType, list[np.ndarray]] = {}
    for a in constants.values():
        if a.size:
            by_type.setdefault(DType.of(a.dtype), []).append(a.ravel())
    packed = pack([Constant(str(t), t, np.concatenate(arrays)) for t, arrays in by_type.items()])
    return len(packed.bytes) + packed.table.nbytes
