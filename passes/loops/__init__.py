"""Kernel to kernel: unroll what is marked, simplify index arithmetic."""

from __future__ import annotations

from functools import lru_cache

from ...ir.loops import Kernel
from .simplify import simplify
from .unroll import unroll


@lru_cache(maxsize=512)
def optimise_kernel(kernel: Kernel) -> Kernel:
    """All loop passes in order; layers of equal shape share one kernel, so results are kept."""
    return simplify(unroll(kernel))
