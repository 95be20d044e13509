"""A pass over elements of which few matter: a vector of the others costs one comparison."""

from __future__ import annotations

from collections.abc import Callable

from ...ir.loops import Expr, binary, cast, const, reduce
from ...ir.types import DType
from .context import KernelBuilder


def any_of(cond: Expr) -> Expr:
    """Whether a comparison holds in any lane."""
    if cond.lanes == 1:
        return cond
    return binary("gt", reduce("max", cast(cond, DType.I32)), const(0, DType.I32))


def scan(
    k: KernelBuilder,
    size: int,
    lanes: int,
    matters: Callable[[Expr], Expr],
    consider: Callable[[Expr], object],
    begin: int = 0,
) -> None:
    """`consider(j)` of the elements from `begin` up to `size` in order, but for vectors of `lanes` from j on of which
    `matters(j)` says that none does."""
    end = begin + ((size - begin) // lanes * lanes if lanes > 1 else 0)
    for j in k.loop("j", end, begin, lanes) if end > begin else ():
        for _ in k.when(matters(j)):
            for lane in k.loop("lane", lanes):
                consider(j + lane)
    for j in k.loop("j", size, end) if end < size else ():
        consider(j)
