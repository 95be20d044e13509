"""Compute equal expressions once.

Before: a = f(x, y), b = f(x, y). After: a, with b's readers moved to it. Equal constants become one as well.
Preserves: impure operators and nodes with subgraphs.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.ops import op as row
from .base import Pass, PassContext, register_pass

SAMPLE_BYTES = 64
"""Bytes at either end of a constant that are looked at first. Only where they are equal, all are compared, as weights
may still lie in a file."""


@register_pass
class EliminateCommonSubexpressions(Pass):
    name = "eliminate-common-subexpressions"

    def run(self, graph: Graph, context: PassContext) -> bool:
        rewriter = context.rewriter(graph)
        constants: dict[Hashable, list[Value]] = {}
        known: dict[Hashable, Node] = {}
        for node in graph.nodes:
            node.inputs = tuple(
                None if v is None else _merge_constant(rewriter.resolve(v), constants) for v in node.inputs
            )
            key = _key(node)
            if key is None:
                continue
            first = known.setdefault(key, node)
            if first is not node and rewriter.allow(self.name, node):
                for old, new in zip(node.outputs, first.outputs, strict=True):
                    rewriter.replace(old, new)
        return rewriter.finish()


def _merge_constant(value: Value, constants: dict[Hashable, list[Value]]) -> Value:
    if value.data is None or value.data.dtype.hasobject:
        return value
    data = _bytes(value.data)
    sample = data[:SAMPLE_BYTES].tobytes() + data[-SAMPLE_BYTES:].tobytes()
    alike = constants.setdefault((value.type, value.data.strides, sample), [])
    for other in alike:
        if other is value or (other.data is not None and np.array_equal(_bytes(other.data), data)):
            return other
    alike.append(value)
    return value


def _bytes(data: np.ndarray) -> np.ndarray:
    """The bytes of an array in the order in which they lie: none are copied where they lie without gaps."""
    return data.ravel(order="K").view(np.uint8)


def _key(node: Node) -> Hashable | None:
    """What makes two nodes compute the same, None for a node that must stay alone."""
    if not row(node.op).pure:
        return None
    attrs = tuple((k, _freeze(v)) for k, v in sorted(node.attrs.items()))
    if any(isinstance(v, Graph) for v in node.attrs.values()):
        return None
    inputs = tuple(None if v is None else id(v) for v in node.inputs)
    if row(node.op).commutative:
        inputs = tuple(sorted(inputs, key=lambda i: i or 0))
    return (node.op, inputs, attrs, tuple(v.type for v in node.outputs))


def _freeze(attr: Any) -> Hashable:
    if isinstance(attr, np.ndarray):
        return (attr.dtype.str, attr.shape, attr.tobytes())
    return tuple(attr) if isinstance(attr, list) else attr
