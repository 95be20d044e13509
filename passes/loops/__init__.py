"""Kernel to kernel: unroll what is marked, simplify index arithmetic."""

from __future__ import annotations

from ...ir.loops import Kernel
from .simplify import simplify
from .unroll import unroll


def optimise_kernel(kernel: Kernel) -> Kernel:
    """All loop passes in order."""
    return simplify(unroll(kernel))
