"""Products and convolutions of integers for a grid of threads against ONNX's reference evaluator, exact: every form,
shapes that leave rests of words, tiles and teams, on OpenCL; a few in the interpreter, which knows barriers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.ir.loops import Dot, Kernel
from c2c.ir.loops_visit import uses
from c2c.passes.grid import on_grid
from c2c.passes.lower import lower_node
from c2c.passes.lower.schedule import Tuning
from c2c.tests.opencl import needs_opencl, run_on_device
from c2c.tests.passes.lower.harness import Array, Case, graph_of, program_of, run_ops

on_device: pytest.MarkDecorator = needs_opencl
SEED = 11
TARGETS = ("opencl", "opencl+dots", "opencl-cpu")
"""In floats, in dot products (written out on most devices), and without shared memory."""

Attrs = dict[str, Any]


SHARES = (7, pytest.param(1, marks=pytest.mark.slow))
"""Every so many cases: OpenCL's compiler takes half a second for each."""


def compare(cases: list[Case], found: list[list[Array]]) -> None:
    for case, results in zip(cases, found, strict=True):
        for got, expected in zip(results, case.expected(), strict=True):
            assert got.dtype == expected.dtype
            where = f"{case.op} {[a.shape for a in case.arrays]} {dict(case.attrs)}, seed {SEED}"
            np.testing.assert_array_equal(got, expected, err_msg=where)


def check(cases: list[Case], target: str, folder: Path, tuning: Tuning | None = None) -> None:
    """On the OpenCL device that is there."""
    graph, inputs = graph_of(cases)
    found = iter(run_on_device(program_of(graph, target, tuning), target, inputs, folder))
    compare(cases, [[next(found)] for _ in cases])


class Numbers:
    """Random levels of the seed."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(SEED)

    def levels(self, dtype: type, *shape: int) -> Array:
        info = np.iinfo(dtype)
        return self.rng.integers(info.min, info.max + 1, shape).astype(dtype)


PRODUCTS = [(1, 33, 7), (3, 129, 20), (5, 64, 40), (30, 7, 100), (17, 31, 33), (4, 4, 4), (6, 1, 9)]


@on_device
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("share", SHARES)
def test_rows_by_constant_matrices(share: int, target: str, tmp_path: Path) -> None:
    n, cases = Numbers(), []
    for left in (np.uint8, np.int8):
        for m, k, columns in PRODUCTS:
            x, w, zero = n.levels(left, m, k), n.levels(np.int8, k, columns), np.array(12, left)
            wide, zeros = n.levels(np.uint8, k, columns), n.levels(np.uint8, columns)
            cases += [
                Case("MatMulInteger", [x, w, zero], {}, frozenset({1, 2})),
                Case("MatMulInteger", [x, w, zero, np.array(3, np.int8)], {}, frozenset({1, 3})),
                Case("MatMulInteger", [x, wide, zero, zeros], {}, frozenset({1, 3})),
            ]
        x = n.levels(left, 2, 3, 5, 12)
        cases.append(Case("MatMulInteger", [x, n.levels(np.int8, 12, 20), np.array(7, left)], {}, frozenset({1})))
    check(cases[::share], target, tmp_path)


CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], Attrs]] = [
    ((1, 8, 6, 7), (9, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 5, 5, 6), (12, 5, 1, 1), {}),
    ((1, 12, 6, 7), (10, 6, 3, 2), {"group": 2, "strides": [2, 1], "dilations": [1, 2], "pads": [2, 0, 1, 3]}),
    ((1, 6, 6, 6), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ((1, 3, 8, 7), (5, 3, 5, 3), {"strides": [2, 2], "pads": [0, 2, 2, 1]}),
    ((1, 6, 11), (7, 6, 3), {"pads": [1, 1], "strides": [2]}),
    ((1, 3, 4, 4, 3), (5, 3, 2, 2, 2), {"pads": [0, 1, 0, 1, 0, 1]}),
    ((1, 37, 1, 1), (21, 37, 1, 1), {}),
    ((3, 2, 4, 4), (2, 2, 3, 3), {"pads": [1, 1, 1, 1]}),
]  # fmt: skip


@on_device
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("share", SHARES)
def test_convolutions(share: int, target: str, tmp_path: Path) -> None:
    n, cases = Numbers(), []
    for data in (np.uint8, np.int8):
        for x, w, attrs in CONVOLUTIONS:
            operands = [n.levels(data, *x), n.levels(np.int8, *w), np.array(7, data)]
            cases += [Case("ConvInteger", operands, attrs, frozenset({1, 2})),
                      Case("ConvInteger", operands, attrs, frozenset({1}))]  # fmt: skip
        operands = [n.levels(data, 1, 6, 5, 5), n.levels(np.uint8, 9, 6, 3, 3), np.array(7, data)]
        cases.append(Case("ConvInteger", [*operands, n.levels(np.uint8, 9)], {}, frozenset({1, 3})))
    check(cases[::share], target, tmp_path)


@on_device
@pytest.mark.parametrize("target", TARGETS)
def test_sums_beyond_what_floats_hold(target: str, tmp_path: Path) -> None:
    """Sums of the largest levels: they leave 24 bits, and those of floats would be off by some units."""
    depth = 900
    rows, matrix = np.full((4, depth), 255, np.uint8), np.full((depth, 8), 127, np.int8)
    rows[:, ::7], matrix[::5] = 254, 126
    image, weights = rows[0].reshape(1, 100, 3, 3), np.ascontiguousarray(matrix.T.reshape(8, 100, 3, 3))
    cases = [
        Case("MatMulInteger", [rows, matrix], {}, frozenset({1})),
        Case("MatMulInteger", [rows[:1], matrix], {}, frozenset({1})),
        Case("ConvInteger", [np.concatenate([image] * 5), weights], {}, frozenset({1})),
    ]
    assert all(np.abs(c.expected()[0]).max() > 1 << 24 for c in cases)
    check(cases, target, tmp_path)


RANGES = [Numbers().rng.normal(0.4, 2, n).astype(np.float32) for n in (5, 300, 2048, 4700)] + [
    np.zeros(200, np.float32), np.abs(Numbers().rng.normal(3, 1, (3, 70))).astype(np.float32)
]  # fmt: skip


@on_device
@pytest.mark.parametrize("target", ["opencl", "opencl-cpu"])
def test_dynamic_levels(target: str, tmp_path: Path) -> None:
    """Parts of one team and of several: the bits of processor code."""
    cases = [Case("DynamicQuantizeLinear", [x], {}, frozenset(), 3) for x in RANGES]
    graph, inputs = graph_of(cases)
    found = run_on_device(program_of(graph, target), target, inputs, tmp_path)
    wanted = [y for results in run_ops(cases) for y in results]
    for y, expected in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(y, expected, err_msg=f"seed {SEED}")


def test_dynamic_levels_in_the_interpreter() -> None:
    case = Case("DynamicQuantizeLinear", [RANGES[1]], {}, frozenset(), 3)
    for target in ("opencl", "cuda"):
        for got, expected in zip(run_ops([case], target=target)[0], case.expected(), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6)


def kernels(case: Case, target: str) -> list[Kernel]:
    return [c.kernel for c in on_grid(lower_node(case.node(), Target.parse(target)))]


def has_dots(case: Case, target: str) -> bool:
    return any(uses(k, lambda e: isinstance(e, Dot)) for k in kernels(case, target))


def test_dot_products_where_the_device_has_them() -> None:
    n = Numbers()
    wide = Case("ConvInteger", [n.levels(np.uint8, 1, 16, 8, 8), n.levels(np.int8, 16, 16, 3, 3)], {}, frozenset({1}))
    (choice,) = lower_node(wide.node(), Target.parse("opencl"))[0].choices
    assert "no dot products" in choice.note and not has_dots(wide, "opencl") and not has_dots(wide, "metal")
    for target in ("opencl+dots", "opencl-mali", "cuda"):
        (choice,) = lower_node(wide.node(), Target.parse(target))[0].choices
        assert choice.name.startswith("dots") and not choice.note
        assert has_dots(wide, target)
    assert not has_dots(wide, "cuda-dots")


SMALL = [
    Case("ConvInteger", [Numbers().levels(np.uint8, 1, 5, 4, 3), Numbers().levels(np.int8, 5, 5, 3, 3),
                         np.array(9, np.uint8)], {"pads": [1, 1, 1, 1]}, frozenset({1, 2})),
    Case("MatMulInteger", [Numbers().levels(np.uint8, 5, 9), Numbers().levels(np.int8, 9, 6)], {}, frozenset({1})),
    Case("MatMulInteger", [Numbers().levels(np.uint8, 1, 9), Numbers().levels(np.int8, 9, 6)], {}, frozenset({1})),
]  # fmt: skip


@pytest.mark.parametrize("target", ["opencl+dots", "opencl-cpu", "metal"])
def test_small_ones_in_the_interpreter(target: str) -> None:
    compare(SMALL, run_ops(SMALL, target=target))


@pytest.mark.slow
@on_device
@pytest.mark.parametrize("case", SMALL, ids=[f"{c.op}{i}" for i, c in enumerate(SMALL)])
def test_schedules_agree(case: Case, tmp_path: Path) -> None:
    """Candidates of all forms give the same sums: every fifth, since OpenCL's compiler takes seconds for each."""
    (choice,) = lower_node(case.node(), Target.parse("opencl+dots"))[0].choices
    assert len({name.split()[0] for name, _ in choice.candidates}) == 3
    for number, (name, _) in enumerate(choice.candidates[:: 1 if len(choice.candidates) < 9 else 5]):
        check([case], "opencl+dots", tmp_path / str(number), Tuning({choice.key: name}))
