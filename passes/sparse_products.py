"""Products of many rows by weights with zeros as pointwise convolutions, whose kernels leave zeros out.

Before: y = x · w with x [rows, k] and constant w [k, n], and what is added to its columns, or a Gemm of that form.
After: y' = conv(x', w') with x' of [1, k, rows] and w' of [n, k, 1]: rows are pixels. Preserves: results but for the
sign of a zero, and for absent weights that would meet an infinity or NaN. Chosen where weights have zeros enough and
rows fill vectors: copies of x and y cost little beside the products that are left out.
"""

from __future__ import annotations

import numpy as np

from ..codegen.target import Target
from ..ir.graph import Graph, Node, Value
from ..ir.types import DType
from .base import GraphRewriter, Pass, PassContext, Rule, apply_rules, register_pass
from .lower.gemm_kernel import tiles
from .lower.sparse import may_pay
from .lower.sparse_cost import Sides, list_plans
from .pattern import either_order, made_by, required

MIN_CHANNELS = 64
"""Elements of a row of x and of y from which on copies cost little."""
GAIN = 0.8
"""Estimated time of lists beside that of the dense product below which a product is rewritten."""
MIN_VECTORS = 3
"""Vectors of rows from which on a list's own cost is spread enough."""


@register_pass
class SparseProducts(Pass):
    name = "sparse-products"

    def run(self, graph: Graph, context: PassContext) -> bool:
        def rewrite(rw: GraphRewriter, node: Node) -> Value | None:
            return _as_convolution(rw, node, context.target)

        rule = Rule("sparse-product", "x · w = conv(x', w')'", ("MatMul", "Gemm", "Add"), rewrite)
        return apply_rules(graph, (rule,), context)


def _as_convolution(rw: GraphRewriter, node: Node, target: Target) -> Value | None:
    product, bias = _parts(rw, node)
    if product is None:
        return None
    x, weights, y = required(product), _weights(product), node.output
    if weights is None or x.type.dtype is not DType.F32 or not x.type.is_static or x.type.rank < 2:
        return None
    outputs, depth = weights.shape
    rows = x.type.size // depth
    if rows < MIN_VECTORS * target.lanes(DType.F32) or min(outputs, depth) < MIN_CHANNELS:
        return None
    dense = min(s.cycles for s in tiles(target, DType.F32, rows, outputs, depth))
    if min(cycles for _, cycles in list_plans(target, weights, Sides(rows, blocked_x=True))) > GAIN * dense:
        return None
    origin, hint = tuple(dict.fromkeys((*product.origin, *node.origin))), y.name
    plain, flat = x.type.with_shape((1, rows, depth)), x.type.with_shape((1, depth, rows))
    result, back = x.type.with_shape((1, outputs, rows)), x.type.with_shape((1, rows, outputs))
    swap = {"perm": (0, 2, 1)}
    shape = rw.constant(f"{hint}.rows", np.array([1, rows, depth]))
    x = rw.emit("Reshape", [x, shape], [plain], origin=origin, hint=f"{hint}.row").output
    x = rw.emit("Transpose", [x], [flat], swap, origin=origin, hint=f"{hint}.columns").output
    w = rw.constant(f"{hint}.weights", np.ascontiguousarray(weights).reshape(outputs, depth, 1))
    found = rw.emit("Conv", [x, w, bias], [result], {"kernel_shape": (1,)}, origin=origin, hint=f"{hint}.pixels").output
    found = rw.emit("Transpose", [found], [back], swap, origin=origin, hint=f"{hint}.back").output
    shape = rw.constant(f"{hint}.shape", np.array(y.type.dims))
    return rw.emit("Reshape", [found, shape], [y.type], origin=origin, hint=hint).output


def _parts(rw: GraphRewriter, node: Node) -> tuple[Node | None, Value | None]:
    """The product that a node is or adds to, and what is added to its columns."""
    if node.op == "Gemm":
        return node, node.input(2)
    if node.op == "MatMul":
        readers = rw.readers(node.output) if rw.has_one_reader(node.output) else ()
        return (None if any(_added(rw, r)[0] is node for r in readers) else node), None
    return _added(rw, node)


def _added(rw: GraphRewriter, node: Node) -> tuple[Node | None, Value | None]:
    """A product that nobody else reads and the constant that an Add adds to its columns."""
    for product, bias in either_order(node) if node.op == "Add" else ():
        made = made_by(product, "MatMul")
        columns = bias.data is not None and bias.type.shape == product.type.shape[-1:]
        if made is not None and columns and rw.has_one_reader(product):
            return made, bias
    return None, None


def _weights(node: Node) -> np.ndarray | None:
    """Constant weights [n, k] of a product of the form that a convolution has."""
    data = required(node, 1).data
    if data is None or data.ndim != 2 or not may_pay(data):
        return None
    if node.op == "MatMul":
        return data.T
    bias = node.input(2)
    plain = node.attrs.get("alpha", 1.0) == node.attrs.get("beta", 1.0) == 1.0 and not node.attrs.get("transA", 0)
    if not plain or bias is not None and bias.type.shape != (node.output.type.shape[1],):
        return None
    return data if node.attrs.get("transB", 0) else data.T
