"""c2c.Attention as one kernel: a work-group takes some rows of q through blocks of keys and values in shared memory,
with a running maximum and sum. Which form that takes: threads that share a row, or matrices of subgroups; or, where
work-groups share no memory, threads that each have some rows."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TypeAlias

from ....codegen.target import Target
from ....ir.graph import Value
from ...attention import read_form
from ..attention import products
from ..context import Lowering, lowers_on_grid
from ..product import Product
from ..schedule import Schedule, choose
from .attention_matrices import write_matrices
from .attention_memory import memory_schedules, memory_tiles, write_from_memory
from .attention_rows import row_schedules, row_tiles, write_rows
from .attention_tile import matrix_schedules

Write: TypeAlias = Callable[[], None]


def has_tiles(target: Target, q: Value, keys: Value, v: Value) -> bool:
    """Whether there is a form for operands of [*batch, rows, size]."""
    (rows, size), (count, wide) = q.type.dims[-2:], (keys.type.dims[-2], v.type.dims[-1])
    return bool(row_tiles(target, size, wide) or memory_tiles(target, rows, count, wide))


@lowers_on_grid("c2c.Attention")
def lower_attention(ctx: Lowering) -> None:
    """q, k, v and what its body reads beside them; fused only where there is a form."""
    assert not read_form(ctx.node).weights.nodes, "fused where it has no form"
    scores, values = products(ctx, read_form(ctx.node))
    problem = f"{prod(scores.batch)} x {scores.m}x{scores.n}x{scores.k}x{values.n} {scores.a.value.type.dtype}"
    choose(ctx, "grid-attention", problem, schedules(ctx, scores, values))()


def schedules(ctx: Lowering, scores: Product, values: Product) -> list[Schedule[Write]]:
    """All forms that fit the device, with what they take."""
    form = read_form(ctx.node)
    rows: list[Schedule[Write]] = [
        Schedule(s.name, s.cycles, lambda t=s.plan: write_rows(ctx, form, (scores, values), t))  # type: ignore[misc]
        for s in row_schedules(ctx.target, scores, values)
    ]
    matrices: list[Schedule[Write]] = [
        Schedule(s.name, s.cycles, lambda t=s.plan: write_matrices(ctx, form, (scores, values), t))  # type: ignore[misc]
        for s in matrix_schedules(ctx.target, scores, values)
    ]
    memory: list[Schedule[Write]] = [
        Schedule(s.name, s.cycles, lambda t=s.plan: write_from_memory(ctx, form, (scores, values), t))  # type: ignore[misc]
        for s in memory_schedules(ctx.target, scores, values)
    ]
    return [*rows, *matrices, *memory]
