"""TopK, of few elements by insertion into a sorted list, of many by a list of candidates (`top_k_select`).

Insertion: a vector of elements costs one comparison unless one belongs into the list; its place is found by halving,
and the entries behind it move as vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log, log2, prod

from ...ir.loops import Buffer, Expr, Operand, binary, broadcast, cast, const, maximum, minimum, select
from ...ir.types import DType
from .context import KernelBuilder, Lowering, lowers
from .copy_axes import nest
from .gather import is_large
from .movement import operand
from .scan import any_of, scan
from .schedule import Schedule, choose
from .top_k_select import Candidates, capacity, has_keys, select_best

_WIDE = {DType.F16: DType.F32, DType.BF16: DType.F32}


@lowers("TopK")
def lower_top_k(ctx: Lowering) -> None:
    """The k largest (or smallest) along `axis` with their indices, sorted; of equal elements the first comes first."""
    x, values = operand(ctx, 0), ctx.node.outputs[0]
    axis = ctx.node.attrs.get("axis", -1) % x.type.rank
    if values.type.size == 0:
        return
    rows = _Rows(
        prod(x.type.dims[:axis]), x.type.dims[axis], prod(x.type.dims[axis + 1 :]), values.type.dims[axis],
        bool(ctx.node.attrs.get("largest", 1)),
    )  # fmt: skip
    problem = f"{rows.count} of {rows.outer}x{rows.n}x{rows.inner} {x.type.dtype} threads {ctx.threads}"
    choose(ctx, "top-k", problem, _candidates(rows, x.type.dtype))(ctx, rows)


@dataclass(frozen=True, slots=True)
class _Rows:
    """outer x inner rows of n elements, `inner` apart, and how many are wanted of each."""

    outer: int
    n: int
    inner: int
    count: int
    largest: bool


def _candidates(rows: _Rows, dtype: DType) -> list[Schedule[Callable[[Lowering, _Rows], None]]]:
    """Costs of a row by what random elements need; measured constants."""
    n, count = rows.n, rows.count
    accepted = count * (1 + log(n / count))
    scan = n / (4 if rows.inner == 1 else 0.5)
    each = 40 + 20 * log2(count + 1) + count
    found: list[Schedule[Callable[[Lowering, _Rows], None]]] = [
        Schedule("insert", rows.outer * rows.inner * (scan + accepted * each), _insert)
    ]
    if has_keys(dtype) and n < 1 << 31:
        held = capacity(n, count)
        listed = min(n, held) + count * max(0.0, log(n / held))
        cycles = 2 * scan + 5000 * (1 + listed // held) + 50 * listed
        found.append(Schedule("sort", rows.outer * rows.inner * cycles, _select))
    return found


def _select(ctx: Lowering, rows: _Rows) -> None:
    """The best of a list of candidates, sorted."""
    x, (values, indices) = operand(ctx, 0), ctx.node.outputs
    k = ctx.kernel()
    data, best, places = k.tensor(x), k.tensor(values), k.tensor(indices)
    candidates = Candidates(ctx, k, rows.n, rows.count)

    def body(index: Sequence[Expr]) -> None:
        o, i = index
        first = k.let(o * (rows.count * rows.inner) + i, "first")
        begin = k.let(o * (rows.n * rows.inner) + i, "begin")
        source = data, begin, rows.inner
        for entry, j in select_best(ctx, k, candidates, source, rows.n, rows.largest):
            at = k.let(first + entry * rows.inner, "at")
            k.store(best, at, k.load(data, begin + j * rows.inner))
            k.store(places, at, j)

    nest(k, (rows.outer, rows.inner), body, parallel=is_large(ctx, x.type.size))
    k.done("top_k")


def _insert(ctx: Lowering, rows: _Rows) -> None:
    """Insertion into a sorted list."""
    x, (values, indices) = operand(ctx, 0), ctx.node.outputs
    n, inner, count = rows.n, rows.inner, rows.count
    k = ctx.kernel()
    data = k.tensor(x)
    lists = _Lists(k, k.tensor(values), k.tensor(indices), count, inner, "gt" if rows.largest else "lt")

    def body(index: Sequence[Expr]) -> None:
        o, i = index
        first = k.let(o * (count * inner) + i, "first")
        begin = k.let(o * (n * inner) + i, "begin")

        def consider(j: Expr) -> None:
            v = k.let(k.load(data, begin + j * inner), "v")
            for _ in k.when(binary("lt", j, count) | lists.beats(v, lists.at(first, count - 1))):
                lists.insert(first, v, j)

        lanes = k.ctx.lanes(x.type.dtype) if inner == 1 else 1
        filled = min(count, n)
        for j in k.loop("j", filled):
            consider(j)
        last = lists.at(first, count - 1)
        scan(k, n, lanes, lambda j: lists.any_beats(k.load(data, begin + j, lanes), last), consider, filled)

    nest(k, (rows.outer, inner), body, parallel=is_large(ctx, x.type.size))
    k.done("top_k")


class _Lists:
    """The sorted lists that grow in the two results."""

    def __init__(self, k: KernelBuilder, values: Buffer, indices: Buffer, count: int, step: int, better: str) -> None:
        self.k, self.values, self.indices, self.count, self.step, self.better = k, values, indices, count, step, better
        self.lanes = k.ctx.lanes(DType.I64) if step == 1 else 1

    def at(self, first: Expr, entry: Operand) -> Expr:
        return first + entry * self.step

    def beats(self, value: Expr, at: Expr) -> Expr:
        """Whether `value` goes before the entry at an offset."""
        wide = _WIDE.get(value.dtype, value.dtype)
        return binary(self.better, cast(value, wide), cast(self.k.load(self.values, at), wide))

    def any_beats(self, values: Expr, at: Expr) -> Expr:
        """Whether any of a vector of values goes before the entry at an offset."""
        wide = _WIDE.get(values.dtype, values.dtype)
        entry = broadcast(cast(self.k.load(self.values, at), wide), values.lanes)
        return any_of(binary(self.better, cast(values, wide), entry))

    def insert(self, first: Expr, value: Expr, j: Expr) -> None:
        """Element `j` behind all entries that it does not beat; the last entry of a full list falls off."""
        k = self.k
        filled = k.let(minimum(j, self.count), "filled")
        begin = self._found(first, value, filled)
        last = k.let(minimum(filled, self.count - 1), "last")
        moved = k.let(last - begin, "moved")
        whole = k.let(moved / self.lanes, "whole")
        # From the end on: every entry is read before its place is taken.
        for t in k.loop("t", whole) if self.lanes > 1 else ():
            of = k.let(self.at(first, last - (t + 1) * self.lanes), "of")
            for buffer in (self.values, self.indices):
                k.store(buffer, of + self.step, k.load(buffer, of, self.lanes))
        rest = k.let(last - whole * self.lanes, "rest") if self.lanes > 1 else last
        for t in k.loop("t", rest - begin):
            to, of = self.at(first, rest - t), self.at(first, rest - t - const(1))
            for buffer in (self.values, self.indices):
                k.store(buffer, to, k.load(buffer, of))
        k.store(self.values, self.at(first, begin), value)
        k.store(self.indices, self.at(first, begin), j)

    def _found(self, first: Expr, value: Expr, filled: Expr) -> Expr:
        """How many of the `filled` entries `value` does not beat, by halving."""
        k = self.k
        begin: Expr = const(0)
        for i in range(self.count.bit_length() - 1, -1, -1):
            at = k.let(begin + (1 << i), "at")
            entry = self.at(first, k.let(maximum(minimum(at, filled), 1), "entry") - 1)
            begin = k.let(select(binary("le", at, filled) & ~self.beats(value, entry), at, begin), "begin")
        return begin
