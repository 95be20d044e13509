"""Winograd convolution: the matrices are right, the error model holds, compiled layers agree with Conv."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest

from c2c.codegen.target import Target, native
from c2c.ir.graph import Graph, Node
from c2c.ir.loops import Binary, Fma, For, Let, Prefetch
from c2c.ir.loops_builder import Builder
from c2c.ir.loops_interp import run_kernel
from c2c.ir.loops_visit import statements, walk
from c2c.ir.types import DType
from c2c.passes.lower import lower_graph, lower_node
from c2c.passes.lower.context import Lowering
from c2c.passes.lower.conv import read_convolution
from c2c.passes.lower.micro import AT_ONCE
from c2c.passes.lower.schedule import Tuning
from c2c.passes.lower.tasks import is_even
from c2c.passes.lower.winograd_plan import SMALL, make_plan, runs
from c2c.passes.lower.winograd_transform import apply
from c2c.passes.winograd_math import (
    SIZES,
    input_matrix,
    output_matrix,
    transform_weights,
    weight_matrix,
    winograd_error,
)
from c2c.tests.passes.lower.harness import Case, in_blocks, run_graph, run_ops

SEED = 5
LANES = native().lanes(DType.F32)
V4 = Target.parse("x86-64-v4")


def layer(
    x: tuple[int, ...], outputs: int, pads: list[int], m: int, bias: bool = True, prepared: int = 0, lanes: int = LANES
) -> tuple[Case, Graph]:
    """A Conv for the expected result, and the graph that computes it by F(m x m, 3 x 3) on blocked tensors."""
    rng = np.random.default_rng(SEED)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in (x, (outputs, x[1], 3, 3), (outputs,))]
    case = Case("Conv", arrays if bias else arrays[:2], {"kernel_shape": [3, 3], "pads": pads}, frozenset((1, 2)))
    graph = in_blocks(case, lanes)
    for node in graph.nodes:
        if node.op == "Conv":
            node.op = "c2c.WinogradConv"
            node.attrs |= {"m": m, "prepared": prepared}
    return case, graph


@pytest.mark.parametrize("m", SIZES)
def test_matrices_filter_exactly(m: int) -> None:
    """In one dimension, over integers: A' [(G g) * (B' d)] is the correlation of d with g."""
    rng = np.random.default_rng(SEED)
    for _ in range(20):
        d, g = rng.integers(-9, 10, m + 2).astype(float), rng.integers(-9, 10, 3).astype(float)
        found = output_matrix(m) @ ((weight_matrix(m) @ g) * (input_matrix(m) @ d))
        np.testing.assert_allclose(found, np.correlate(d, g, "valid"), atol=1e-9)


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize(("matrix", "most"), [(input_matrix, {2: 4, 4: 12}), (output_matrix, {2: 4, 4: 10})])
def test_transforms_take_few_operations(matrix: Callable[[int], np.ndarray], most: dict[int, int], m: int) -> None:
    """A matrix times a vector gives the product, and counts one operation for each sum and each fused product."""
    rows, columns = matrix(m).shape
    k = Builder()
    x, y = k.param("x", DType.F32, columns), k.param("y", DType.F32, rows)
    for i, value in enumerate(apply(k, matrix(m), [k.let(k.load(x, j)) for j in range(columns)])):
        k.store(y, i, value)
    kernel = k.kernel("product")
    given, found = np.arange(1, columns + 1, dtype=np.float32) ** 2, np.zeros(rows, np.float32)
    run_kernel(kernel, [given, found])
    np.testing.assert_array_equal(found, matrix(m) @ given)
    sums = [e for s in kernel.body.body if isinstance(s, Let) for e in walk(s.value) if isinstance(e, Binary | Fma)]
    assert len(sums) == most[m]


WEIGHTS: dict[str, np.ndarray] = {
    "independent": np.eye(9),
    "smooth": np.linalg.cholesky(0.8 + 0.2 * np.eye(9)),
    "edges": np.outer([1, 0, -1, 2, 0, -2, 1, 0, -1], np.eye(9)[0]),
    "one tap": np.diag(np.eye(9)[4]),
}
"""Factors that give the nine taps of a filter their correlations."""


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("channels", [32, 256])
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("when", ["compile", "load"])
def test_error_bound_holds(m: int, channels: int, kind: str, when: str) -> None:
    """The rms error of float32, measured against float64, is below the computed bound, which is at most twice it."""
    rng = np.random.default_rng(SEED)
    n = m + 2
    w = (rng.standard_normal((4, channels, 9)) @ WEIGHTS[kind].T).astype(np.float32).reshape(4, channels, 3, 3)
    d = rng.standard_normal((40, channels, n, n)).astype(np.float32)
    u = transform_weights(w, m).astype(np.float32).reshape(n, n, channels, 4)
    b, a = input_matrix(m).astype(np.float32), output_matrix(m).astype(np.float32)
    if when == "load":
        g = weight_matrix(m).astype(np.float32)
        u = np.ascontiguousarray((g @ w @ g.T).transpose(2, 3, 1, 0))
    v = b @ d @ b.T
    sums = np.zeros((40, 4, n, n), np.float32)
    for c in range(channels):
        sums += v[:, None, c] * u[:, :, c].transpose(2, 0, 1)[None]
    exact = np.zeros((40, 4, m, m))
    for r in range(3):
        for s in range(3):
            exact += np.einsum(
                "tcij,kc->tkij", d[:, :, r : r + m, s : s + m].astype(float), w[:, :, r, s].astype(float)
            )
    error = np.sqrt(np.mean((a @ sums @ a.T - exact) ** 2) / np.mean(exact**2))
    assert winograd_error(m, w) / 2 < error < winograd_error(m, w)


def test_error_of_weights_without_a_scale() -> None:
    w = np.zeros((8, 8, 3, 3), np.float32)
    assert winograd_error(4, w) == 0
    for odd in (np.inf, np.nan):
        w[3, 4, 1, 2] = odd
        assert winograd_error(4, w) == np.inf


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize(("threads", "prepared"), [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize(
    ("x", "outputs", "pads"),
    [
        ((1, 16, 12, 16), 24, [1, 1, 1, 1]),
        ((2, 21, 7, 9), 19, [1, 1, 1, 1]),
        ((1, 8, 30, 31), 16, [0, 2, 1, 0]),
        ((1, 16, 10, 10), 16, [0, 0, 0, 0]),
        ((1, 8, 3, 4), 16, [5, 8, 9, 7]),
    ],
)
def test_layer(x: tuple[int, ...], outputs: int, pads: list[int], m: int, threads: int, prepared: int) -> None:
    case, graph = layer(x, outputs, pads, m, prepared=prepared)
    assert case.inputs[0] is not None
    (got,) = run_graph(graph, [case.inputs[0]], threads=threads)
    expected = case.expected()[0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=4e-6 * float(np.abs(expected).max()))


def test_phases_are_separate_for_few_tiles_on_many_threads() -> None:
    _, graph = layer((1, 32, 8, 8), 64, [1, 1, 1, 1], 4)
    node = next(n for n in graph.nodes if n.op == "c2c.WinogradConv")
    names = [c.kernel.name for c in lower_node(node, native(), 2)]
    assert names == ["winograd_input", "winograd_product", "winograd_output"]
    assert len(lower_node(node, native(), 1)) == 1


@pytest.mark.parametrize("channels", [64, 96, 128])
def test_blocks_of_tiles_keep_all_threads_busy(channels: int) -> None:
    _, graph = layer((1, channels, 64, 64), channels, [1, 1, 1, 1], 4)
    ctx = Lowering(next(n for n in graph.nodes if n.op == "c2c.WinogradConv"), native(), 2)
    conv = read_convolution(ctx)
    assert conv is not None
    plan = make_plan(ctx, conv, 4)
    assert is_even(-(-plan.tiles // plan.block), 2)


@pytest.mark.parametrize(("channels", "size", "small"), [(64, 56, True), (128, 28, False)])
def test_blocks_of_tiles_leave_weights_their_place(channels: int, size: int, small: bool) -> None:
    """In the second cache, where they have one; what does not fit there is read as seldom as can be."""
    _, graph = layer((1, channels, size, size), channels, [1, 1, 1, 1], 4, lanes=V4.lanes())
    ctx = Lowering(next(n for n in graph.nodes if n.op == "c2c.WinogradConv"), replace(V4, l2_bytes=2 << 20), 1)
    conv = read_convolution(ctx)
    assert conv is not None
    plan = make_plan(ctx, conv, 4)
    assert (plan.block * 36 * 2 * channels * 4 <= SMALL) is small
    assert small or plan.block == plan.tiles


def test_lines_are_fetched_a_few_at_a_time() -> None:
    """Between products, where a block of channels has many: more would fill the buffers of the loads that follow."""
    _, graph = layer((1, 256, 14, 14), 256, [1, 1, 1, 1], 4, lanes=V4.lanes())
    (call,) = lower_node(next(n for n in graph.nodes if n.op == "c2c.WinogradConv"), V4, 1)
    rows = [
        len(list(row))
        for stmt in statements(call.kernel.body)
        if isinstance(stmt, For)
        for fetches, row in groupby(stmt.body.body, lambda s: isinstance(s, Prefetch))
        if fetches
    ]
    assert rows and max(rows) <= AT_ONCE


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("size", [6, 13, 40])
def test_every_line_of_the_next_weights_is_fetched_once(m: int, size: int) -> None:
    _, graph = layer((1, 16, size, size), 40, [1, 1, 1, 1], m)
    ctx = Lowering(next(n for n in graph.nodes if n.op == "c2c.WinogradConv"), native(), 1)
    conv = read_convolution(ctx)
    assert conv is not None
    plan = replace(make_plan(ctx, conv, m), ahead=True)
    for vectors in range(1, plan.tile.vectors + 1):
        found = runs(plan, vectors)
        tiles = [r.begin + i * r.pixels + j for r in found for i in range(r.count) for j in range(r.pixels)]
        lines = [r.line + i * r.lines + j for r in found for i in range(r.count) for j in range(r.lines)]
        wanted = vectors * LANES * LANES // 16
        assert tiles == list(range(plan.block))
        assert lines == list(range(len(lines)))
        assert wanted <= len(lines) < wanted + max(r.lines for r in found)


def test_large_weights_are_fetched_ahead() -> None:
    for channels, fetched in ((32, False), (256, True)):
        _, graph = layer((1, channels, 8, 8), channels, [1, 1, 1, 1], 4)
        (call,) = lower_node(next(n for n in graph.nodes if n.op == "c2c.WinogradConv"), native(), 1)
        assert any(isinstance(s, Prefetch) for s in statements(call.kernel.body)) == fetched


def test_plain_input_falls_back_to_conv() -> None:
    rng = np.random.default_rng(SEED)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in ((1, 3, 9, 9), (8, 3, 3, 3))]
    case = Case("Conv", arrays, {"pads": [1, 1, 1, 1]}, frozenset((1,)))
    node = case.node()
    graph = Graph(
        "plain",
        [v for v in node.inputs if v is not None and not v.is_constant],
        [node.output],
        [Node("c2c.WinogradConv", node.inputs, node.outputs, {**node.attrs, "m": 4})],
        ["y"],
    )
    (got,) = run_graph(graph, [arrays[0]])
    np.testing.assert_allclose(got, run_ops([case])[0][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_block_computes_the_same(threads: int) -> None:
    case, graph = layer((1, 2 * LANES, 33, 41), 3 * LANES, [1, 1, 1, 1], 4)
    choices = [c for call in lower_graph(graph, native(), threads) for c in call.choices]
    (choice,) = [c for c in choices if c.family == "winograd-block"]
    assert len(choice.candidates) > 2 and choice.name == choice.candidates[0][0]
    expected = case.expected()[0]
    for name, _ in choice.candidates:
        inputs = [np.asarray(case.inputs[0])]
        (got,) = run_graph(graph, inputs, threads=threads, tuning=Tuning({choice.key: name}))
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()), err_msg=name)
