"""Results that take the memory of an operand which nobody reads later, where the kernel allows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..ir.graph import Graph, Value
from .lower.context import Call
from .views import View, locate


def overwrite(calls: Sequence[Call], graph: Graph, views: Mapping[Value, View]) -> dict[Value, View]:
    """The views and such results as views of their operands; kernels of their calls become `inplace`.

    What lies with the caller, in the weights or in the prepared memory stays where it is.
    """
    found = dict(views)
    first: dict[Value, int] = {}
    last: dict[Value, int] = {}
    for index, call in enumerate(calls):
        for root in (locate(views, v).root for v in call.args):
            first.setdefault(root, index)
            last[root] = index
    fixed = {locate(views, v).root for v in (*graph.inputs, *graph.outputs)}
    fixed |= {locate(views, v).root for call in calls if call.once for v in call.args}
    for index, call in enumerate(calls):
        y = call.node.output if call.over else None
        if y is None or y in found or y in fixed or first.get(y) != index:
            continue
        for x in call.over:
            place = locate(found, x)
            root, readers = place.root, sum(locate(found, v).root is place.root for v in call.args)
            if place.byte_offset or root in fixed or root.is_constant or last[root] != index or readers > 1:
                continue
            if root.type.nbytes == y.type.nbytes:
                found[y] = View(root, 0)
                last[root] = last[y]
                call.kernel = replace(call.kernel, inplace=True)
                break
    return found
