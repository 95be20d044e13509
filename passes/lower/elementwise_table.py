"""The table of elementwise operators: arithmetic, comparison and logic; further rows join by `@rule`.

A rule maps vectors to a vector: operands come in the operator's order, 16-bit floats already widened to f32, and a
result in f32 is rounded once to a 16-bit output type by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce as fold
from typing import Any, TypeAlias

import numpy as np

from ...ir.errors import UnsupportedOpError
from ...ir.graph import Node
from ...ir.loops import Const, Expr, binary, call, cast, const, maximum, minimum, select, unary
from ...ir.types import DType
from . import math_functions as mathf
from .context import KernelBuilder


@dataclass(frozen=True, slots=True)
class Application:
    """One elementwise node applied to vectors; `args` holds None for an optional operand left out."""

    k: KernelBuilder
    node: Node
    args: tuple[Expr | None, ...]

    def arg(self, index: int) -> Expr:
        """Operand `index`, which the operator demands."""
        found = self.args[index]
        assert found is not None, f"{self.node.op} lacks operand {index}"
        return found

    def option(self, index: int) -> Expr | None:
        return self.args[index] if index < len(self.args) else None

    @property
    def x(self) -> Expr:
        return self.arg(0)

    @property
    def pair(self) -> tuple[Expr, Expr]:
        return self.arg(0), self.arg(1)

    def attr(self, name: str, default: Any) -> Any:
        """An attribute; ONNX's numbers are f32."""
        value = self.node.attrs.get(name, default)
        return float(np.float32(value)) if isinstance(value, float) else value

    @property
    def out(self) -> DType:
        return self.node.output.type.dtype

    def let(self, value: Expr) -> Expr:
        """Share a value that is used more than once."""
        return self.k.let(value)

    def unsupported(self, what: str, remedy: str = "") -> UnsupportedOpError:
        return UnsupportedOpError(what, where=self.node.where, remedy=remedy)


Rule: TypeAlias = Callable[[Application], Expr]

RULES: dict[str, Rule] = {}
EXACT: set[str] = set()
"""Operators that take 16-bit floats as they are, because no arithmetic is done."""


def rule(*names: str, exact: bool = False) -> Callable[[Rule], Rule]:
    """Register the rule of operators by name."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        if exact:
            EXACT.update(names)
        return function

    return register


# ---- arithmetic


@rule("Add", "Sum")
def add(a: Application) -> Expr:
    return fold(lambda x, y: x + y, _all(a))


@rule("Sub")
def subtract(a: Application) -> Expr:
    return a.arg(0) - a.arg(1)


@rule("Mul")
def multiply(a: Application) -> Expr:
    return a.arg(0) * a.arg(1)


@rule("Mean")
def mean(a: Application) -> Expr:
    return add(a) * (1.0 / len(a.args)) if len(a.args) in (1, 2, 4, 8) else add(a) / float(len(a.args))


@rule("Div")
def divide(a: Application) -> Expr:
    """Integers truncate; a divisor of 0 gives an unspecified number and never a trap."""
    x, y = a.pair
    if x.dtype.is_float:
        return x / y
    if isinstance(y, Const) and y.value not in (0, -1):
        return x / y
    quotient = x / _safe_divisor(y)
    return select(binary("eq", y, -1), -x, quotient) if x.dtype.is_signed else quotient


@rule("Mod")
def modulo(a: Application) -> Expr:
    """fmod = 1: the sign of the dividend (C's fmod); 0: the sign of the divisor (Python's %)."""
    x, y = a.pair
    if x.dtype.is_float:
        rest = a.let(call("fmod", x, y))
        if a.attr("fmod", 0):
            return rest
        opposite = binary("ne", rest < 0.0, y < 0.0)
        return select(binary("ne", rest, 0.0) & opposite, rest + y, rest)
    rest = a.let(x % _safe_divisor(y))
    if a.attr("fmod", 0) or x.dtype.is_unsigned:
        return rest
    return select(binary("ne", rest, 0) & (binary("xor", rest, y) < 0), rest + y, rest)


def _safe_divisor(y: Expr) -> Expr:
    """The divisor, 1 where the machine would trap: at 0, and at -1 (of the smallest number)."""
    if isinstance(y, Const) and y.value not in (0, -1):
        return y
    bad = binary("eq", y, 0)
    if y.dtype.is_signed:
        bad = bad | binary("eq", y, -1)
    return select(bad, 1, y)


@rule("Pow")
def power(a: Application) -> Expr:
    """The result has the type of the base; small constant exponents become products."""
    x, y = a.pair
    if isinstance(y, Const) and float(y.value) in _POWERS and (x.dtype.is_float or float(y.value) >= 0):
        if float(y.value) in (0.5, -0.5) and not x.dtype.is_float:
            return _integer_power(a, x, y)
        return _POWERS[float(y.value)](a, x)
    if x.dtype.is_float:
        return mathf.power(a.k, x, cast(y, x.dtype))
    return _integer_power(a, x, y)


def _integer_power(a: Application, x: Expr, y: Expr) -> Expr:
    """Through f64: exact up to 2**53."""
    return cast(call("pow", cast(x, DType.F64), cast(y, DType.F64)), x.dtype)


def _fourth(a: Application, x: Expr) -> Expr:
    square = a.let(x * x)
    return square * square


_POWERS: dict[float, Callable[[Application, Expr], Expr]] = {
    0.0: lambda a, x: const(1, x.dtype, x.lanes),
    1.0: lambda a, x: x,
    2.0: lambda a, x: x * x,
    3.0: lambda a, x: x * x * x,
    4.0: _fourth,
    -1.0: lambda a, x: 1.0 / x,
    0.5: lambda a, x: unary("sqrt", x),
    -0.5: lambda a, x: 1.0 / unary("sqrt", x),
}


@rule("Neg")
def negate(a: Application) -> Expr:
    return -a.x


@rule("Abs")
def absolute(a: Application) -> Expr:
    return a.x if a.x.dtype.is_unsigned else unary("abs", a.x)


@rule("Sign")
def sign(a: Application) -> Expr:
    x = a.x
    if x.dtype.is_unsigned:
        return select(x > 0, 1, x)
    return select(x > 0, 1, select(x < 0, -1, x))


@rule("Reciprocal")
def reciprocal(a: Application) -> Expr:
    return 1.0 / a.x


@rule("Max")
def largest(a: Application) -> Expr:
    return fold(lambda x, y: _extreme(a, "max", x, y), _all(a))


@rule("Min")
def smallest(a: Application) -> Expr:
    return fold(lambda x, y: _extreme(a, "min", x, y), _all(a))


def _extreme(a: Application, op: str, x: Expr, y: Expr) -> Expr:
    """min or max that gives NaN where either side is NaN; the IR's own passes on a NaN of its second operand only."""
    if isinstance(y, Const):
        x, y = y, x
    plain = binary(op, x, y)
    if not x.dtype.is_float or (isinstance(x, Const) and x.value == x.value):
        return a.let(plain)
    return a.let(select(binary("ne", x, x), x, plain))


@rule("Clip")
def clip(a: Application) -> Expr:
    """min(high, max(low, x)); NaN stays NaN."""
    x, low, high = a.x, a.option(1), a.option(2)
    if low is not None:
        x = maximum(low, x)
    return x if high is None else minimum(high, x)


def _all(a: Application) -> list[Expr]:
    return [x for x in a.args if x is not None]


# ---- comparison, logic, bits


def _comparison(op: str) -> Rule:
    return lambda a: binary(op, *a.pair)


def _logic(op: str) -> Rule:
    return lambda a: fold(lambda x, y: binary(op, x, y), _all(a))


RULES |= {
    "Equal": _comparison("eq"), "Less": _comparison("lt"), "LessOrEqual": _comparison("le"),
    "Greater": _comparison("gt"), "GreaterOrEqual": _comparison("ge"),
    "And": _logic("and"), "Or": _logic("or"), "Xor": _logic("xor"),
    "BitwiseAnd": _logic("and"), "BitwiseOr": _logic("or"), "BitwiseXor": _logic("xor"),
}  # fmt: skip


@rule("Not", "BitwiseNot")
def invert(a: Application) -> Expr:
    return ~a.x


@rule("BitShift")
def shift(a: Application) -> Expr:
    """An amount of the width or more, or below zero, shifts every bit out: 0, or the sign to the right."""
    x, y = a.pair
    op = "shl" if a.attr("direction", "LEFT") in ("LEFT", b"LEFT") else "shr"
    last = x.dtype.bits - 1
    out: Expr = const(0, x.dtype, x.lanes)
    if op == "shr" and x.dtype.is_signed:
        out = select(x < 0, const(-1, x.dtype, x.lanes), out)
    if isinstance(y, Const):
        return binary(op, x, y) if 0 <= y.value <= last else out
    inside = y <= last if y.dtype.is_unsigned else (y >= 0) & (y <= last)
    return select(inside, binary(op, x, select(inside, y, 0)), out)


@rule("IsNaN")
def is_nan(a: Application) -> Expr:
    return binary("ne", a.x, a.x)


@rule("IsInf")
def is_infinite(a: Application) -> Expr:
    infinity = float("inf")
    negative, positive = a.attr("detect_negative", 1), a.attr("detect_positive", 1)
    if negative and positive:
        return binary("eq", unary("abs", a.x), infinity)
    if not negative and not positive:
        return const(False, DType.BOOL, a.x.lanes)
    return binary("eq", a.x, infinity if positive else -infinity)


@rule("Where", exact=True)
def where(a: Application) -> Expr:
    return select(a.arg(0), a.arg(1), a.arg(2))
