"""Sums of products of small integers as LLVM IR text: one instruction where the target has it, else wide products."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.loops import Const, Dot
from ..ir.types import DType
from .llvm_convert import to_f32
from .llvm_types import splat, value_type, vector
from .llvm_writer import Writer
from .target import Target


@dataclass(frozen=True, slots=True)
class _Instruction:
    """An intrinsic for `lanes` sums of products of `a` and `b`; `adds`: it adds to a first operand.

    words: whether it takes its factors as vectors of i32.
    """

    name: str
    feature: str
    a: DType
    b: DType
    group: int
    lanes: int
    adds: bool = True
    words: bool = False


_INSTRUCTIONS = (
    _Instruction("llvm.x86.avx512.vpdpbusd.512", "avx512vnni", DType.U8, DType.I8, 4, 16, words=True),
    _Instruction("llvm.x86.avx512.vpdpwssd.512", "avx512vnni", DType.I16, DType.I16, 2, 16, words=True),
    _Instruction("llvm.x86.avx512.vpdpbusd.256", "avxvnni", DType.U8, DType.I8, 4, 8, words=True),
    _Instruction("llvm.x86.avx512.vpdpwssd.256", "avxvnni", DType.I16, DType.I16, 2, 8, words=True),
    _Instruction("llvm.x86.avx512.pmaddw.d.512", "avx512bw", DType.I16, DType.I16, 2, 16, adds=False),
    _Instruction("llvm.x86.avx2.pmadd.wd", "avx2", DType.I16, DType.I16, 2, 8, adds=False),
    _Instruction("llvm.x86.sse2.pmadd.wd", "sse2", DType.I16, DType.I16, 2, 4, adds=False),
    _Instruction("llvm.aarch64.neon.sdot.v4i32.v16i8", "dotprod", DType.I8, DType.I8, 4, 4),
    _Instruction("llvm.aarch64.neon.udot.v4i32.v16i8", "dotprod", DType.U8, DType.U8, 4, 4),
    _Instruction("llvm.aarch64.neon.usdot.v4i32.v16i8", "i8mm", DType.U8, DType.I8, 4, 4),
)
"""The first that the target has is taken. Products of i16 that wrap (-32768 squared, twice) wrap as the sums do."""


_PAIRS = {
    32: ("llvm.x86.avx512.pmaddubs.w.512", "avx512bw"),
    16: ("llvm.x86.avx2.pmadd.ub.sw", "avx2"),
    8: ("llvm.x86.ssse3.pmadd.ub.sw.128", "ssse3"),
}
"""Instructions for so many sums in i16 of two products of u8 and i8, and the feature that has them."""


def dot(w: Writer, target: Target, e: Dot, a: str, b: str, c: str) -> str:
    """The operand that holds `e`, of the operands a, b and c."""
    group = e.a.lanes // e.lanes
    if e.dtype is DType.F32:
        return _floats(w, target, e, a, b, c)
    if e.dtype is DType.I16:
        return _narrow(w, target, e, a, b, c)
    for row in _INSTRUCTIONS:
        if not _has(target, row.feature) or (row.group, row.lanes) != (group, e.lanes):
            continue
        if (row.a, row.b) == (e.a.dtype, e.b.dtype):
            return _instruction(w, target, row, a, b, c)
        if (row.a, row.b) == (e.b.dtype, e.a.dtype):
            return _instruction(w, target, row, b, a, c)
    if (pairs := _pairs_of_bytes(target, e, group)) is not None:
        return _by_pairs(w, target, pairs, e, a, b, c)
    if group == 4 and e.lanes == 4 and target.arch == "aarch64" and e.a.dtype is e.b.dtype is DType.I8:
        return _by_long_products(w, a, b, c)
    return _widened(w, e, group, a, b, c)


def _has(target: Target, feature: str) -> bool:
    return feature in target.has or feature == "sse2" and target.arch == "x86_64"


def _instruction(w: Writer, target: Target, row: _Instruction, a: str, b: str, c: str) -> str:
    sums = vector("i32", row.lanes)
    types = [value_type(t, row.lanes * row.group) for t in (row.a, row.b)]
    if row.a is row.b and target.arch == "aarch64":
        a, b = b, a  # the factor that is a lane repeated stands first, and is the second one of the instruction
    if not row.adds:
        made = w.call(row.name, sums, (types[0], a), (types[1], b))
        return _fenced(w, w.op(f"add {sums} {c}, {made}"), row.lanes)
    if row.words:
        a, b = (w.op(f"bitcast {t} {v} to {sums}") for t, v in zip(types, (a, b), strict=True))
        types = [sums, sums]
    return w.call(row.name, sums, (sums, c), (types[0], a), (types[1], b))


def _pairs_of_bytes(target: Target, e: Dot, group: int) -> _Instruction | None:
    """The products of i16 that make a dot product of bytes in fours."""
    if group != 4 or e.a.dtype.bits != 8 or e.b.dtype.bits != 8:
        return None
    rows = (r for r in _INSTRUCTIONS if r.a is r.b is DType.I16 and r.lanes == e.lanes)
    return next((r for r in rows if _has(target, r.feature)), None)


def _by_pairs(w: Writer, target: Target, row: _Instruction, e: Dot, a: str, b: str, c: str) -> str:
    """Even bytes times even ones, then odd ones times odd ones: no byte moves to another lane."""
    for part in (_even_bytes, _odd_bytes):
        left, right = (part(w, x.dtype, row.lanes * row.group, v) for x, v in ((e.a, a), (e.b, b)))
        c = _instruction(w, target, row, left, right, c)
    return c


def _even_bytes(w: Writer, dtype: DType, lanes: int, value: str) -> str:
    words = w.op(f"bitcast {value_type(dtype, 2 * lanes)} {value} to {vector('i16', lanes)}")
    if not dtype.is_signed:
        return w.op(f"and {vector('i16', lanes)} {words}, {splat('i16', '255', lanes)}")
    high = w.op(f"shl {vector('i16', lanes)} {words}, {splat('i16', '8', lanes)}")
    return w.op(f"ashr {vector('i16', lanes)} {high}, {splat('i16', '8', lanes)}")


def _odd_bytes(w: Writer, dtype: DType, lanes: int, value: str) -> str:
    words = w.op(f"bitcast {value_type(dtype, 2 * lanes)} {value} to {vector('i16', lanes)}")
    shift = "ashr" if dtype.is_signed else "lshr"
    return w.op(f"{shift} {vector('i16', lanes)} {words}, {splat('i16', '8', lanes)}")


def _by_long_products(w: Writer, a: str, b: str, c: str) -> str:
    """16 products in i16 (`smull`), neighbours added in i32 and once more: exact, -128 squared twice too."""
    bytes_, words, sums = vector("i8", 16), vector("i16", 8), vector("i32", 4)
    pairs = []
    for first in (0, 8):
        half = tuple(range(first, first + 8))
        factors = [w.op(f"sext {vector('i8', 8)} {w.shuffle(bytes_, v, 'poison', half)} to {words}") for v in (a, b)]
        products = w.op(f"mul {words} {factors[0]}, {factors[1]}")
        pairs.append(w.call("llvm.aarch64.neon.saddlp.v4i32.v8i16", sums, (words, products)))
    four = w.call("llvm.aarch64.neon.addp.v4i32", sums, (sums, pairs[0]), (sums, pairs[1]))
    return w.op(f"add {sums} {c}, {four}")


def _fenced(w: Writer, value: str, lanes: int) -> str:
    """The same sums, which LLVM must not reorder: it would keep products of a whole loop in registers to add them."""
    sums, floats = vector("i32", lanes), vector("float", lanes)
    made = w.op(f"bitcast {sums} {value} to {floats}")
    made = w.call(f"llvm.arithmetic.fence.v{lanes}f32", floats, (floats, made))
    return w.op(f"bitcast {floats} {made} to {sums}")


_BF16 = {16: ("llvm.x86.avx512bf16.dpbf16ps.512", "avx512bf16"), 4: ("llvm.aarch64.neon.bfdot.v4f32.v8bf16", "bf16")}
"""Instructions for so many sums in f32 of two products of bf16, and the feature that has them."""


def _floats(w: Writer, target: Target, e: Dot, a: str, b: str, c: str) -> str:
    """Sums in f32 of pairs of bf16."""
    name, feature = _BF16.get(e.lanes, ("", ""))
    bits, halves, sums = (vector(t, n * e.lanes) for t, n in (("i16", 2), ("bfloat", 2), ("float", 1)))
    if _has(target, feature):
        if target.arch == "aarch64":
            a, b = b, a
        factors = (w.op(f"bitcast {bits} {v} to {halves}") for v in (a, b))
        return w.call(name, sums, (sums, c), *((halves, f) for f in factors))
    wide = [to_f32(w, target, v, DType.BF16, 2 * e.lanes) for v in (a, b)]
    products = w.op(f"fmul {vector('float', 2 * e.lanes)} {wide[0]}, {wide[1]}")
    for j in range(2):
        picked = tuple(range(j, 2 * e.lanes, 2))
        part = (
            w.extract("float", 2, products, j)
            if e.lanes == 1
            else w.shuffle(vector("float", 2 * e.lanes), products, "poison", picked)
        )
        c = w.op(f"fadd {sums} {c}, {part}")
    return c


def _narrow(w: Writer, target: Target, e: Dot, a: str, b: str, c: str) -> str:
    """Sums in i16, of pairs by one instruction where the target has it."""
    name, feature = _PAIRS.get(e.lanes, ("", ""))
    mixed = {e.a.dtype, e.b.dtype} == {DType.U8, DType.I8}
    if e.a.lanes != 2 * e.lanes or not mixed or not _has(target, feature):
        return _widened(w, e, e.a.lanes // e.lanes, a, b, c)
    bytes_, sums = vector("i8", e.a.lanes), vector("i16", e.lanes)
    factors = (a, b) if e.a.dtype is DType.U8 else (b, a)
    made = w.call(name, sums, *((bytes_, f) for f in factors))
    return made if isinstance(e.c, Const) and e.c.value == 0 else w.op(f"add {sums} {c}, {made}")


def _widened(w: Writer, e: Dot, group: int, a: str, b: str, c: str) -> str:
    """Products in the type of the sums, then those of a group one after another."""
    scalar = "i32" if e.dtype is DType.I32 else "i16"
    wide, lanes = vector(scalar, e.a.lanes), e.a.lanes
    factors = []
    for value, operand in ((a, e.a), (b, e.b)):
        extend = "sext" if operand.dtype.is_signed else "zext"
        factors.append(w.op(f"{extend} {value_type(operand.dtype, lanes)} {value} to {wide}"))
    products = w.op(f"mul {wide} {factors[0]}, {factors[1]}")
    for j in range(group):
        picked = tuple(range(j, lanes, group))
        if lanes == group:
            part = w.extract(scalar, lanes, products, j)
        else:
            part = products if group == 1 else w.shuffle(wide, products, "poison", picked)
        c = w.op(f"add {vector(scalar, e.lanes)} {c}, {part}")
    return c
