"""What pooling computes: maximum, average, and the norms of LpPool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...ir.loops import Expr, call, const, maximum, unary
from ...ir.types import DType

ACCUMULATORS = {DType.F16: DType.F32, DType.BF16: DType.F32}
"""Types whose sums are kept in a wider one."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """`begin`: value over nothing; `step(acc, x)`; `end(acc)` after the last; `average`: divide by the count."""

    begin: float
    step: Callable[[Expr, Expr], Expr]
    combine: str
    end: Callable[[Expr], Expr] = lambda v: v
    average: bool = False


def reduction_of(op: str, dtype: DType, p: int) -> Reduction:
    """What pooling operator `op` computes; `p`: the norm of LpPool."""
    if "Max" in op:
        lowest = float("-inf") if dtype.is_float else 0 if dtype is DType.BOOL else int(np.iinfo(dtype.numpy).min)
        return Reduction(lowest, lambda acc, x: maximum(x, acc), "max")
    if "Average" in op:
        return Reduction(0, lambda acc, x: acc + x, "add", average=True)
    return Reduction(0, lambda acc, x: acc + _power(x, p), "add", lambda v: _root(v, p))


def _power(x: Expr, p: int) -> Expr:
    """|x|^p."""
    if p == 2:
        return x * x
    size = unary("abs", x)
    return size if p == 1 else call("pow", size, const(float(p), x.dtype, x.lanes))


def _root(x: Expr, p: int) -> Expr:
    if p == 1:
        return x
    return unary("sqrt", x) if p == 2 else call("pow", x, const(1 / p, x.dtype, x.lanes))
