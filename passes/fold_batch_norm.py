"""Per-channel scales and shifts become part of the weights and bias before them.

Before: BatchNormalization(conv(x, W)), conv(x, W) * a + b. After: conv(x, a W) + b inside the convolution.
A BatchNormalization elsewhere becomes x * a + b. Preserves: convolutions with several readers or computed weights,
and coded weights (`ir/structure`), which a scale would give other values in every channel: it stays beside them.
New weights are computed in float64 and rounded once.
"""

from __future__ import annotations

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.structure import is_coded
from .base import GraphRewriter, Pass, PassContext, Rule, apply_rules, register_pass
from .pattern import channel_vector, made_by, required

_ANCHORS = ("Conv", "ConvTranspose")


@register_pass
class FoldBatchNorm(Pass):
    name = "fold-batch-norm"

    def run(self, graph: Graph, context: PassContext) -> bool:
        return apply_rules(graph, RULES, context)


def _split_norm(rw: GraphRewriter, node: Node) -> Value | None:
    """BatchNormalization (inference) as Mul and Add by constants [C, 1, …]."""
    x = required(node)
    values = [node.constant(i) for i in range(1, 5)]
    if any(v is None for v in values) or len(node.outputs) > 1 or node.attrs.get("training_mode", 0):
        return None
    scale, bias, mean, variance = (np.asarray(v, np.float64) for v in values)
    factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    shape = (-1, *(1 for _ in x.type.shape[2:]))
    dtype = x.type.dtype.numpy
    a = rw.constant("scale", factor.reshape(shape).astype(dtype))
    b = rw.constant("shift", (bias - mean * factor).reshape(shape).astype(dtype))
    product = rw.emit_like(node, "Mul", [x, a])
    return rw.emit_like(node, "Add", [product, b])


def _norm_into_weights(rw: GraphRewriter, node: Node) -> Value | None:
    """BatchNormalization of a convolution in one step: its scale and shift are never rounded."""
    anchor = _anchor(rw, required(node), *_ANCHORS)
    values = [node.constant(i) for i in range(1, 5)]
    if anchor is None or any(v is None for v in values) or len(node.outputs) > 1 or node.attrs.get("training_mode", 0):
        return None
    scale, bias, mean, variance = (np.asarray(v, np.float64) for v in values)
    factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    return _convolution(rw, node, anchor, factor, bias - mean * factor)


def _scale_into_weights(rw: GraphRewriter, node: Node) -> Value | None:
    anchor = _anchor(rw, required(node), *_ANCHORS)
    if anchor is None or node.output.type != anchor.output.type:
        return None
    factor = channel_vector(node.input(1), node.output.type.rank, 1, node.output.type.dims[1])
    return None if factor is None else _convolution(rw, node, anchor, factor, np.zeros_like(factor))


def _shift_into_bias(rw: GraphRewriter, node: Node) -> Value | None:
    anchor = _anchor(rw, required(node), *_ANCHORS)
    if anchor is None or node.output.type != anchor.output.type:
        return None
    shift = channel_vector(node.input(1), node.output.type.rank, 1, node.output.type.dims[1])
    return None if shift is None else _convolution(rw, node, anchor, np.ones_like(shift), shift)


def _scale_into_matrix(rw: GraphRewriter, node: Node) -> Value | None:
    """Columns of the constant matrix of a MatMul."""
    anchor = _anchor(rw, required(node), "MatMul")
    if anchor is None or node.output.type != anchor.output.type or required(anchor).is_constant:
        return None
    weights = required(anchor, 1)
    factor = channel_vector(node.input(1), node.output.type.rank, -1, node.output.type.dims[-1])
    if factor is None or weights.data is None or weights.type.rank < 2 or is_coded(weights.data):
        return None
    scaled = rw.constant(weights.name, (weights.data * factor).astype(weights.data.dtype))
    return _emit(rw, node, anchor, [required(anchor), scaled])


def _scale_of_input(rw: GraphRewriter, node: Node) -> Value | None:
    """conv(x a, W) = conv(x, W a): zeros of the border stay zeros."""
    scale, weights = made_by(required(node), "Mul"), required(node, 1)
    if scale is None or not rw.has_one_reader(scale.output) or weights.data is None or node.attrs.get("group", 1) != 1:
        return None
    x = required(scale)
    factor = channel_vector(scale.input(1), x.type.rank, 1, x.type.dims[1])
    if factor is None or x.type != scale.output.type or is_coded(weights.data):
        return None
    shaped = factor.reshape(1, -1, *(1 for _ in x.type.shape[2:]))
    scaled = rw.constant(weights.name, (weights.data * shaped).astype(weights.data.dtype))
    return rw.emit_like(node, "Conv", [x, scaled, *node.inputs[2:]], **node.attrs)


def _anchor(rw: GraphRewriter, value: Value, *ops: str) -> Node | None:
    """The operator before, when it has constant weights and bias and its result nobody else reads."""
    anchor = made_by(value, *ops)
    if anchor is None or not rw.has_one_reader(value) or anchor.constant(1) is None or not value.type.dtype.is_float:
        return None
    bias = anchor.input(2)
    return anchor if bias is None or bias.is_constant else None


def _convolution(rw: GraphRewriter, node: Node, anchor: Node, factor: np.ndarray, shift: np.ndarray) -> Value | None:
    """The convolution with weights * factor and bias * factor + shift (per output channel), in place of `node`."""
    weights, bias = required(anchor, 1), anchor.constant(2)
    assert weights.data is not None
    if bool((factor != 1).any()) and is_coded(weights.data):
        return None
    old = np.zeros_like(factor) if bias is None else bias.astype(np.float64)
    if bool((factor != 1).any()):
        weights = rw.constant(weights.name, _scale_channels(anchor, weights.data, factor))
    fresh = rw.constant("bias", (old * factor + shift).astype(weights.type.dtype.numpy))
    return _emit(rw, node, anchor, [required(anchor), weights, fresh])


def _scale_channels(anchor: Node, weights: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Weights [K, C/g, …] (Conv) or [C, K/g, …] (ConvTranspose) times a factor for each output channel."""
    ones = (1,) * (weights.ndim - 2)
    if anchor.op == "Conv":
        return np.asarray(weights * factor.reshape(-1, 1, *ones), weights.dtype)
    groups = anchor.attrs.get("group", 1)
    grouped = weights.reshape(groups, -1, *weights.shape[1:])
    scaled = grouped * factor.reshape(groups, 1, -1, *ones)
    return np.asarray(scaled.reshape(weights.shape), weights.dtype)


def _emit(rw: GraphRewriter, node: Node, anchor: Node, operands: list[Value]) -> Value:
    origin = tuple(dict.fromkeys((*anchor.origin, *node.origin)))
    hint = node.output.name
    return rw.emit(anchor.op, operands, [node.output.type], anchor.attrs, origin=origin, hint=hint).output


_NORM = ("BatchNormalization",)
RULES = (
    Rule("norm-into-weights", "norm(conv(x, W) + b) = conv(x, a W) + (a b + c)", _NORM, _norm_into_weights),
    Rule("split-norm", "norm(x) = x a + b", _NORM, _split_norm),
    Rule("scale-into-weights", "(conv(x, W) + b) a = conv(x, a W) + a b", ("Mul",), _scale_into_weights),
    Rule("shift-into-bias", "conv(x, W) + b, b one value a channel", ("Add",), _shift_into_bias),
    Rule("scale-into-matrix", "(x W) a = x (W a)", ("Mul",), _scale_into_matrix),
    Rule("scale-of-input", "conv(x a, W) = conv(x, W a)", ("Conv",), _scale_of_input),
)
