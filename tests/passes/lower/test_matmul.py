"""MatMul and Gemm against numpy in float64: every form of the kernel, by shapes that reach its remainders."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.ir.graph import Graph, Node, Value
from c2c.ir.loops import Prefetch
from c2c.ir.loops_visit import statements
from c2c.ir.types import DType, TensorType
from c2c.passes.lower import lower_node
from c2c.passes.lower.gemm_kernel import tiles
from c2c.passes.lower.tasks import pieces
from c2c.tests.passes.lower.harness import Array, Case, lines_asked_for, run_graph, run_ops

SEED = 11
Shape: TypeAlias = tuple[int, ...]
TARGETS = ("native", "x86-64")

MATMUL_SHAPES = [
    ((3, 5), (5, 7)),
    ((29, 65), (65, 50)),
    ((65, 64), (64, 32)),
    ((1, 70), (70, 150)),  # matrix-vector
    ((2, 3, 5), (5, 7)),  # one matrix for all batches
    ((2, 1, 17, 33), (3, 33, 37)),  # broadcast batches
    ((4, 1, 40), (4, 40, 9)),
    ((7, 300), (300, 2)),  # few columns: sums across lanes
    ((5,), (5, 7)),
    ((3, 5), (5,)),
    ((5,), (5,)),
    ((40,), (2, 40, 3)),
    ((2, 3, 40), (40,)),
]


def close(got: Array, expected: Array, terms: int) -> None:
    """Within the rounding of a sum of `terms` products of order one."""
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-6 * max(terms, 4), rtol=1e-5, err_msg=f"seed {SEED}")


def normal(*shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(SEED)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("constant", [False, True])
def test_matmul(target: str, constant: bool) -> None:
    cases = [Case("MatMul", normal(*s), {}, frozenset({1} if constant else ())) for s in MATMUL_SHAPES]
    for case, (got,) in zip(cases, run_ops(cases, target=target), strict=True):
        a, b = case.inputs
        assert a is not None and b is not None
        close(got, np.matmul(a.astype(np.float64), b), a.shape[-1])


@pytest.mark.parametrize("constant", [False, True])
def test_threads_do_not_change_bits(constant: bool) -> None:
    cases = [Case("MatMul", normal(*s), {}, frozenset({1} if constant else ()))
             for s in [((70, 90), (90, 100)), ((1, 512), (512, 600)), ((3, 33, 65), (3, 65, 41))]]  # fmt: skip
    one, two = run_ops(cases, threads=1), run_ops(cases, threads=2)
    for (a,), (b,) in zip(one, two, strict=True):
        assert np.array_equal(a, b)


GEMMS: list[tuple[dict[str, Any], Shape, Shape, Shape | None]] = [
    ({"alpha": 0.5, "beta": 2.0}, (9, 33), (33, 40), (40,)),
    ({"transA": 1, "transB": 1}, (33, 9), (40, 33), (9, 1)),
    ({"transB": 1}, (9, 33), (40, 33), ()),
    ({"transB": 1}, (1, 33), (41, 33), (1, 41)),
    ({"alpha": 2.0, "transB": 1}, (1, 33), (1, 33), (1,)),
    ({"beta": 0.0}, (4, 8), (8, 4), (4, 4)),
    ({}, (4, 8), (8, 19), (4, 19)),
    ({"transA": 1}, (64, 1), (64, 30), None),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("constants", [(), (1,), (1, 2)])
def test_gemm(target: str, constants: tuple[int, ...]) -> None:
    cases = []
    for attrs, a, b, c in GEMMS:
        arrays = normal(*(s for s in (a, b, c) if s is not None))
        cases.append(Case("Gemm", arrays, attrs, frozenset(i for i in constants if i < len(arrays))))
    for case, (got,) in zip(cases, run_ops(cases, target=target), strict=True):
        left, right, *bias = (x.astype(np.float64) for x in case.inputs if x is not None)
        at = case.attrs
        expected = (
            at.get("alpha", 1.0) * (left.T if at.get("transA") else left) @ (right.T if at.get("transB") else right)
        )
        close(got, expected + at.get("beta", 1.0) * bias[0] if bias else expected, left.size)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.int64, np.uint32])
def test_other_element_types(dtype: type) -> None:
    rng = np.random.default_rng(SEED)
    pairs = [((9, 20), (20, 19)), ((1, 20), (20, 19)), ((3, 64), (64, 1))]
    cases = [Case("MatMul", [rng.integers(0, 9, s).astype(dtype) for s in pair], {}) for pair in pairs]
    for case, (got,) in zip(cases, run_ops(cases), strict=True):
        a, b = case.inputs
        assert a is not None and b is not None
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, a @ b)


def test_half_precision_sums_in_single() -> None:
    rng = np.random.default_rng(SEED)
    a, b = (rng.uniform(0, 1, s).astype(np.float16) for s in ((3, 4096), (4096, 17)))
    ((got,),) = run_ops([Case("MatMul", [a, b])])
    np.testing.assert_allclose(got, a.astype(np.float64) @ b, rtol=2e-3)


def test_no_terms_give_zero() -> None:
    ((got,),) = run_ops([Case("MatMul", [np.ones((3, 0), np.float32), np.ones((0, 4), np.float32)])])
    np.testing.assert_array_equal(got, np.zeros((3, 4)))


@pytest.mark.parametrize("shape", [(2, 3, 19), (6, 16)])
def test_fused_tail_of_a_product(shape: tuple[int, ...]) -> None:
    """The tail reads an operand of the result's shape and one a column, at whole and at partial vectors."""
    *outer, n = shape
    a, b, residual, column = normal((*outer, 10), (10, n), shape, (n,))
    values = [
        Value(name, TensorType(DType.F32, x.shape)) for name, x in zip("abrc", (a, b, residual, column), strict=True)
    ]
    inner = [Value(v.name, v.type) for v in values]
    whole = TensorType(DType.F32, shape)
    product, added, scaled = (Value(name, whole) for name in ("p", "s", "m"))
    nodes = [
        Node("MatMul", (inner[0], inner[1]), (product,)),
        Node("Add", (product, inner[2]), (added,)),
        Node("Mul", (added, inner[3]), (scaled,)),
    ]
    body = Graph("body", inner, [scaled], nodes, ["m"])
    y = Value("y", whole)
    graph = Graph("g", values, [y], [Node("c2c.Fused", tuple(values), (y,), {"body": body})], ["y"])
    (got,) = run_graph(graph, [a, b, residual, column])
    close(got, (np.matmul(a.astype(np.float64), b) + residual) * column, 10)


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3", "x86-64-v4", "arm64-neon"])
@pytest.mark.parametrize("m", [2, 7, 49, 128])
@pytest.mark.parametrize("n", [8, 100, 384])
def test_tiles_fit_the_registers(target: str, m: int, n: int) -> None:
    t = Target.parse(target)
    candidates = tiles(t, DType.F32, m, n, 256)
    assert all(s.plan.rows * s.plan.vectors + s.plan.vectors + 1 <= t.registers for s in candidates)
    tile = min(candidates, key=lambda s: s.cycles).plan
    if m >= 49 and n >= 100:
        assert tile.rows * tile.vectors >= t.registers // 2


def test_pieces_are_powers_of_two() -> None:
    assert list(pieces(13)) == [(0, 8), (8, 4), (12, 1)]
    assert list(pieces(0)) == []


@pytest.mark.parametrize(
    ("target", "constants", "m", "asks"),
    [("x86-64-v3", {1}, 64, True), ("x86-64-v3", {1}, 1, False), ("x86-64-v3", set(), 64, False),
     ("arm64-neon", {1}, 64, False)],
)  # fmt: skip
def test_the_next_panel_of_weights_is_asked_for(target: str, constants: set[int], m: int, asks: bool) -> None:
    """Row tiles share it: together they ask for every line of it, and for little beyond."""
    k, n = 100, 96
    node = Case("MatMul", normal((m, k), (k, n)), {}, frozenset(constants)).node()
    (call,) = lower_node(node, Target.parse(target))
    found = [s for s in statements(call.kernel.body) if isinstance(s, Prefetch)]
    assert bool(found) is asks
    if asks:
        asked = lines_asked_for(call.kernel)
        tile = min(tiles(Target.parse(target), DType.F32, m, n, k), key=lambda s: s.cycles).plan
        second, third = (panel * k * tile.vectors * 8 // 16 for panel in (1, 2))
        assert asked >= set(range(second, third))
        assert max(asked) < k * n // 16 * 2


@pytest.mark.parametrize(("m", "k", "asks"), [(4096, 64, True), (64, 64, False), (4096, 4096, False)])
def test_rows_on_their_way_into_the_second_cache_are_asked_for(m: int, k: int, asks: bool) -> None:
    """Not those that are there, nor long ones that come from the third cache for every panel."""
    node = Case("MatMul", [np.zeros((m, k), np.float32), np.zeros((k, 24), np.float32)]).node()
    (call,) = lower_node(node, Target.parse("x86-64-v3"))
    x = node.input(0)
    assert x is not None
    a = call.kernel.params[call.args.index(x)]
    assert any(isinstance(s, Prefetch) and s.buffer is a for s in statements(call.kernel.body)) is asks


@pytest.mark.parametrize("target", ["native", "x86-64", "x86-64-v3"])
@pytest.mark.parametrize("half", [DType.F16, DType.BF16])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 37, 61), (3, 64, 48), (1, 130, 24)])
def test_weights_that_halves_hold_take_half_the_bytes(target: str, half: DType, m: int, k: int, n: int) -> None:
    """For few rows, and with the same results to the last bit as in full width."""
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    rng = np.random.default_rng(3)
    a = rng.standard_normal((m, k)).astype(np.float32)
    b = rng.standard_normal((k, n)).astype(half.numpy).astype(np.float32)
    b[:3, :5] = [[0.0], [-0.0], [2.0**-15 * 3]]
    if half is DType.BF16:  # beyond the range of f16
        a, b = a * np.float32(2**-40), b * np.float32(2**40)
    case = Case("MatMul", [a, b], {}, frozenset((1,)))
    (call,) = lower_node(case.node(), Target.parse(target))
    small = {v.type.dtype for v in call.args if v.is_constant}
    assert small == {half if half is DType.BF16 or Target.parse(target).converts_f16 else DType.F32}
    ((found,),) = run_ops([case], target=target)
    full = np.concatenate([b, np.full((k, 1), 1 / 3, np.float32)], 1)
    ((wide,),) = run_ops([Case("MatMul", [a, full], {}, frozenset((1,)))], target=target)
    np.testing.assert_allclose(found, a @ b, rtol=0, atol=2e-5)
    if m == 1:
        np.testing.assert_array_equal(found[:, : n // 16 * 16], wide[:, : n // 16 * 16])


def test_many_rows_keep_their_weights_wide() -> None:
    rng = np.random.default_rng(3)
    b = rng.standard_normal((64, 48)).astype(np.float16).astype(np.float32)
    case = Case("MatMul", [np.zeros((40, 64), np.float32), b], {}, frozenset((1,)))
    (call,) = lower_node(case.node(), Target.parse("x86-64-v3"))
    assert {v.type.dtype for v in call.args if v.is_constant} == {DType.F32}
