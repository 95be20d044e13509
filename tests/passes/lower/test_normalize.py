"""Normalisations as compiled code against ONNX's reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c2c.tests.passes.lower.harness import Case, in_blocks, run_graph, run_op, run_ops, with_tail

SEED = 50


def numbers(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = SEED) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) * 2 + 3).astype(dtype)


def check(cases: list[Case], tolerance: float = 2e-5, threads: int = 1) -> None:
    for case, found in zip(cases, run_ops(cases, threads=threads), strict=True):
        for got, expected in zip(found, case.expected(), strict=True):
            label = f"{case.op} {[a.shape for a in case.inputs if a is not None]} {case.attrs}"
            np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance, err_msg=label)


def test_layer_normalization() -> None:
    cases = []
    for shape in ((3, 40), (2, 5, 77), (2, 3, 4, 5), (4, 1)):
        for axis in (-1, 1, len(shape) - 1):
            x, inner = numbers(shape), shape[axis:]
            cases += [
                Case("LayerNormalization", [x, numbers(inner), numbers(inner, seed=2)], {"axis": axis}, outputs=3)
            ]
            cases += [Case("LayerNormalization", [x, numbers(inner)], {"axis": axis, "epsilon": 0.1})]
            cases += [Case("RMSNormalization", [x, numbers(inner)], {"axis": axis})]
    check(cases)
    check(cases[:3], threads=2)


@pytest.mark.parametrize("rows", [1, 4, 7, 400])
def test_rows_that_are_worked_on_together(rows: int) -> None:
    """Groups of rows and what is left of them, equal to the last bit for every number of threads."""
    x, inner = numbers((rows, 3, 90)), numbers((90,))
    cases = [Case("LayerNormalization", [x, inner, inner], {"axis": 2}), Case("Softmax", [x], {"axis": 2})]
    check(cases)
    for one, two in zip(run_ops(cases), run_ops(cases, threads=2), strict=True):
        np.testing.assert_array_equal(one[0], two[0])


@pytest.mark.parametrize("shape", ((2, 21, 5, 7), (1, 3, 40), (2, 4, 3, 3, 3)))
def test_instance_and_batch_normalization(shape: tuple[int, ...]) -> None:
    scale, bias, mean, variance = (np.abs(numbers(shape[1:2], seed=i)) for i in range(4))
    x = numbers(shape)
    cases = [
        Case("InstanceNormalization", [x, scale, bias], {"epsilon": 1e-3}),
        Case("BatchNormalization", [x, scale, bias, mean, variance]),
    ]
    check(cases)
    for block in (4, 16):
        for case in cases:
            blocks = in_blocks(case, block)
            (got,) = run_graph(blocks, case.arrays, threads=2)
            np.testing.assert_allclose(got, case.expected()[0], rtol=2e-5, atol=2e-5)


def test_other_normalizations() -> None:
    x = numbers((2, 7, 5, 20))
    cases = [Case("MeanVarianceNormalization", [x]), Case("MeanVarianceNormalization", [x], {"axes": [1, 3]})]
    cases += [Case("LpNormalization", [np.abs(x)], {"p": p, "axis": axis}) for p in (1, 2) for axis in (0, 1, 3)]
    x = numbers((7, 7, 5, 20))  # the evaluator counts channels by the batch
    cases += [Case("LRN", [x], {"size": 3}), Case("LRN", [x], {"size": 4, "alpha": 0.3, "beta": 0.6, "bias": 2.0})]
    check(cases)


def test_mean_far_from_zero() -> None:
    x = np.random.default_rng(SEED).standard_normal((3, 500)).astype(np.float32) + 1000
    ones = np.ones(500, np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(run_op("LayerNormalization", [x, ones])[0], expected, atol=2e-4)


@pytest.mark.parametrize("shape", [(2, 5, 270, 260), (1, 9, 75011), (1, 2, 3, 130, 210)])
def test_strips_that_leave_the_second_cache(shape: tuple[int, ...]) -> None:
    """Taken in parts, of which there are none of a prime length; parts differ in their means."""
    x = numbers(shape) + np.linspace(-3, 3, shape[2], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 3)) + 10
    scale, bias = numbers(shape[1:2], seed=1), numbers(shape[1:2], seed=2)
    axes, wide, per_channel = tuple(range(2, len(shape))), x.astype(np.float64), (-1, *[1] * (len(shape) - 2))
    centred = (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + 1e-5)
    expected = centred * scale.reshape(per_channel) + bias.reshape(per_channel)
    case = Case("InstanceNormalization", [x, scale, bias])
    (plain,) = run_ops([case], target="x86-64-v3", threads=2)
    blocked = run_graph(in_blocks(case, 8), case.arrays, target="x86-64-v3", threads=2)
    for (got,) in (plain, blocked):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_fused_tail() -> None:
    x, scale = numbers((2, 6, 4, 30)), numbers((30,))
    channels = numbers((6,))
    cases = [
        Case("LayerNormalization", [x, scale], {"axis": -1}), Case("RMSNormalization", [x, scale], {"axis": -1}),
        Case("InstanceNormalization", [x, channels, channels]), Case("MeanVarianceNormalization", [x]),
        Case("LpNormalization", [x], {"axis": 2}), Case("LRN", [x[:, :2]], {"size": 3}),
        Case("Softmax", [x], {"axis": 1}), Case("Softmax", [x], {"axis": -1}), Case("LogSoftmax", [x], {"axis": 0}),
    ]  # fmt: skip
    for case in cases:
        for factor in (numbers((30,), seed=3), numbers(case.arrays[0].shape, seed=3), numbers((1, 1, 4, 1))):
            (got,) = run_graph(with_tail(case, factor), [*case.arrays, factor])
            expected = np.abs(case.expected()[0]) * factor
            np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5, err_msg=f"{case.op} {factor.shape}")
