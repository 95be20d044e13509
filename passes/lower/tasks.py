"""How kernels of products and convolutions divide their work: tasks, guarded parts, remainders of a vector."""

from __future__ import annotations

from collections.abc import Iterator

from ...ir.loops import Expr
from .context import KernelBuilder

PARALLEL_MACS = 1 << 17
"""Work of fewer multiply-adds stays on one thread: waking another costs as much."""


def tasks(k: KernelBuilder, macs: int, count: int) -> Iterator[Expr]:
    """The outermost loop over `count` tasks of `macs` multiply-adds in all: parallel where the work is worth it."""
    spread = k.ctx.threads > 1 and count > 1 and macs >= PARALLEL_MACS
    return k.parallel("t", count) if spread else k.loop("t", count)


def is_even(count: int, threads: int) -> bool:
    """Whether `count` equal tasks leave no thread idle for a large part of the time."""
    return count % threads == 0 or count >= 8 * threads


def guarded(k: KernelBuilder, cond: Expr, needed: bool) -> Iterator[None]:
    """An If where it is needed, nothing where the condition is known to hold."""
    return k.when(cond) if needed else iter((None,))


def pieces(count: int) -> Iterator[tuple[int, int]]:
    """`count` lanes as (first lane, lanes) of powers of two, largest first."""
    at = 0
    while at < count:
        width = 1 << ((count - at).bit_length() - 1)
        yield at, width
        at += width
