"""Schedules of kernels whose tile is a run of one row's pixels: its length is what can be chosen."""

from __future__ import annotations

from collections.abc import Callable

from ...codegen.target import Target
from .schedule import Schedule
from .tile import LATENCY, TILE_OVERHEAD, Segment, segments
from .window import Axis

DOUBT = 0.05
"""What a tile that the rules did not make costs more than the usual one, at least: only runs can say otherwise."""

SHORTEST = 4
"""Fewer results in flight wait for each other."""


def row_schedules(axis: Axis, usual: int, most: int, cycles: Callable[[int], float]) -> list[Schedule[int]]:
    """Tiles of up to so many pixels, those of equal division once: the usual one first, then from SHORTEST to `most`.

    cycles: of a tile of so many pixels, in a row; times rows is up to the caller.
    """
    found: dict[tuple[Segment, ...], Schedule[int]] = {}
    least = 0.0
    for pixels in (usual, *range(SHORTEST, most + 1)):
        parts = segments(axis, pixels)
        if parts not in found:
            total = sum(s.count * (cycles(s.pixels) + TILE_OVERHEAD) for s in parts)
            found[parts] = Schedule(f"tile={pixels}", max(total, least), pixels)
            least = least or total * (1 + DOUBT)
    return list(found.values())


def steps(target: Target, pixels: int, operations: int, loads: int, chain: int) -> float:
    """Cycles of `operations` of each pixel that wait for each other in chains, and of loads."""
    return max(pixels * operations / target.fma_per_cycle, loads / 2, float(chain * LATENCY))
