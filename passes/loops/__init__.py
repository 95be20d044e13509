"""Kernel to kernel: unroll what is marked, simplify index arithmetic."""

from __future__ import annotations

from ...ir.loops import Kernel


def optimise_kernel(kernel: Kernel) -> Kernel:
    """All loop passes in order."""
    return kernel
