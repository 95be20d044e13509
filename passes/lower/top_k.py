"""TopK by insertion into a sorted list: a new element costs one comparison unless it belongs into the list."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...ir.loops import Buffer, Expr, Operand, binary, cast, const, minimum
from ...ir.types import DType
from .context import KernelBuilder, Lowering, lowers
from .copies import nest
from .gather import is_large
from .movement import operand

_WIDE = {DType.F16: DType.F32, DType.BF16: DType.F32}


@lowers("TopK")
def lower_top_k(ctx: Lowering) -> None:
    """The k largest (or smallest) along `axis` with their indices, sorted; of equal elements the first comes first."""
    x, (values, indices) = operand(ctx, 0), ctx.node.outputs
    axis = ctx.node.attrs.get("axis", -1) % x.type.rank
    better = "gt" if ctx.node.attrs.get("largest", 1) else "lt"
    n, inner, count = x.type.dims[axis], prod(x.type.dims[axis + 1 :]), values.type.dims[axis]
    if values.type.size == 0:
        return
    k = ctx.kernel()
    data = k.tensor(x)
    lists = _Lists(k, k.tensor(values), k.tensor(indices), count, inner, better)

    def body(index: Sequence[Expr]) -> None:
        o, i = index
        place = k.alloc("place", DType.I64, 1)
        first = k.let(o * (count * inner) + i, "first")
        for j in k.loop("j", n):
            v = k.let(k.load(data, (o * n + j) * inner + i), "v")
            for _ in k.when(binary("lt", j, count) | lists.beats(v, lists.at(first, count - 1))):
                lists.insert(place, first, v, j)

    nest(k, (prod(x.type.dims[:axis]), inner), body, parallel=is_large(ctx, x.type.size))
    k.done("top_k")


class _Lists:
    """The sorted lists that grow in the two results."""

    def __init__(self, k: KernelBuilder, values: Buffer, indices: Buffer, count: int, step: int, better: str) -> None:
        self.k, self.values, self.indices, self.count, self.step, self.better = k, values, indices, count, step, better

    def at(self, first: Expr, entry: Operand) -> Expr:
        return first + entry * self.step

    def beats(self, value: Expr, at: Expr) -> Expr:
        """Whether `value` goes before the entry at an offset."""
        wide = _WIDE.get(value.dtype, value.dtype)
        return binary(self.better, cast(value, wide), cast(self.k.load(self.values, at), wide))

    def insert(self, place: Buffer, first: Expr, value: Expr, j: Expr) -> None:
        """Element `j` behind all entries that it does not beat; the last entry of a full list falls off."""
        k = self.k
        filled = k.let(minimum(j, self.count), "filled")
        k.store(place, 0, filled)
        for t in k.loop("t", filled):
            behind = cast(self.beats(value, self.at(first, t)), DType.I64)
            k.store(place, 0, k.load(place, 0) - behind)
        begin = k.let(k.load(place, 0), "begin")
        last = k.let(minimum(filled, self.count - 1), "last")
        for t in k.loop("t", last - begin):
            to, of = self.at(first, last - t), self.at(first, last - t - const(1))
            for buffer in (self.values, self.indices):
                k.store(buffer, to, k.load(buffer, of))
        k.store(self.values, self.at(first, begin), value)
        k.store(self.indices, self.at(first, begin), j)
