"""Scaled dot-product attention as one operator, whose scores never become a tensor.

Before: MatMul(Softmax(MatMul(q, k^T) s + mask), v), and the transposes that part heads and join them again.
After: c2c.Attention(q, k, v, mask), of [batch, heads, rows, size] or, where all three come from and the result goes to
[batch, rows, heads, size], of [batch, rows, heads size] without any transpose.
Preserves: scores that others read. Needs: transposes sunk, scales of operands moved behind their product.
"""

from __future__ import annotations

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.types import DType
from .base import GraphRewriter, Pass, PassContext, Rule, apply_rules, register_pass
from .pattern import affine, either_order, made_by, required
from .rules_movement import MOVEMENT_RULES, permutation, reshape, transpose

LEAST_ROWS = 4
"""Queries that share the keys; fewer are matrix-vector products."""
_HEADS = (0, 2, 1, 3)


@register_pass
class FuseAttention(Pass):
    name = "fuse-attention"

    def run(self, graph: Graph, context: PassContext) -> bool:
        return apply_rules(graph, RULES, context)


def _attention(rw: GraphRewriter, node: Node) -> Value | None:
    softmax, v = made_by(required(node), "Softmax"), required(node, 1)
    if softmax is None or not rw.has_one_reader(softmax.output):
        return None
    rank = softmax.output.type.rank
    found = _scores(rw, required(softmax))
    if found is None or rank not in (3, 4) or softmax.attrs.get("axis", -1) % rank != rank - 1:
        return None
    product, scale, mask = found
    q, keys = required(product), required(product, 1)
    if not _fits(q, keys, v, product, node):
        return None
    turned = (*range(rank - 2), rank - 1, rank - 2)
    k = transpose(rw, product, keys, turned)
    origin = tuple(dict.fromkeys((*product.origin, *softmax.origin, *node.origin)))
    operands = [_of_rank_4(rw, product, x) for x in (q, k, v)]
    result = node.output.type.with_shape(_shape_of_rank_4(node.output))
    inputs = operands if mask is None else [*operands, mask]
    attrs = {"scale": scale}
    new = rw.emit("c2c.Attention", inputs, [result], attrs, origin=origin, hint=node.output.name).output
    return reshape(rw, node, new, node.output.type)


def _scores(rw: GraphRewriter, value: Value) -> tuple[Node, float, Value | None] | None:
    """The product, its factor and what is added to it."""
    total = made_by(value, "Add")
    pairs: list[tuple[Value, Value | None]] = [(value, None)]
    if total is not None and rw.has_one_reader(value):
        pairs += either_order(total)
    for inner, mask in pairs:
        scaled = affine(inner, rw)
        product = made_by(scaled.x, "MatMul")
        if product is None or scaled.shift != 0.0 or scaled.scale <= 0.0 or not rw.has_one_reader(inner):
            continue
        if product.output.type == value.type and rw.has_one_reader(product.output):
            return product, scaled.scale, mask
    return None


def _fits(q: Value, keys: Value, v: Value, product: Node, node: Node) -> bool:
    values = (q, keys, v, product.output, node.output)
    if any(not x.type.is_static or x.type.dtype is not DType.F32 or not x.type.size for x in values):
        return False
    if len({x.type.rank for x in values}) != 1 or len({x.type.dims[:-2] for x in values}) != 1:
        return False
    return q.type.dims[-2] >= LEAST_ROWS and keys.data is None and v.data is None


def _shape_of_rank_4(value: Value) -> tuple[int, ...]:
    return (1,) * (4 - value.type.rank) + value.type.dims


def _of_rank_4(rw: GraphRewriter, node: Node, value: Value) -> Value:
    return reshape(rw, node, value, value.type.with_shape(_shape_of_rank_4(value)))


def _joined_heads(rw: GraphRewriter, node: Node) -> Value | None:
    """Heads side by side in every row, for operands and result."""
    inner = made_by(required(node), "c2c.Attention")
    if inner is None or permutation(node) != _HEADS or not rw.has_one_reader(inner.output):
        return None
    sources = [made_by(required(inner, i), "Transpose") for i in range(3)]
    found = [s for s in sources if s is not None and permutation(s) == _HEADS]
    if len(found) < 3:
        return None
    operands = [_flat(rw, s, required(s)) for s in found]
    result = node.output.type
    flat = result.with_shape((*result.dims[:2], result.dims[2] * result.dims[3]))
    heads = result.dims[2]
    attrs = {**inner.attrs, "q_num_heads": heads, "kv_num_heads": heads}
    origin = tuple(dict.fromkeys((*inner.origin, *node.origin)))
    new = rw.emit("c2c.Attention", [*operands, *inner.inputs[3:]], [flat], attrs, origin=origin, hint=node.output.name)
    return reshape(rw, node, new.output, result)


def _flat(rw: GraphRewriter, node: Node, value: Value) -> Value:
    batch, rows, heads, size = value.type.dims
    shape = rw.constant("shape", np.asarray((batch, rows, heads * size), np.int64))
    type_ = value.type.with_shape((batch, rows, heads * size))
    return rw.emit("Reshape", [value, shape], [type_], origin=node.origin, hint=value.name).output


RULES = (
    *(r for r in MOVEMENT_RULES if r.ops[0] in ("Transpose", "Reshape")),
    Rule("attention", "softmax(q k^T s + mask) v = attention(q, k, v, mask)", ("MatMul",), _attention),
    Rule("joined-heads", "attention(q^h, k^h, v^h)^h = attention of heads side by side", ("Transpose",), _joined_heads),
)
