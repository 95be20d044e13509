"""Give every output of the graph a value that can be written where the caller wants it.

Before: an output that is an input, a constant, a second name of another output, or a view of one of those or of a part.
After: `c2c.Copy` of it. Preserves: everything else. Needs: nothing; run it last but for passes that add no views.
"""

from __future__ import annotations

from ..ir.graph import Graph, Value
from ..ir.ops import op
from .base import Pass, PassContext, register_pass
from .views import find_views, locate


@register_pass
class OwnOutputs(Pass):
    name = "own-outputs"

    def run(self, graph: Graph, context: PassContext) -> bool:
        rewriter = context.rewriter(graph)
        views = find_views(graph)
        owned: set[Value] = set()
        for i, value in enumerate(graph.outputs):
            root = locate(views, value).root
            producer = value.producer
            dropped = root is value and producer is not None and op(producer.op).view
            if root.producer is not None and not dropped and root not in owned:
                owned.add(root)
                continue
            origin = producer.origin if producer is not None else (graph.output_names[i],)
            copy = rewriter.emit("c2c.Copy", [value], [value.type], origin=origin, hint=graph.output_names[i])
            graph.outputs[i] = copy.output
            rewriter.count += 1
        return rewriter.finish()
