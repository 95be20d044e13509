"""Canonical forms of arithmetic with constants: exact but for at most one rounding."""

from __future__ import annotations

from math import frexp, isinf

import numpy as np

from ..ir.graph import Node, Value
from ..ir.types import DType
from .base import GraphRewriter, Rule
from .pattern import made_by, required, scalar


def _constant_right(rw: GraphRewriter, node: Node) -> Value | None:
    a, b = required(node), required(node, 1)
    return rw.emit_like(node, node.op, [b, a]) if a.is_constant and not b.is_constant else None


_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0, "Pow": 1.0}


def _neutral_element(rw: GraphRewriter, node: Node) -> Value | None:
    x, c = required(node), required(node, 1).data
    keeps = x.type == node.output.type and x.type.dtype is not DType.STRING
    return x if keeps and c is not None and c.size and bool((c == _NEUTRAL[node.op]).all()) else None


def _subtract_constant(rw: GraphRewriter, node: Node) -> Value | None:
    c = required(node, 1)
    if c.data is None or not c.type.dtype.is_float:
        return None
    return rw.emit_like(node, "Add", [required(node), rw.constant(c.name, -c.data)])


def _divide_by_power_of_two(rw: GraphRewriter, node: Node) -> Value | None:
    """The reciprocal of ±2^k is exact (unless it is subnormal)."""
    c = required(node, 1)
    if c.data is None or not c.data.size or c.type.dtype not in (DType.F32, DType.F64):
        return None
    values = c.data.reshape(-1).tolist()
    if any(v == 0 or isinf(v) or abs(frexp(v)[0]) != 0.5 or not 2.0**-100 < abs(v) < 2.0**100 for v in values):
        return None
    return rw.emit_like(node, "Mul", [required(node), rw.constant(c.name, (1 / c.data).astype(c.data.dtype))])


def _simple_power(rw: GraphRewriter, node: Node) -> Value | None:
    x, exponent = required(node), scalar(required(node, 1))
    if x.type != node.output.type or not x.type.dtype.is_float:
        return None
    if exponent == 2.0:
        return rw.emit_like(node, "Mul", [x, x])
    if exponent == 3.0:
        square = rw.emit("Mul", [x, x], [x.type], origin=node.origin, hint=node.output.name).output
        return rw.emit_like(node, "Mul", [square, x])
    return rw.emit_like(node, "Sqrt", [x]) if exponent == 0.5 else None


def _double_negation(rw: GraphRewriter, node: Node) -> Value | None:
    inner = made_by(required(node), "Neg")
    return None if inner is None else required(inner)


def _divide(rw: GraphRewriter, node: Node) -> Value | None:
    """x * reciprocal(y) as a quotient: one rounding less."""
    for i in (0, 1):
        inner = made_by(node.inputs[i], "Reciprocal")
        if inner is not None and rw.has_one_reader(inner.output) and inner.output.type.dtype.is_float:
            return rw.emit_like(node, "Div", [required(node, 1 - i), required(inner)])
    return None


def _clip_bounds(node: Node) -> tuple[float | None, float | None] | None:
    """Constant bounds of a Clip (None: open); None where one is computed."""
    bounds: list[float | None] = []
    for i in (1, 2):
        bound = scalar(node.input(i))
        if node.input(i) is not None and bound is None:
            return None
        bounds.append(None if bound is not None and isinf(bound) and (bound < 0) == (i == 1) else bound)
    return bounds[0], bounds[1]


def bounds_of(node: Node) -> tuple[float | None, float | None] | None:
    """Lower and upper bound of a Relu or a Clip with constant bounds."""
    return (0.0, None) if node.op == "Relu" else _clip_bounds(node)


def clip(rw: GraphRewriter, node: Node, x: Value, low: float | None, high: float | None) -> Value:
    """`x` between bounds, in place of `node`, in the shortest form."""
    dtype = x.type.dtype.numpy
    if low is None and high is None:
        return x
    if low == 0.0 and high is None:
        return rw.emit_like(node, "Relu", [x])
    lower = None if low is None else rw.constant("min", np.asarray(low, dtype))
    if high is None:
        return rw.emit_like(node, "Clip", [x, lower])
    return rw.emit_like(node, "Clip", [x, lower, rw.constant("max", np.asarray(high, dtype))])


def _open_clip(rw: GraphRewriter, node: Node) -> Value | None:
    """A Clip without bounds, or by [0, inf)."""
    bounds = _clip_bounds(node)
    x = required(node)
    if bounds is None or not x.type.dtype.is_float:
        return None
    given = sum(v is not None for v in node.inputs[1:])
    if sum(b is not None for b in bounds) == given and bounds != (0.0, None):
        return None
    return clip(rw, node, x, *bounds)


def _clip_of_clip(rw: GraphRewriter, node: Node) -> Value | None:
    inner = made_by(required(node), "Relu", "Clip")
    if inner is None or not node.output.type.dtype.is_float:
        return None
    first, second = bounds_of(inner), bounds_of(node)
    if first is None or second is None:
        return None
    lows = [b for b in (first[0], second[0]) if b is not None]
    highs = [b for b in (first[1], second[1]) if b is not None]
    low, high = max(lows, default=None), min(highs, default=None)
    if low is not None and high is not None and low > high:
        return None
    return clip(rw, node, required(inner), low, high)


def _minimum_as_clip(rw: GraphRewriter, node: Node) -> Value | None:
    """Min or Max with a number."""
    if len(node.inputs) != 2 or not node.output.type.dtype.is_float:
        return None
    for i in (0, 1):
        bound, x = scalar(node.inputs[i]), required(node, 1 - i)
        if bound is not None and x.type == node.output.type:
            return clip(rw, node, x, *((None, bound) if node.op == "Min" else (bound, None)))
    return None


def _multiply_bias(rw: GraphRewriter, node: Node) -> Value | None:
    """(y + b) a with y fit to take a factor into its weights."""
    a = required(node, 1)
    inner = made_by(required(node), "Add")
    if a.data is None or inner is None or not rw.has_one_reader(inner.output) or not a.type.dtype.is_float:
        return None
    y, b = required(inner), required(inner, 1)
    if b.data is None or made_by(y, "Conv", "ConvTranspose", "MatMul") is None or not rw.has_one_reader(y):
        return None
    if np.broadcast_shapes(b.data.shape, a.data.shape) not in (a.data.shape, b.data.shape):
        return None
    scaled = rw.emit("Mul", [y, a], [y.type], origin=node.origin, hint=y.name).output
    bias = (b.data.astype(np.float64) * a.data).astype(b.data.dtype)
    return rw.emit_like(node, "Add", [scaled, rw.constant(b.name, bias)])


def _scale_of_operand(rw: GraphRewriter, node: Node) -> Value | None:
    """A number in front of either operand of a product goes behind it, where it can join the product's group."""
    for i in (0, 1):
        scaled = made_by(node.inputs[i], "Mul")
        if scaled is None or not rw.has_one_reader(scaled.output) or not node.output.type.dtype.is_float:
            continue
        x, number = required(scaled), required(scaled, 1)
        if number.data is None or number.type.size != 1 or x.type != scaled.output.type or x.is_constant:
            continue
        operands = [x, required(node, 1)] if i == 0 else [required(node), x]
        product = rw.emit_like(node, "MatMul", operands)
        flat = rw.constant(number.name, number.data.reshape(()))
        origin = (*scaled.origin, *node.origin)
        return rw.emit("Mul", [product, flat], [node.output.type], origin=origin, hint=node.output.name).output
    return None


ARITHMETIC_RULES = (
    Rule("constant-right", "c + x = x + c", ("Add", "Mul"), _constant_right),
    Rule("neutral-element", "x + 0 = x * 1 = x^1 = x", tuple(_NEUTRAL), _neutral_element),
    Rule("subtract-constant", "x - c = x + (-c)", ("Sub",), _subtract_constant),
    Rule("divide-by-power-of-two", "x / 2^k = x * 2^-k", ("Div",), _divide_by_power_of_two),
    Rule("simple-power", "x^2 = x * x, x^3 = x * x * x, x^0.5 = sqrt(x)", ("Pow",), _simple_power),
    Rule("double-negation", "-(-x) = x", ("Neg",), _double_negation),
    Rule("reciprocal", "x * (1 / y) = x / y", ("Mul",), _divide),
    Rule("open-clip", "clip(x, 0, inf) = relu(x)", ("Clip",), _open_clip),
    Rule("clip-of-clip", "clip(relu(x), a, b) = clip(x, max(a, 0), b)", ("Clip", "Relu"), _clip_of_clip),
    Rule("min-max", "min(x, c) = clip(x, -, c)", ("Min", "Max"), _minimum_as_clip),
    Rule("scale-of-operand", "(x s) y = (x y) s, s a number", ("MatMul",), _scale_of_operand),
    Rule("multiply-bias", "(W x + b) a = (W x) a + b a", ("Mul",), _multiply_bias),
)
