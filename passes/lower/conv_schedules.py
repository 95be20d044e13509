"""Schedules of the direct convolution: the rules' plan for every tile that may be the fastest, and variations of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .context import Lowering
from .conv_kernel import Convolution
from .conv_plan import Plan, chunked, lines, make_plan
from .schedule import Schedule, choose
from .tile import tiles

SLOWEST = 1.3
"""Estimated time of a tile, over the fastest one's, beyond which it is no candidate."""

DOUBT = 0.03
"""What a plan that the rules did not make is expected to cost more, and each further one."""


def choose_plan(ctx: Lowering, conv: Convolution, whole_vectors: bool) -> Plan:
    """The plan that is thought, or known, to be the fastest (see `make_plan`)."""
    return choose(ctx, "conv", problem(ctx, conv, whole_vectors), schedules(ctx, conv, whole_vectors))


def problem(ctx: Lowering, conv: Convolution, whole_vectors: bool) -> str:
    """What decides the candidates: shapes, layouts and threads."""
    layouts = f"{conv.x.type.layout.block or 1}->{conv.y.layout.block or 1}{'' if whole_vectors else ' exact'}"
    channels = f"{conv.batch}x{conv.groups} of {conv.channels_in}->{conv.channels_out}"
    kind = f" {conv.dtype}{' in floats' * conv.in_floats}" if conv.dtype.is_int else ""
    return f"{conv.window} {channels} blocks {layouts} threads {ctx.threads}{kind}"


def schedules(ctx: Lowering, conv: Convolution, whole_vectors: bool) -> list[Schedule[Plan]]:
    """Plans by name, the one that the rules make for the fastest tile first."""
    axis, blocked = conv.window.w, conv.x.type.layout.block == ctx.lanes(conv.sums)
    depth = conv.channels_in * conv.window.taps
    lined = lines(ctx.target, conv)
    found = tiles(ctx.target, conv.sums, axis.out, conv.channels_out, lined=lined, depth=depth)
    steps = conv.batch * conv.groups * conv.window.d.out * conv.window.h.out * depth
    plans: dict[str, Schedule[Plan]] = {}
    best = make_plan(ctx, conv, whole_vectors, found[0][0])
    variations = _variations(best) if whole_vectors and blocked and conv.y.layout.block == ctx.lanes(conv.sums) else ()
    for i, plan in enumerate((best, *variations)):
        plans.setdefault(str(plan), Schedule(str(plan), found[0][1] * steps * (1 + DOUBT * i), plan))
    for tile, cycles in found[1:]:
        if cycles <= SLOWEST * found[0][1]:
            plan = make_plan(ctx, conv, whole_vectors, tile)
            plans.setdefault(str(plan), Schedule(str(plan), cycles * steps, plan))
    return list(plans.values())


def _variations(plan: Plan) -> Iterator[Plan]:
    """More or fewer chunks of input channels, more or fewer rows of a task, the likeliest first."""
    rows, inputs = plan.conv.window.d.out * plan.conv.window.h.out, plan.inputs[0].count
    for chunks in (2 * plan.chunks, plan.chunks // 2, 4 * plan.chunks):
        if 1 <= chunks <= inputs:
            yield chunked(plan, chunks)
    for step in (2 * plan.rows, plan.rows // 2):
        if plan.tile_tasks == 1 and 1 <= step < 2 * rows:
            step = min(step, rows)
            yield replace(plan, rows=step, row_tasks=-(-rows // step))
