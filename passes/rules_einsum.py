"""Einsums that are the products of an attention, as MatMuls of transposed operands."""

from __future__ import annotations

from ..ir.graph import Node, Value
from ..ir.ops import Kind
from ..ir.ops import op as row
from .base import GraphRewriter, Rule
from .pattern import made_by, required
from .regions import MAX_STEPS, region_to
from .rules_movement import transpose


def _product(rw: GraphRewriter, node: Node) -> Value | None:
    """Labels in all three are the batch; one is summed, each operand has one of its own."""
    if len(node.inputs) != 2 or not (_leads_to_softmax(rw, node.output) or region_to(rw, required(node), "Softmax")):
        return None
    equation = str(node.attrs["equation"]).replace(" ", "")
    left, _, rest = equation.partition(",")
    right, arrow, out = rest.partition("->")
    if not arrow or "." in equation or any(len(set(labels)) < len(labels) for labels in (left, right, out)):
        return None
    batch = "".join(c for c in out if c in left and c in right)
    summed = "".join(c for c in left if c in right and c not in out)
    rows, columns = ("".join(c for c in own if c in out and c not in batch) for own in (left, right))
    if len(summed) != 1 or len(rows) != 1 or len(columns) != 1 or len(batch) + 2 not in (3, 4):
        return None
    if any(len(labels) != len(batch) + 2 for labels in (left, right, out)):
        return None
    a = transpose(rw, node, required(node), _order(left, batch + rows + summed))
    b = transpose(rw, node, required(node, 1), _order(right, batch + summed + columns))
    sizes = dict(zip(out, node.output.type.shape, strict=True))
    type_ = node.output.type.with_shape(tuple(sizes[c] for c in batch + rows + columns))
    origin = (*node.origin, f"{node.origin[-1]}.product") if node.origin else ()
    product = rw.emit("MatMul", [a, b], [type_], origin=origin, hint=node.output.name)
    return transpose(rw, node, product.output, _order(batch + rows + columns, out))


def _order(labels: str, wanted: str) -> tuple[int, ...]:
    return tuple(labels.index(c) for c in wanted)


def _leads_to_softmax(rw: GraphRewriter, value: Value) -> bool:
    for _ in range(MAX_STEPS):
        if not rw.has_one_reader(value):
            return False
        reader = rw.readers(value)[0]
        if made_by(reader.output, "Softmax") is not None:
            return True
        if row(reader.op).kind is not Kind.ELEMENTWISE and reader.op != "Reshape":
            return False
        value = reader.output
    return False


EINSUM_RULES = (Rule("einsum-product", "einsum(a, b) = (a^p b^q)^r beside a softmax", ("Einsum",), _product),)
