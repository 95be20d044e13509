"""What nodes of loop IR give for the values of their operands: arrays of as many elements as they have lanes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .loops import (
    Binary,
    Bitcast,
    Broadcast,
    Cast,
    Dot,
    Expr,
    Fma,
    Lookup,
    Reduce,
    Select,
    Shuffle,
    Unary,
)
from .types import DType

Array = np.ndarray[Any, Any]

_SMALL = (DType.F16, DType.BF16)


def combine(e: Expr, x: list[Array]) -> Array:
    """The value of a node from the values of its operands."""
    match e:
        case Binary():
            return binary(e.op, e.a.dtype, x[0], x[1])
        case Unary():
            return unary(e.op, e.dtype, x[0])
        case Fma():
            wide = [_widen(e.dtype, v) for v in x]
            return (wide[0] * wide[1] + wide[2]).astype(e.dtype.numpy)
        case Dot():
            kind = np.float64 if e.dtype is DType.F32 else np.int64
            products = (x[0].astype(kind) * x[1].astype(kind)).reshape(e.lanes, -1).sum(1)
            if e.dtype is DType.F32:
                return np.asarray(products + x[2], np.float32)
            return np.asarray(products + x[2], np.int64).astype(e.dtype.numpy)
        case Lookup():
            return np.take(x[0], x[1].astype(np.int64) & (e.table.lanes - 1))
        case Cast():
            return x[0] != 0 if e.dtype is DType.BOOL else x[0].astype(e.dtype.numpy)
        case Bitcast():
            return x[0].view(e.dtype.numpy)
        case Select():
            return np.where(x[0], x[1], x[2])
        case Broadcast():
            return np.repeat(x[0], e.lanes)
        case Shuffle():
            return np.concatenate(x)[list(e.lanes_of)]
        case Reduce():
            found = x[0]
            while len(found) > 1:
                half = len(found) // 2
                found = binary(e.op, e.dtype, found[:half], found[half:])
            return found
    raise AssertionError(f"{type(e).__name__} cannot be evaluated")


def _widen(dtype: DType, a: Array) -> Array:
    return a.astype(np.float32) if dtype in _SMALL else a


_COMPARE: dict[str, Callable[..., Any]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "mod": np.fmod, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "shl": np.left_shift, "shr": np.right_shift,
}  # fmt: skip


def binary(op: str, dtype: DType, a: Array, b: Array) -> Array:
    """a op b on elements of `dtype`."""
    x, y = _widen(dtype, a), _widen(dtype, b)
    if op in _COMPARE:
        found: Array = _COMPARE[op](x, y)
        return found
    if op in ("min", "max"):
        return np.where(x < y if op == "min" else x > y, a, b)
    if op == "div" and not dtype.is_float:
        return (a - np.fmod(a, b)) // b
    result: Array = x / y if op == "div" else _ARITHMETIC[op](x, y)
    return result.astype(dtype.numpy)


_FLOAT_UNARY: dict[str, Callable[..., Any]] = {
    "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil, "round": np.rint,
    "trunc": np.trunc,
}  # fmt: skip


def unary(op: str, dtype: DType, a: Array) -> Array:
    """op of elements of `dtype`."""
    if op == "not":
        return ~a
    if dtype.is_float:
        found: Array = _FLOAT_UNARY[op](_widen(dtype, a)).astype(dtype.numpy)
        return found
    return -a if op == "neg" else abs(a) if op == "abs" else a


def call(name: str, dtype: DType, args: list[Array]) -> Array:
    """A function of CALLS, computed in double and rounded to `dtype`."""
    if name == "erf":
        return np.array([math.erf(float(v)) for v in args[0]], dtype.numpy)
    found: Array = getattr(np, {"pow": "power"}.get(name, name))(*(a.astype(np.float64) for a in args))
    return found.astype(dtype.numpy)
