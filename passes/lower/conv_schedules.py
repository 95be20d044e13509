"""Schedules of the direct convolution: the rules' plan for every tile that may be the fastest, and variations of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .context import Lowering
from .conv_kernel import Convolution
from .conv_plan import LIGHT, Plan, block_bytes, chunked, lines, make_plan, pull
from .schedule import Schedule, choose
from .tile import tiles

SLOWEST = 1.3
"""Estimated time of a tile, over the fastest one's, beyond which it is no candidate."""

DOUBT = 0.03
"""What a plan that the rules did not make is expected to cost more, and each further one."""

WAITING = 3
"""Cycles in which a sum is stored and loaded again between two chunks of input channels."""

WIDE_BITS = 512
"""Vectors so wide that products take no longer than what they need takes to come."""

TURN = 24
"""Cycles from one tile of a chunk to the next beside those of its sums: their first products wait for loads."""


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
    timed: list[tuple[Plan, float]] = []
    for tile, cycles in found:
        if cycles <= SLOWEST * found[0][1]:
            plan = make_plan(ctx, conv, whole_vectors, tile)
            timed.append((plan, cycles * steps + moving_cycles(ctx, plan)))
    timed.sort(key=lambda t: t[1])
    best, least = timed[0]
    plans = {str(best): Schedule(str(best), least, best)}
    variations = _variations(best) if whole_vectors and blocked and conv.y.layout.block == ctx.lanes(conv.sums) else ()
    for i, plan in enumerate(variations, 1):
        plans.setdefault(str(plan), Schedule(str(plan), least * (1 + DOUBT * i), plan))
    for plan, cycles in timed[1:]:
        plans.setdefault(str(plan), Schedule(str(plan), cycles, plan))
    return list(plans.values())


def moving_cycles(ctx: Lowering, plan: Plan) -> float:
    """Cycles beside the products: pixels come from the second cache once for each block of outputs, weights that the
    first does not hold once for each tile, and sums wait for the next chunk of input channels.

    None where vectors are narrow: there moves hide behind twice the products (tiles chosen by products alone are the
    fastest with AVX2, by up to 14 %).
    """
    conv, target = plan.conv, ctx.target
    if target.vector_bits < WIDE_BITS:
        return 0.0
    rows, images = conv.window.d.out * conv.window.h.out, conv.batch * conv.groups
    pixels = rows * conv.window.w.out
    read = pixels * conv.channels_in * conv.dtype.nbytes * plan.blocks_out
    waiting = (plan.chunks - 1) * pixels * -(-conv.channels_out // plan.lanes) * WAITING
    turns = plan.chunks * plan.blocks_out * rows * plan.tiles_of_row * TURN
    short = max(0.0, pull(target, plan) - LIGHT) if block_bytes(plan) > plan.chunks * target.l1_bytes // 2 else 0.0
    products = conv.macs / (plan.lanes * target.fma_per_cycle)
    return images * (read / target.l2_bytes_per_cycle + waiting + turns) + short * products


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
