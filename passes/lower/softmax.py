"""Softmax, LogSoftmax, Hardmax along one axis."""

from __future__ import annotations

from ...ir.loops import Expr, binary, broadcast, cast, const, select
from ...ir.types import DType
from . import math_functions as mathf
from .context import KernelBuilder, Lowering, Site, lowers
from .reduce import Place, Total, accumulator, shifted_exp
from .reduction import Item
from .strips import Element, Strips, lanes_of, strips


@lowers("Softmax", "LogSoftmax", "Hardmax")
def lower_softmax(ctx: Lowering) -> None:
    """Maximum, sum, result: three passes over a strip."""
    x = ctx.node.inputs[0]
    assert x is not None
    if not x.type.size:
        return
    axis = ctx.node.attrs.get("axis", -1) % x.type.rank
    operand = accumulator(x.type.dtype)
    over = strips(ctx, x, (axis,), operand, overlap=ctx.node.op != "Softmax")
    work = {"Softmax": _softmax, "LogSoftmax": _log_softmax, "Hardmax": _hardmax}[ctx.node.op]
    over.each(lambda sites: work(over, sites), ctx.node.op.lower(), cost=16)


def _maxima(over: Strips, sites: list[Site]) -> list[Expr]:
    """The largest numbers; which one does not matter where there is a NaN, since the sum will be NaN."""
    largest = Total("max", over.operand, float("-inf"), plain=True)
    return [over.k.let(state[0], "largest") for state in over.reduce(largest, sites)]


def _softmax(over: Strips, sites: list[Site]) -> None:
    """The powers are kept in the result where it has their type, else computed twice."""
    k, ctx = over.k, over.plan.ctx
    largest = _maxima(over, sites)
    sink = ctx.output if ctx.output.type.dtype is over.operand else None

    def power(k: KernelBuilder, item: Item) -> Expr:
        return mathf.exp_nonpositive(k, k.let(item.x - broadcast(largest[item.vector], item.x.lanes)))

    def kept(k: KernelBuilder, item: Item) -> Expr:
        value = k.let(power(k, item), "power")
        if sink is not None:
            k.store(k.tensor(sink, "y"), item.at, value)
        return value

    sums = over.reduce(Total("add", over.operand, 0.0, kept), sites)
    scales = [k.let(1.0 / total[0], "scale") for total in sums]

    def result(e: Element) -> Expr:
        value = e.x if sink is not None else power(k, Item(e.x, e.position, e.position, e.vector))
        return value * lanes_of(k, scales[e.vector], e)

    over.write(sites, result, sink)


def _log_softmax(over: Strips, sites: list[Site]) -> None:
    """(x - m) - log Σ exp(x - m)."""
    k = over.k
    largest = _maxima(over, sites)
    sums = over.reduce(Total("add", over.operand, 0.0, shifted_exp(largest)), sites)
    logs = [k.let(mathf.log(k, total[0]), "log") for total in sums]
    over.write(sites, lambda e: e.x - lanes_of(k, largest[e.vector], e) - lanes_of(k, logs[e.vector], e))


def _hardmax(over: Strips, sites: list[Site]) -> None:
    """1 at the first largest number."""
    places = over.reduce(Place(over.operand, "max", False), sites)

    def result(e: Element) -> Expr:
        here = cast(e.position, DType.I64)
        there = cast(lanes_of(over.k, places[e.vector][1], e), DType.I64)
        one = const(1.0, over.operand, e.x.lanes)
        return select(binary("eq", here, there), one, 0.0)

    over.write(sites, result)
