"""Reductions as compiled code against ONNX's reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c2c.tests.passes.lower.harness import Case, in_blocks, run_graph, run_ops, with_tail

SEED = 31
SUMS = ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")
EXTREMES = ("ReduceMax", "ReduceMin", "ReduceProd")


def numbers(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = SEED) -> Any:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    if np.dtype(dtype).kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    return rng.uniform(0.5, 1.5, shape).astype(dtype)


def reduce_case(op: str, x: Any, axes: list[int] | None, keepdims: int = 1) -> Case:
    """Axes as a constant input, None for all."""
    if axes is None:
        return Case(op, [x], {"keepdims": keepdims})
    return Case(op, [x, np.array(axes, np.int64)], {"keepdims": keepdims}, frozenset({1}))


def check(cases: list[Case], rtol: float, threads: int = 1) -> None:
    for case, found in zip(cases, run_ops(cases, threads=threads), strict=True):
        for got, expected in zip(found, case.expected(), strict=True):
            label = f"{case.op} {case.arrays[0].shape} {case.arrays[0].dtype} {case.inputs[1:]} {case.attrs}"
            assert got.shape == expected.shape, label
            tolerance = 0 if expected.dtype.kind in "iub" else rtol
            np.testing.assert_allclose(
                got.astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance, err_msg=label
            )


PATTERNS: list[tuple[tuple[int, ...], list[int] | None]] = [
    ((37,), None), ((3, 5), [1]), ((3, 5), [0]), ((4, 100), [1]), ((100, 70), [0]), ((3, 17, 130), [0, 2]),
    ((3, 17, 130), [1]), ((2, 3, 4, 5), [-1, -3]), ((2, 3, 4, 5), [2, 3]), ((5, 1, 7), [1]), ((2, 3, 70, 2), [2]),
    ((1000,), [0]), ((1, 1), None), ((70, 3), [1]),
]  # fmt: skip


@pytest.mark.parametrize("op", (*SUMS, *EXTREMES))
def test_axes(op: str) -> None:
    cases = [reduce_case(op, numbers(shape), axes, k // len(PATTERNS)) for k, (shape, axes) in enumerate(PATTERNS * 2)]
    check(cases, 1e-5)


@pytest.mark.parametrize("dtype", (np.float64, np.float16, np.int32, np.int64, np.uint32, np.uint64))
def test_types(dtype: Any) -> None:
    x = numbers((5, 40), dtype)
    names = ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare"]
    check([reduce_case(op, x, axes) for op in names for axes in ([0], [1])], 1e-3 if dtype is np.float16 else 1e-12)


@pytest.mark.parametrize("dtype", (np.int8, np.uint8, np.bool_))
def test_narrow_extremes(dtype: Any) -> None:
    x = numbers((5, 70), dtype)
    check([reduce_case(op, x, axes) for op in ("ReduceMax", "ReduceMin") for axes in ([0], [1])], 0)


def test_no_axes_and_nothing_to_reduce() -> None:
    x = numbers((3, 20))
    empty = np.zeros(0, np.int64)
    same = [Case("ReduceSum", [x, empty], {"noop_with_empty_axes": 1}, frozenset({1}))]
    full = [Case("ReduceMax", [x, empty], {"keepdims": 0}, frozenset({1}))]
    none = [reduce_case(op, np.zeros((3, 0, 5), np.float32), [1]) for op in ("ReduceSum", "ReduceProd")]
    check(same + full + none, 1e-6)


def test_not_numbers_win() -> None:
    x = numbers((6, 50))
    x[2, 13], x[3, 4], x[4, 5] = np.nan, np.inf, -np.inf
    check([reduce_case(op, x, axes) for op in ("ReduceMax", "ReduceMin", "ReduceSum") for axes in ([0], [1])], 1e-5)
    ((nothing,),) = run_ops([reduce_case("ReduceLogSumExp", np.full((2, 20), -np.inf, np.float32), [1])])
    assert np.all(nothing == -np.inf)


@pytest.mark.parametrize("op", ("ArgMax", "ArgMin"))
@pytest.mark.parametrize("dtype", (np.float32, np.float64, np.int64, np.uint8))
def test_positions(op: str, dtype: Any) -> None:
    rng = np.random.default_rng(SEED)
    cases = []
    for shape in ((3, 70), (5, 40, 6)):
        x = rng.integers(0, 5, shape).astype(dtype)
        for axis in range(-1, len(shape) - 1):
            for last in (0, 1):
                cases.append(Case(op, [x], {"axis": axis, "select_last_index": last, "keepdims": last}))
    check(cases, 0)


@pytest.mark.parametrize("channels", (16, 21))
@pytest.mark.parametrize("block", (4, 16))
@pytest.mark.parametrize("op", ("ReduceMean", "ReduceMax", "ReduceLogSumExp"))
def test_blocked_layout(op: str, block: int, channels: int) -> None:
    x = numbers((2, channels, 5, 7))
    for axes in ([2, 3], [3], [2]):
        case = reduce_case(op, x, axes)
        (got,) = run_graph(in_blocks(case, block), [x])
        np.testing.assert_allclose(got, case.expected()[0], rtol=1e-5)


def test_results_do_not_depend_on_threads() -> None:
    cases = [
        reduce_case("ReduceSum", numbers(s), a) for s, a in (((300, 400), [1]), ((300, 400), [0]), ((99999,), [0]))
    ]
    for a, b in zip(run_ops(cases), run_ops(cases, threads=4), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("keepdims", (0, 1))
def test_fused_tail(keepdims: int) -> None:
    x = numbers((3, 20, 50)) - np.float32(1)
    for op in ("ReduceMean", "ReduceMax", "ReduceLogSumExp", "ReduceProd"):
        for axes in ([1], [2], [0, 2], [0, 1]):
            case = reduce_case(op, x, axes, keepdims)
            (plain,) = case.expected()
            factor = numbers(plain.shape[-1:], seed=5)
            (got,) = run_graph(with_tail(case, factor), [x, factor])
            np.testing.assert_allclose(got, np.abs(plain) * factor, rtol=1e-5, err_msg=f"{op} {axes}")
