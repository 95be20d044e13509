"""Matrices that are repeated for several products are read once, by the rows of all of them.

Before: MatMul(a, b), each matrix of b repeated for neighbouring matrices of a (heads that share keys and values, where
they are no attention: few queries). After: the rows of those matrices of a as one matrix, times b as it was.
Preserves: constants. Needs: attention fused, which takes shared heads by itself.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from .base import GraphRewriter, Pass, PassContext, Rule, apply_rules, register_pass
from .pattern import made_by, required
from .rules_movement import permutation, reshape, transpose


@register_pass
class ShareFactors(Pass):
    name = "share-factors"

    def run(self, graph: Graph, context: PassContext) -> bool:
        return apply_rules(graph, RULES, context)


def _shared(rw: GraphRewriter, node: Node) -> Value | None:
    a, b = required(node), required(node, 1)
    turned = made_by(b, "Transpose")
    source = _repeated(b if turned is None else required(turned))
    if source is None or not all(v.type.is_static for v in (a, b, node.output)):
        return None
    rank = b.type.rank
    swap = (*range(rank - 2), rank - 1, rank - 2)
    if turned is not None and permutation(turned) != swap or a.type.dims[:-2] != b.type.dims[:-2]:
        return None
    *outer, heads, _, rows, columns = source.type.dims
    once = reshape(rw, node, source, source.type.with_shape((*outer, heads, rows, columns)))
    once = once if turned is None else transpose(rw, turned, once, swap)
    together = a.type.dims[-3] // heads * a.type.dims[-2]
    grouped = reshape(rw, node, a, a.type.with_shape((*outer, heads, together, a.type.dims[-1])))
    type_ = node.output.type.with_shape((*outer, heads, together, node.output.type.dims[-1]))
    product = rw.emit("MatMul", [grouped, once], [type_], origin=node.origin, hint=node.output.name)
    return reshape(rw, node, product.output, node.output.type)


def _repeated(x: Value) -> Value | None:
    """[…, heads, 1, rows, columns] of a tensor [… , heads · times, rows, columns] that repeats its matrices."""
    joined = made_by(x, "Reshape")
    repeat = None if joined is None else made_by(required(joined), "Expand", "Tile")
    if repeat is None or x.type.rank < 3 or not repeat.output.type.is_static:
        return None
    source, dims = required(repeat), repeat.output.type.shape
    if len(dims) != x.type.rank + 1 or source.type.shape != (*dims[:-3], 1, *dims[-2:]):
        return None
    return source if (*dims[:-4], *dims[-2:]) == (*x.type.dims[:-3], *x.type.dims[-2:]) else None


RULES = (Rule("shared-factor", "a (b, b, …) = (rows of a together) b", ("MatMul",), _shared),)
