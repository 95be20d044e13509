"""Half precision where the caller asks for it: convolutions and what lies between them.

Before: tensors of float32, and `precision` f16 or bf16. After: convolutions with constant weights, and elementwise
arithmetic, maxima over windows and concatenations that read their results, in it, sums of products included where it is
f16 (those of bf16 are f32; of graphics processors `lower/grid/halves.py` says more); Casts where such tensors meet
other operators. Preserves: types of inputs and outputs; matrix products, means, norms, softmax and functions, which
stay float32. Needs: batch norms folded, Winograd layers selected.
"""

from __future__ import annotations

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.reference import element_type
from ..ir.types import DType
from .base import GraphRewriter, Pass, PassContext, register_pass

FOLLOWING = frozenset("Add Sub Mul Relu LeakyRelu PRelu Clip Max Min HardSigmoid HardSwish MaxPool Concat".split())
"""Operators computed in half precision where an operand is a result in it."""

LARGEST = float(np.finfo(np.float16).max)


@register_pass
class NarrowFloats(Pass):
    name = "narrow-floats"

    def run(self, graph: Graph, context: PassContext) -> bool:
        if context.precision not in (DType.F16, DType.BF16):
            return False
        narrowing = _Narrowing(context.rewriter(graph), context.precision)
        for node in list(graph.nodes):
            narrowing.visit(node)
        return narrowing.rewriter.finish()


class _Narrowing:
    """narrow: the value in `dtype` of a float32 one, by what the latter is now called."""

    def __init__(self, rewriter: GraphRewriter, dtype: DType) -> None:
        self.rewriter, self.dtype = rewriter, dtype
        self.narrow: dict[Value, Value] = {}

    def visit(self, node: Node) -> None:
        rewriter = self.rewriter
        node.inputs = tuple(None if v is None else rewriter.resolve(v) for v in node.inputs)
        if not self._is_narrowed(node) or not rewriter.allow("narrow-floats", node):
            return
        inputs = [v if v is None or v.type.dtype is not DType.F32 else self._narrowed(v, node) for v in node.inputs]
        type_ = node.output.type.with_dtype(self.dtype)
        # Weights of Winograd in f16 are transformed by the compiler, in float64: never at load.
        attrs = {k: v for k, v in node.attrs.items() if k != "prepared"}
        new = rewriter.emit(node.op, inputs, [type_], attrs, origin=node.origin, hint=node.output.name).output
        wide = self._cast(new, DType.F32, node)
        self.narrow[wide] = new
        rewriter.replace(node.output, wide)

    def _is_narrowed(self, node: Node) -> bool:
        if len(node.outputs) != 1 or node.output.type.dtype is not DType.F32 or not node.output.type.is_static:
            return False
        constants = [v for v in node.inputs if v is not None and v.data is not None]
        if self.dtype is DType.F16 and any(v.type.dtype is DType.F32 and not _is_in_range(v) for v in constants):
            return False
        if node.op in ("Conv", "c2c.WinogradConv"):
            return all(v is None or v.data is not None for v in node.inputs[1:])
        return node.op in FOLLOWING and any(v in self.narrow for v in node.inputs)

    def _narrowed(self, value: Value, reader: Node) -> Value:
        if value not in self.narrow:
            if value.data is not None:
                self.narrow[value] = self.rewriter.constant(value.name, value.data.astype(self.dtype.numpy))
            else:
                self.narrow[value] = self._cast(value, self.dtype, reader)
        return self.narrow[value]

    def _cast(self, value: Value, dtype: DType, node: Node) -> Value:
        types = [value.type.with_dtype(dtype)]
        return self.rewriter.emit(
            "Cast", [value], types, {"to": element_type(dtype)}, origin=node.origin, hint=value.name
        ).output


def _is_in_range(value: Value) -> bool:
    """Whether no finite element of a constant becomes infinite."""
    assert value.data is not None
    finite = np.abs(value.data[np.isfinite(value.data)])
    return not finite.size or float(finite.max()) <= LARGEST
