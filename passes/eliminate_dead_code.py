"""Drop nodes of which no output of the graph needs a result.

Before: y = f(x), y unread. After: nothing. Preserves: inputs of the graph, read or not.
"""

from __future__ import annotations

from ..ir.graph import Graph
from .base import Pass, PassContext, register_pass


@register_pass
class EliminateDeadCode(Pass):
    name = "eliminate-dead-code"

    def run(self, graph: Graph, context: PassContext) -> bool:
        return context.rewriter(graph).finish()
