"""Products by few-level or integer weights in bytes, where the caller lets their activations be rounded.

Before: y = x · w, w a constant of at most 256 levels, or whole numbers times a scale for each column (a MatMul, or a
Gemm of that form), and `activations` int8. After: y = (r(x / s) · l) s t with s the largest magnitude of a row of x
over 127 (over 255 where x has no negative elements), r to the nearest level and w = l t, l in bytes: exact 32-bit sums,
so that every target gives the same result. Preserves: results but for the error that `PassContext.rounded` states, for
every product. Chosen by expected time. Needs: rows whose elements are finite.
"""

from __future__ import annotations

from math import prod

import numpy as np

from ..codegen.target import Target
from ..ir.graph import Graph, Node, Value
from ..ir.program import Rounded
from ..ir.reference import element_type
from ..ir.types import DType, TensorType
from .base import GraphRewriter, Pass, PassContext, register_pass
from .block_weights import block_weights, read_block_weights
from .lower.book_kernel import matrix_cycles
from .lower.byte_books import byte_form
from .lower.integer_product import product_cycles
from .lower.schedule import Schedule, choose
from .pattern import made_by, required
from .rounding import (
    SIGNED_STEPS,
    UNSIGNED_STEPS,
    ByteWeights,
    expected_error,
    largest_error,
    rounded_book,
)

MOST_LENGTH = 1 << 16
"""Products whose sum fits into 32 bits."""
SMALLEST = 1e-30
"""Rows of smaller elements come out as zeros."""
WIDEN_CYCLES = 2.0
"""To make a vector of floats of bytes, as block products do."""
START_CYCLES = 400
"""Of the four steps that round a row."""

_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "Abs", "Exp", "Sqrt", "HardSigmoid", "Softplus"})
_KEEP_SIGNS = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "MaxPool"})


@register_pass
class RoundActivations(Pass):
    name = "round-activations"

    def run(self, graph: Graph, context: PassContext) -> bool:
        if context.activations != "int8":
            return False
        rewriter = context.rewriter(graph)
        for node in list(graph.nodes):
            weights = _weights(node)
            if weights is not None and _pays(node, weights, context) and rewriter.allow(self.name, node):
                steps = UNSIGNED_STEPS if _is_positive(required(node)) else SIGNED_STEPS
                rewriter.replace(node.output, _Rounding(rewriter, node, context.target, steps).product(weights))
                context.rounded.append(_record(node, weights, steps))
        return rewriter.finish()


def _record(node: Node, weights: ByteWeights, steps: int) -> Rounded:
    length, columns = weights.levels.shape
    expected, largest = expected_error(weights, steps), largest_error(weights, steps)
    return Rounded(node.origin, "int8", length, columns, weights.error, expected, largest)


def _weights(node: Node) -> ByteWeights | None:
    """The weights [K, N] of a product that may be computed in bytes."""
    if node.op not in ("MatMul", "Gemm") or node.attrs.get("transA", 0):
        return None
    if node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0:
        return None
    x, y = required(node), node.output.type
    if not x.type.is_static or x.type.rank < 2 or x.type.dtype is not DType.F32 or not y.is_static or not y.size:
        return None
    if not 0 < x.type.dims[-1] <= MOST_LENGTH:
        return None
    made = block_weights(node)
    return _of_columns(made, node) if made is not None else _of_book(node)


def _of_book(node: Node) -> ByteWeights | None:
    data = required(node, 1).data
    if data is None or data.ndim != 2 or data.dtype != np.float32:
        return None
    found = rounded_book(data)
    if found is None or not node.attrs.get("transB", 0):
        return found
    return ByteWeights(found.levels.T, found.scale, None if found.lost is None else found.lost.T)


def _of_columns(made: Node, node: Node) -> ByteWeights | None:
    """Whole numbers times a scale a column."""
    found = read_block_weights(made, node)
    if found is None or found.scales.shape[0] != 1:
        return None
    levels = found.levels.astype(np.int16) - found.zeros
    if levels.min() < -128 or levels.max() > 127:
        return None
    return ByteWeights(levels.astype(np.int8), found.scales.reshape(-1))


def _pays(node: Node, weights: ByteWeights, context: PassContext) -> bool:
    """Whether bytes are expected to take less time than floats."""
    target, (length, columns) = context.target, weights.levels.shape
    rows = prod(required(node).type.dims[:-1])
    data, lanes = required(node, 1).data, target.lanes()
    if data is None:
        vectors = length * -(-columns // lanes)
        floats = vectors * (WIDEN_CYCLES * -(-rows // 2) + rows / target.fma_per_cycle)
    else:
        floats = matrix_cycles(target, data.T if node.attrs.get("transB", 0) else data, rows)
    rounding = START_CYCLES + 4 * rows * -(-length // lanes)
    levels = np.unique(weights.levels).size
    candidates = [
        Schedule("f32", floats, False),
        Schedule("int8", rounding + product_cycles(target, rows, weights.levels), True),
    ]
    problem = f"{rows}x{columns}x{length} levels {levels} threads {context.threads}"
    return choose(context, "activations", problem, candidates, node)


def _is_positive(x: Value) -> bool:
    """Whether a tensor is known to have no negative elements."""
    while (node := made_by(x, *_KEEP_SIGNS)) is not None:
        x = required(node)
    return made_by(x, *_NOT_NEGATIVE) is not None


class _Rounding:
    """The nodes in place of a product."""

    def __init__(self, rewriter: GraphRewriter, node: Node, target: Target, steps: int) -> None:
        self.rw, self.node, self.steps, self.form = rewriter, node, steps, byte_form(target)
        lowest = 0 if self.form is DType.U8 else -128
        self.zero = lowest if steps == UNSIGNED_STEPS else lowest + 128

    def product(self, weights: ByteWeights) -> Value:
        levels, largest = self._levels(required(self.node))
        y = self.node.output.type
        inputs = [levels, self._constant("levels", np.ascontiguousarray(weights.levels))]
        if self.zero:
            inputs.append(self._constant("zero", np.asarray(self.zero, self.form.numpy)))
        sums = self._emit("MatMulInteger", inputs, y.with_dtype(DType.I32))
        found = self._emit("Cast", [sums], y, to=element_type(DType.F32))
        by_row = weights.scale.ndim == 0
        factor = weights.scale if by_row else np.float32(1)
        scale = self._with(largest, "Mul", factor / np.float32(self.steps))
        found = self._emit("Mul", [found, scale], y)
        found = found if by_row else self._with(found, "Mul", weights.scale)
        bias = self.node.input(2) if self.node.op == "Gemm" else None
        return found if bias is None else self._emit("Add", [found, bias], y)

    def _levels(self, x: Value) -> tuple[Value, Value]:
        """The levels of x, and the largest magnitude of each row."""
        type_ = x.type
        row = TensorType(DType.F32, (*type_.dims[:-1], 1))
        magnitude = x if self.steps == UNSIGNED_STEPS else self._emit("Abs", [x], type_)
        axes = self._constant("axes", np.array([-1]))
        largest = self._with(self._emit("ReduceMax", [magnitude, axes], row, keepdims=1), "Max", np.float32(SMALLEST))
        factor = self._emit("Div", [self._constant("steps", np.asarray(self.steps, np.float32)), largest], row)
        level = self._emit("Round", [self._emit("Mul", [x, factor], type_)], type_)
        level = self._with(level, "Add", np.float32(self.zero)) if self.zero else level
        return self._emit("Cast", [level], type_.with_dtype(self.form), to=element_type(self.form)), largest

    def _with(self, value: Value, op: str, number: np.ndarray | np.float32) -> Value:
        return self._emit(op, [value, self._constant(op.lower(), np.asarray(number, np.float32))], value.type)

    def _constant(self, hint: str, data: np.ndarray) -> Value:
        return self.rw.constant(f"{self.node.output.name}.{hint}", data)

    def _emit(self, op: str, inputs: list[Value], type_: TensorType, **attrs: object) -> Value:
        hint = f"{self.node.output.name}.{op.lower()}"
        return self.rw.emit(op, inputs, [type_], attrs, origin=self.node.origin, hint=hint).output
