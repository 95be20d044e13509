"""Einsum: a matrix product where two operands share one summed label, plain loops otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, broadcast, cast, const, ramp
from .context import INDEX, KernelBuilder, Lowering, Site, lowers, strides
from .matmul import ACCUMULATORS, multiply, write
from .packing import spans
from .product import Matrix, Product, multiply_add
from .tasks import tasks


@dataclass(frozen=True, slots=True)
class Term:
    """An operand: element stride of each label (a label that stands twice steps along the diagonal)."""

    value: Value
    steps: dict[str, int]

    def at(self, coords: dict[str, Expr]) -> Expr:
        total: Expr = INDEX
        for label, step in self.steps.items():
            total = total + coords[label] * step
        return total


@dataclass(frozen=True, slots=True)
class Equation:
    """Labels are letters; dimensions of an ellipsis are named '.0', '.1', … from the last one."""

    terms: tuple[Term, ...]
    out: tuple[str, ...]
    sizes: dict[str, int]

    @property
    def summed(self) -> tuple[str, ...]:
        return tuple(label for label in self.sizes if label not in self.out)


@lowers("Einsum")
def lower_einsum(ctx: Lowering) -> None:
    equation = _parse(ctx)
    product = _as_product(ctx, equation)
    if product is not None:
        multiply(ctx, product, "einsum")
    else:
        _loops(ctx, equation)


def _parse(ctx: Lowering) -> Equation:
    text = ctx.node.attrs["equation"].replace(" ", "")
    left, arrow, right = text.partition("->")
    inputs = [v for v in ctx.node.inputs if v is not None]
    terms, sizes, seen = [], dict[str, int](), list[str]()
    for value, word in zip(inputs, left.split(","), strict=True):
        steps: dict[str, int] = {}
        for label, size, step in zip(_labels(word, value.type.rank), value.type.dims, strides(value.type), strict=True):
            steps[label] = steps.get(label, 0) + (step if size > 1 else 0)
            sizes[label] = max(sizes.get(label, 0), size)
            seen.append(label)
        terms.append(Term(value, steps))
    rank = ctx.node.output.type.rank
    if arrow:
        out = _labels(right, rank)
    else:
        dots = sorted((s for s in sizes if s.startswith(".")), key=lambda s: -int(s[1:]))
        out = [*dots, *sorted(s for s in sizes if not s.startswith(".") and seen.count(s) == 1)]
    return Equation(tuple(terms), tuple(out), sizes)


def _labels(word: str, rank: int) -> list[str]:
    """One label a dimension."""
    before, dots, after = word.partition("...")
    if not dots:
        return list(word)
    count = rank - len(before) - len(after)
    return [*before, *(f".{count - 1 - i}" for i in range(count)), *after]


def _as_product(ctx: Lowering, e: Equation) -> Product | None:
    """The equation as a batched matrix product with lanes along the last label of the output, if it is one."""
    if len(e.terms) != 2 or not e.out or len(e.summed) != 1:
        return None
    a, b = e.terms
    column = e.out[-1]
    if column in a.steps and column not in b.steps:
        a, b = b, a
    k = e.summed[0]
    if column in a.steps or k not in a.steps or k not in b.steps:
        return None
    rows = [label for label in e.out if label in a.steps and label not in b.steps]
    row = rows[-1] if rows else None
    batch = tuple(label for label in e.out if label not in (column, row))
    order = (*batch, row, column)
    dtype = ctx.node.output.type.dtype
    acc = ACCUMULATORS.get(dtype, dtype)

    def finish(kb: KernelBuilder, coords: tuple[Expr, ...], lanes: int, value: Expr) -> None:
        at = dict(zip(order, coords, strict=True))
        write(ctx, kb, Site(tuple(at[label] for label in e.out), -1, lanes), cast(value, dtype))

    return Product(
        tuple(e.sizes[label] for label in batch),
        e.sizes[row] if row else 1,
        e.sizes[column],
        e.sizes[k],
        Matrix(a.value, tuple(a.steps.get(s, 0) for s in batch), a.steps[row] if row else 0, a.steps[k]),
        Matrix(b.value, tuple(b.steps.get(s, 0) for s in batch), b.steps[k], b.steps[column]),
        acc,
        finish,
    )


def _loops(ctx: Lowering, e: Equation) -> None:
    """Loops over the output's labels, then over the summed ones; lanes along the last label of the output."""
    dtype = ctx.node.output.type.dtype
    acc_type = ACCUMULATORS.get(dtype, dtype)
    outer, column = e.out[:-1], e.out[-1] if e.out else None
    count = int(np.prod([e.sizes[s] for s in outer], dtype=np.int64))
    macs = int(np.prod(list(e.sizes.values()), dtype=np.int64))
    k = ctx.kernel()
    for t in tasks(k, macs, count):
        coords: dict[str, Expr] = {}
        rest: Expr = t
        for label in reversed(outer):
            coords[label] = k.let(rest % e.sizes[label], "i")
            rest = k.let(rest / e.sizes[label], "rest")
        for i, lanes in spans(k, e.sizes[column] if column else 1, ctx.lanes(acc_type)):
            here = {**coords, **({column: i} if column else {})}
            acc = k.registers("acc", acc_type, 1, lanes)
            k.store(acc, 0, const(0, acc_type, lanes))
            _accumulate(k, e, acc, here, e.summed, column)
            site = Site(tuple(here[s] for s in e.out), -1, lanes)
            write(ctx, k, site, cast(k.load(acc, 0), dtype))
    k.done("einsum")


def _accumulate(
    k: KernelBuilder, e: Equation, acc: Buffer, coords: dict[str, Expr], summed: tuple[str, ...], column: str | None
) -> None:
    """acc += the product of all operands, summed over `summed`."""
    if summed:
        for i in k.loop("s", e.sizes[summed[0]]):
            _accumulate(k, e, acc, {**coords, summed[0]: i}, summed[1:], column)
        return
    factors = [_element(k, term, coords, column, acc) for term in e.terms]
    total = factors[0] if len(factors) > 1 else const(1, acc.dtype, acc.lanes)
    for factor in factors[1:-1]:
        total = total * factor
    k.store(acc, 0, multiply_add(total, factors[-1], k.load(acc, 0)))


def _element(k: KernelBuilder, term: Term, coords: dict[str, Expr], column: str | None, acc: Buffer) -> Expr:
    at, step = term.at(coords), term.steps.get(column, 0) if column else 0
    if step == 0 or acc.lanes == 1:
        return broadcast(cast(k.load(k.tensor(term.value), at), acc.dtype), acc.lanes)
    index = at if step == 1 else ramp(at, step, acc.lanes)
    return cast(k.load(k.tensor(term.value), index, acc.lanes), acc.dtype)
