"""Lowerings for a grid of threads against ONNX's reference evaluator, run by the interpreter: small shapes that reach
remainders of tiles and teams."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest

from c2c.codegen.launch import count
from c2c.codegen.target import Target
from c2c.ir.loops import Barrier, For, Let, SubgroupXor
from c2c.ir.loops_visit import statements
from c2c.passes.grid import on_grid
from c2c.passes.lower import lower_node
from c2c.passes.lower.schedule import Tuning
from c2c.tests.passes.lower.harness import Array, Case, run_graph, run_ops, with_tail

SEED = 5
TARGETS = ("opencl", "opencl-cpu")
"""With shared memory and without."""


def normal(*shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(SEED)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def check(cases: list[Case], target: str, terms: int = 64) -> None:
    """Within the rounding of sums of `terms` products of order one."""
    for case, results in zip(cases, run_ops(cases, target=target), strict=True):
        for got, expected in zip(results, case.expected(), strict=True):
            assert got.shape == expected.shape and got.dtype == expected.dtype
            where = f"{case.op} {[a.shape for a in case.arrays]} {dict(case.attrs)}, seed {SEED}"
            np.testing.assert_allclose(got, expected, atol=1e-6 * terms, rtol=1e-5, err_msg=where)


PRODUCTS = [
    ((3, 5), (5, 7)), ((5, 17), (17, 33)), ((9, 8), (8, 65)), ((1, 40), (40, 9)), ((2, 1, 4, 3), (3, 3, 6)),
    ((2, 6, 5), (5, 7)), ((5,), (5, 7)), ((4, 5), (5,)),
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_products(target: str) -> None:
    check([Case("MatMul", normal(*shapes)) for shapes in PRODUCTS], target)
    transposed = {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}
    check(
        [Case("Gemm", normal((7, 6), (9, 7), (9,)), transposed), Case("Gemm", normal((5, 6), (6, 9), (5, 1)))], target
    )


CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], bool, dict[str, Any]]] = [
    ((1, 3, 7, 6), (5, 3, 3, 3), True, {"pads": [1, 1, 1, 1]}),
    ((2, 4, 5, 5), (8, 4, 1, 1), False, {}),
    ((1, 4, 6, 7), (6, 2, 3, 2), True, {"group": 2, "strides": [2, 1], "dilations": [1, 2], "pads": [2, 0, 1, 3]}),
    ((1, 6, 6, 6), (6, 1, 3, 3), True, {"group": 6, "pads": [1, 1, 1, 1]}),
    ((1, 5, 9), (4, 5, 3), False, {"pads": [1, 1], "strides": [2]}),
    ((1, 2, 3, 4, 4), (4, 2, 2, 2, 2), True, {}),
    ((1, 1, 8, 8), (2, 1, 5, 5), False, {"auto_pad": "SAME_UPPER"}),
]


@pytest.mark.parametrize("target", TARGETS)
def test_convolutions(target: str) -> None:
    cases = []
    for x, w, bias, attrs in CONVOLUTIONS:
        arrays = normal(x, w, *([(w[0],)] if bias else []))
        cases.append(Case("Conv", arrays, {"kernel_shape": list(w[2:]), **attrs}))
    check(cases, target)


WINDOWS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 3, 9, 21), (18, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 5, 7, 7), (37, 5, 1, 1), {}),
    ((1, 4, 6, 35), (3, 4, 1, 1), {"strides": [2, 2]}),
    ((1, 4, 11, 19), (6, 2, 3, 4), {"group": 2, "strides": [2, 3], "dilations": [2, 1], "pads": [2, 0, 1, 3]}),
    ((1, 5, 9, 33), (5, 1, 3, 3), {"group": 5, "strides": [2, 2], "pads": [0, 1, 1, 1]}),
    ((1, 40, 3, 3), (33, 40, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((1, 2, 40), (5, 2, 13), {"pads": [6, 6], "dilations": [1]}),
    ((1, 2, 3, 4, 18), (4, 2, 2, 2, 2), {"pads": [1, 0, 0, 0, 1, 1]}),
    ((1, 3, 4, 1), (4, 3, 3, 1), {"pads": [4, 0, 4, 0]}),
]
"""Remainders of vectors, rows and channels; phases of strides; images smaller than a vector."""


@pytest.mark.parametrize("constants", [frozenset({1, 2}), frozenset()], ids=["constant", "given"])
def test_windows(constants: frozenset[int]) -> None:
    cases = []
    for x, w, attrs in WINDOWS:
        cases.append(Case("Conv", normal(x, w, w[:1]), {"kernel_shape": list(w[2:]), **attrs}, constants))
    check(cases, "opencl-cpu", 400)


FORMS = {
    "channels": ("1 x 1 x 3->18 3x3/1*1 6x21->6x21 f32", "channels=4 vectors=2x1x16"),
    "positions": ("1 x 1 x 3->18 3x3/1*1 6x21->6x21 f32", "positions=4 channels=2x16"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_without_shared_memory_agree(form: str) -> None:
    problem, name = FORMS[form]
    case = Case(
        "Conv", normal((1, 3, 6, 21), (18, 3, 3, 3)), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, frozenset({1})
    )
    (factor,) = normal((1, 18, 1, 21))
    graph = with_tail(case, factor)
    tuning = Tuning({("grid-conv", problem): name})
    (got,) = run_graph(graph, [*case.arrays[:1], factor], target="opencl-cpu", tuning=tuning)
    np.testing.assert_allclose(got, np.abs(case.expected()[0]) * factor, atol=1e-5)


def test_constant_factors() -> None:
    """Panels: whole, partial, of batches, of a transposed factor."""
    cases = [Case("MatMul", normal(*shapes), {}, frozenset({1})) for shapes in PRODUCTS]
    arrays = normal((7, 6), (69, 6), (69,))
    cases += [Case("Gemm", arrays, {"transB": 1}, frozenset({1, 2})), Case("Gemm", arrays, {"transB": 1})]
    cases.append(Case("MatMul", normal((1, 71), (71, 33)), {}, frozenset({1})))
    check(cases, "opencl-cpu")


def test_products_of_few_rows() -> None:
    """Several pieces of a row, given matrices and constant ones, that lie along the depth, too."""
    x, w, b = normal((1, 140), (17, 140), (17,))
    cases = [Case("Gemm", [x, w, b], {"transB": 1}, c) for c in (frozenset[int](), frozenset({1, 2}))]
    cases += [Case("MatMul", normal((2, 2, 7), (2, 7, 17))), Case("MatMul", normal((3, 128), (128, 16)))]
    check(cases, "opencl", 150)


@pytest.mark.parametrize("target", TARGETS)
def test_a_tail_is_part_of_the_kernel(target: str) -> None:
    case = Case("Conv", normal((1, 3, 6, 6), (5, 3, 3, 3)), {"kernel_shape": [3, 3]})
    (factor,) = normal((1, 5, 4, 4))
    graph = with_tail(case, factor)
    (got,) = run_graph(graph, [*case.arrays, factor], target=target)
    np.testing.assert_allclose(got, np.abs(case.expected()[0]) * factor, atol=1e-5)


EXCHANGING = ("opencl-adreno", "opencl-intel")
"""With one subgroup a team, and with four."""


@pytest.mark.parametrize("target", EXCHANGING)
def test_teams_that_exchange_what_they_accumulate(target: str) -> None:
    """Among it the first of equal maxima, wherever it is."""
    x, scale, bias = normal((4, 130), (130,), (130,))
    equal = np.zeros((4, 130), np.float32)
    equal[[0, 1, 1, 2, 2, 3, 3], [129, 63, 64, 15, 16, 97, 96]] = 1
    cases = [Case("Softmax", [x]), Case("LayerNormalization", [x, scale, bias])]
    check(
        [*cases, Case("ArgMax", [equal], {"axis": 1}), Case("ReduceL2", [x, np.array([1])], {}, frozenset({1}))], target
    )
    (call,) = on_grid(lower_node(cases[1].node(), Target.parse(target)))
    found = list(statements(call.kernel.body))
    assert sum(isinstance(s, Barrier) for s in found) == {"opencl-adreno": 0, "opencl-intel": 2}[target]
    assert any(isinstance(s, Let) and isinstance(s.value, SubgroupXor) for s in found)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [3, 64, 130, 301])
def test_strips_of_one_and_of_many_elements(target: str, size: int) -> None:
    x, scale, bias = normal((3, size), (size,), (size,))
    check(
        [
            Case("Softmax", [x]),
            Case("LogSoftmax", [x]),
            Case("LayerNormalization", [x, scale, bias]),
            Case("ReduceMean", [x, np.array([1])], {}, frozenset({1})),
            Case("ReduceMax", [x, np.array([1])], {"keepdims": 0}, frozenset({1})),
            Case("ArgMax", [x], {"axis": 1}),
            Case("ReduceSum", [x, np.array([0])], {}, frozenset({1})),
            Case("InstanceNormalization", [x.reshape(1, 3, size), scale[:3], bias[:3]]),
        ],
        target,
    )


@pytest.mark.parametrize("target", TARGETS)
def test_what_all_targets_share(target: str) -> None:
    x, y = normal((2, 3, 4, 5), (2, 3, 4, 5))
    pool = {"kernel_shape": [2, 3], "strides": [1, 2], "pads": [0, 1, 1, 1]}
    check(
        [
            Case("Add", [x, y]),
            Case("Transpose", [x], {"perm": [0, 2, 3, 1]}),
            Case("Concat", [x, y], {"axis": 2}),
            Case("MaxPool", [x], pool),
            Case("AveragePool", [x], pool),
            Case("GlobalAveragePool", [x]),
            Case("Gather", [x, np.array([2, 0])], {"axis": 1}),
            Case("Pad", [x, np.array([0, 1, 0, 2, 0, 1, 1, 0])], {"mode": "reflect"}, frozenset({1})),
            Case("Resize", [x, None, np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}, frozenset({2})),
            Case("ConvTranspose", [x, *normal((3, 2, 3, 3))], {"strides": [2, 2]}),
            Case("CumSum", [x, np.array(3)], {}, frozenset({1})),
            Case("Where", [x > 0, x, y]),
            Case("Gelu", [x]),
        ],
        target,
    )


def test_work_is_spread_over_threads() -> None:
    """Threads that a kernel of each family has, and whether they work in teams."""
    x, w = normal((1, 8, 16, 16), (8, 8, 3, 3))
    cases = {
        "Conv": (Case("Conv", [x, w], {"kernel_shape": [3, 3]}), 128, True),
        "Relu": (Case("Relu", [x]), 8 * 256, False),
        "Softmax": (Case("Softmax", [x.reshape(8, 256)]), 8 * 64, True),
        "MaxPool": (Case("MaxPool", [x], {"kernel_shape": [2, 2]}), 8 * 225, False),
        "Transpose": (Case("Transpose", [x], {"perm": [0, 2, 3, 1]}), 8 * 256, False),
    }
    for case, least, team in cases.values():
        (call,) = on_grid(lower_node(case.node(), Target.parse("opencl")))
        loops = [s for s in statements(call.kernel.body) if isinstance(s, For) and s.kind in ("grid", "thread")]
        threads = prod(count(s) for s in loops)
        assert threads >= least, case.op
        assert any(isinstance(s, Barrier) for s in statements(call.kernel.body)) == team, case.op


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("target", TARGETS)
def test_recurrences(op: str, target: str) -> None:
    """More units than lanes and a remainder, both directions, given states."""
    gates, steps, batch, inputs, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 3, 2, 3, 18
    x, w, r, b = normal(
        (steps, batch, inputs), (2, gates * hidden, inputs), (2, gates * hidden, hidden), (2, 2 * gates * hidden)
    )
    (state,) = normal((2, batch, hidden))
    arrays = [x, w / 4, r / 4, b, None, state, *([state / 2] if op == "LSTM" else [])]
    attrs = {"hidden_size": hidden, "direction": "bidirectional"}
    outputs = 3 if op == "LSTM" else 2
    cases = [Case(op, arrays, attrs, frozenset({1, 2, 3}), outputs)]
    if op == "GRU":
        cases.append(Case(op, arrays, attrs | {"linear_before_reset": 1}, frozenset({1, 2, 3}), outputs))
    check(cases, target)
    calls = on_grid(lower_node(cases[0].node(), Target.parse(target)))
    loops = [[s for s in statements(c.kernel.body) if isinstance(s, For) and s.kind == "thread"] for c in calls[-2:]]
    assert (target == "opencl") == all(found and count(found[0]) > 1 for found in loops)


WINOGRAD = [((1, 3, 9, 7), 5, (1, 1, 1, 1)), ((2, 4, 6, 6), 18, (0, 0, 0, 0)), ((1, 5, 21, 33), 4, (2, 1, 1, 0))]


@pytest.mark.parametrize("m", [2, 4])
def test_winograd(m: int) -> None:
    """Tiles beyond the image, few tiles and many, several images, a fused tail."""
    for shape, maps, pads in WINOGRAD:
        attrs = {"kernel_shape": [3, 3], "pads": list(pads)}
        case = Case("Conv", normal(shape, (maps, shape[1], 3, 3), (maps,)), attrs, frozenset({1, 2}))
        (expected,) = case.expected()
        (factor,) = normal((1, maps, 1, 1))
        graph = with_tail(case, factor)
        for node in graph.nodes[0].attrs["body"].nodes:
            if node.op == "Conv":
                node.op, node.attrs = "c2c.WinogradConv", node.attrs | {"m": m}
        (got,) = run_graph(graph, [case.arrays[0], factor], target="opencl-cpu")
        np.testing.assert_allclose(got, np.abs(expected) * factor, atol=1e-4, err_msg=f"{shape}")
