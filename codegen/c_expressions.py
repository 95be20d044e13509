"""Scalar operations of loop IR as C expressions: wrapping integers, 16-bit floats as bits, exact literals."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np

from ..ir.errors import CodegenError
from ..ir.loops import COMPARE
from ..ir.types import DType
from .c_helpers import C_TYPES, SMALL_FLOATS, helper, unsigned

PRIMARY, UNARY, MUL, ADD, SHIFT, COMPARISON, AND, XOR, OR, TERNARY = 15, 14, 13, 12, 11, 10, 8, 7, 6, 3
"""How tightly an expression binds, as in the C grammar."""


class Code(NamedTuple):
    """A C expression and how tightly its outermost operator binds."""

    text: str
    level: int = PRIMARY

    def within(self, level: int) -> str:
        """The text, in parentheses where it binds less tightly than `level`."""
        return self.text if self.level >= level else f"({self.text})"


_SPELLING = {
    "add": ("+", ADD), "sub": ("-", ADD), "mul": ("*", MUL), "div": ("/", MUL), "mod": ("%", MUL), "and": ("&", AND),
    "or": ("|", OR), "xor": ("^", XOR), "shl": ("<<", SHIFT), "shr": (">>", SHIFT), "eq": ("==", COMPARISON),
    "ne": ("!=", COMPARISON), "lt": ("<", COMPARISON), "le": ("<=", COMPARISON), "gt": (">", COMPARISON),
    "ge": (">=", COMPARISON),
}  # fmt: skip
_MATH = {"sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "round": "rint", "trunc": "trunc", "abs": "fabs"}
_WRAPPING = ("add", "sub", "mul", "shl")


def infix(op: str, a: Code, b: Code) -> Code:
    """a op b by C's own operator."""
    sign, level = _SPELLING[op]
    inner = PRIMARY if level in (AND, XOR, OR, SHIFT, COMPARISON) else level  # mixed ones are hard to read (and warn)
    return Code(f"{a.within(min(inner, UNARY))} {sign} {b.within(min(inner + 1, UNARY))}", level)


def cast_to(c_type: str, a: Code) -> Code:
    return Code(f"({c_type}){a.within(UNARY)}", UNARY)


def apply(function: str, *args: Code) -> Code:
    return Code(f"{function}({', '.join(a.text for a in args)})")


class Operators:
    """Writes operations and remembers which helpers they call. halves: the machine computes in f16."""

    has_half: ClassVar[bool] = False
    """Whether f16 is a type of the language, `half`, where the machine computes in it."""

    def __init__(self, *, halves: bool = False) -> None:
        self.helpers: dict[str, str] = {}
        self.halves = halves
        native = halves and self.has_half
        self.as_bits: tuple[DType, ...] = (DType.BF16,) if native else SMALL_FLOATS
        """Types kept as their bits and computed in float."""
        self.types: dict[DType, str] = {**C_TYPES, DType.F16: "half"} if native else C_TYPES
        """The language's name of each type."""

    def help(self, name: str, *args: Code) -> Code:
        """A call of helper `c2c_<name>`."""
        self._require(name)
        return apply(f"c2c_{name}", *args)

    def _require(self, name: str) -> None:
        if name not in self.helpers:
            text, needs = self.helper(name)
            for other in needs:
                self._require(other)
            self.helpers[name] = text

    def helper(self, name: str) -> tuple[str, tuple[str, ...]]:
        """Text of helper `c2c_<name>` and the names of those that it needs."""
        return helper(name, self.types, self.as_bits)

    def function(self, name: str, dtype: DType) -> str:
        """How a function of <math.h> is called for a type."""
        return name + ("" if dtype is DType.F64 else "f")

    def constant(self, dtype: DType, value: float) -> Code:
        """A literal that reads back as exactly this value."""
        if dtype in self.as_bits:
            with np.errstate(over="ignore"):
                return Code(f"0x{int(np.asarray(value, dtype.numpy).view(np.uint16)):04x}")
        if dtype.is_float:
            return self._float(dtype, value)
        if dtype is DType.BOOL:
            return Code(str(int(bool(value))))
        return _integer(dtype, int(value))

    def _float(self, dtype: DType, value: float) -> Code:
        with np.errstate(over="ignore"):
            number = np.asarray(value, dtype.numpy)
        suffix = {DType.F16: "h", DType.F32: "f"}.get(dtype, "")
        if dtype is DType.F16 and not math.isfinite(number):
            return cast_to(
                "half", Code("NAN" if math.isnan(number) else "INFINITY" if number > 0 else "-INFINITY", UNARY)
            )
        if math.isnan(number):
            bits = int(number.view(np.uint32 if dtype is DType.F32 else np.uint64))
            u = DType.U32 if dtype is DType.F32 else DType.U64
            return self.help(f"{dtype}_of_{u}", self.constant(u, bits))
        if math.isinf(number):
            return Code("INFINITY") if number > 0 else Code("-INFINITY", UNARY)
        text = str(number)
        if not any(c in text for c in ".en"):
            text += ".0"
        return Code(text + suffix, UNARY if text[0] == "-" else PRIMARY)

    # --- operations on two values

    def binary(self, op: str, dtype: DType, a: Code, b: Code, *, index: bool = False) -> Code:
        """a op b on `dtype`; `index`: i64 that cannot overflow, in C's own arithmetic."""
        if op in ("min", "max"):
            return self.help(f"{op}_{dtype}", a, b)
        if op in COMPARE:
            return infix(op, self.widen(dtype, a), self.widen(dtype, b))
        if dtype.is_float:
            return self._float_binary(op, dtype, a, b)
        if index or dtype is DType.BOOL:
            return infix(op, a, b)
        return self._int_binary(op, dtype, a, b)

    def _float_binary(self, op: str, dtype: DType, a: Code, b: Code) -> Code:
        a, b = self.widen(dtype, a), self.widen(dtype, b)
        if op == "mod":
            return self.narrow(dtype, apply(self.function("fmod", dtype), a, b))
        return self.narrow(dtype, infix(op, a, b))

    def _int_binary(self, op: str, dtype: DType, a: Code, b: Code) -> Code:
        c, u = self.types[dtype], unsigned(dtype)
        if op in ("div", "mod") and dtype.is_signed:
            return self.help(f"{op}_{dtype}", a, b)
        if op in _WRAPPING and (c != u or op == "shl"):
            return cast_to(c, infix(op, cast_to(u, a), b if op == "shl" else cast_to(u, b)))
        if op == "shr" and dtype is DType.I64:  # a small literal is an int
            a = cast_to(c, a)
        return infix(op, a, b) if dtype.bits >= 32 else cast_to(c, infix(op, a, b))

    def fma(self, dtype: DType, a: Code, b: Code, c: Code) -> Code:
        wide = [self.widen(dtype, x) for x in (a, b, c)]
        return self.narrow(dtype, infix("add", infix("mul", wide[0], wide[1]), wide[2]))

    # --- operations on one value

    def unary(self, op: str, dtype: DType, a: Code) -> Code:
        if dtype in self.as_bits and op in ("neg", "abs"):
            flipped = infix("xor", a, Code("0x8000")) if op == "neg" else infix("and", a, Code("0x7fff"))
            return cast_to("uint16_t", flipped)
        if dtype.is_float:
            return self._float_unary(op, dtype, a)
        if op == "not":
            if dtype is DType.BOOL:
                return Code(f"!{a.within(UNARY)}", UNARY)
            return cast_to(C_TYPES[dtype], Code(f"~{a.within(UNARY)}", UNARY))
        if op == "neg":
            return cast_to(
                C_TYPES[dtype], infix("sub", Code(f"({unsigned(dtype)})0", UNARY), cast_to(unsigned(dtype), a))
            )
        if op == "abs" and dtype.is_signed:
            return self.help(f"abs_{dtype}", a)
        if op in _MATH and op != "sqrt":  # integers and bools are their own floor, ceil, …
            return a
        raise CodegenError(f"{op} of {dtype}")

    def _float_unary(self, op: str, dtype: DType, a: Code) -> Code:
        a = self.widen(dtype, a)
        if op == "neg":
            return Code(f"-{a.within(PRIMARY)}", UNARY)
        if op not in _MATH:
            raise CodegenError(f"{op} of {dtype}")
        return self.narrow(dtype, apply(self.function(_MATH[op], dtype), a))

    def widen(self, dtype: DType, a: Code) -> Code:
        """A value as C computes with it: 16-bit floats become float."""
        return self.help(f"float_{dtype}", a) if dtype in self.as_bits else a

    def narrow(self, dtype: DType, a: Code) -> Code:
        """A computed float or double as `dtype`; other types as they are."""
        return self.help(str(dtype), a) if dtype in self.as_bits else a

    def cast(self, dtype: DType, source: DType, a: Code) -> Code:
        """Conversion of value; out-of-range floats are undefined, as in C."""
        if dtype is source:
            return a
        a = self.widen(source, a)
        if dtype is DType.BOOL:
            return infix("ne", a, Code("0"))
        if dtype in self.as_bits:
            return self.help(str(dtype), a)
        if self.types[dtype] == self.types[source] and source not in self.as_bits:
            return a
        if dtype is DType.F32 and source in self.as_bits:
            return a
        return cast_to(self.types[dtype], a)

    def bitcast(self, dtype: DType, source: DType, a: Code) -> Code:
        """Same bits in another type of the same width."""
        if self.types[dtype] == self.types[source]:
            return a
        word = DType.U32 if dtype.bits == 32 else DType.U64
        if source in (DType.F32, DType.F64):
            a, source = self.help(f"{word}_of_{source}", a), word
        if dtype in (DType.F32, DType.F64):
            if source is not word:
                a = cast_to(C_TYPES[word], a)
            return self.help(f"{dtype}_of_{word}", a)
        return a if dtype is source else cast_to(C_TYPES[dtype], a)

    def call(self, name: str, dtype: DType, args: list[Code]) -> Code:
        return apply(self.function(name, dtype), *args)


def _integer(dtype: DType, value: int) -> Code:
    if dtype is DType.U64:
        return Code(f"UINT64_C({value})")
    if dtype is DType.U32:
        return Code(f"{value}u")
    if -(1 << 31) < value < 1 << 31:
        return Code(str(value), UNARY if value < 0 else PRIMARY)
    if value == -(1 << 63):
        return Code("-INT64_C(9223372036854775807) - 1", ADD)
    if value == -(1 << 31):
        return Code("-2147483647 - 1", ADD)
    return Code(f"INT64_C({value})") if value > 0 else Code(f"-INT64_C({-value})", UNARY)
