"""Mathematical functions of vectors."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from ...ir.loops import Builder, Expr, call, maximum, unary


def exp(k: Builder, x: Expr) -> Expr:
    return call("exp", x)


def expm1(k: Builder, x: Expr) -> Expr:
    return call("expm1", x)


def log(k: Builder, x: Expr) -> Expr:
    return call("log", x)


def log1p(k: Builder, x: Expr) -> Expr:
    return call("log1p", x)


def tanh(k: Builder, x: Expr) -> Expr:
    return call("tanh", x)


def erf(k: Builder, x: Expr) -> Expr:
    return call("erf", x)


def sigmoid(k: Builder, x: Expr) -> Expr:
    return 1.0 / (1.0 + exp(k, k.let(-x)))


def softplus(k: Builder, x: Expr) -> Expr:
    return maximum(0.0, x) + log1p(k, k.let(exp(k, k.let(-unary("abs", x)))))


def gelu(k: Builder, x: Expr) -> Expr:
    return x * 0.5 * (1.0 + erf(k, k.let(x * sqrt(0.5))))


def power(k: Builder, x: Expr, y: Expr) -> Expr:
    return call("pow", x, y)


def _libm(name: str) -> Callable[[Builder, Expr], Expr]:
    return lambda k, x: call(name, x)


FUNCTIONS: dict[str, Callable[[Builder, Expr], Expr]] = {
    "exp": exp,
    "log": log,
    "erf": erf,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "softplus": softplus,
    **{n: _libm(n) for n in "sin cos tan asin acos atan sinh cosh asinh acosh atanh".split()},
}
