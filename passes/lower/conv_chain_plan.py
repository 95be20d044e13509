"""Schedules of a chain of convolutions computed strip by strip: rows of each stage, and how many of them are kept.

A strip is a few rows of the last stage's result. Each stage before makes the rows that the strip needs and that the
strips before it have not made yet; they lie in a ring of rows, row h in place h % rows (the line buffers of Alwani et
al., "Fused-layer CNN accelerators", MICRO 2016). Only a task's first strip makes rows that another task makes too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .window import Axis


@dataclass(frozen=True, slots=True)
class Rows:
    """One strip at one stage: it makes rows [first, last) and reads, of the stage before, rows from `need` on."""

    need: int
    first: int
    last: int


def rows_before(axis: Axis, row: int) -> int:
    """Input rows that output rows before `row` need, counted from 0."""
    return min(axis.size, (row - 1) * axis.stride - axis.pad + axis.reach + 1)


def first_row(axis: Axis, row: int) -> int:
    """The first input row that output rows from `row` on need."""
    return max(0, row * axis.stride - axis.pad)


def strip_rows(axes: Sequence[Axis], begin: int, first: int, last: int) -> list[Rows]:
    """Rows of each stage for the strip [first, last) of a task that begins at row `begin`; axes: heights of stages."""
    found: list[Rows] = []
    made = first
    for axis in reversed(axes):
        need = first_row(axis, first)
        found.append(Rows(need, first, last))
        made = rows_before(axis, made)
        first = need if found[0].first == begin else max(made, need)
        last = rows_before(axis, last)
    return found[::-1]


@dataclass(frozen=True, slots=True)
class ChainPlan:
    """`rows` rows of the last stage for a task, `strip` for a strip; `kept`: rows of each stage's ring, but the last's.

    made: rows that each stage makes in all, those made twice counted twice.
    """

    rows: int
    strip: int
    tasks: int
    kept: tuple[int, ...]
    made: tuple[int, ...]


def plan_rows(axes: Sequence[Axis], tasks: int, strip: int) -> ChainPlan:
    """The plan of at most `tasks` tasks in strips of `strip` rows; axes: heights of the stages."""
    total = axes[-1].out
    rows = -(-total // min(tasks, total))
    kept, made = [1] * (len(axes) - 1), [0] * len(axes)
    for begin, first, last in _strips(total, rows, strip):
        at = strip_rows(axes, begin, first, last)
        for i, mine in enumerate(at):
            made[i] += max(0, mine.last - mine.first)
            if i:
                kept[i - 1] = max(kept[i - 1], at[i - 1].last - mine.need)
    return ChainPlan(rows, strip, -(-total // rows), tuple(kept), tuple(made))


def _strips(total: int, rows: int, strip: int) -> Iterator[tuple[int, int, int]]:
    """(begin of the task, first row, end) of each strip of each task."""
    for begin in range(0, total, rows):
        end = min(begin + rows, total)
        for first in range(begin, end, strip):
            yield begin, first, min(first + strip, end)
