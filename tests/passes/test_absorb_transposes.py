"""Transposes around products as strides: what is absorbed, what stays, and equal results of compiled code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c2c.ir import reference
from c2c.ir.graph import Graph, Value
from c2c.tests.passes.build import Net, check, feeds_for, op_names
from c2c.tests.passes.lower.harness import run_graph

EPSILON = float(np.finfo(np.float32).eps)


def verified(graph: Graph, length: int, **options: Any) -> None:
    """The graph after the pass, compiled, against the graph before it: √length roundings of sums."""
    feeds = feeds_for(graph, 3)
    expected = reference.evaluate(graph, feeds)
    check(graph, "absorb-transposes")
    got = run_graph(graph, list(feeds.values()), **options)
    for y, want in zip(got, expected.values(), strict=True):
        scale = float(np.abs(want).max())
        np.testing.assert_allclose(y, want, rtol=0, atol=EPSILON * (4 + 4 * np.sqrt(length)) * scale)


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("target", ["native", "x86-64"])
def test_every_side(rows: int, target: str) -> None:
    """Heads side by side on all sides, columns of b in memory order."""
    net = Net()
    a = net.op("Transpose", net.input(2, rows, 3, 37), perm=(0, 2, 1, 3))
    b = net.op("Transpose", net.input(2, 3, 21, 37), perm=(0, 1, 3, 2))
    y = net.op("Transpose", net.op("MatMul", a, b), perm=(0, 2, 1, 3))
    graph = net.done(y)
    verified(graph, 37, target=target)
    assert op_names(graph) == ["c2c.MatMul"]
    assert graph.nodes[0].attrs["perm_y"] == (0, 2, 1, 3)


def test_columns_that_lie_apart_by_head() -> None:
    net = Net()
    b = net.op("Transpose", net.input(2, 21, 3, 37), perm=(0, 2, 3, 1))
    graph = net.done(net.op("MatMul", net.input(2, 3, 5, 37), b))
    verified(graph, 37)
    assert op_names(graph) == ["c2c.MatMul"]


@pytest.mark.parametrize(("rows", "absorbed"), [(2, True), (40, False)])
def test_rows_of_b_that_lie_apart(rows: int, absorbed: bool) -> None:
    """Many rows of a read b from a copy whose rows are neighbours."""
    net = Net()
    b = net.op("Transpose", net.input(2, 37, 3, 21), perm=(0, 2, 1, 3))
    graph = net.done(net.op("MatMul", net.input(2, 3, rows, 37), b))
    verified(graph, 37)
    assert op_names(graph) == (["c2c.MatMul"] if absorbed else ["Transpose", "MatMul"])


def test_matrices_of_rank_2_and_broadcast() -> None:
    net = Net()
    flat = net.op("MatMul", net.input(9, 12), net.op("Transpose", net.input(7, 12), perm=(1, 0)))
    wide = net.op("MatMul", net.input(2, 3, 9, 12), net.op("Transpose", net.input(1, 7, 12), perm=(0, 2, 1)))
    graph = net.done(flat, wide)
    verified(graph, 12)
    assert op_names(graph) == ["c2c.MatMul", "c2c.MatMul"]


def test_threads_do_not_change_bits() -> None:
    def results(threads: int) -> np.ndarray:
        net = Net()
        a = net.op("Transpose", net.input(2, 65, 4, 40), perm=(0, 2, 1, 3))
        b = net.op("Transpose", net.input(2, 4, 70, 40), perm=(0, 1, 3, 2))
        graph = net.done(net.op("Transpose", net.op("MatMul", a, b), perm=(0, 2, 1, 3)))
        check(graph, "absorb-transposes")
        assert op_names(graph) == ["c2c.MatMul"]
        return np.asarray(run_graph(graph, list(feeds_for(graph, 3).values()), threads=threads)[0])

    np.testing.assert_array_equal(results(1), results(3))


def _a_by_columns(net: Net) -> Value:
    return net.op("MatMul", net.op("Transpose", net.input(3, 12, 9), perm=(0, 2, 1)), net.input(3, 12, 7))


def _result_by_columns(net: Net) -> Value:
    return net.op("Transpose", net.op("MatMul", net.input(3, 9, 12), net.input(3, 12, 7)), perm=(0, 2, 1))


def _read_twice(net: Net) -> Value:
    b = net.op("Transpose", net.input(3, 7, 12), perm=(0, 2, 1))
    return net.op("Add", net.op("MatMul", net.input(3, 7, 12), b), net.op("ReduceMax", b))


def _doubles(net: Net) -> Value:
    b = net.op("Transpose", net.op("Cast", net.input(3, 7, 12), to=11), perm=(0, 2, 1))
    return net.op("MatMul", net.op("Cast", net.input(3, 9, 12), to=11), b)


@pytest.mark.parametrize("make", [_a_by_columns, _result_by_columns, _read_twice, _doubles])
def test_what_stays(make: object) -> None:
    net = Net()
    graph = net.done(make(net))  # type: ignore[operator]
    check(graph, "absorb-transposes")
    assert "c2c.MatMul" not in op_names(graph) and "Transpose" in op_names(graph)


def test_a_result_that_others_read_stays() -> None:
    net = Net()
    product = net.op("MatMul", net.input(3, 9, 12), net.input(3, 12, 7))
    graph = net.done(net.op("Transpose", product, perm=(1, 0, 2)), net.op("Relu", product))
    check(graph, "absorb-transposes")
    assert op_names(graph) == ["MatMul", "Transpose", "Relu"]
