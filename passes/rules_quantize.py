"""Rules that bring quantised networks to one form: QuantizeLinear as near as may be to what makes its operand."""

from __future__ import annotations

import numpy as np

from ..ir.graph import Node, Value
from ..ir.reference import element_type
from ..ir.types import DType
from .base import GraphRewriter, Rule
from .pattern import made_by, required
from .quantization import LEVELS, MOVING, PARTS, dequantized, scale_of


def _raised(rw: GraphRewriter, node: Node) -> Value | None:
    """QuantizeLinear(f(x…)) as f(QuantizeLinear(x)…)."""
    scale, moving = scale_of(node), made_by(node.input(0), *MOVING)
    if moving is None or scale is None or not scale.is_single or not rw.has_one_reader(moving.output):
        return None
    if len(moving.outputs) > 1 or node.output.type.dtype not in LEVELS:
        return None
    count = len(moving.inputs) if moving.op in PARTS else 1
    sources = [required(moving, i) for i in range(count)]
    if all(v.is_constant for v in sources) or any(v.type.dtype is not DType.F32 for v in sources):
        return None
    levels = []
    for v in sources:
        types = [v.type.with_dtype(node.output.type.dtype)]
        levels.append(rw.emit("QuantizeLinear", [v, *node.inputs[1:]], types, node.attrs, origin=node.origin).output)
    return rw.emit_like(node, moving.op, [*levels, *moving.inputs[count:]], **moving.attrs)


def _cancelled(rw: GraphRewriter, node: Node) -> Value | None:
    """QuantizeLinear(DequantizeLinear(x)) with equal scales and types is x."""
    found, mine = dequantized(node.input(0)), scale_of(node)
    if found is None or mine is None or not (mine.is_single and found[1].is_single):
        return None
    same = (mine.step, mine.offset) == (found[1].step, found[1].offset)
    return found[0] if same and found[0].type == node.output.type else None


def _spread(rw: GraphRewriter, node: Node) -> Value | None:
    """QLinearConv as Conv between DequantizeLinear and QuantizeLinear."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.inputs[:8]
    bias = node.input(8)
    scales = [v for v in (x_scale, w_scale, y_scale) if v is not None and v.data is not None]
    if x is None or w is None or w.data is None or len(scales) < 3 or bias is not None and bias.data is None:
        return None
    if any(v is not None and v.data is None for v in (x_zero, w_zero, y_zero)) or scales[2].type.size != 1:
        return None
    if scales[0].type.size != 1 or any(v.type.dtype is not DType.F32 for v in scales):
        return None
    emit = rw.emit
    wide = x.type.with_dtype(DType.F32)
    data = emit("DequantizeLinear", [x, scales[0], x_zero], [wide], origin=node.origin).output
    types = [w.type.with_dtype(DType.F32)]
    axis = {"axis": 0} if scales[1].type.size > 1 else {}
    if axis and w_zero is not None and w_zero.data is not None and w_zero.type.size == 1:
        w_zero = rw.constant(w_zero.name, np.broadcast_to(w_zero.data.reshape(()), scales[1].type.dims).copy())
    weights = emit("DequantizeLinear", [w, scales[1], w_zero], types, axis, origin=node.origin).output
    inputs: list[Value | None] = [data, weights]
    if bias is not None:
        assert scales[0].data is not None and scales[1].data is not None and bias.data is not None
        steps = np.broadcast_to(scales[0].data.reshape(()) * scales[1].data, bias.type.dims).astype(np.float32)
        types = [bias.type.with_dtype(DType.F32)]
        scale = rw.constant("bias_scale", steps)
        inputs.append(emit("DequantizeLinear", [bias, scale], types, {"axis": 0}, origin=node.origin).output)
    y = emit("Conv", inputs, [node.output.type.with_dtype(DType.F32)], node.attrs, origin=node.origin).output
    return rw.emit_like(node, "QuantizeLinear", [y, scales[2], y_zero])


def _dynamic(rw: GraphRewriter, node: Node) -> Value | None:
    """ConvInteger of levels whose zero point is known at run time only, given as f32: its levels are i16 less that."""
    found = _of_known_weights(rw, node)
    if found is None:
        return None
    conv, weights = found
    x, x_zero = required(conv), conv.input(2)
    wide = {"to": element_type(DType.I16)}
    levels = rw.emit("Cast", [x], [x.type.with_dtype(DType.I16)], wide, origin=conv.origin).output
    if x_zero is not None:
        zero = rw.emit("Cast", [x_zero], [x_zero.type.with_dtype(DType.I16)], wide, origin=conv.origin).output
        levels = rw.emit("Sub", [levels, zero], [levels.type], origin=conv.origin).output
    return rw.emit_like(node, "c2c.IntegerConv", [levels, weights], **conv.attrs, **_SPAN)


def _dynamic_bytes(rw: GraphRewriter, node: Node) -> Value | None:
    """The same in bytes, with their zero point."""
    found = _of_known_weights(rw, node)
    if found is None:
        return None
    conv, weights = found
    zero = [] if conv.input(2) is None else [None, conv.input(2)]
    return rw.emit_like(node, "c2c.IntegerConv", [required(conv), weights, *zero], **conv.attrs, **_SPAN)


_SPAN = {"largest": 255, "least": -255}
"""Of bytes less any zero point of theirs."""


def _of_known_weights(rw: GraphRewriter, node: Node) -> tuple[Node, Value] | None:
    """A ConvInteger that is cast to f32 and nobody else reads, and its weights without their zero points."""
    conv = made_by(node.input(0), "ConvInteger")
    if conv is None or node.output.type.dtype is not DType.F32 or not rw.has_one_reader(conv.output):
        return None
    w, x_zero, w_zero = required(conv, 1), conv.input(2), conv.input(3)
    known = w.data is not None and (w_zero is None or w_zero.data is not None)
    if w.data is None or not known or x_zero is not None and x_zero.type.size != 1:
        return None
    weights = w.data.astype(np.int16)
    if w_zero is not None and w_zero.data is not None:
        weights = weights - w_zero.data.astype(np.int16).reshape(-1, *(1,) * (w.type.rank - 1))
    if np.abs(weights).max(initial=0) <= 127:
        weights = weights.astype(np.int8)
    return conv, rw.constant(w.name, weights)


_SHARED = (
    Rule("spread-qlinear-conv", "QLinearConv(x, …) = Q(Conv(DQ(x), DQ(w), DQ(b)))", ("QLinearConv",), _spread),
    Rule("cancel-quantize", "Q(DQ(x)) = x", ("QuantizeLinear",), _cancelled),
    Rule("raise-quantize", "Q(f(x)) = f(Q(x))", ("QuantizeLinear",), _raised),
)

RULES = (
    Rule("dynamic-convolution", "f32(ConvInteger(x, w, z)) = integer-conv(i16(x) - z, w)", ("Cast",), _dynamic),
    *_SHARED,
)
RULES_OF_GRIDS = (
    Rule("dynamic-convolution", "f32(ConvInteger(x, w, z)) = integer-conv(x, w, z)", ("Cast",), _dynamic_bytes),
    *_SHARED,
)
"""For targets whose convolutions of bytes take a zero point that is known when they run only."""
