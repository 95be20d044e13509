"""Pooling as compiled code against ONNX's reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c2c.codegen.target import native
from c2c.ir.types import DType
from c2c.tests.passes.lower.harness import Case, in_blocks, run_graph, run_ops

SEED = 11
LANES = native().lanes(DType.F32)


def pool(op: str, shape: tuple[int, ...], dtype: Any = np.float32, outputs: int = 1, **attrs: Any) -> Case:
    x = (np.random.default_rng(SEED).standard_normal(shape) * 20).astype(dtype)
    return Case(op, [x], attrs, outputs=outputs)


def expected_of(case: Case) -> list[np.ndarray]:
    """What ONNX's evaluator gives; it takes floats only, which hold small integers exactly."""
    x = case.inputs[0]
    assert x is not None
    if x.dtype.kind == "f":
        return [np.asarray(y) for y in case.expected()]
    return [np.asarray(y).astype(x.dtype) for y in Case(case.op, [x.astype(np.float64)], case.attrs).expected()]


def check(case: Case, found: list[np.ndarray]) -> None:
    for got, expected in zip(found, expected_of(case), strict=True):
        label = f"{case.op} {dict(case.attrs)}, seed {SEED}"
        assert got.shape == expected.shape, label
        if expected.dtype.kind in "iub":
            np.testing.assert_array_equal(got, expected, err_msg=label)
        else:
            atol = 1e-5 * float(np.abs(expected).max(initial=1.0))
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=atol, err_msg=label)


WINDOWS = [
    pool("MaxPool", (1, 10, 13, 14), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    pool("MaxPool", (1, 3, 12, 13), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    pool("MaxPool", (2, 5, 33), kernel_shape=[3], dilations=[2]),
    pool("MaxPool", (1, 4, 5, 6, 7), kernel_shape=[2, 3, 2], strides=[1, 2, 1], pads=[0, 1, 1, 1, 1, 0]),
    pool("MaxPool", (1, 8, 9, 9), kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
    pool("MaxPool", (1, 8, 10, 17), np.int8, kernel_shape=[3, 3]),
    pool("MaxPool", (1, 3, 10, 9), np.uint8, kernel_shape=[2, 2], strides=[2, 1]),
    pool("MaxPool", (1, 3, 8, 8), np.float64, kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
    pool("AveragePool", (1, 11, 14, 15), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    pool("AveragePool", (1, 8, 14, 15), kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    pool("AveragePool", (1, 8, 13, 12), kernel_shape=[2, 2], strides=[2, 2]),
    pool("AveragePool", (1, 4, 29), kernel_shape=[4], strides=[3], pads=[1, 2]),
    pool("LpPool", (1, 9, 12, 12), kernel_shape=[3, 3], strides=[2, 2], p=2),
    pool("LpPool", (1, 3, 20), kernel_shape=[4], p=1),
    pool("GlobalAveragePool", (2, 11, 7, 9)),
    pool("GlobalMaxPool", (1, 8, 33)),
    pool("GlobalAveragePool", (1, 3, 4, 5, 3)),
]


@pytest.mark.parametrize("threads", [1, 2])
def test_plain(threads: int) -> None:
    for case, found in zip(WINDOWS, run_ops(WINDOWS, threads=threads), strict=True):
        check(case, found)


@pytest.mark.parametrize("case", [c for c in WINDOWS if c.arrays[0].dtype == np.float32], ids=lambda c: c.op)
def test_blocked(case: Case) -> None:
    assert case.inputs[0] is not None
    check(case, run_graph(in_blocks(case, LANES), [case.inputs[0]]))


def test_indices() -> None:
    cases = [
        pool("MaxPool", (1, 2, 6, 7), outputs=2, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        pool("MaxPool", (2, 3, 9), outputs=2, kernel_shape=[2], strides=[2]),
    ]
    for case, found in zip(cases, run_ops(cases), strict=True):
        check(case, found)


def test_indices_count_columns_with_storage_order_1() -> None:
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    case = Case("MaxPool", [x], {"kernel_shape": [2, 2], "strides": [2, 2], "storage_order": 1}, outputs=2)
    _, indices = run_ops([case])[0]
    assert indices.reshape(-1).tolist() == [5, 13, 7, 15]


@pytest.mark.parametrize("p", [1, 2, 3])
def test_global_lp(p: int) -> None:
    case = pool("GlobalLpPool", (2, 5, 6, 7), p=p)
    (got,) = run_ops([case])[0]
    x = np.asarray(case.inputs[0]).astype(np.float64)
    expected = (np.abs(x) ** p).sum(axis=(2, 3), keepdims=True) ** (1 / p)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_ceil_mode_does_not_count_beyond_the_padding() -> None:
    """The last window reaches one column beyond the padded input: that column is not part of the average."""
    x = np.ones((1, 1, 4, 4), np.float32)
    attrs = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1, "pads": [0, 0, 0, 0]}
    (got,) = run_ops([Case("AveragePool", [x], attrs)])[0]
    np.testing.assert_allclose(got, np.ones((1, 1, 2, 2), np.float32), rtol=1e-6)


@pytest.mark.parametrize("blocked", [True, False])
def test_long_average_keeps_its_digits(blocked: bool) -> None:
    """The sum of 40,000 numbers is good to a few roundings, not to the square root of their count."""
    x = np.random.default_rng(SEED).uniform(0, 1, (1, 8, 200, 200)).astype(np.float32)
    case = Case("GlobalAveragePool", [x])
    (got,) = run_graph(in_blocks(case, LANES), [x]) if blocked else run_ops([case])[0]
    np.testing.assert_allclose(got, x.astype(np.float64).mean(axis=(2, 3), keepdims=True), rtol=6e-7)
