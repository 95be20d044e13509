"""Mathematical functions of vectors: polynomials in f32, the C library lane by lane in f64.

The polynomials are fits of our own: Lawson's reweighted least squares in double precision on Chebyshev points (relative
error), coefficients rounded to f32 one by one from the lowest power up, the rest fitted again after each. Reductions of
the argument follow Cody and Waite, "Software Manual for the Elementary Functions" (1980). Errors stated below were
measured over all exponents (`tests/passes/lower/test_math_functions.py` repeats that); ulp means units in the last
place of f32. NaN gives NaN; infinities give the limits. Arguments are used more than once: name them by `let`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log as ln
from math import log2, pi, sqrt

from ...ir.loops import Const, Expr, binary, bitcast, call, cast, const, fma, maximum, minimum, reduce, select, unary
from ...ir.loops_builder import Builder
from ...ir.types import DType

_LOG2_E = log2(2.718281828459045)
_LN2_HIGH = 0.693359375
"""ln 2 to 9 bits: its products with exponents are exact."""
_LN2_LOW = ln(2) - _LN2_HIGH
_MAGIC = 1.5 * 2**23
"""Added to |x| < 2**22 in f32 it leaves x rounded to an integer in the low bits of the sum (0x4B400000 for 0)."""
_LEAST = 87.3
"""e^-x is a normal number of f32 up to here."""
_EXP5 = (0.499992311000824, 0.16667115688323975, 0.041890256106853485, 0.008312467485666275)
"""(e^r - 1 - r) / r² on |r| <= ln(2) / 2: error 1.1e-7 of e^r."""
_EXP6 = (0.4999999403953552, 0.1666652113199234, 0.04166826605796814, 0.008368677459657192, 0.001382073387503624)
"""The same with one term more: 3.2e-9."""
_LOG = (
    0.3333331346511841, -0.25000008940696716, 0.20002073049545288, -0.16667991876602173, 0.14220310747623444,
    -0.12406115233898163, 0.11883874982595444, -0.11671166867017746, 0.06749837100505829,
)  # fmt: skip
"""(log(1 + f) - f + f²/2) / f³ on √½ - 1 <= f <= √2 - 1: error 8e-10 of the logarithm."""
_ARTANH = (0.3333320617675781, 0.20010870695114136, 0.1399926394224167, 0.14013561606407166)
"""(artanh(s) / s - 1) / s² in s² on 0 <= s <= 1/3: error 5e-9."""
_ERF = (
    -1.128379225730896, -0.6366152763366699, -0.10282550752162933, 0.01935223489999771, -0.00022627269208896905,
    -0.0012817889219149947, 0.00043327981256879866, -6.829045014455914e-05, 5.267606411507586e-06,
    -1.585838163009612e-07,
)  # fmt: skip
"""log(erfc a) / a on 0 <= a <= 10: error 5.3e-8 of erf a, 1e-7 of x erfc(x/√2)/2."""
_GELU = (
    -1.0, -1.1511269807815552, -0.45904362201690674, -0.0529492013156414, 0.007671401835978031,
    -0.0005760876229032874, -1.272737245017197e-05, 4.272425940143876e-06,
)  # fmt: skip
"""log2(erfc(a/√2) / 2) on 0 <= a <= 10, weighted by the tail itself: error 6e-8 of a erfc(a/√2)/2."""
_EXP2 = (1.0, 0.6931470036506653, 0.24022246897220612, 0.0555071085691452, 0.009671292267739773, 0.0013269535265862942)
"""2^r on |r| <= 1/2: error 9.2e-8 of it."""
_SIN = (-0.16666655242443085, 0.008332187309861183, -0.00019517906184773892)
"""(sin r - r) / r³ in r² on |r| <= π/4: error 4e-9."""
_COS = (0.04166664555668831, -0.0013887309469282627, 2.4432327336398885e-05)
"""(cos r - 1 + r²/2) / r⁴ in r² on |r| <= π/4: error 1.2e-10."""


def exp(k: Builder, x: Expr) -> Expr:
    """e^x within 2 ulp, denormal results included."""
    if x.dtype is not DType.F32:
        return call("exp", x)
    n, p = _reduced_exp(k, x, -104.0, 89.0, _EXP6)
    half = k.let(binary("shr", n, 1))
    return fma(p, _power_of_two(half), _power_of_two(half)) * _power_of_two(k.let(n - half))


def exp_clamped(k: Builder, x: Expr, high: float = 88.37) -> Expr:
    """e^x within 3 ulp for sums and quotients: 0 below -87.7 (e^x < 8.4e-39) and never above e^high."""
    if x.dtype is not DType.F32:
        return call("exp", x)
    n, p = _reduced_exp(k, x, -88.0, high, _EXP5)
    scale = k.let(_power_of_two(n), "scale")
    return fma(p, scale, scale)


def exp_nonpositive(k: Builder, x: Expr) -> Expr:
    """`exp_clamped` for x <= 0 (anything above that is undefined) and NaN."""
    if x.dtype is not DType.F32:
        return call("exp", x)
    n, p = _reduced_exp(k, x, -88.0, None, _EXP5)
    scale = k.let(_power_of_two(n), "scale")
    return fma(p, scale, scale)


def expm1(k: Builder, x: Expr) -> Expr:
    """e^x - 1 within 3 ulp up to x = 88.37; -1 from below -17 on."""
    if x.dtype is not DType.F32:
        return call("expm1", x)
    n, p = _reduced_exp(k, x, -60.0, 88.37, _EXP6)
    scale = k.let(_power_of_two(n), "scale")
    return fma(p, scale, scale - 1.0)


def _reduced_exp(k: Builder, x: Expr, low: float, high: float | None, tail: Sequence[float]) -> tuple[Expr, Expr]:
    """n (i32) and e^r - 1 with x = n ln 2 + r, after clamping x; NaN goes into the second."""
    x = k.let(maximum(low, x if high is None else minimum(high, x)), "x")
    shifted = k.let(fma(x, _LOG2_E, _like(x, _MAGIC)), "n")
    n = k.let(shifted - _MAGIC, "n")
    r = k.let(fma(n, -_LN2_LOW, k.let(fma(n, -_LN2_HIGH, x), "r")), "r")
    p = k.let(fma(k.let(_polynomial(k, r, tail) * r), r, r), "p")
    return k.let(bitcast(shifted, DType.I32) - 0x4B400000), p


def _power_of_two(n: Expr) -> Expr:
    """2^n for -127 <= n <= 127 (i32); 0 at -127."""
    return bitcast(binary("shl", n + 127, 23), DType.F32)


def _polynomial(k: Builder, x: Expr, coefficients: Sequence[float]) -> Expr:
    """Σ cᵢ xⁱ, coefficients from the constant up: short ones by Horner, long ones, whose chain waits, by Estrin."""
    if len(coefficients) <= 6:
        total: Expr = _like(x, coefficients[-1])
        for c in reversed(coefficients[:-1]):
            total = k.let(fma(total, x, _like(x, c)))
        return total
    terms: list[Expr] = [_like(x, c) for c in coefficients]
    while len(terms) > 1:
        pairs = [k.let(fma(b, x, a)) for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = [*pairs, *terms[2 * len(pairs) :]]
        x = k.let(x * x) if len(terms) > 1 else x
    return terms[0]


def _like(x: Expr, value: float) -> Const:
    return const(value, x.dtype, x.lanes)


def log(k: Builder, x: Expr) -> Expr:
    """log x within 2 ulp; -inf at 0, NaN below."""
    if x.dtype is not DType.F32:
        return call("log", x)
    tiny = k.let(x < 2.0**-126)
    scaled = k.let(select(tiny, x * 2.0**23, x), "x")
    bits = k.let(bitcast(scaled, DType.I32) - 0x3F3504F3)
    n = k.let(binary("shr", bits, 23), "n")
    f = k.let(bitcast((bits & 0x007FFFFF) + 0x3F3504F3, DType.F32) - 1.0, "f")
    e = k.let(cast(n, DType.F32) - select(tiny, _like(x, 23.0), 0.0), "e")
    square = k.let(f * f)
    p = k.let(_polynomial(k, f, _LOG) * f)
    low = k.let(fma(e, _LN2_LOW, k.let(p * square)))
    result = k.let(fma(e, _LN2_HIGH, k.let(k.let(low - square * 0.5) + f)))
    inside = (x > 0.0) & (x < float("inf"))
    outside = select(binary("eq", x, 0.0), _like(x, float("-inf")), select(x > 0.0, x, float("nan")))
    return select(inside, result, outside)


def log1p_unit(k: Builder, y: Expr) -> Expr:
    """log(1 + y) within 3 ulp for 0 <= y <= 1: 2 artanh(y / (2 + y))."""
    if y.dtype is not DType.F32:
        return call("log1p", y)
    s = k.let(y / (y + 2.0))
    square, twice = k.let(s * s), k.let(s + s)
    return fma(k.let(_polynomial(k, square, _ARTANH) * square), twice, twice)


def sigmoid(k: Builder, x: Expr) -> Expr:
    """1 / (1 + e^-x) within 3 ulp; 0 below -87.3, since x86 takes a hundred cycles for a quotient that is subnormal."""
    if x.dtype is not DType.F32:
        return 1.0 / (1.0 + exp_clamped(k, k.let(-x)))
    quotient = 1.0 / (1.0 + exp_clamped(k, k.let(-x), _LEAST))
    return select(x < -_LEAST, _like(x, 0.0), quotient)


def tanh(k: Builder, x: Expr) -> Expr:
    """abs(m / (m + 2)) with m = e^(-2 abs(x)) - 1, and the sign of x: within 5 ulp."""
    if x.dtype is not DType.F32:
        return call("tanh", x)
    m = k.let(expm1(k, k.let(unary("abs", x) * -2.0)))
    return _with_sign(k, m / (m + 2.0), x)


def erf(k: Builder, x: Expr) -> Expr:
    """1 - e^Q(abs(x)), and the sign of x: within 5 ulp."""
    if x.dtype is not DType.F32:
        return call("erf", x)
    return _with_sign(k, expm1(k, _log_erfc(k, k.let(minimum(10.0, unary("abs", x))))), x)


def _log_erfc(k: Builder, a: Expr) -> Expr:
    """log(erfc a) for 0 <= a <= 10."""
    return k.let(_polynomial(k, a, _ERF) * a)


def _with_sign(k: Builder, magnitude: Expr, sign_of: Expr) -> Expr:
    """A number with the sign bit of another."""
    sign = bitcast(sign_of, DType.I32) & -(2**31)
    return bitcast(bitcast(unary("abs", magnitude), DType.I32) | sign, DType.F32)


def gelu(k: Builder, x: Expr) -> Expr:
    """x (1 + erf(x/√2)) / 2 = max(x, 0) - abs(x) erfc(abs(x)/√2) / 2: absolute error below 1.2e-7 + 1 ulp."""
    if x.dtype is not DType.F32:
        return x * 0.5 * (1.0 + call("erf", k.let(x * sqrt(0.5))))
    a = k.let(minimum(10.0, unary("abs", x)))
    tail = _exp2(k, k.let(_polynomial(k, a, _GELU)))
    return fma(-a, tail, maximum(0.0, x))


def _exp2(k: Builder, x: Expr) -> Expr:
    """2^x for -125 <= x <= 125."""
    shifted = k.let(x + _MAGIC, "n")
    r = k.let(x - (shifted - _MAGIC), "r")
    p = k.let(_polynomial(k, r, _EXP2), "p")
    return k.let(bitcast(bitcast(p, DType.I32) + binary("shl", bitcast(shifted, DType.I32), 23), DType.F32))


def softplus(k: Builder, x: Expr) -> Expr:
    """log(1 + e^x) = max(x, 0) + log(1 + e^-abs(x)): within 5 ulp while the result is above 1e-37."""
    return maximum(0.0, x) + log1p_unit(k, k.let(exp_clamped(k, k.let(-unary("abs", x)))))


_REDUCIBLE = 2.0**28
"""Largest angle whose reduction in f64 keeps an absolute error below 1e-7."""


def sin(k: Builder, x: Expr) -> Expr:
    """Within 2 ulp up to 1000, absolute error below 1.3e-7 beyond; angles above 2**28 go through the C library."""
    return _sine(k, x, "sin", 0)


def cos(k: Builder, x: Expr) -> Expr:
    """Within 2 ulp up to 1000, absolute error below 1.3e-7 beyond; angles above 2**28 go through the C library."""
    return _sine(k, x, "cos", 1)


def _sine(k: Builder, x: Expr, name: str, turn: int) -> Expr:
    """x = n π/2 + r by f64 arithmetic; the sine or cosine of r by the parity of n + turn."""
    if x.dtype is not DType.F32:
        return call(name, x)
    size = k.let(unary("abs", x))
    small = k.let(size < _REDUCIBLE)
    wide = k.let(cast(select(small, x, 0.0), DType.F64))
    n = k.let(unary("round", wide * (2 / pi)))
    r = k.let(cast(fma(n, -(pi / 2), wide), DType.F32), "r")
    quadrant = k.let(cast(n, DType.I32) + turn)
    square = k.let(r * r)
    sine = k.let(fma(k.let(_polynomial(k, square, _SIN) * square), r, r))
    cosine = k.let(fma(k.let(_polynomial(k, square, _COS) * square), square, fma(square, -0.5, _like(x, 1.0))))
    value = select(binary("eq", quadrant & 1, 0), sine, cosine)
    flipped = binary("xor", bitcast(k.let(value), DType.I32), binary("shl", quadrant & 2, 30))
    result = k.registers("angle", DType.F32, 1, x.lanes)
    k.store(result, 0, bitcast(flipped, DType.F32))
    for _ in k.when(binary("eq", _all_of(small), 0)):
        k.store(result, 0, call(name, x))
    return k.let(k.load(result, 0))


def _all_of(condition: Expr) -> Expr:
    """1 where every lane is true, else 0 (i32)."""
    return reduce("min", cast(condition, DType.I32))


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
    "sin": sin,
    "cos": cos,
    **{n: _libm(n) for n in "tan asin acos atan sinh cosh asinh acosh atanh".split()},
}
"""By the name of the C library's function, lower case."""
