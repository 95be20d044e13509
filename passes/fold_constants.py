"""Compute at compile time what depends on constants only.

Before: y = f(c1, c2, …) with constant operands; Shape or Size of a value with a static type.
After: the constant y. Preserves: impure operators, and results that would grow the model.
"""

from __future__ import annotations

import numpy as np

from ..ir.errors import C2CError
from ..ir.graph import Graph, Node, Value
from ..ir.ops import Kind
from ..ir.ops import op as row
from ..ir.reference import evaluate_node
from ..ir.types import DType
from .base import GraphRewriter, Pass, PassContext, register_pass
from .block_weights import block_weights, is_block_weights

GROWTH = 8
"""Decoding weights (4 bit to float32) may make them this much larger; whatever grows more is computed on the device."""

_FOLDED_OPAQUE = frozenset({"Shape", "Size", "ConstantOfShape", "Range", "NonZero", "OneHot", "CumSum", "EyeLike"})


@register_pass
class FoldConstants(Pass):
    name = "fold-constants"

    def run(self, graph: Graph, context: PassContext) -> bool:
        rewriter = context.rewriter(graph)
        for node in list(graph.nodes):
            node.inputs = tuple(None if v is None else rewriter.resolve(v) for v in node.inputs)
            if is_block_weights(node) and any(block_weights(r) is node for r in rewriter.readers(node.output)):
                continue  # expanded in registers
            results = _shape_of(node) or _fold(node, context)
            if results is not None and rewriter.allow(self.name, node):
                _replace(rewriter, node, results)
        return rewriter.finish()


def _replace(rewriter: GraphRewriter, node: Node, results: list[np.ndarray]) -> None:
    for value, data in zip(node.outputs, results, strict=True):
        rewriter.replace(value, rewriter.constant(value.name, np.asarray(data, order="C").reshape(value.type.dims)))


def _shape_of(node: Node) -> list[np.ndarray] | None:
    source = node.input(0)
    if node.op not in ("Shape", "Size") or source is None or not source.type.is_static:
        return None
    if node.op == "Size":
        return [np.asarray(source.type.size, np.int64)]
    rank = source.type.rank
    start, end = node.attrs.get("start", 0), node.attrs.get("end", rank)
    return [np.asarray(source.type.dims[slice(start, end)], np.int64)]


def _fold(node: Node, context: PassContext) -> list[np.ndarray] | None:
    """Results of a node with constant operands; None where it has others, is impure, too large or fails."""
    operands = [v for v in node.inputs if v is not None]
    definition = row(node.op)
    if not operands or any(v.data is None or v.type.layout.block for v in operands) or not definition.pure:
        return None
    if definition.kind is Kind.OPAQUE and node.op not in _FOLDED_OPAQUE:
        return None
    if any(v.type.dtype is DType.STRING or not v.type.is_static for v in (*operands, *node.outputs)):
        return None
    if _bytes(node.outputs) > max(context.fold_bytes, GROWTH * _bytes(tuple(operands))):
        return None
    try:
        results = evaluate_node(node, [None if v is None else v.data for v in node.inputs])
    except C2CError:
        return None
    fits = all(r.shape == v.type.shape for r, v in zip(results, node.outputs, strict=True))
    return results if fits else None


def _bytes(values: tuple[Value, ...]) -> int:
    return sum(v.type.nbytes for v in values)
