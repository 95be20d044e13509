"""Integer and quantised operators against ONNX's reference evaluator: exact, or within one step of rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.tests.passes.lower.harness import Array, Case, run_ops

RNG_SEED = 9


def check(cases: list[Case], tolerance: float = 0, **options: Any) -> None:
    for case, found in zip(cases, run_ops(cases, **options), strict=True):
        for got, want in zip(found, case.expected(), strict=True):
            shapes = [None if a is None else (a.shape, a.dtype) for a in case.inputs]
            label = f"{case.op} {shapes} {case.attrs} seed {RNG_SEED}"
            assert got.dtype == want.dtype, label
            np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), atol=tolerance, err_msg=label)


class Numbers:
    """Random operands, and scalars of their types."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(RNG_SEED)

    def u8(self, *shape: int) -> Array:
        return self.rng.integers(0, 256, shape).astype(np.uint8)

    def i8(self, *shape: int) -> Array:
        return self.rng.integers(-128, 128, shape).astype(np.int8)

    def scales(self, *shape: int) -> Array:
        return self.rng.uniform(0.01, 0.1, shape).astype(np.float32)


def u8(value: int) -> Array:
    return np.array(value, np.uint8)


def i8(value: int) -> Array:
    return np.array(value, np.int8)


def f32(value: float) -> Array:
    return np.array(value, np.float32)


@pytest.mark.parametrize("target", ["x86-64-v4+avx512vnni", "x86-64-v3", "x86-64"])
def test_products_with_constant_weights(target: str) -> None:
    """Rows of either type, with and without a rest of k and n; a zero point that is known and one that is not."""
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    n = Numbers()
    for left, number in ((n.u8, u8), (n.i8, i8)):
        for m, k, columns in ((1, 33, 7), (5, 64, 40), (30, 7, 100), (17, 31, 33)):
            x, narrow = left(m, k), np.clip(n.u8(k, columns), 60, 190)
            zeros = n.rng.integers(100, 140, columns).astype(np.uint8)
            check([
                Case("MatMulInteger", [x, n.i8(k, columns), number(12), i8(0)], {}, frozenset({1, 2, 3})),
                Case("MatMulInteger", [x, n.i8(k, columns), number(12), i8(3)], {}, frozenset({1, 3})),
                Case("MatMulInteger", [x, narrow, number(12), zeros], {}, frozenset({1, 3})),
            ], target=target)  # fmt: skip
        check([Case("MatMulInteger", [left(2, 3, 5, 12), n.i8(12, 20), number(7)], {}, frozenset({1}))], target=target)


@pytest.mark.parametrize("target", ["native", "x86-64"])
def test_matmul_integer(target: str) -> None:
    n = Numbers()
    zero = u8(12)
    check([
        Case("MatMulInteger", [n.u8(5, 33), n.u8(33, 21), zero, u8(0)]),
        Case("MatMulInteger", [n.u8(2, 5, 33), n.i8(33, 21), zero, n.i8(21)], {}, frozenset({1, 3})),
        Case("MatMulInteger", [n.u8(1, 40), n.i8(40, 21), None, i8(3)], {}, frozenset({1})),
        Case("MatMulInteger", [n.u8(4, 40), n.i8(40, 1)]),
    ], target=target)  # fmt: skip


def test_qlinear_matmul() -> None:
    n = Numbers()
    check([
        Case("QLinearMatMul", [n.u8(2, 4, 20), f32(0.02), u8(100), n.u8(2, 20, 9), f32(0.03), u8(90), f32(0.9),
                               u8(118)]),
        Case("QLinearMatMul", [n.i8(4, 20), f32(0.02), i8(10), n.i8(20, 19), f32(0.03), i8(3), f32(0.9), i8(8)], {},
             frozenset({3, 4, 5})),
    ], 1)  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2])
def test_conv_integer(threads: int) -> None:
    n = Numbers()
    strided = {"pads": [1, 0, 0, 1], "strides": [2, 3], "dilations": [1, 2], "group": 2}
    check([
        Case("ConvInteger", [n.u8(1, 3, 5, 6), n.u8(2, 3, 3, 3), u8(7)], {"pads": [1] * 4}),
        Case("ConvInteger", [n.u8(2, 4, 9, 20), n.u8(4, 2, 3, 2), u8(7)], strided),
        Case("ConvInteger", [n.u8(1, 12, 20, 30), n.u8(9, 12, 3, 3), u8(7)]),
        Case("ConvInteger", [n.u8(1, 2, 40), n.u8(7, 2, 3)], {"strides": [2]}),
    ], threads=threads)  # fmt: skip


def test_qlinear_conv() -> None:
    n = Numbers()
    bias = n.rng.integers(-500, 500, 5).astype(np.int32)
    weights = [n.i8(5, 3, 3, 3), n.scales(5), np.zeros(5, np.int8)]
    check([
        Case("QLinearConv", [n.u8(1, 3, 7, 7), f32(0.02), u8(130), *weights, f32(0.2),
             u8(120), bias], {"pads": [1] * 4}, frozenset({3, 4, 5})),
    ], 1)  # fmt: skip


def test_dynamic_quantize_linear() -> None:
    n = Numbers()
    rows = [(n.scales(3, 21) - 0.05) * 30, n.scales(3), -n.scales(16), np.zeros(5, np.float32)]
    check([Case("DynamicQuantizeLinear", [x], {}, frozenset(), 3) for x in rows], 1e-6)
