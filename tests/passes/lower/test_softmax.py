"""Softmax and its kin as compiled code against ONNX's reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c2c.tests.passes.lower.harness import Case, run_op, run_ops

SEED = 40
SHAPES = ((3, 5, 70), (4, 33), (2, 7), (1, 1), (3, 20, 4, 50))


@pytest.mark.parametrize("op", ("Softmax", "LogSoftmax", "Hardmax"))
@pytest.mark.parametrize(("dtype", "tolerance"), ((np.float32, 1e-5), (np.float64, 1e-12)))
def test_every_axis(op: str, dtype: Any, tolerance: float) -> None:
    rng = np.random.default_rng(SEED)
    cases = [
        Case(op, [(rng.standard_normal(shape) * 3).astype(dtype)], {"axis": axis})
        for shape in SHAPES
        for axis in range(-1, len(shape) - 1)
    ]
    for threads in (3,) if dtype is np.float64 else (1,):
        for case, (got,) in zip(cases, run_ops(cases, threads=threads), strict=True):
            label = f"{op} {got.shape} {case.attrs}"
            np.testing.assert_allclose(got, case.expected()[0], rtol=tolerance, atol=tolerance, err_msg=label)


@pytest.mark.parametrize("op", ("Softmax", "LogSoftmax"))
def test_half_sums_in_single(op: str) -> None:
    x = (np.random.default_rng(SEED).standard_normal((4, 50)) * 3).astype(np.float16)
    wide = x.astype(np.float64)
    logs = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    expected = logs if op == "LogSoftmax" else np.exp(logs)
    (got,) = run_op(op, [x])
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=1e-3, atol=1e-7)


def test_extreme_numbers() -> None:
    x = np.array([[1e30, 1e30, -1e30], [-200, -400, -300], [0, -np.inf, 0], [np.nan, 1, 2]] * 5, np.float32)
    (got,) = run_op("Softmax", [x])
    expected = np.array([[0.5, 0.5, 0], [1, 0, 0], [0.5, 0, 0.5]])
    np.testing.assert_allclose(got[:3], expected, rtol=0, atol=1e-37)
    assert got[2, 1] == 0
    assert np.isnan(got[3]).all()
