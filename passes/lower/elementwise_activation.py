"""Rows of the elementwise table: activations, roundings, mathematical functions, and BatchNormalization."""

from __future__ import annotations

from math import pi, sqrt

from ...ir.loops import Expr, cast, const, maximum, minimum, select, unary
from . import math_functions as mathf
from .elementwise_table import RULES, Application, Rule, rule


def _function(name: str) -> Rule:
    return lambda a: mathf.FUNCTIONS[name](a.k, a.x)


def _unary(op: str) -> Rule:
    return lambda a: unary(op, a.x)


RULES |= {
    "Exp": _function("exp"), "Log": _function("log"), "Erf": _function("erf"), "Sigmoid": _function("sigmoid"),
    "Tanh": _function("tanh"), "Softplus": _function("softplus"), "Sin": _function("sin"), "Cos": _function("cos"),
    "Tan": _function("tan"), "Asin": _function("asin"), "Acos": _function("acos"), "Atan": _function("atan"),
    "Sinh": _function("sinh"), "Cosh": _function("cosh"), "Asinh": _function("asinh"), "Acosh": _function("acosh"),
    "Atanh": _function("atanh"),
    "Sqrt": _unary("sqrt"), "Floor": _unary("floor"), "Ceil": _unary("ceil"), "Round": _unary("round"),
}  # fmt: skip


@rule("Relu")
def relu(a: Application) -> Expr:
    return maximum(0, a.x)


@rule("LeakyRelu")
def leaky_relu(a: Application) -> Expr:
    return select(a.x < 0.0, a.x * a.attr("alpha", 0.01), a.x)


@rule("PRelu")
def parametric_relu(a: Application) -> Expr:
    x, slope = a.pair
    return select(x < 0, x * slope, x)


@rule("ThresholdedRelu")
def thresholded_relu(a: Application) -> Expr:
    return select(a.x > a.attr("alpha", 1.0), a.x, 0.0)


@rule("Elu")
def elu(a: Application) -> Expr:
    return select(a.x < 0.0, mathf.expm1(a.k, a.x) * a.attr("alpha", 1.0), a.x)


@rule("Selu")
def selu(a: Application) -> Expr:
    alpha, gamma = a.attr("alpha", 1.67326319217681884765625), a.attr("gamma", 1.05070102214813232421875)
    return select(a.x < 0.0, mathf.expm1(a.k, a.x) * (alpha * gamma), a.x * gamma)


@rule("Celu")
def celu(a: Application) -> Expr:
    alpha = a.attr("alpha", 1.0)
    return select(a.x < 0.0, mathf.expm1(a.k, a.let(a.x / alpha)) * alpha, a.x)


@rule("HardSigmoid")
def hard_sigmoid(a: Application) -> Expr:
    return maximum(0.0, minimum(1.0, a.x * a.attr("alpha", 0.2) + a.attr("beta", 0.5)))


@rule("HardSwish")
def hard_swish(a: Application) -> Expr:
    """x HardSigmoid(x) with alpha 1/6, which is an attribute in ONNX's definition."""
    return a.x * maximum(0.0, minimum(1.0, a.x * a.attr("alpha", 1 / 6) + 0.5))


@rule("Softsign")
def softsign(a: Application) -> Expr:
    return a.x / (1.0 + unary("abs", a.x))


@rule("Shrink")
def shrink(a: Application) -> Expr:
    """x + bias below -lambd, x - bias above lambd, 0 between."""
    x, limit, bias = a.x, a.attr("lambd", 0.5), a.attr("bias", 0.0)
    if x.dtype.is_int:
        limit, bias = int(limit // 1), int(bias)
    if x.dtype.is_unsigned:
        return select(x > limit, x - bias, 0)
    return select(x < -limit, x + bias, select(x > limit, x - bias, 0))


@rule("Gelu")
def gelu(a: Application) -> Expr:
    if a.attr("approximate", "none") in ("tanh", b"tanh"):
        inner = a.x * (2 * sqrt(2 / pi)) * (a.x * a.x * 0.044715 + 1.0)
        return a.x * mathf.sigmoid(a.k, a.let(inner))
    return mathf.gelu(a.k, a.x)


@rule("Swish")
def swish(a: Application) -> Expr:
    return a.x * mathf.sigmoid(a.k, _scaled(a))


@rule("SwiGLU")
def swiglu(a: Application) -> Expr:
    return swish(a) * a.arg(1)


def _scaled(a: Application) -> Expr:
    alpha = a.attr("alpha", 1.0)
    return a.x if alpha == 1.0 else a.let(a.x * alpha)


@rule("Mish")
def mish(a: Application) -> Expr:
    """x tanh(log(1 + e)) = x (e² + 2e) / (e² + 2e + 2) with e = exp x; 1 from x = 20 on in f32 (44 in f64)."""
    top = 20.0 if a.x.dtype.nbytes < 8 else 44.0
    e = a.let(mathf.exp(a.k, a.let(minimum(const(top, a.x.dtype, a.x.lanes), a.x))))
    n = a.let(e * (e + 2.0))
    return a.x * (n / (n + 2.0))


@rule("BatchNormalization")
def batch_normalization(a: Application) -> Expr:
    """Inference: (x - mean) / √(variance + epsilon) · scale + bias, parameters along axis 1."""
    if a.attr("training_mode", 0):
        raise a.k.ctx.unsupported("BatchNormalization in training mode is not supported", "export for inference")
    scale, bias, mean, variance = (a.arg(i) for i in range(1, 5))
    root = unary("sqrt", cast(variance, a.x.dtype) + a.attr("epsilon", 1e-5))
    gain = cast(scale, a.x.dtype) / root
    return (a.x - cast(mean, a.x.dtype)) * gain + cast(bias, a.x.dtype)
