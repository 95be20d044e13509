"""Targets as data: one row a target; passes ask facts, never names."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.types import DType


@dataclass(frozen=True, slots=True)
class Target:
    """Facts about a machine. Sizes in bytes; `features` as LLVM spells them, with sign."""

    name: str
    arch: str
    cpu: str
    features: tuple[str, ...]
    vector_bits: int
    registers: int
    has_fma: bool
    os: str = "linux"
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10
    l3_bytes: int = 0

    def lanes(self, dtype: DType = DType.F32) -> int:
        """Elements of a full vector register."""
        return self.vector_bits // dtype.bits
