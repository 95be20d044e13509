"""Rules of single nodes of loop IR: types and lanes against those of their operands; empty text where all is right."""

from __future__ import annotations

from .loops import (
    BINARY,
    CALLS,
    COMPARE,
    MATRIX,
    UNARY,
    Binary,
    Bitcast,
    Broadcast,
    Buffer,
    Call,
    Cast,
    Const,
    Dot,
    Expr,
    Fma,
    Lookup,
    MatrixMultiply,
    OnMatrices,
    Ramp,
    Reduce,
    Select,
    Shuffle,
    Unary,
)
from .types import DType

_INT_ONLY = ("and", "or", "xor", "shl", "shr")


def const_problem(e: Const) -> str:
    if e.dtype is DType.BOOL:
        return "" if e.value in (0, 1) else f"{e.value} is no bool"
    if e.dtype.is_float:
        return ""
    low = -(1 << (e.dtype.bits - 1)) if e.dtype.is_signed else 0
    inside = isinstance(e.value, int) and low <= e.value < low + (1 << e.dtype.bits)
    return "" if inside else f"{e.value} is no {e.dtype}"


def node_problem(e: Expr) -> str:
    """Types and lanes of a node against its operands."""
    match e:
        case Binary():
            return _binary_problem(e)
        case Unary():
            return "" if e.op in UNARY and _same(e, e.a) else f"{e.op} of {e.a.dtype}x{e.a.lanes}"
        case Fma():
            return "" if e.dtype.is_float and _same(e, e.a, e.b, e.c) else "operands differ or are no floats"
        case Dot():
            return _dot_problem(e)
        case Lookup():
            return _lookup_problem(e)
        case Cast():
            return "" if e.a.lanes == e.lanes else "lanes differ"
        case Bitcast():
            return _bitcast_problem(e)
        case Select():
            good = e.cond.dtype is DType.BOOL and e.cond.lanes == e.lanes and _same(e, e.a, e.b)
            return "" if good else "needs a bool condition and two values, all of the same lanes"
        case Broadcast():
            return "" if e.a.lanes == 1 and e.a.dtype is e.dtype else f"of {e.a.dtype}x{e.a.lanes}"
        case Ramp():
            return "" if e.dtype is DType.I64 and e.base.dtype is DType.I64 and e.base.lanes == 1 else "needs i64"
        case Shuffle():
            return _shuffle_problem(e)
        case Reduce():
            good = e.op in ("add", "min", "max") and e.lanes == 1 and e.a.dtype is e.dtype
            return "" if good and e.a.lanes & (e.a.lanes - 1) == 0 else f"{e.op} of {e.a.dtype}x{e.a.lanes}"
        case Call():
            good = e.name in CALLS and e.dtype in (DType.F32, DType.F64) and _same(e, *e.args)
            return "" if good and len(e.args) == (2 if e.name in ("pow", "fmod") else 1) else f"{e.name} of {e.dtype}"
    return "unknown node"


def _same(e: Expr, *others: Expr) -> bool:
    return all(o.dtype is e.dtype and o.lanes == e.lanes for o in others)


def _binary_problem(e: Binary) -> str:
    if e.op not in BINARY:
        return f"unknown operation {e.op}"
    if e.a.dtype is not e.b.dtype or e.a.lanes != e.lanes or e.b.lanes != e.lanes:
        return f"{e.op} of {e.a.dtype}x{e.a.lanes} and {e.b.dtype}x{e.b.lanes} to {e.lanes} lanes"
    if e.dtype is not (DType.BOOL if e.op in COMPARE else e.a.dtype):
        return f"{e.op} gives {e.dtype}"
    if e.op in _INT_ONLY and (e.a.dtype.is_float or e.a.dtype is DType.BOOL and e.op in ("shl", "shr")):
        return f"{e.op} of {e.a.dtype}"
    return ""


def _bitcast_problem(e: Bitcast) -> str:
    if e.a.lanes * e.a.dtype.bits != e.lanes * e.dtype.bits:
        return "widths differ"
    return "lanes of bools differ" if e.a.lanes != e.lanes and DType.BOOL in (e.dtype, e.a.dtype) else ""


def _dot_problem(e: Dot) -> str:
    if e.dtype is DType.F32:
        whole = e.a.lanes == e.b.lanes == 2 * e.lanes and e.c.lanes == e.lanes and e.c.dtype is DType.F32
        if whole and e.a.dtype is e.b.dtype is DType.BF16:
            return ""
    small = all(x.dtype.is_int and x.dtype.bits <= 16 for x in (e.a, e.b))
    whole = e.a.lanes == e.b.lanes and e.a.lanes % e.lanes == 0
    narrow = e.dtype is DType.I16 and e.a.dtype.bits == e.b.dtype.bits == 8
    good = small and whole and e.dtype is e.c.dtype and (narrow or e.dtype is DType.I32) and e.c.lanes == e.lanes
    return "" if good else f"of {e.a.dtype}x{e.a.lanes}, {e.b.dtype}x{e.b.lanes} and {e.c.dtype}x{e.c.lanes}"


def is_matrix(buffer: Buffer) -> bool:
    return buffer.space == "matrix" and buffer.lanes == MATRIX * MATRIX and buffer.dtype in (DType.F16, DType.F32)


def matrix_problem(s: OnMatrices) -> str:
    """What is wrong with a statement's buffers."""
    if isinstance(s, MatrixMultiply):
        types = (s.sums.dtype, s.a.dtype)
        wrong = s.a.dtype is not s.b.dtype or types == (DType.F16, DType.F32)
        good = all(is_matrix(b) for b in (s.sums, s.a, s.b))
        return "" if good and not wrong else f"multiplies {s.a.dtype} and {s.b.dtype} into {s.sums.dtype} matrices"
    good = is_matrix(s.matrix) and s.buffer.space == "shared" and s.buffer.lanes == 1
    if not good or s.buffer.dtype is not s.matrix.dtype:
        return f"'{s.matrix.name}' is no matrix of what '{s.buffer.name}' holds in shared memory"
    return "" if s.stride >= MATRIX else f"rows of '{s.buffer.name}' are {s.stride} apart"


def _lookup_problem(e: Lookup) -> str:
    entries, width = e.table.lanes, e.index.dtype.bits
    good = entries > 1 and entries & (entries - 1) == 0 and e.index.dtype.is_int and width == e.table.dtype.bits
    good = good and e.dtype is e.table.dtype and e.lanes == e.index.lanes and e.dtype is not DType.BOOL
    return "" if good else f"in {e.table.dtype}x{entries} of {e.index.dtype}x{e.index.lanes}"


def _shuffle_problem(e: Shuffle) -> str:
    if e.a.dtype is not e.dtype or e.b is not None and not (e.b.dtype is e.dtype and e.b.lanes == e.a.lanes):
        return "operands differ"
    total = e.a.lanes * (1 if e.b is None else 2)
    good = len(e.lanes_of) == e.lanes and all(0 <= i < total for i in e.lanes_of)
    return "" if good else f"lanes {list(e.lanes_of)} of {total}"
