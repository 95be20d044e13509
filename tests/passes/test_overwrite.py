"""Which results take the memory of an operand, and that results stay."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.codegen.target import native
from c2c.ir import reference
from c2c.ir.graph import Graph, Value
from c2c.passes.base import PassContext, run_pipeline
from c2c.passes.lower import lower_graph
from c2c.passes.overwrite import overwrite
from c2c.passes.plan_memory import plan
from c2c.passes.views import find_views, placed_values
from c2c.tests.passes.build import Net, feeds_for, i64
from c2c.tests.passes.lower.harness import run_graph


def places(graph: Graph) -> tuple[dict[Value, Value], int]:
    """Results by what they overwrite, and the bytes of the arena."""
    views = find_views(graph)
    calls = lower_graph(graph, native(), 1, placed_values(graph, views))
    found = overwrite(calls, graph, views)
    over = {v: view.root for v, view in found.items() if v not in views}
    assert {c.node.output for c in calls if c.kernel.inplace} == set(over)
    return over, plan(calls, graph, found).arena_bytes


def same(graph: Graph, threads: int) -> None:
    feeds = feeds_for(graph, 3)
    expected = reference.evaluate(graph, feeds).values()
    for got, e in zip(run_graph(graph, list(feeds.values()), threads=threads), expected, strict=True):
        np.testing.assert_allclose(got, e, rtol=0, atol=1e-5 * float(np.abs(e).max()))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("width", "overwrites"), [(64, True), (61, False)])
def test_an_operand_that_dies(width: int, overwrites: bool, threads: int) -> None:
    """The last vectors of ragged rows are computed twice: they may not."""
    net = Net()
    x = net.op("Softmax", net.input(41, width), axis=-1)
    y = net.op("Add", net.op("MatMul", x, net.random(width, width)), net.op("Mul", x, net.random(width)))
    graph = net.done(net.op("ReduceSum", y, i64(0)))
    over, arena = places(graph)
    assert bool(over) == overwrites
    if overwrites:
        assert arena < 3 * 41 * width * 4
    same(graph, threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("width", "overwrites"), [(64, True), (61, False)])
def test_a_normalisation_overwrites_what_it_reads(width: int, overwrites: bool, threads: int) -> None:
    net = Net()
    y = net.op("Softmax", net.input(6, 3, width), axis=-1)
    for _ in range(2):
        y = net.op("Relu", net.op("LayerNormalization", y, net.positive(width), axis=-1))
    graph = net.done(net.op("ReduceMax", net.op("InstanceNormalization", y, *[net.positive(3)] * 2), i64(2)))
    run_pipeline(graph, ["fuse"], PassContext(native(), threads))
    over, _ = places(graph)
    assert len(over) == (3 if overwrites else 0)
    same(graph, threads)


def test_what_is_read_later_or_lies_with_the_caller_stays() -> None:
    net = Net()
    x = net.input(16, 64)
    s = net.op("Softmax", x, axis=-1)
    y = net.op("Exp", s)
    graph = net.done(
        net.op("MatMul", net.op("Neg", x), net.op("Transpose", y, perm=[1, 0])), net.op("Softmax", s, axis=0)
    )
    over, _ = places(graph)
    assert not over
    same(graph, 1)


def test_one_operand_read_twice_stays() -> None:
    """A reshaped operand is read at other places."""
    net = Net()
    s = net.op("Softmax", net.input(16, 16), axis=-1)
    y = net.op("Add", net.op("Reshape", s, i64(1, 256)), net.op("Reshape", s, i64(256, 1)))
    z = net.op("Add", net.op("Reshape", s, i64(16, 16, 1)), net.op("Reshape", s, i64(16, 1, 16)))
    graph = net.done(net.op("ReduceMax", y, i64(0)), net.op("ReduceMax", z, i64(0)))
    assert not places(graph)[0]
    same(graph, 1)


def test_a_row_of_results_in_one_place() -> None:
    net = Net()
    x = net.op("Softmax", net.input(40, 64), axis=-1)
    for _ in range(3):
        x = net.op("Softmax", net.op("Exp", x), axis=-1)
    graph = net.done(net.op("ReduceSum", x, i64(0)))
    over, arena = places(graph)
    assert len(over) == 3 and arena == 2 * 40 * 64 * 4
    same(graph, 2)
