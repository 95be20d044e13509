"""Conversions between element types as LLVM IR text, those of f16 and bf16 by integer arithmetic where needed.

f64 and integers reach f16 and bf16 through f32, f64 rounded to odd there, so that the second rounding sees what the
first lost (Boldo, Melquiond: When double rounding is odd, IMACS 2005).
"""

from __future__ import annotations

from ..ir.types import DType
from .llvm_types import constant, value_type, vector
from .llvm_writer import Writer
from .target import Target

HALVES = (DType.F16, DType.BF16)


def convert(w: Writer, target: Target, value: str, source: DType, to: DType, lanes: int) -> str:
    """`value` of type `source` as `to`."""
    if source is to:
        return value
    if source in HALVES:
        wide = to_f32(w, target, value, source, lanes)
        return convert(w, target, wide, DType.F32, to, lanes)
    if to in HALVES:
        if source is DType.F64:
            wide = _round_to_odd(w, value, lanes)
        else:
            wide = convert(w, target, value, source, DType.F32, lanes)
        return from_f32(w, target, wide, to, lanes)
    a, b = value_type(source, lanes), value_type(to, lanes)
    if to is DType.BOOL:
        test = "fcmp une" if source.is_float else "icmp ne"
        return w.op(f"{test} {a} {value}, {constant(source, lanes, 0)}")
    if source.is_float and to.is_int:
        return _float_to_int(w, value, source, to, lanes)
    if a == b:
        return value
    return w.op(f"{_operation(source, to)} {a} {value} to {b}")


def _operation(source: DType, to: DType) -> str:
    if source.is_float:
        return "fpext" if to is DType.F64 else "fptrunc"
    if to.is_float:
        return "sitofp" if source.is_signed else "uitofp"
    if source is DType.BOOL:
        return "zext"
    if to.bits < source.bits:
        return "trunc"
    return "sext" if source.is_signed else "zext"


def _float_to_int(w: Writer, value: str, source: DType, to: DType, lanes: int) -> str:
    """Through i32 or i64 where that holds every value of `to`: LLVM's code is better, and 8 and 16 bit wrap."""
    a, b = value_type(source, lanes), value_type(to, lanes)
    via = to if to.bits == 64 or to is DType.I32 else DType.I64 if to is DType.U32 else DType.I32
    wide = value_type(via, lanes)
    made = w.op(f"{'fptosi' if via.is_signed else 'fptoui'} {a} {value} to {wide}")
    return made if wide == b else w.op(f"trunc {wide} {made} to {b}")


def to_f32(w: Writer, target: Target, value: str, source: DType, lanes: int) -> str:
    """f16 or bf16 (as i16) to f32, exact."""
    i16, i32, f32 = vector("i16", lanes), vector("i32", lanes), vector("float", lanes)
    if source is DType.F16 and target.converts_f16:
        half = w.op(f"bitcast {i16} {value} to {vector('half', lanes)}")
        return w.op(f"fpext {vector('half', lanes)} {half} to {f32}")
    wide = w.op(f"zext {i16} {value} to {i32}")
    if source is DType.BF16:
        bits = w.op(f"shl {i32} {wide}, {_int(16, lanes)}")
        return w.op(f"bitcast {i32} {bits} to {f32}")
    magnitude = w.op(f"and {i32} {wide}, {_int(0x7FFF, lanes)}")
    shifted = w.op(f"shl {i32} {magnitude}, {_int(13, lanes)}")
    number = w.op(f"bitcast {i32} {shifted} to {f32}")
    scaled = w.op(f"fmul {f32} {number}, {constant(DType.F32, lanes, 2.0**112)}")
    bits = w.op(f"bitcast {f32} {scaled} to {i32}")
    special = w.op(f"or {i32} {shifted}, {_int(0x7F800000, lanes)}")
    is_special = w.op(f"icmp uge {i32} {magnitude}, {_int(0x7C00, lanes)}")
    bits = w.op(f"select {vector('i1', lanes)} {is_special}, {i32} {special}, {i32} {bits}")
    sign = w.op(f"xor {i32} {wide}, {magnitude}")
    sign = w.op(f"shl {i32} {sign}, {_int(16, lanes)}")
    bits = w.op(f"or {i32} {bits}, {sign}")
    return w.op(f"bitcast {i32} {bits} to {f32}")


def from_f32(w: Writer, target: Target, value: str, to: DType, lanes: int) -> str:
    """f32 to f16 or bf16 (as i16), to nearest even."""
    i16, i32, f32 = vector("i16", lanes), vector("i32", lanes), vector("float", lanes)
    if to is DType.F16 and target.converts_f16:
        half = w.op(f"fptrunc {f32} {value} to {vector('half', lanes)}")
        return w.op(f"bitcast {vector('half', lanes)} {half} to {i16}")
    bits = w.op(f"bitcast {f32} {value} to {i32}")
    made = _bf16_bits(w, value, bits, lanes) if to is DType.BF16 else _f16_bits(w, bits, lanes)
    return w.op(f"trunc {i32} {made} to {i16}")


def _bf16_bits(w: Writer, value: str, bits: str, lanes: int) -> str:
    i1, i32, f32 = vector("i1", lanes), vector("i32", lanes), vector("float", lanes)
    high = w.op(f"lshr {i32} {bits}, {_int(16, lanes)}")
    odd = w.op(f"and {i32} {high}, {_int(1, lanes)}")
    near = w.op(f"add {i32} {bits}, {_int(0x7FFF, lanes)}")
    near = w.op(f"add {i32} {near}, {odd}")
    near = w.op(f"lshr {i32} {near}, {_int(16, lanes)}")
    quiet = w.op(f"or {i32} {high}, {_int(0x40, lanes)}")
    nan = w.op(f"fcmp uno {f32} {value}, {value}")
    return w.op(f"select {i1} {nan}, {i32} {quiet}, {i32} {near}")


def _f16_bits(w: Writer, bits: str, lanes: int) -> str:
    """Three ranges of the magnitude: normal (add half a unit to the even side), subnormal (the f32 adder rounds at
    the right bit when 0.5 is added), and beyond the largest f16 (infinity or NaN)."""
    i1, i32, f32 = vector("i1", lanes), vector("i32", lanes), vector("float", lanes)
    magnitude = w.op(f"and {i32} {bits}, {_int(0x7FFFFFFF, lanes)}")
    sign = w.op(f"lshr {i32} {bits}, {_int(16, lanes)}")
    sign = w.op(f"and {i32} {sign}, {_int(0x8000, lanes)}")
    odd = w.op(f"lshr {i32} {magnitude}, {_int(13, lanes)}")
    odd = w.op(f"and {i32} {odd}, {_int(1, lanes)}")
    normal = w.op(f"add {i32} {magnitude}, {_int(((15 - 127) << 23) + 0xFFF, lanes)}")
    normal = w.op(f"add {i32} {normal}, {odd}")
    normal = w.op(f"lshr {i32} {normal}, {_int(13, lanes)}")
    number = w.op(f"bitcast {i32} {magnitude} to {f32}")
    tiny = w.op(f"fadd {f32} {number}, {constant(DType.F32, lanes, 0.5)}")
    tiny = w.op(f"bitcast {f32} {tiny} to {i32}")
    tiny = w.op(f"sub {i32} {tiny}, {_int(126 << 23, lanes)}")
    is_tiny = w.op(f"icmp ult {i32} {magnitude}, {_int(113 << 23, lanes)}")
    made = w.op(f"select {i1} {is_tiny}, {i32} {tiny}, {i32} {normal}")
    nan = w.op(f"icmp ugt {i32} {magnitude}, {_int(0x7F800000, lanes)}")
    special = w.op(f"select {i1} {nan}, {i32} {_int(0x7E00, lanes)}, {i32} {_int(0x7C00, lanes)}")
    huge = w.op(f"icmp uge {i32} {magnitude}, {_int((127 + 16) << 23, lanes)}")
    made = w.op(f"select {i1} {huge}, {i32} {special}, {i32} {made}")
    return w.op(f"or {i32} {made}, {sign}")


def _round_to_odd(w: Writer, value: str, lanes: int) -> str:
    """f64 to f32; where that is inexact, to the neighbour with an odd last bit."""
    i1, i32 = vector("i1", lanes), vector("i32", lanes)
    f32, f64 = vector("float", lanes), vector("double", lanes)
    near = w.op(f"fptrunc {f64} {value} to {f32}")
    back = w.op(f"fpext {f32} {near} to {f64}")
    bits = w.op(f"bitcast {f32} {near} to {i32}")
    absolute = f"llvm.fabs.{_suffix('f64', lanes)}"
    beyond = w.op(f"fcmp ogt {f64} {w.call(absolute, f64, (f64, back))}, {w.call(absolute, f64, (f64, value))}")
    inexact = w.op(f"fcmp one {f64} {back}, {value}")
    even = w.op(f"and {i32} {bits}, {_int(1, lanes)}")
    even = w.op(f"icmp eq {i32} {even}, {_int(0, lanes)}")
    step = w.op(f"select {i1} {beyond}, {i32} {_int(-1, lanes)}, {i32} {_int(1, lanes)}")
    moved = w.op(f"add {i32} {bits}, {step}")
    move = w.op(f"and {i1} {inexact}, {even}")
    bits = w.op(f"select {i1} {move}, {i32} {moved}, {i32} {bits}")
    return w.op(f"bitcast {i32} {bits} to {f32}")


def _suffix(scalar: str, lanes: int) -> str:
    return scalar if lanes == 1 else f"v{lanes}{scalar}"


def _int(value: int, lanes: int) -> str:
    return constant(DType.I32, lanes, value)
