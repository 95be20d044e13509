"""How threads share the work of a recurrence: a team that makes a row of the batch in one direction, with the state in
the memory that it shares, or all threads of a grid, step by step."""

from __future__ import annotations

from dataclasses import dataclass

from ....ir.types import DType
from ..context import Lowering
from ..schedule import Schedule, choose
from .team import Team

OPERATORS = ("LSTM", "GRU", "RNN")
TEAM = 128
"""Threads of a team at most."""
STATES = 4
"""Rows of state that a step keeps at most: two hidden ones, two more."""
UNITS, PARTS = 16, 8
"""Of a work-group where each step is a kernel: units, and threads of each."""
OPERATIONS = 2
"""Of a thread for a multiply-add whose weight it waits for."""


@dataclass(frozen=True, slots=True)
class Launches:
    """A kernel a step: a work-group has so many units, and each of them so many threads."""

    units: int
    parts: int

    def __str__(self) -> str:
        return f"step={self.units}x{self.parts}"


@dataclass(frozen=True, slots=True)
class Recurrence:
    """phases: products of a step that follow each other, which have `gates` in all."""

    steps: int
    batch: int
    directions: int
    gates: int
    hidden: int
    phases: int
    dtype: DType

    def __str__(self) -> str:
        twice = " in two products" if self.phases > 1 else ""
        return f"{self.steps} of {self.batch}x{self.directions}x{self.hidden} {self.dtype}{twice}"


def share(ctx: Lowering, r: Recurrence) -> Team | Launches | None:
    """What is expected to take less time; None where work-groups share no memory."""
    device = ctx.target.device
    if device is None or not device.shares or ctx.node.op not in OPERATORS:
        return None
    candidates = [_launches(ctx, r)]
    if STATES * r.hidden * r.dtype.nbytes <= device.local_bytes:
        candidates.insert(0, _team(ctx, r))
    return choose(ctx, "grid-recurrent", f"{ctx.node.op} {r}", candidates)


def _team(ctx: Lowering, r: Recurrence) -> Schedule[Team | Launches]:
    device = ctx.target.device
    assert device is not None
    threads = min(device.work_group, TEAM, 1 << (r.hidden - 1).bit_length())
    operations = -(-r.hidden // threads) * r.hidden * r.gates * OPERATIONS
    time = r.steps * r.directions * operations * device.thread_operation
    return Schedule(f"team={threads}", time, Team(threads))


def _launches(ctx: Lowering, r: Recurrence) -> Schedule[Team | Launches]:
    device = ctx.target.device
    assert device is not None
    own = (-(-r.hidden // PARTS) * OPERATIONS + PARTS) * r.gates
    total = r.batch * r.directions * r.hidden**2 * r.gates * OPERATIONS
    step = r.phases * device.launch + max(own * device.thread_operation, total * device.operation)
    launches = Launches(UNITS, PARTS)
    return Schedule(str(launches), r.steps * step, launches)
