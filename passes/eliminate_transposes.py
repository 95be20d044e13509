"""Move transposes towards the outputs until they meet their inverse or vanish in weights.

Before: f(x^p), f elementwise, a softmax, a reduction, a pad or a concatenation. After: f(x)^p, with f's axes and
constants permuted; then x^p^q is one transpose or none, and what could not be fused because of it can.
Preserves: transposes with several readers, and operands transposed in different ways.
"""

from __future__ import annotations

from math import prod

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.types import TensorType
from .base import GraphRewriter, Pass, PassContext, Rule, apply_rules, register_pass
from .pattern import made_by, reduced_axes, required
from .rules_movement import ELEMENTWISE, MOVEMENT_RULES, permutation, transpose


@register_pass
class EliminateTransposes(Pass):
    name = "eliminate-transposes"

    def run(self, graph: Graph, context: PassContext) -> bool:
        return apply_rules(graph, RULES, context)


def _sole_transpose(rw: GraphRewriter, value: Value | None) -> Node | None:
    node = made_by(value, "Transpose")
    return node if node is not None and rw.has_one_reader(node.output) else None


def _inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(perm.index(i) for i in range(len(perm)))


def _permuted(type_: TensorType, perm: tuple[int, ...]) -> TensorType:
    return type_.with_shape(tuple(type_.shape[p] for p in perm))


def _sink(rw: GraphRewriter, node: Node, operands: list[Value | None], perm: tuple[int, ...], **attrs: object) -> Value:
    """`node` on operands before the transposition, transposed then. Its origin says that its value is another one."""
    before = _permuted(node.output.type, _inverse(perm))
    origin = _other_value(node)
    new = rw.emit(node.op, operands, [before], attrs, origin=origin, hint=node.output.name)
    return transpose(rw, node, new.output, perm)


def _other_value(node: Node) -> tuple[str, ...]:
    """The origin of a node that stands for `node` but has another value: no tap compares the two."""
    return (*node.origin, f"{node.origin[-1]}.transposed") if node.origin else ()


def _through_elementwise(rw: GraphRewriter, node: Node) -> Value | None:
    """Every operand of full rank is transposed in the same way; constants are transposed back, others are scalars."""
    rank = node.output.type.rank
    perms = {permutation(t) for v in node.inputs if (t := _sole_transpose(rw, v)) is not None and v is not None}
    if len(perms) != 1 or node.op in ("QuantizeLinear", "DequantizeLinear"):
        return None
    perm = perms.pop()
    if len(perm) != rank or len(set(node.inputs)) != len(node.inputs):
        return None
    operands: list[Value | None] = []
    for value in node.inputs:
        source = _sole_transpose(rw, value)
        if source is not None:
            operands.append(required(source))
        elif value is None or value.type.rank == 0:
            operands.append(value)
        elif value.data is not None:
            shaped = value.data.reshape((1,) * (rank - value.data.ndim) + value.data.shape)
            operands.append(
                value if value.data.size == 1 else rw.constant(value.name, shaped.transpose(_inverse(perm)))
            )
        else:
            return None
    return _sink(rw, node, operands, perm, **node.attrs)


def _through_axis(rw: GraphRewriter, node: Node) -> Value | None:
    """Softmax, LogSoftmax: along the axis where the transposed one came from."""
    source = _sole_transpose(rw, required(node))
    if source is None:
        return None
    perm = permutation(source)
    axis = perm[node.attrs.get("axis", -1) % len(perm)]
    return _sink(rw, node, [required(source)], perm, axis=axis)


def _through_concat(rw: GraphRewriter, node: Node) -> Value | None:
    sources = [_sole_transpose(rw, v) for v in node.inputs]
    found = [s for s in sources if s is not None]
    if len(found) != len(sources) or len({permutation(s) for s in found}) != 1:
        return None
    perm = permutation(found[0])
    return _sink(rw, node, [required(s) for s in found], perm, axis=perm[node.attrs["axis"] % len(perm)])


def _through_reduction(rw: GraphRewriter, node: Node) -> Value | None:
    source = _sole_transpose(rw, required(node))
    axes = reduced_axes(node)
    if source is None or axes is None or not axes:
        return None
    perm = permutation(source)
    moved = tuple(sorted(perm[a] for a in axes))
    operand = rw.constant("axes", np.asarray(moved, np.int64))
    attrs = {k: v for k, v in node.attrs.items() if k != "axes"}
    if node.attrs.get("keepdims", 1):
        return _sink(rw, node, [required(source), operand], perm, **attrs)
    kept_before = [i for i in range(len(perm)) if i not in moved]
    kept_after = [p for i, p in enumerate(perm) if i not in axes]
    return _sink(rw, node, [required(source), operand], tuple(kept_before.index(p) for p in kept_after), **attrs)


def _through_pad(rw: GraphRewriter, node: Node) -> Value | None:
    source = _sole_transpose(rw, required(node))
    amounts = node.constant(1)
    if source is None or amounts is None or node.input(3) is not None:
        return None
    perm = permutation(source)
    begin, end = amounts.reshape(2, -1)
    inverse = list(_inverse(perm))
    moved = rw.constant("pads", np.concatenate([begin[inverse], end[inverse]]))
    return _sink(rw, node, [required(source), moved, *node.inputs[2:]], perm, **node.attrs)


def _into_matrix(rw: GraphRewriter, node: Node) -> Value | None:
    """A flattened transposed tensor times constant rows: the rows are put in the order of the tensor."""
    flat = made_by(required(node), "Reshape")
    weights = required(node, 1)
    source = _sole_transpose(rw, required(flat)) if flat is not None and rw.has_one_reader(flat.output) else None
    if flat is None or source is None or weights.data is None or weights.type.rank != 2:
        return None
    perm, before = permutation(source), required(source)
    if (
        perm[0] != 0
        or not before.type.is_static
        or flat.output.type.shape != (before.type.dims[0], weights.type.dims[0])
    ):
        return None
    inner = [p - 1 for p in perm[1:]]
    rows = weights.data.reshape(*(before.type.dims[p] for p in perm[1:]), -1)
    order = [inner.index(i) for i in range(len(inner))]
    fresh = rw.constant(weights.name, rows.transpose(*order, len(inner)).reshape(weights.type.dims))
    shape = rw.constant("shape", np.asarray((before.type.dims[0], prod(before.type.dims[1:])), np.int64))
    straight = rw.emit("Reshape", [before, shape], [flat.output.type], origin=_other_value(flat), hint=flat.output.name)
    return rw.emit_like(node, "MatMul", [straight.output, fresh])


_REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2")

RULES = (
    *(r for r in MOVEMENT_RULES if r.ops == ("Transpose",)),
    Rule("transpose-through-elementwise", "f(x^p, y^p) = f(x, y)^p", ELEMENTWISE, _through_elementwise),
    Rule("transpose-through-softmax", "softmax(x^p) = softmax(x)^p", ("Softmax", "LogSoftmax"), _through_axis),
    Rule("transpose-through-concat", "concat(x^p, y^p) = concat(x, y)^p", ("Concat",), _through_concat),
    Rule("transpose-through-reduction", "sum(x^p) = sum(x)^p", _REDUCTIONS, _through_reduction),
    Rule("transpose-through-pad", "pad(x^p) = pad(x)^p", ("Pad",), _through_pad),
    Rule("transpose-into-matrix", "flat(x^p) W = flat(x) W'", ("MatMul",), _into_matrix),
)
