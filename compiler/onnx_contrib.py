"""Operators of onnxruntime's domain com.microsoft that quantisers write, in terms of ONNX's own.

Sources: onnxruntime, docs/ContribOperators.md. Sums are exact where onnxruntime's are. DynamicQuantizeLSTM makes levels
of all inputs together and of the state a row and step; onnxruntime leaves out inputs beyond the longest sequence, and
takes all rows of a batch together. With peepholes or options it is computed in floats, with the weights that its
levels stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from ..ir.errors import OnnxImportError, UnsupportedOpError
from ..ir.graph import Value
from ..ir.reference import element_type
from ..ir.types import DType
from .onnx_upgrade import Emit, OldNode

DOMAIN = "com.microsoft"

Contrib = Callable[[OldNode, Emit], tuple[Value, ...]]


def contrib_attributes(proto: NodeProto) -> dict[str, Any]:
    """Attributes as they stand; there is no schema to check them by."""
    found = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}


def expand_contrib(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """Results of an operator of the domain; raises UnsupportedOpError for one that is not in the table."""
    rule = _RULES.get(node.op)
    if rule is None:
        raise UnsupportedOpError(
            f"operator {DOMAIN}.{node.op} is not known: the model uses an operator that ONNX does not have",
            remedy="export the model with standard operators",
        )
    return rule(node, emit)


# ---- pieces


def _operand(node: OldNode, index: int) -> Value:
    value = node.input(index)
    if value is None:
        raise OnnxImportError(f"input {index} of {node.op} is left out")
    return value


def _data(node: OldNode, index: int) -> np.ndarray:
    value = _operand(node, index)
    if value.data is None:
        raise UnsupportedOpError(f"input {index} of {node.op} must be constant")
    return value.data


def _one(emit: Emit, op: str, *inputs: Value | None, **attrs: Any) -> Value:
    (value,) = emit.emit(op, inputs, attrs)
    return value


def _to_float(emit: Emit, x: Value) -> Value:
    return _one(emit, "Cast", x, to=element_type(DType.F32))


def _dequantized(node: OldNode, emit: Emit, first: int) -> Value:
    """The tensor whose levels, scale and zero point are inputs `first` on."""
    return _one(emit, "DequantizeLinear", _operand(node, first), _operand(node, first + 1), node.input(first + 2))


def _quantized(node: OldNode, emit: Emit, x: Value, first: int, levels: DType) -> tuple[Value, ...]:
    """x by the scale and zero point that are inputs `first` on; without a zero point to `levels`."""
    zero = node.input(first + 1) or emit.constant(np.zeros((), levels.numpy))
    return emit.emit("QuantizeLinear", [x, _operand(node, first), zero], {})


# ---- elementwise, pooling, joining


def _of_two(op: str) -> Contrib:
    def rule(node: OldNode, emit: Emit) -> tuple[Value, ...]:
        y = _one(emit, op, _dequantized(node, emit, 0), _dequantized(node, emit, 3))
        return _quantized(node, emit, y, 6, node.data.type.dtype)

    return rule


def _of_one(op: str, kept: tuple[str, ...] = ()) -> Contrib:
    def rule(node: OldNode, emit: Emit) -> tuple[Value, ...]:
        if node.attrs.get("channels_last", 0):
            raise UnsupportedOpError(f"{node.op} of channels that stand last is not supported")
        attrs = {k: v for k, v in node.attrs.items() if k in kept}
        y = _one(emit, op, _dequantized(node, emit, 0), **attrs)
        return _quantized(node, emit, y, 3, node.data.type.dtype)

    return rule


def _concat(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    parts = [_dequantized(node, emit, i) for i in range(2, len(node.inputs), 3)]
    y = _one(emit, "Concat", *parts, axis=node.attrs["axis"])
    return _quantized(node, emit, y, 0, _operand(node, 2).type.dtype)


def _standard(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """Operators that ONNX has taken over as they are."""
    return emit.emit(node.op, node.inputs, node.attrs)


# ---- products


def _transposed(emit: Emit, x: Value, swap: int) -> Value:
    return _one(emit, "Transpose", x, perm=(1, 0)) if swap else x


def _product(emit: Emit, a: Value, a_zero: Value | None, b: Value, b_zero: Value | None) -> Value:
    return _one(emit, "MatMulInteger", a, b, a_zero, b_zero)


def _gemm(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """alpha · a_scale · b_scale · ((A - a_zero) (B - b_zero) + C), quantised where there is a y_scale."""
    a = _transposed(emit, _operand(node, 0), node.attrs.get("transA", 0))
    b = _transposed(emit, _operand(node, 3), node.attrs.get("transB", 0))
    sums = _product(emit, a, node.input(2), b, node.input(5))
    if node.input(6) is not None:
        sums = _one(emit, "Add", sums, node.input(6))
    factor = _one(emit, "Mul", _operand(node, 1), _operand(node, 4))
    if (alpha := node.attrs.get("alpha", 1.0)) != 1.0:
        factor = _one(emit, "Mul", factor, emit.constant(np.asarray(alpha, np.float32)))
    if node.input(7) is None:
        return (_one(emit, "Mul", _to_float(emit, sums), factor),)
    y = _one(emit, "Mul", _to_float(emit, sums), _one(emit, "Div", factor, node.input(7)))
    zero = node.input(8) or emit.constant(np.zeros((), node.data.type.dtype.numpy))
    return emit.emit("QuantizeLinear", [y, emit.constant(np.asarray(1, np.float32)), zero], {})


def _integer_to_float(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """Inputs A, B, a_scale, b_scale, a_zero, b_zero, bias."""
    sums = _product(emit, node.data, node.input(4), _operand(node, 1), node.input(5))
    return (_with_bias(emit, sums, _one(emit, "Mul", _operand(node, 2), _operand(node, 3)), node.input(6)),)


def _dynamic_product(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """Inputs A (float), B, b_scale, b_zero, bias."""
    q, scale, zero = emit.emit("DynamicQuantizeLinear", [node.data], {}, 3)
    sums = _product(emit, q, zero, _operand(node, 1), node.input(3))
    return (_with_bias(emit, sums, _one(emit, "Mul", scale, _operand(node, 2)), node.input(4)),)


def _with_bias(emit: Emit, sums: Value, factor: Value, bias: Value | None) -> Value:
    y = _one(emit, "Mul", _to_float(emit, sums), factor)
    return y if bias is None else _one(emit, "Add", y, bias)


def _n_bits(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """MatMulNBits: inputs A, B [N, blocks, bytes], scales, zero points, g_idx, bias; levels of K in blocks."""
    k, n, bits, size = (int(node.attrs[name]) for name in ("K", "N", "bits", "block_size"))
    blocks = -(-k // size)
    if node.input(4) is not None:
        raise UnsupportedOpError("MatMulNBits with g_idx is not supported")
    if bits not in (2, 4, 8):
        raise UnsupportedOpError(f"MatMulNBits of {bits} bits is not supported", remedy="use 2, 4 or 8 bits")
    levels = _unpacked(_data(node, 1).reshape(n, blocks, -1), bits)[..., :size].reshape(n, -1)[:, :k]
    scales = _data(node, 2).reshape(n, blocks)
    zeros: np.ndarray = np.full((n, blocks), 1 << (bits - 1), np.uint8)
    if node.input(3) is not None:
        given = _data(node, 3)
        if given.dtype != np.uint8:
            raise UnsupportedOpError("MatMulNBits with zero points that are floats is not supported")
        zeros = _unpacked(given.reshape(n, -1), bits)[:, :blocks]
    inputs = [emit.constant(np.ascontiguousarray(a.T)) for a in (levels, scales, zeros)]
    weights = _one(emit, "DequantizeLinear", *inputs, axis=0, block_size=size)
    y = _one(emit, "MatMul", node.data, weights)
    return (y if node.input(5) is None else _one(emit, "Add", y, node.input(5)),)


def _unpacked(data: np.ndarray, bits: int) -> np.ndarray:
    """Levels of the last axis of bytes, the lowest bits first."""
    parts = [(data >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(*data.shape[:-1], -1)


def _lstm(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """Inputs X, W [directions, size, 4H], R, B, sequence_lens, initial_h, initial_c, P, then scales and zero points of
    W and R, one a direction or one a column of it."""
    if node.input(7) is not None or node.attrs.keys() - {"direction", "hidden_size"}:
        return _lstm_of_floats(node, emit)
    w, r = _levels(node, 1, 8), _levels(node, 2, 10)
    directions, size, columns = w.centred.shape
    if not (w.fits and r.fits) or not size * columns:
        return _lstm_of_floats(node, emit)
    total = directions * columns
    x, x_scale, x_zero = emit.emit("DynamicQuantizeLinear", [node.data], {}, 3)
    w_levels = emit.constant(np.ascontiguousarray(w.centred.transpose(1, 0, 2)).reshape(size, total))
    sums = _product(emit, x, x_zero, w_levels, None)
    step = np.broadcast_to(w.scale, (directions, columns)).reshape(total)
    factor = _one(emit, "Mul", x_scale, emit.constant(np.ascontiguousarray(step)))
    gates = _with_bias(emit, sums, factor, _gate_bias(node, emit, total))
    r_levels = emit.constant(np.ascontiguousarray(r.centred.transpose(0, 2, 1)))
    inputs = [gates, emit.constant(r.scale), r_levels, None, *(node.input(i) for i in (4, 5, 6))]
    return emit.emit("c2c.DynamicLSTM", inputs, node.attrs, node.outputs)


def _gate_bias(node: OldNode, emit: Emit, total: int) -> Value | None:
    """B [directions, 8H], those of W and R together, as [directions · 4H]."""
    b = node.input(3)
    if b is None:
        return None
    first, second = emit.emit("Split", [b], {"axis": 1, "num_outputs": 2}, 2)
    return _one(emit, "Reshape", _one(emit, "Add", first, second), emit.constant(np.asarray([total], np.int64)))


@dataclass(frozen=True, slots=True)
class _Levels:
    """Weights [directions, rows, columns] of scale · levels, scale [directions, 1 or columns]."""

    centred: np.ndarray
    scale: np.ndarray

    @property
    def fits(self) -> bool:
        return self.centred.dtype == np.int8


def _levels(node: OldNode, index: int, first: int) -> _Levels:
    """Levels less their zero points, i8 where they fit, else i16."""
    levels, scale, zero = (_data(node, i) for i in (index, first, first + 1))
    placed = zero.reshape(len(levels), 1, -1).astype(np.int16)
    centred = levels.astype(np.int16) - placed
    fits = centred.size == 0 or centred.min() >= -128 and centred.max() <= 127
    return _Levels(centred.astype(np.int8) if fits else centred, scale.reshape(len(levels), -1))


def _lstm_of_floats(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """With the weights that levels stand for."""
    inputs = [node.input(i) for i in range(8)]
    for index, first in ((1, 8), (2, 10)):
        found = _levels(node, index, first)
        weights = found.centred.astype(np.float32) * found.scale[:, None, :]
        inputs[index] = emit.constant(np.ascontiguousarray(weights.transpose(0, 2, 1)))
    return emit.emit("LSTM", inputs, node.attrs, node.outputs)


_RULES: Mapping[str, Contrib] = {
    "QuantizeLinear": _standard,
    "DequantizeLinear": _standard,
    "QLinearAdd": _of_two("Add"),
    "QLinearMul": _of_two("Mul"),
    "QLinearSigmoid": _of_one("Sigmoid"),
    "QLinearLeakyRelu": _of_one("LeakyRelu", ("alpha",)),
    "QLinearSoftmax": _of_one("Softmax", ("axis",)),
    "QLinearGlobalAveragePool": _of_one("GlobalAveragePool"),
    "QLinearAveragePool": _of_one(
        "AveragePool", ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
    ),
    "QLinearConcat": _concat,
    "QGemm": _gemm,
    "MatMulIntegerToFloat": _integer_to_float,
    "DynamicQuantizeMatMul": _dynamic_product,
    "DynamicQuantizeLSTM": _lstm,
    "MatMulNBits": _n_bits,
}
