"""Rows of the elementwise table that change the element type: Cast, BitCast, QuantizeLinear, DequantizeLinear."""

from __future__ import annotations

import numpy as np

from ...ir.loops import Const, Expr, binary, bitcast, cast, const, maximum, minimum, select, unary
from ...ir.loops_builder import Builder
from ...ir.types import DType
from .elementwise_table import Application, rule


@rule("Cast", "CastLike", exact=True)
def convert_type(a: Application) -> Expr:
    return convert(a.k, a.x, a.out)


@rule("BitCast", exact=True)
def reinterpret(a: Application) -> Expr:
    if a.x.dtype.bits != a.out.bits:
        raise a.unsupported(f"BitCast from {a.x.dtype} to {a.out} changes the number of elements")
    return bitcast(a.x, a.out)


def convert(k: Builder, x: Expr, dtype: DType) -> Expr:
    """ONNX Cast: float to integer truncates (a number out of range is unspecified, and wraps for narrow types)."""
    if x.dtype is dtype:
        return x
    if isinstance(x, Const):
        return Const(dtype, x.lanes, _number(np.asarray(x.value).astype(x.dtype.numpy).astype(dtype.numpy)))
    if dtype.is_float and dtype.bits == 16 and x.dtype is DType.F64:
        return cast(_odd_f32(k, x), dtype)
    if _is_half(x.dtype) or (_is_half(dtype) and x.dtype is not DType.F32):
        return convert(k, cast(x, DType.F32), dtype)
    if x.dtype.is_float and dtype.is_int and dtype.bits < 32:
        return cast(cast(x, DType.I32), dtype)
    return cast(x, dtype)


def _is_half(dtype: DType) -> bool:
    return dtype in (DType.F16, DType.BF16)


def _number(x: np.ndarray) -> float | int | bool:
    value: float | int | bool = x.astype(np.float32).item() if x.dtype.kind == "V" else x.item()
    return value


def _odd_f32(k: Builder, x: Expr) -> Expr:
    """f64 to f32 rounded to odd, so that the second rounding, to 16 bits, is right (Boldo and Melquiond, 2008)."""
    x = k.let(x)
    near = k.let(cast(x, DType.F32))
    back = k.let(cast(near, DType.F64))
    bits = k.let(bitcast(near, DType.I32))
    toward_zero = k.let(select(unary("abs", back) > unary("abs", x), bits - 1, bits))
    inexact = binary("ne", back, x) & binary("eq", x, x)
    return bitcast(select(inexact, toward_zero | 1, bits), DType.F32)


@rule("QuantizeLinear")
def quantize(a: Application) -> Expr:
    """saturate(round half even(x / scale) + zero point)."""
    x, scale, zero = a.x, a.arg(1), a.option(2)
    if not a.out.is_int:
        raise a.unsupported(f"QuantizeLinear to {a.out} is not supported", "use an 8- or 16-bit integer type")
    wide = DType.F64 if x.dtype is DType.F64 else DType.F32
    y = unary("round", cast(x, wide) / convert(a.k, scale, wide))
    if zero is not None:
        y = y + convert(a.k, zero, wide)
    return convert(a.k, _saturated(y, a.out), a.out)


def _saturated(y: Expr, dtype: DType) -> Expr:
    limits = np.iinfo(dtype.numpy)
    low, high = (const(float(v), y.dtype, y.lanes) for v in (limits.min, limits.max))
    return minimum(maximum(y, low), high)


@rule("DequantizeLinear")
def dequantize(a: Application) -> Expr:
    """(x - zero point) * scale in the scale's type; the difference is exact."""
    x, scale, zero = a.x, a.arg(1), a.option(2)
    if zero is not None:
        x = convert(a.k, x, DType.I32) - convert(a.k, zero, DType.I32)
    return convert(a.k, x, scale.dtype) * scale
