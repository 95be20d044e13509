"""Levels of a tensor and their zero point, as kernels of integers read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....ir.graph import Value
from ....ir.loops import Expr, cast, const
from ....ir.types import DType
from ..context import KernelBuilder, Lowering
from .words import as_signed, repeated

BYTES = (DType.I8, DType.U8)


@dataclass(frozen=True, slots=True)
class Levels:
    """A tensor of integers, its zero point (a scalar, perhaps known when it runs only) and the largest magnitude of a
    level less that."""

    value: Value
    zero: Value | None
    largest: int

    @property
    def dtype(self) -> DType:
        return self.value.type.dtype

    @property
    def are_bytes(self) -> bool:
        return self.dtype in BYTES

    @property
    def known_zero(self) -> int | None:
        """The zero point of levels as they are in words, signed; None where it is known when it runs only."""
        if self.zero is not None and self.zero.data is None:
            return None
        own = 0 if self.zero is None or self.zero.data is None else int(self.zero.data.reshape(-1)[0])
        return own - self._shift

    @property
    def _shift(self) -> int:
        return 128 if self.dtype is DType.U8 else 0

    def zero_point(self, k: KernelBuilder) -> Expr:
        """The zero point of levels as they are in words, i32."""
        known = self.known_zero
        if known is not None:
            return const(known, DType.I32)
        assert self.zero is not None
        return cast(k.load(k.tensor(self.zero, "zero"), 0), DType.I32) - self._shift

    def number(self, k: KernelBuilder, level: Expr) -> Expr:
        """A level less the zero point, i32."""
        wide = cast(level, DType.I32)
        known = self.known_zero
        return wide - (self.zero_point(k) + self._shift if known is None else known + self._shift)

    def signed(self, word: Expr) -> Expr:
        """A word of levels as one of signed bytes."""
        return as_signed(word, self.dtype)

    def empty(self, k: KernelBuilder) -> Expr:
        """A word of zero points."""
        return repeated(self.zero_point(k))


class Correction:
    """-zero · Σ w, where sums of products of words by `weights` [rows, depth] begin."""

    def __init__(self, ctx: Lowering, levels: Levels, weights: np.ndarray) -> None:
        self.levels, known = levels, levels.known_zero
        sums = weights.astype(np.int64).sum(1) * (1 if known is None else -known)
        self.value = ctx.pack("sums", sums.astype(np.uint32).view(np.int32)) if np.any(sums) else None

    def at(self, k: KernelBuilder, row: Expr) -> Expr:
        """Of a row, i32."""
        if self.value is None:
            return const(0, DType.I32)
        sums = k.load(k.tensor(self.value, "sums"), row)
        return sums if self.levels.known_zero is not None else -(self.levels.zero_point(k) * sums)


def largest_of(value: Value, zero: Value | None) -> int:
    """The largest magnitude of a level less its zero point, by type."""
    info = np.iinfo(value.type.dtype.numpy)
    if zero is None:
        return max(int(info.max), -int(info.min))
    if zero.data is None:
        return int(info.max) - int(info.min)
    own = int(zero.data.reshape(-1)[0])
    return max(int(info.max) - own, own - int(info.min))
