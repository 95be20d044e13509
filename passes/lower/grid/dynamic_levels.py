"""DynamicQuantizeLinear by teams: each finds the range of a part, then takes the ranges of all and makes the levels of
one part."""

from __future__ import annotations

from collections.abc import Callable

from ....ir.graph import Value
from ....ir.loops import Expr, cast, const, maximum, minimum
from ....ir.types import DType
from ..context import KernelBuilder, Lowering, lowers_on_grid
from ..dynamic_levels import level, scale_and_zero
from ..quantized import lower_dynamic_quantize_linear
from ..tasks import guarded
from .team import State, Team, team_for

PART = 2048
"""Elements of a team's part: enough to hide what its threads say to each other."""


@lowers_on_grid("DynamicQuantizeLinear")
def lower_dynamic_quantize(ctx: Lowering) -> None:
    """Two kernels; one thread where a team would have little to do."""
    x = ctx.node.inputs[0]
    assert x is not None
    size = x.type.size
    team = team_for(ctx.target, size)
    if team is None:
        return lower_dynamic_quantize_linear(ctx)
    parts = -(-size // PART)
    ranges = ctx.scratch("ranges", DType.F32, 2, parts)
    k = ctx.kernel()
    for (part,) in team.enter(k, (parts,)):
        first = k.let(part * PART, "first")
        low, high = _range(
            k, team, min(size, PART), lambda j: _twice(k, k.load(k.tensor(x), minimum(first + j, size - 1)))
        )
        for _ in k.when(team.thread < 1):
            k.store(k.tensor(ranges), part, low)
            k.store(k.tensor(ranges), parts + part, high)
    k.done("dynamic_range")
    _levels(ctx, x, ranges, team)


def _levels(ctx: Lowering, x: Value, ranges: Value, team: Team) -> None:
    """Levels of all parts, of the range that all of them make; the first team keeps its scale and zero point."""
    k, size, parts = ctx.kernel(), x.type.size, ranges.type.dims[1]
    y, scale_out, zero_out = (k.tensor(v) for v in ctx.node.outputs)
    for (part,) in team.enter(k, (parts,)):
        found = k.tensor(ranges)
        scale, zero = scale_and_zero(k, *_range(k, team, parts, lambda j: (k.load(found, j), k.load(found, parts + j))))
        for _ in k.when((part < 1) & (team.thread < 1)):
            k.store(scale_out, 0, scale)
            k.store(zero_out, 0, cast(zero, DType.U8))
        for j in team.along(k, min(size, PART)):
            at = k.let(part * PART + j, "at")
            for _ in guarded(k, at < size, size % PART > 0):
                k.store(y, at, level(k.load(k.tensor(x), at), scale, zero, DType.U8))
    k.done("dynamic_levels")


def _range(k: KernelBuilder, team: Team, size: int, read: Callable[[Expr], State]) -> State:
    """The least and the largest of zero and of what all threads read at `size` places."""
    ends = k.alloc("ends", DType.F32, 2, "register")
    for i in range(2):
        k.store(ends, i, const(0.0, DType.F32))
    for j in team.along(k, size):
        merged = _merged((k.load(ends, 0), k.load(ends, 1)), read(j))
        for i in range(2):
            k.store(ends, i, merged[i])
    return team.together(k, (k.load(ends, 0), k.load(ends, 1)), _merged)


def _twice(k: KernelBuilder, value: Expr) -> State:
    value = k.let(value, "v")
    return value, value


def _merged(a: State, b: State) -> State:
    return minimum(a[0], b[0]), maximum(a[1], b[1])
