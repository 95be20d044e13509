"""Weights in half precision where the caller asks for it; arithmetic and all other tensors stay as they are.

Before: constant matrices of float32, and `weight_type` f16 or bf16. After: the same, rounded to the nearest value of
that type. Lowerings keep constants in half precision where that keeps every bit (`structure.exact_half`) and widen them
in registers; in a packed file the others take half the bytes too. Preserves: biases, small constants, and constants
that have few levels already. Needs: batch norms folded, so that what is rounded is what is multiplied.
"""

from __future__ import annotations

import numpy as np

from ..ir.errors import PassError
from ..ir.graph import Graph, Node, Value
from ..ir.structure import ENOUGH, is_coded
from ..ir.types import DType
from .base import Pass, PassContext, register_pass

WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "LSTM": (1, 2), "GRU": (1, 2),
    "RNN": (1, 2), "Gather": (0,),
}  # fmt: skip
"""Operands that hold weights, by operator."""


@register_pass
class NarrowWeights(Pass):
    name = "narrow-weights"

    def run(self, graph: Graph, context: PassContext) -> bool:
        if context.weight_type is DType.F32:
            return False
        rewriter = context.rewriter(graph)
        narrow: dict[Value, Value] = {}
        for node in graph.nodes:
            for index in WEIGHTS.get(node.op, ()):
                value = node.input(index)
                if value is None or not _is_rounded(value) or not rewriter.allow("narrow-weights", node):
                    continue
                if value not in narrow:
                    assert value.data is not None
                    narrow[value] = rewriter.constant(value.name, rounded(value.data, context.weight_type, node))
                node.inputs = (*node.inputs[:index], narrow[value], *node.inputs[index + 1 :])
        return rewriter.finish() or bool(narrow)


def _is_rounded(value: Value) -> bool:
    data = value.data
    return (
        data is not None and data.dtype == np.float32 and data.ndim > 1 and data.size >= ENOUGH and not is_coded(data)
    )


def rounded(data: np.ndarray, dtype: DType, reader: Node) -> np.ndarray:
    """float32 values rounded to f16 or bf16; raises PassError where a finite one would become infinite."""
    with np.errstate(over="ignore"):
        narrow = data.astype(dtype.numpy).astype(np.float32)
    if np.isinf(narrow).sum() > np.isinf(data).sum():
        largest = float(np.abs(data[np.isfinite(data)]).max())
        raise PassError(
            f"weights of {largest:g} do not fit into {dtype}", where=reader.where, remedy="--weight-type bf16, or f32"
        )
    return np.ascontiguousarray(narrow)
