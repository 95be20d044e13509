"""CumSum and CumProd: running totals along an axis, vectors along whatever is inside it, else of several rows."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...ir.loops import Expr, binary, cast, const, ramp
from ...ir.types import DType
from .context import Lowering, lowers
from .copies import vectors
from .copy_axes import nest
from .gather import is_large
from .movement import operand, required_constant
from .transposes import transposed

_OPERATION = {"CumSum": ("add", 0), "CumProd": ("mul", 1)}
_WIDE = {DType.F16: DType.F32, DType.BF16: DType.F32}


@lowers("CumSum", "CumProd")
def lower_cumulative(ctx: Lowering) -> None:
    """y[j] = x[0] ∘ … ∘ x[j], without x[j] if `exclusive`, from the other end if `reverse`; the axis is constant."""
    x, y, attrs = operand(ctx, 0), ctx.output, ctx.node.attrs
    axis = int(required_constant(ctx, 1).reshape(-1)[0]) % x.type.rank
    outer, n, inner = prod(x.type.dims[:axis]), x.type.dims[axis], prod(x.type.dims[axis + 1 :])
    if x.type.size == 0:
        return
    op, start = _OPERATION[ctx.node.op]
    dtype = _WIDE.get(x.type.dtype, x.type.dtype)
    exclusive, reverse = attrs.get("exclusive", 0), attrs.get("reverse", 0)
    lanes = min(ctx.lanes(dtype), 16)
    side_by_side = outer // lanes * lanes if inner == 1 and n >= lanes > 1 and x.type.dtype is dtype else 0
    if side_by_side:
        _rows_side_by_side(ctx, dtype, n, side_by_side, lanes)
    if side_by_side == outer:
        return
    k = ctx.kernel()
    data, out = k.tensor(x), k.tensor(y)

    def body(index: Sequence[Expr]) -> None:
        for i, lanes in vectors(k, inner, ctx.lanes(dtype)):
            total = k.registers("total", dtype, 1, lanes)
            k.store(total, 0, const(start, dtype, lanes))
            for j in k.loop("j", n):
                step = const(n - 1) - j if reverse else j
                at = k.let(((index[0] + side_by_side) * n + step) * inner + i, "at")
                value = k.let(binary(op, k.load(total, 0), cast(k.load(data, at, lanes), dtype)), "value")
                k.store(out, at, cast(k.load(total, 0) if exclusive else value, y.type.dtype))
                k.store(total, 0, value)

    nest(k, (outer - side_by_side,), body, parallel=is_large(ctx, x.type.size))
    k.done("cumulative")


def _rows_side_by_side(ctx: Lowering, dtype: DType, n: int, rows: int, lanes: int) -> None:
    """Totals of `lanes` rows in a vector: blocks of elements are exchanged in registers on their way in and out."""
    x, y, attrs = operand(ctx, 0), ctx.output, ctx.node.attrs
    op, start = _OPERATION[ctx.node.op]
    exclusive, reverse = attrs.get("exclusive", 0), attrs.get("reverse", 0)
    k = ctx.kernel()
    data, out = k.tensor(x), k.tensor(y)

    def body(index: Sequence[Expr]) -> None:
        begin = k.let(index[0] * (lanes * n), "begin")
        total = k.registers("total", dtype, 1, lanes)
        k.store(total, 0, const(start, dtype, lanes))

        def step(before: Expr, element: Expr) -> tuple[Expr, Expr]:
            after = k.let(binary(op, before, element), "value")
            return after, before if exclusive else after

        for b in k.loop("b", n // lanes):
            at = k.let(begin + (const(n - lanes) - b * lanes if reverse else b * lanes), "at")
            columns = transposed(k, [k.let(k.load(data, at + r * n, lanes), "x") for r in range(lanes)])
            running, results = k.let(k.load(total, 0), "running"), columns
            for j in reversed(range(lanes)) if reverse else range(lanes):
                running, results[j] = step(running, columns[j])
            k.store(total, 0, running)
            for r, row in enumerate(transposed(k, results)):
                k.store(out, at + r * n, row)
        left = n % lanes
        for i in k.loop("i", left) if left else ():
            at = ramp(k.let(begin + (const(left - 1) - i if reverse else const(n - left) + i), "at"), n, lanes)
            running, result = step(k.load(total, 0), k.let(k.load(data, at), "x"))
            k.store(out, at, result)
            k.store(total, 0, running)

    nest(k, (rows // lanes,), body, parallel=is_large(ctx, rows * n))
    k.done("cumulative")
