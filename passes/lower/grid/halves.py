"""Products of f16 on devices that compute in it.

Factors stay f16 in shared memory and registers. With `--precision f16`, and where f16 is the faster type, sums of up to
BLOCK products are f16 and added up in f32, which costs a conversion and an addition for each; elsewhere every sum is
f32. Each of a block's multiply-adds rounds once, by 2^-11 of the partial sum, so a sum s of products p is off by at
most BLOCK · 2^-11 · Σ|p| (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2), whatever its depth.
"""

from __future__ import annotations

from dataclasses import replace

from ....ir.loops import Expr, cast
from ....ir.types import DType
from ..context import Lowering
from ..product import multiply_add
from .tiles import GridProduct

BLOCK = 32
"""Products whose sum is kept in f16: twice as many save a twentieth of the operations and lose 1.4 times as much."""


def computes_in_halves(ctx: Lowering) -> bool:
    """Whether what is stored in f16 is computed in it."""
    return ctx.precision is DType.F16 and ctx.target.has_fp16


def sums_in_halves(ctx: Lowering, *factors: DType) -> bool:
    """Whether sums of products of such factors are f16, too, within a block."""
    device = ctx.target.device
    return device is not None and computes_in_halves(ctx) and device.half_rate > 1 and set(factors) == {DType.F16}


def in_halves(ctx: Lowering, p: GridProduct, *factors: DType) -> GridProduct:
    """The product as its factors' types and the device have it."""
    device = ctx.target.device
    if device is None or not device.fp16 or set(factors) != {DType.F16} or p.acc is not DType.F32:
        return p
    if sums_in_halves(ctx, *factors):
        work = 1 / device.half_rate
        return replace(p, acc=DType.F16, exact=BLOCK, total=DType.F32, work=work, lanes=device.half_rate)
    return replace(p, element=DType.F16, multiply=multiply_halves)


def multiply_halves(a: Expr, b: Expr, c: Expr) -> Expr:
    """Of halves in a sum of f32, which holds their products exactly."""
    return multiply_add(cast(a, c.dtype), cast(b, c.dtype), c)
