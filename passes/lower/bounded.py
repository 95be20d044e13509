"""Operators of which only a bound on the number of results is known: `c2c.Bounded` by the first node of its body.

Results stand in front, zeros behind them up to the bound, and their number is the second output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from ...ir.graph import Node, Value
from ...ir.loops import Buffer, Expr, binary, const
from ...ir.types import DType
from .context import KernelBuilder, Lowering, lowers, unfold
from .copies import copy_row, raw
from .scan import any_of, scan


@dataclass(frozen=True, slots=True)
class Bounded:
    """The operator behind the bound, its padded results and their number (i64)."""

    node: Node
    rows: Value
    count: Value

    def operand(self, index: int) -> Value:
        """Input `index`, which must be there."""
        value = self.node.input(index)
        assert value is not None, f"{self.node.op} without input {index}"
        return value


BOUNDED: dict[str, Callable[[Lowering, Bounded], None]] = {}


def bounds(op: str) -> Callable[[Callable[[Lowering, Bounded], None]], Callable[[Lowering, Bounded], None]]:
    """Register the lowering of an operator behind a bound."""

    def register(function: Callable[[Lowering, Bounded], None]) -> Callable[[Lowering, Bounded], None]:
        BOUNDED[op] = function
        return function

    return register


@lowers("c2c.Bounded")
def lower_bounded(ctx: Lowering) -> None:
    node = unfold(ctx.node)[0]
    rows, count = ctx.node.outputs
    BOUNDED[node.op](ctx, Bounded(node, rows, count))


@bounds("NonZero")
def lower_non_zero(ctx: Lowering, node: Bounded) -> None:
    """Coordinates [rank, bound] of the elements that are not zero, in row-major order."""
    x = node.operand(0)
    dims, bound = x.type.dims, node.rows.type.dims[-1]
    k = ctx.kernel()
    out = k.tensor(node.rows)
    filled = _places(ctx, k, k.tensor(x), x.type.size, lambda at, j: _coordinates(k, out, at, j, dims, bound))
    for axis in range(len(dims)):
        for i in k.loop("i", bound, filled):
            k.store(out, axis * bound + i, const(0))
    k.store(k.tensor(node.count), 0, filled)
    k.done("non_zero")


def _coordinates(k: KernelBuilder, out: Buffer, at: Expr, j: Expr, dims: tuple[int, ...], bound: int) -> None:
    for axis in range(len(dims)):
        k.store(out, at + axis * bound, j / prod(dims[axis + 1 :]) % dims[axis])


@bounds("Compress")
def lower_compress(ctx: Lowering, node: Bounded) -> None:
    """Slices of x [outer, n, inner] where the condition [at most n] holds, without an axis elements of x as a line."""
    x, condition, y = node.operand(0), node.operand(1), node.rows
    axis = node.node.attrs.get("axis")
    dims = (x.type.size,) if axis is None else x.type.dims
    at = 0 if axis is None else axis % len(dims)
    outer, n, inner = prod(dims[:at]), dims[at], prod(dims[at + 1 :])
    bound = y.type.size // max(outer * inner, 1)
    k = ctx.kernel()
    places = k.tensor(ctx.scratch("places", DType.I64, max(bound, 1)))
    filled = _places(ctx, k, k.tensor(condition), min(condition.type.size, n), lambda i, j: k.store(places, i, j))
    k.store(k.tensor(node.count), 0, filled)
    source, out = raw(k, x), raw(k, y)
    for o in k.loop("o", outer):
        for i in k.loop("i", filled):
            row = k.let(o * n + k.load(places, i), "row")
            copy_row(k, (out, (o * bound + i) * inner, 1), (source, row * inner, 1), inner)
        for i in k.loop("i", (o + 1) * (bound * inner), (o * bound + filled) * inner):
            k.store(out, i, const(0, out.dtype))
    k.done("compress")


def _places(ctx: Lowering, k: KernelBuilder, x: Buffer, size: int, found: Callable[[Expr, Expr], object]) -> Expr:
    """`found(number, place)` for every element that is not zero, in order; how many there are. A vector of zeros costs
    one comparison."""
    filled = k.alloc("filled", DType.I64, 1)
    k.store(filled, 0, const(0))
    lanes = ctx.lanes(x.dtype)

    def consider(j: Expr) -> None:
        at = k.let(k.load(filled, 0), "at")
        for _ in k.when(binary("ne", k.load(x, j), const(0, x.dtype))):
            found(at, j)
            k.store(filled, 0, at + 1)

    zeros = const(0, x.dtype, lanes)
    scan(k, size, lanes, lambda j: any_of(binary("ne", k.load(x, j, lanes), zeros)), consider)
    return k.let(k.load(filled, 0), "count")
