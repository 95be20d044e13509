"""How long a compiled model is expected to take: the cycles that its schedules were chosen by, on one core."""

from __future__ import annotations

from collections.abc import Sequence

from ..codegen.target import Target
from ..ir.graph import Node, Value
from ..passes.lower import Call
from ..passes.lower.books import stream_cycles
from ..passes.lower.schedule import DENSE, Choice
from .driver import Compiled
from .work import work_of

NEAR_BYTES_PER_CYCLE = 16
"""What nodes that no cost model speaks of stream, as most tensors lie in the second cache."""

WHOLE = ("integer-conv",)
"""Families whose choice between forms tells a node's time; what those forms choose in turn tells it in other rates."""


def expected_cycles(compiled: Compiled) -> float:
    """Cycles of one run: of each node what its schedules are expected to take, without schedules the roofline of its
    operations and bytes, and what of its tensors comes from beyond the second cache; never less than its constants
    take to be read, as all of them are once a run. Compile with `keep_constants`, so that they are known."""
    by_node: dict[Node, list[Call]] = {}
    for call in compiled.calls:
        by_node.setdefault(call.node, []).append(call)
    stored = {node: _stored(calls) for node, calls in by_node.items()}
    whole = sum(stored.values())
    target = compiled.options.target
    a_byte = stream_cycles(target, whole) / max(whole, 1)
    return sum(
        max(_computed(node, calls[0].choices, target) + _travel(node, target), a_byte * stored[node])
        for node, calls in by_node.items()
    )


def _stored(calls: Sequence[Call]) -> int:
    """Bytes of the constants that the calls read, as they lie in memory."""
    constants: dict[Value, int] = {v: v.type.nbytes for call in calls for v in call.args if v.is_constant}
    return sum(constants.values())


def _travel(node: Node, target: Target) -> float:
    """Cycles to move the tensors of a node; half of the second cache is thought to hold what it reads or writes."""
    tensors = dict.fromkeys(v for v in (*node.inputs, *node.outputs) if v is not None and not v.is_constant)
    moved = sum(v.type.nbytes for v in tensors)
    return max(0, moved - target.l2_bytes // 2) / target.stream_bytes_per_cycle(moved)


def _computed(node: Node, choices: Sequence[Choice], target: Target) -> float:
    if choices:
        whole = [c.cycles for c in choices if c.family in WHOLE]
        if whole:
            return sum(whole)
        told = [c.cycles for c in choices if c.name != DENSE]  # where no form is taken other families tell the time
        return sum(told) if told else choices[0].cycles
    work = work_of(node)
    return max(work.own_flops / (2 * target.lanes() * target.fma_per_cycle), work.bytes / NEAR_BYTES_PER_CYCLE)
