"""Bytes that a model's constants take once packed (`packing`), and the code books' share beside Shannon's bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..ir.types import DType
from ..packing import Constant, pack
from .reconstruct import Coded


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes: of everything, and of the coded weights alone beside Shannon's bound of their indices."""

    total: int
    indices: int
    bound: int


def packed_size(coded: Mapping[str, Coded], rest: Mapping[str, np.ndarray]) -> Size:
    """coded: the layers by name. rest: the model's other constants."""
    weights = [Constant(name, DType.F32, c.tensor) for name, c in coded.items()]
    beside = {f"{k}.scale": c.scale for k, c in coded.items()} | {f"{k}.bias": c.bias for k, c in coded.items()}
    others = [Constant(k, DType.of(a.dtype), a) for k, a in (beside | dict(rest)).items() if a is not None and a.size]
    packed = pack([*weights, *others])
    rows = packed.report[: len(weights)]
    bound = sum(c.bound * c.index.size / 8 for c in coded.values())
    return Size(len(packed.bytes) + packed.table.nbytes, round(sum(r.packed for r in rows)), round(bound))
