"""Types and constants of LLVM IR text.

Values of f16 and bf16 are held as i16: LLVM turns arithmetic on them into calls of a support library on targets that
lack it, and an object of ours calls none.
"""

from __future__ import annotations

import struct

import ml_dtypes
import numpy as np

from ..ir.types import DType

_VALUE = {
    DType.F32: "float", DType.F64: "double", DType.F16: "i16", DType.BF16: "i16", DType.I8: "i8", DType.I16: "i16",
    DType.I32: "i32", DType.I64: "i64", DType.U8: "i8", DType.U16: "i16", DType.U32: "i32", DType.U64: "i64",
    DType.BOOL: "i1",
}  # fmt: skip


def vector(scalar: str, lanes: int) -> str:
    """A vector of `lanes`, the scalar itself for one lane."""
    return scalar if lanes == 1 else f"<{lanes} x {scalar}>"


def value_type(dtype: DType, lanes: int = 1) -> str:
    """Type of a value in registers."""
    return vector(_VALUE[dtype], lanes)


def memory_type(dtype: DType, lanes: int = 1) -> str:
    """Type of a value in memory: a bool takes a byte."""
    return vector("i8" if dtype is DType.BOOL else _VALUE[dtype], lanes)


def splat(scalar: str, text: str, lanes: int) -> str:
    """A constant in every lane."""
    return text if lanes == 1 else f"splat ({scalar} {text})"


def constant(dtype: DType, lanes: int, value: float) -> str:
    """A constant of `value_type(dtype, lanes)` with the same value in every lane."""
    return splat(_VALUE[dtype], scalar_constant(dtype, value), lanes)


def scalar_constant(dtype: DType, value: float) -> str:
    if dtype is DType.BOOL:
        return "true" if value else "false"
    if dtype is DType.F32:
        with np.errstate(over="ignore"):
            return _hexadecimal(float(np.float32(value)))
    if dtype is DType.F64:
        return _hexadecimal(float(value))
    if dtype in (DType.F16, DType.BF16):
        half = np.float16 if dtype is DType.F16 else ml_dtypes.bfloat16
        with np.errstate(over="ignore"):
            return str(int(np.asarray(value, half).view(np.int16)))
    wrapped = int(value) & ((1 << dtype.bits) - 1)
    return str(wrapped - (1 << dtype.bits) if wrapped >> (dtype.bits - 1) else wrapped)


def _hexadecimal(value: float) -> str:
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def mask(indices: tuple[int, ...]) -> str:
    """A shuffle's lane numbers."""
    return f"<{len(indices)} x i32> <" + ", ".join(f"i32 {i}" for i in indices) + ">"
