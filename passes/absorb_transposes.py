"""Transposes around a product become strides of its operands and its result.

Before: MatMul(a^p, b^q)^r. After: c2c.MatMul(a, b), whose body is those nodes.
Preserves: transposes of a last axis, but for `b` where columns come to lie in memory order: those are read as they are
or packed once, as a transpose would be. Rows of `b` that lie apart are left to a copy where many rows of `a` read them.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

from ..ir.graph import Graph, Node, Value
from ..ir.types import DType, TensorType
from .base import GraphRewriter, Pass, PassContext, Rule, apply_rules, register_pass
from .pattern import made_by, required
from .rules_movement import permutation

T = TypeVar("T")
Perms: TypeAlias = dict[str, tuple[int, ...]]
FEW_ROWS = 4
"""Rows of `a` up to which `b` is read once, wherever its rows lie."""
_PERMS = ("perm_a", "perm_b", "perm_y")


@register_pass
class AbsorbTransposes(Pass):
    name = "absorb-transposes"

    def run(self, graph: Graph, context: PassContext) -> bool:
        return apply_rules(graph, RULES, context)


def _operands(rw: GraphRewriter, node: Node) -> Value | None:
    a, b = required(node), required(node, 1)
    if not _fits(node):
        return None
    perms: Perms = {}
    if (left := _sole_transpose(rw, a)) is not None and _keeps_last(left):
        perms["perm_a"], a = permutation(left), required(left)
    right, few = _sole_transpose(rw, b), node.output.type.dims[-2] <= FEW_ROWS
    if right is not None and (permutation(right)[-2] == b.type.rank - 1 or few and _keeps_last(right)):
        perms["perm_b"], b = permutation(right), required(right)
    if not perms:
        return None
    found = [n for n in (left, right) if n is not None and required(n) in (a, b)]
    return _emit(rw, (a, b), perms, node.output, (*found, node))


def _result(rw: GraphRewriter, node: Node) -> Value | None:
    inner = made_by(required(node), "MatMul", "c2c.MatMul")
    if inner is None or not rw.has_one_reader(inner.output) or not _keeps_last(node) or not _fits(inner):
        return None
    perms = {k: v for k, v in inner.attrs.items() if k in _PERMS}
    if "perm_y" in perms:
        return None
    return _emit(
        rw, (required(inner), required(inner, 1)), {**perms, "perm_y": permutation(node)}, node.output, (inner, node)
    )


def _fits(node: Node) -> bool:
    """Products of two matrices or more, whose operands are known in shape and not in value."""
    values = (required(node), required(node, 1), node.output)
    return all(v.type.is_static and v.type.rank > 1 and v.data is None and v.type.dtype is DType.F32 for v in values)


def _sole_transpose(rw: GraphRewriter, x: Value) -> Node | None:
    node = made_by(x, "Transpose")
    return node if node is not None and rw.has_one_reader(x) else None


def _keeps_last(node: Node) -> bool:
    perm = permutation(node)
    return perm[-1] == len(perm) - 1


def _emit(
    rw: GraphRewriter,
    operands: tuple[Value, Value],
    perms: dict[str, tuple[int, ...]],
    old: Value,
    nodes: tuple[Node, ...],
) -> Value:
    a, b = operands
    body = _body(a.type, b.type, old.type, perms)
    origin = tuple(dict.fromkeys(name for n in nodes for name in n.origin))
    return rw.emit("c2c.MatMul", [a, b], [old.type], {**perms, "body": body}, origin=origin, hint=old.name).output


def _body(a: TensorType, b: TensorType, result: TensorType, perms: Perms) -> Graph:
    inputs = [Value("a", a), Value("b", b)]
    nodes: list[Node] = []

    def turned(x: Value, key: str, name: str, type_: TensorType) -> Value:
        if key not in perms:
            return x
        nodes.append(Node("Transpose", (x,), (Value(name, type_),), {"perm": perms[key]}))
        return nodes[-1].output

    factors = tuple(
        turned(x, key, x.name + "t", x.type.with_shape(permuted(x.type.dims, perms.get(key))))
        for x, key in zip(inputs, _PERMS, strict=False)
    )
    inverse = perms.get("perm_y")
    dims = result.dims if inverse is None else permuted(result.dims, tuple(map(inverse.index, range(result.rank))))
    nodes.append(Node("MatMul", factors, (Value("product", result.with_shape(dims)),)))
    y = turned(nodes[-1].output, "perm_y", "y", result)
    return Graph("body", inputs, [y], nodes, [y.name])


def permuted(items: tuple[T, ...], perm: tuple[int, ...] | None) -> tuple[T, ...]:
    """Dimensions, strides or coordinates in another order; None leaves them."""
    return items if perm is None else tuple(items[p] for p in perm)


RULES = (
    Rule("transposed-factors", "a^p b^q = product with strides", ("MatMul",), _operands),
    Rule("transposed-product", "(a b)^r = product written with strides", ("Transpose",), _result),
)
