"""Reduce*, ArgMax and ArgMin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ...ir.loops import Expr, binary, broadcast, cast, const, reduce, select, shuffle, unary
from ...ir.types import DType, TensorType
from . import math_functions as mathf
from .context import KernelBuilder, Lowering, Site, lowers
from .elementwise_convert import convert
from .reduction import Item, State, reduce_into, reduction

Prepare: TypeAlias = Callable[[KernelBuilder, Item], Expr]
"""What joins the accumulator for an operand."""


@dataclass(frozen=True, slots=True)
class Total:
    """One accumulator joined by a binary operation: add, mul, max, min, or, and.

    max and min give NaN where there is one, unless `plain`.
    """

    op: str
    operand: DType
    neutral: float
    prepare: Prepare = lambda k, item: item.x
    plain: bool = False

    @property
    def types(self) -> tuple[DType, ...]:
        return (self.operand,)

    def start(self, lanes: int) -> State:
        value = self.neutral if self.operand.is_float else bool(self.neutral) if self._logical else int(self.neutral)
        return (const(value, self.operand, lanes),)

    @property
    def _logical(self) -> bool:
        return self.operand is DType.BOOL

    def step(self, k: KernelBuilder, state: State, item: Item) -> State:
        return (self._join(k, state[0], self.prepare(k, item)),)

    def merge(self, k: KernelBuilder, a: State, b: State) -> State:
        return (self._join(k, a[0], b[0]),)

    def across(self, k: KernelBuilder, state: State) -> State:
        """Halves onto halves: the same order as the IR's own horizontal operation."""
        x = state[0]
        if self.op == "add" and x.lanes > 1:
            return (reduce("add", x),)
        while x.lanes > 1:
            half = x.lanes // 2
            x = k.let(x)
            low, high = (shuffle(x, None, tuple(range(i, i + half))) for i in (0, half))
            x = self._join(k, k.let(low), k.let(high))
        return (x,)

    def _join(self, k: KernelBuilder, a: Expr, b: Expr) -> Expr:
        if self.op in ("max", "min") and a.dtype.is_float and not self.plain:
            better = binary("gt" if self.op == "max" else "lt", b, a)
            return select(better | binary("ne", b, b), b, a)
        return binary(self.op, a, b)


def itself(k: KernelBuilder, item: Item) -> Expr:
    return item.x


def square(k: KernelBuilder, item: Item) -> Expr:
    return item.x * item.x


def magnitude(k: KernelBuilder, item: Item) -> Expr:
    return item.x if item.x.dtype.is_unsigned else unary("abs", item.x)


def reduced_axes(ctx: Lowering, index: int = 1) -> tuple[int, ...]:
    """Axes of a Reduce* node, not negative; raises UnsupportedOpError where they are computed at run time."""
    x = ctx.node.inputs[0]
    assert x is not None
    rank = x.type.rank
    if ctx.node.input(index) is not None:
        data = ctx.node.constant(index)
        if data is None:
            raise ctx.unsupported(f"{ctx.node.op} with computed axes is not supported", "make the axes a constant")
        axes = [int(a) for a in data.reshape(-1)]
    else:
        axes = list(ctx.node.attrs.get("axes") or [])
    if not axes and not ctx.node.attrs.get("noop_with_empty_axes", 0):
        axes = list(range(rank))
    return tuple(sorted({a % rank for a in axes}))


def reduced_count(type_: TensorType, axes: Sequence[int]) -> int:
    """Elements that one result is made of."""
    return int(np.prod([type_.dims[a] for a in axes], dtype=np.int64))


@lowers("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceProd")
def lower_sums(ctx: Lowering) -> None:
    """Sums of x, |x| or x², or the product, with a function of the total."""
    x, out, name = ctx.node.inputs[0], ctx.node.output.type.dtype, ctx.node.op
    assert x is not None
    axes = reduced_axes(ctx)
    count = reduced_count(x.type, axes)
    operand = accumulator(x.type.dtype, exact=name not in ("ReduceL2", "ReduceLogSum"))

    def finish(k: KernelBuilder, site: Site, state: State) -> Expr:
        total = state[0]
        if name == "ReduceMean":
            total = total / (float(count) if operand.is_float else max(count, 1))
        elif name == "ReduceL2":
            total = unary("sqrt", total)
        elif name == "ReduceLogSum":
            total = mathf.log(k, k.let(total))
        return convert(k, total, out)

    op, neutral = ("mul", 1.0) if name == "ReduceProd" else ("add", 0.0)
    reducer = Total(op, operand, neutral, _PREPARE.get(name, itself))
    reduce_into(reduction(ctx, x, axes, operand), reducer, finish, name.lower())


_PREPARE: dict[str, Prepare] = {"ReduceL1": magnitude, "ReduceL2": square, "ReduceSumSquare": square}


def accumulator(dtype: DType, *, exact: bool = True) -> DType:
    """The type in which numbers are summed: f32 for 16-bit floats; f64 for integers unless `exact`."""
    if dtype in (DType.F16, DType.BF16):
        return DType.F32
    return dtype if dtype.is_float or exact else DType.F64


@lowers("ReduceMax", "ReduceMin")
def lower_extremes(ctx: Lowering) -> None:
    """NaN wins; bool counts as 0 and 1."""
    x, name = ctx.node.inputs[0], ctx.node.op
    assert x is not None
    dtype, axes = x.type.dtype, reduced_axes(ctx)
    operand = accumulator(dtype)
    reducer = extreme("max" if name == "ReduceMax" else "min", operand)
    plan = reduction(ctx, x, axes, operand)
    reduce_into(plan, reducer, lambda k, site, state: convert(k, state[0], dtype), name.lower())


def extreme(op: str, operand: DType) -> Total:
    """The reducer of a maximum or minimum."""
    if operand is DType.BOOL:
        return Total("or" if op == "max" else "and", operand, op == "min")
    if operand.is_float:
        return Total(op, operand, float("-inf" if op == "max" else "inf"))
    limits = np.iinfo(operand.numpy)
    return Total(op, operand, int(limits.min if op == "max" else limits.max))


@lowers("ReduceLogSumExp")
def lower_log_sum_exp(ctx: Lowering) -> None:
    """m + log Σ exp(x - m) with m the maximum (0 where that is not finite)."""
    x, out = ctx.node.inputs[0], ctx.node.output.type.dtype
    assert x is not None
    operand = accumulator(x.type.dtype, exact=False)
    shifts: list[Expr] = []

    def second(k: KernelBuilder, states: list[State]) -> Total:
        shifts[:] = [k.let(_finite(state[0])) for state in states]

        return Total("add", operand, 0.0, shifted_exp(shifts))

    def finish(k: KernelBuilder, site: Site, state: State) -> Expr:
        return convert(k, _finite(state[-1]) + mathf.log(k, k.let(state[0])), out)

    plan = reduction(ctx, x, reduced_axes(ctx), operand)
    reduce_into(plan, extreme("max", operand), finish, "reducelogsumexp", second)


def shifted_exp(shifts: Sequence[Expr]) -> Prepare:
    """exp(x - m) with m the shift of each vector of results, at most 1."""
    return lambda k, item: mathf.exp_clamped(k, k.let(item.x - broadcast(shifts[item.vector], item.x.lanes)))


def _finite(x: Expr) -> Expr:
    return select(unary("abs", x) < float("inf"), x, 0.0)


@dataclass(frozen=True, slots=True)
class Place:
    """The largest (or smallest) operand and its first (or last) position, which is kept in the operand's width."""

    operand: DType
    op: str
    last: bool

    @property
    def types(self) -> tuple[DType, ...]:
        return (self.operand, DType.I64 if self.operand.bits > 32 else DType.I32)

    def start(self, lanes: int) -> State:
        value, index = self.types
        worst = extreme(self.op, value).start(lanes)[0]
        return (worst, const(-1, index, lanes))

    def step(self, k: KernelBuilder, state: State, item: Item) -> State:
        """Positions come in rising order; the first operand always joins."""
        better = binary(
            ("ge" if self.last else "gt") if self.op == "max" else "le" if self.last else "lt", item.x, state[0]
        )
        better = k.let(better | binary("lt", state[1], 0))
        return (select(better, item.x, state[0]), select(better, cast(item.position, state[1].dtype), state[1]))

    def merge(self, k: KernelBuilder, a: State, b: State) -> State:
        """Of equal operands the one with the wanted position; a state without position loses."""
        better = binary("gt" if self.op == "max" else "lt", b[0], a[0])
        nearer = binary("gt" if self.last else "lt", b[1], a[1])
        wins = better | (binary("eq", b[0], a[0]) & nearer)
        wins = k.let((wins & binary("ge", b[1], 0)) | binary("lt", a[1], 0))
        return (select(wins, b[0], a[0]), select(wins, b[1], a[1]))

    def across(self, k: KernelBuilder, state: State) -> State:
        while state[0].lanes > 1:
            half = state[0].lanes // 2
            parts = [tuple(k.let(shuffle(x, None, tuple(range(i, i + half)))) for x in state) for i in (0, half)]
            state = tuple(k.let(x) for x in self.merge(k, parts[0], parts[1]))
        return state


@lowers("ArgMax", "ArgMin")
def lower_position(ctx: Lowering) -> None:
    """The index of the extreme along one axis, i64."""
    x, attrs = ctx.node.inputs[0], ctx.node.attrs
    assert x is not None
    axis = attrs.get("axis", 0) % x.type.rank
    operand = _comparable(x.type.dtype)
    place = Place(operand, "max" if ctx.node.op == "ArgMax" else "min", bool(attrs.get("select_last_index", 0)))
    plan = reduction(ctx, x, (axis,), operand)
    reduce_into(plan, place, lambda k, site, state: cast(state[1], DType.I64), ctx.node.op.lower())


def _comparable(dtype: DType) -> DType:
    """A type of 32 or 64 bits that holds every number of `dtype`."""
    if dtype.is_float:
        return accumulator(dtype)
    return dtype if dtype.bits >= 32 else DType.I32
