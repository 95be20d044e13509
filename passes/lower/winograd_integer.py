"""Convolutions of integers by F(4×4, 3×3), exact: all arithmetic wraps, and the result is found from what is left.

With B of the points 0, ±1, ±2, rows of G scaled to whole numbers and A to match, the transforms are of integers and
the result comes out as 576 y modulo 2^32. 576 = 9 · 64: the product with the inverse of 9 modulo 2^32 is 64 y, and
where |y| < 2^25 a shift gives y. V fits i16 where inputs are at most 327 large: the sums of |B| are 10 a row.
(Lavin, Gray, CVPR 2016, arXiv:1509.09308, for the matrices; exact integer forms: Meng, Brothers, arXiv:1901.01965.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Expr, binary, cast, const
from ...ir.types import DType
from .context import Lowering
from .conv_kernel import Convolution, pad_operands, padded_bias
from .micro import products_together
from .winograd import Phases, is_winograd, write
from .winograd_plan import Plan, make_plan

INPUT = np.array([
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
], np.float64)  # fmt: skip
WEIGHTS = np.array([[6, 0, 0], [2, 2, 2], [2, -2, 2], [1, 2, 4], [1, -2, 4], [0, 0, 6]], np.int64)
"""G by rows 24, -12, -12, 24, 24, 6."""
OUTPUT = np.array([[1, -2, -2, 1, 1, 0], [0, -2, 2, 2, -2, 0], [0, -2, -2, 4, 4, 0], [0, -2, 2, 8, -8, 4]], np.float64)
"""Transposed A, its columns by 24 over those factors."""

NINTH = pow(9, -1, 1 << 32)
LARGEST = 32767 // 100
MOST = 1 << 25


def is_exact(conv: Convolution, largest: int) -> bool:
    """Whether the result of inputs of up to `largest` is found exactly."""
    sums = np.abs(conv.weights.astype(np.int64)).reshape(len(conv.weights), -1).sum(1) * largest
    small = int(np.abs(conv.weights).max(initial=0)) * 49 <= 32767
    return largest <= LARGEST and small and int(sums.max(initial=0)) < MOST


def fits(ctx: Lowering, conv: Convolution, largest: int) -> bool:
    """Whether a convolution may be computed so."""
    lanes = ctx.lanes(conv.sums)
    few = conv.groups > 1 or conv.channels_in < lanes or conv.channels_out < lanes
    return is_winograd(conv) and not few and is_exact(conv, largest)


def lower_winograd_integer(ctx: Lowering, conv: Convolution) -> None:
    """Append the kernels (see `fits`); channels come in whole numbers of products that are added together."""
    lanes = ctx.lanes(conv.sums)
    whole = pad_operands(ctx, lanes)
    plan = make_plan(ctx, conv, 4)
    if not whole:
        plan = replace(plan, valid=conv.channels_out - (plan.blocks_out - 1) * lanes)
    weights = ctx.pack("winograd", _pack(plan, products_together(ctx.target, DType.I16)))
    copies = 1 if plan.phased else ctx.threads
    v = ctx.scratch("v", DType.I16, plan.n**2 * plan.stride_v * copies)
    m = ctx.scratch("m", conv.sums, plan.n**2 * plan.stride_m * copies)
    write(ctx, plan, IntegerPhases, (weights, padded_bias(ctx, conv.bias, 1, lanes), v, m))


class IntegerPhases(Phases):
    """V in i16, M in i32."""

    MATRICES: ClassVar = (INPUT, OUTPUT)

    def __init__(self, ctx: Lowering, plan: Plan, weights: Value, bias: Value | None, v: Value, m: Value) -> None:
        super().__init__(ctx, plan, weights, bias, v, m)
        self.matrices = self.MATRICES
        self.together = products_together(ctx.target, DType.I16)

    @property
    def dtype(self) -> DType:
        return DType.I16

    def _pixel(self, at: Expr) -> Expr:
        value, zero = cast(super()._pixel(at), DType.I16), self.plan.conv.zero
        return value - const(zero, DType.I16, value.lanes) if zero else value

    def _result(self, value: Expr, bias: Expr) -> Expr:
        inverse = const(NINTH - (1 << 32 if NINTH >= 1 << 31 else 0), DType.I32, value.lanes)
        found = binary("shr", value * inverse, const(6, DType.I32, value.lanes))
        return super()._result(self.k.let(found, "y"), bias)


def _pack(plan: Plan, together: int) -> np.ndarray:
    """U as `winograd_weights` has it, steps that are added together side by side for each output channel."""
    conv, lanes = plan.conv, plan.lanes
    positions, cout, cin = plan.n**2, conv.channels_out, conv.channels_in
    packed = np.zeros((positions, plan.stride_u), np.int16)
    for first, count, vectors in plan.groups:
        for block in range(count):
            width, at = vectors * lanes, (first + block) * plan.tile.vectors * lanes
            mine = conv.weights[at : min(at + width, cout), :, 0].astype(np.int64)
            made = np.zeros((positions, width, cin), np.int64)
            made[:, : len(mine)] = np.einsum("ir,kcrs,js->ijkc", WEIGHTS, mine, WEIGHTS).reshape(positions, -1, cin)
            steps = made.reshape(positions, width, cin // together, together).transpose(0, 2, 1, 3)
            packed[:, at * cin : (at + width) * cin] = steps.reshape(positions, -1)
    return packed.reshape(-1)
