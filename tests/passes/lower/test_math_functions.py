"""The error of every vector function over all exponents, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from c2c.tests.passes.lower.harness import run_op

Array = np.ndarray[Any, Any]
ULP = 2.0**-23


def floats(stride: int) -> Array:
    """Every `stride`-th f32 that is not NaN, of both signs, denormals included."""
    bits = np.arange(0, 0x7F800001, stride, dtype=np.uint32)
    return np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)


def within(low: float, high: float) -> Array:
    """Numbers of all exponents and, evenly, numbers of the range."""
    x = floats(49_999)
    even = np.random.default_rng(3).uniform(low, high, 200_000).astype(np.float32)
    return np.concatenate([x[(x >= low) & (x <= high)], even])


@np.vectorize
def erf(x: float) -> float:
    return math.erf(x)


def gelu(x: Array) -> Array:
    return np.asarray(x * np.vectorize(math.erfc)(-x / math.sqrt(2)) / 2)


def mish(x: Array) -> Array:
    return x * np.tanh(np.logaddexp(0, x))


BOUNDS: list[tuple[str, Callable[[Array], Array], float, float, float, float]] = [
    # operator, function, range, relative bound in ulp, absolute bound
    ("Exp", np.exp, -103, 88.7, 2, 1.5e-45), ("Log", np.log, 1e-45, 3.4e38, 2, 0), ("Erf", erf, -20, 20, 5, 2e-45),
    ("Tanh", np.tanh, -100, 100, 5, 2e-45), ("Sigmoid", lambda x: 1 / (1 + np.exp(-x)), -87, 100, 4, 0),
    ("Softplus", lambda x: np.logaddexp(0, x), -80, 1e30, 5, 0), ("Gelu", gelu, -100, 100, 1, 1.2e-7),
    ("Sin", np.sin, -1e9, 1e9, 0, 1.3e-7), ("Cos", np.cos, -1e9, 1e9, 0, 1.3e-7), ("Sin", np.sin, -1000, 1000, 2, 0),
    ("Cos", np.cos, -1000, 1000, 2, 0),
    ("Elu", lambda x: np.where(x < 0, np.expm1(x), x), -200, 1, 3, 2e-45), ("Mish", mish, -60, 60, 8, 0),
]  # fmt: skip


@pytest.mark.parametrize(("op", "function", "low", "high", "ulps", "absolute"), BOUNDS)
def test_error(
    op: str, function: Callable[[Array], Array], low: float, high: float, ulps: float, absolute: float
) -> None:
    x = within(low, high)
    (got,) = run_op(op, [x])
    expected = function(x.astype(np.float64))
    scale = np.maximum(np.abs(expected), 2.0**-126) * ULP
    excess = np.maximum(np.abs(got.astype(np.float64) - expected) - absolute, 0) / scale
    worst = int(np.argmax(excess))
    assert np.isfinite(excess).all() and excess[worst] <= ulps, (
        f"{op}({x[worst]!r}) = {got[worst]!r}: {excess[worst]:.2f} ulp"
    )


def test_limits() -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38] * 4, np.float32)
    with np.errstate(all="ignore"):
        limits: dict[str, Array] = {
            "Exp": np.exp(x), "Log": np.log(x), "Tanh": np.tanh(x), "Erf": erf(x), "Sin": np.sin(x), "Cos": np.cos(x),
            "Sigmoid": 1 / (1 + np.exp(-x)), "Softplus": np.logaddexp(0, x),
        }  # fmt: skip
    for op, expected in limits.items():
        (got,) = run_op(op, [x])
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-38, err_msg=op)
    np.testing.assert_array_equal(np.signbit(run_op("Tanh", [x])[0]), np.signbit(x))


def test_remainders_give_the_same_bits() -> None:
    x = np.random.default_rng(4).standard_normal(67).astype(np.float32)
    for op in ("Exp", "Sigmoid", "Tanh", "Erf", "Gelu"):
        (whole,) = run_op(op, [x])
        np.testing.assert_array_equal(run_op(op, [x[:5]])[0], whole[:5])


def test_sigmoid_ends_in_zero() -> None:
    """No subnormal number comes out, and x times it stays near 0 for the largest x."""
    x = np.array([-87.2, -87.4, -88, -100, -1e30, -3e38, -np.inf] * 3, np.float32)
    (got,) = run_op("Sigmoid", [x])
    assert (got[x < -87.3] == 0).all() and (got[x > -87.3] >= np.finfo(np.float32).tiny).all()
    (swish,) = run_op("Swish", [x[:6]])
    assert (np.abs(swish) <= 2e-36).all()
