"""CumSum and CumProd: running totals along an axis, vectors along whatever is inside it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...ir.loops import Expr, binary, cast, const
from ...ir.types import DType
from .context import Lowering, lowers
from .copies import nest, vectors
from .gather import is_large
from .movement import operand, required_constant

_WIDE = {DType.F16: DType.F32, DType.BF16: DType.F32}


@lowers("CumSum", "CumProd")
def lower_cumulative(ctx: Lowering) -> None:
    """y[j] = x[0] ∘ … ∘ x[j], without x[j] if `exclusive`, from the other end if `reverse`; the axis is constant."""
    x, y, attrs = operand(ctx, 0), ctx.output, ctx.node.attrs
    axis = int(required_constant(ctx, 1).reshape(-1)[0]) % x.type.rank
    outer, n, inner = prod(x.type.dims[:axis]), x.type.dims[axis], prod(x.type.dims[axis + 1 :])
    if x.type.size == 0:
        return
    op, start = ("add", 0) if ctx.node.op == "CumSum" else ("mul", 1)
    dtype = _WIDE.get(x.type.dtype, x.type.dtype)
    exclusive, reverse = attrs.get("exclusive", 0), attrs.get("reverse", 0)
    k = ctx.kernel()
    data, out = k.tensor(x), k.tensor(y)

    def body(index: Sequence[Expr]) -> None:
        for i, lanes in vectors(k, inner, ctx.lanes(dtype)):
            total = k.registers("total", dtype, 1, lanes)
            k.store(total, 0, const(float(start) if dtype.is_float else start, dtype, lanes))
            for j in k.loop("j", n):
                step = const(n - 1) - j if reverse else j
                at = k.let((index[0] * n + step) * inner + i, "at")
                value = k.let(binary(op, k.load(total, 0), cast(k.load(data, at, lanes), dtype)), "value")
                k.store(out, at, cast(k.load(total, 0) if exclusive else value, y.type.dtype))
                k.store(total, 0, value)

    nest(k, (outer,), body, parallel=is_large(ctx, x.type.size))
    k.done("cumulative")
