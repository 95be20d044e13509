"""Let the inputs of a concatenation be written straight to their place in its result.

Before: y = concat(a, b), contiguous in y, a made by a node, b not free to move (an input, a constant, in y twice, or in
another concatenation). After: y = concat(a, copy(b)): nothing is left for the Concat to do.
Preserves: concatenations of which no input could move. Needs: layouts chosen, groups formed.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from .base import GraphRewriter, Pass, PassContext, register_pass
from .views import View, concat_offsets, find_views, is_in_place, placeable_root


@register_pass
class PlaceConcats(Pass):
    name = "place-concats"

    def run(self, graph: Graph, context: PassContext) -> bool:
        rewriter = context.rewriter(graph)
        for node in [n for n in graph.nodes if n.op == "Concat"]:
            views = find_views(graph)
            if concat_offsets(node) is None or is_in_place(node, views):
                continue
            stuck = _stuck(graph, node, views)
            if len(stuck) < len(node.inputs) and _pays(node, stuck) and rewriter.allow(self.name, node):
                _copy(rewriter, node, stuck)
        return rewriter.finish()


def _stuck(graph: Graph, node: Node, views: dict[Value, View]) -> set[int]:
    """Positions of the inputs that cannot move into the result."""
    homes = {v: view.root for v, view in views.items()}
    owned = {homes.get(v, v) for v in graph.outputs}
    seen: set[Value] = set()
    stuck: set[int] = set()
    for i, value in enumerate(node.inputs):
        assert value is not None
        root = placeable_root(value, views)
        if root is None or root in owned or root in seen:
            stuck.add(i)
        else:
            seen.add(root)
    return stuck


def _pays(node: Node, stuck: set[int]) -> bool:
    """Whether at least half of the bytes need no copy then."""
    sizes = [v.type.nbytes for v in node.inputs if v is not None]
    return 2 * sum(sizes[i] for i in stuck) <= sum(sizes)


def _copy(rewriter: GraphRewriter, node: Node, stuck: set[int]) -> None:
    inputs = [*node.inputs]
    for i in sorted(stuck):
        value = inputs[i]
        assert value is not None
        copy = rewriter.emit("c2c.Copy", [value], [value.type], origin=node.origin, hint=value.name)
        rewriter.place_before(node, copy)
        inputs[i] = copy.output
    node.inputs = tuple(inputs)
