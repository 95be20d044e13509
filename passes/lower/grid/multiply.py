"""Which form a product takes where work-groups share memory: tiles of sums in threads, or matrices of subgroups."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ..context import Lowering
from ..schedule import Schedule, choose
from .matrices import matrix_schedules, write_matrices
from .tiles import GridProduct, tile_schedules, write_tiles

Write: TypeAlias = Callable[[], None]


def multiply_on_grid(ctx: Lowering, p: GridProduct, family: str) -> None:
    """Append the kernel of a product to the node's calls."""
    choose(ctx, "grid-product", p.problem, schedules(ctx, p, family))()


def schedules(ctx: Lowering, p: GridProduct, family: str) -> list[Schedule[Write]]:
    """All forms that fit the device, with what they take."""
    tiles: list[Schedule[Write]] = [
        Schedule(s.name, s.cycles, lambda t=s.plan: write_tiles(ctx, p, t, family))  # type: ignore[misc]
        for s in tile_schedules(ctx, p)
    ]
    matrices: list[Schedule[Write]] = [
        Schedule(s.name, s.cycles, lambda t=s.plan: write_matrices(ctx, p, t, family))  # type: ignore[misc]
        for s in matrix_schedules(ctx, p)
    ]
    return [*tiles, *matrices]
