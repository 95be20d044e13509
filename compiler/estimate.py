"""How long a compiled model is expected to take: the cycles that its schedules were chosen by, on one core."""

from __future__ import annotations

from ..ir.graph import Node
from .driver import Compiled
from .work import work_of

NEAR_BYTES_PER_CYCLE = 16
"""What nodes that no cost model speaks of stream, as most tensors lie in the second cache."""


def expected_cycles(compiled: Compiled) -> float:
    """Cycles of one run; nodes without a schedule count by the roofline of their operations and bytes."""
    target = compiled.options.target
    flops_a_cycle = 2 * target.lanes() * target.fma_per_cycle
    total = 0.0
    counted: set[Node] = set()
    for call in compiled.calls:
        if call.node in counted:
            continue
        counted.add(call.node)
        if call.choices:
            total += sum(choice.cycles for choice in call.choices)
        else:
            work = work_of(call.node)
            total += max(work.own_flops / flops_a_cycle, work.bytes / NEAR_BYTES_PER_CYCLE)
    return total
