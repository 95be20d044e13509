"""Chains of convolutions: equal to the layers one by one to the last bit, whatever the strips, threads and shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from c2c.codegen.target import Target, native
from c2c.ir import reference
from c2c.ir.graph import Graph, Node
from c2c.ir.verify import verify
from c2c.passes.base import PassContext, run_pipeline
from c2c.passes.chain_convolutions import ChainConvolutions
from c2c.passes.lower.conv_chain_cost import Layer, cut, schedules
from c2c.passes.lower.conv_chain_plan import plan_rows, strip_rows
from c2c.passes.lower.window import Axis
from c2c.tests.passes.build import Net, feeds_for
from c2c.tests.passes.lower.harness import run_graph

LANES = native().lanes()


class Whole(ChainConvolutions):
    """Every row of convolutions as one chain in strips of `rows` rows."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def divide(self, layers: Sequence[Layer], context: PassContext) -> list[range]:
        return [range(len(layers))]

    def strip(self, layers: Sequence[Layer], context: PassContext, nodes: Sequence[Node]) -> int | None:
        return self.rows


def bottleneck() -> Graph:
    """Expand, depthwise, project with a residual; channels that blocks do not divide."""
    net = Net()
    x = net.op("Relu", net.input(1, 2 * LANES + 3, 13, 11))
    y = net.op("Clip", net.conv(x, 5 * LANES - 3, 1), 0.0, 6.0)
    y = net.op("Clip", net.conv(y, 5 * LANES - 3, 3, group=5 * LANES - 3), 0.0, 6.0)
    return net.done(net.op("Add", net.conv(y, 2 * LANES + 3, 1), x))


def strided() -> Graph:
    """A first layer on plain channels, 5x5 depthwise of stride 2, uneven padding, batch 2."""
    net = Net()
    y = net.op("Relu", net.conv(net.input(2, 3, 23, 19), 3 * LANES, strides=[2, 2]))
    y = net.op("HardSwish", net.conv(y, 3 * LANES, 5, group=3 * LANES, strides=[2, 2], pads=[1, 2, 3, 0]))
    return net.done(net.op("Relu", net.conv(y, 2 * LANES, 1)))


def deep() -> Graph:
    """Depthwise and pointwise pairs in a row, a dense 3x3 of stride 2 and a pointwise layer that leaves rows out."""
    net = Net()
    c, wide = 2 * LANES, 20 * LANES
    y = net.op("Relu", net.conv(net.input(1, c, 31, 9), c, 3, group=c))
    y = net.op("Relu", net.conv(y, wide, 1))
    y = net.op("Relu", net.conv(y, wide, 3, group=wide, dilations=[2, 1], pads=[2, 1, 2, 1]))
    y = net.op("Relu", net.conv(y, c, 3, strides=[2, 2]))
    return net.done(net.op("Relu", net.conv(y, c, 1, strides=[2, 2])))


def pooled() -> Graph:
    """A first layer and the pooling behind it, a layer that reads the pooled rows, and an average over them."""
    net = Net()
    y = net.op("Relu", net.conv(net.input(2, 3, 29, 23), 2 * LANES + 5, strides=[2, 2]))
    y = net.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 1, 0])
    y = net.op("Relu", net.conv(y, 3 * LANES, 1))
    y = net.op("AveragePool", y, kernel_shape=[2, 3], strides=[1, 2], pads=[1, 1, 0, 1], dilations=[2, 1])
    return net.done(net.op("HardSwish", y))


@pytest.mark.parametrize("build", [bottleneck, strided, deep, pooled])
@pytest.mark.parametrize(("rows", "threads"), [(1, 1), (2, 1), (3, 2), (1, 3), (50, 1), (4, 50)])
def test_results_are_those_of_the_layers(build: Callable[[], Graph], rows: int, threads: int) -> None:
    graph = build()
    feeds = feeds_for(graph, 1)
    expected = reference.evaluate(graph, feeds)["out0"]
    context = PassContext(Target.parse("native"), threads)
    run_pipeline(graph, ["choose-layout", "fuse"], context)
    apart = run_graph(graph, list(feeds.values()))[0]
    run_pipeline(graph, [Whole(rows)], context)
    verify(graph)
    assert [n.op for n in graph.nodes].count("c2c.ConvChain") == 1
    np.testing.assert_allclose(reference.evaluate(graph, feeds)["out0"], expected, rtol=1e-4, atol=1e-5)
    found = run_graph(graph, list(feeds.values()), threads=threads)[0]
    np.testing.assert_array_equal(found, apart)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


AXES = (
    Axis(40, 40, 3, 1, 1, 1, 1),
    Axis(40, 20, 5, 2, 1, 2, 1),
    Axis(20, 20, 1),
    Axis(20, 7, 1, 3),
    Axis(7, 5, 3, 1, 1, 0, 0),
)


@pytest.mark.parametrize(("tasks", "strip"), [(1, 1), (1, 3), (2, 2), (5, 1), (1, 50)])
@pytest.mark.parametrize("first", range(len(AXES) - 1))
def test_rings_hold_the_rows_that_are_read(first: int, tasks: int, strip: int) -> None:
    """Each row is in its place, not written over, whenever a stage reads it."""
    axes = AXES[first:]
    plan = plan_rows(axes, tasks, strip)
    total, made = axes[-1].out, [0] * len(axes)
    for begin in range(0, total, plan.rows):
        places: list[dict[int, int]] = [{} for _ in axes]
        end = min(begin + plan.rows, total)
        for row in range(begin, end, strip):
            for i, mine in enumerate(strip_rows(axes, begin, row, min(row + strip, end))):
                for h in range(mine.first, mine.last):
                    above = [h * axes[i].stride - axes[i].pad + r for r in axes[i].taps(h)]
                    assert i == 0 or all(places[i - 1][a % plan.kept[i - 1]] == a for a in above)
                    places[i][h % plan.kept[i] if i < len(axes) - 1 else h] = h
                    made[i] += 1
    assert tuple(made) == plan.made and plan.made[-1] == total


def wide(target: Target, size: int, vectors: int) -> list[Layer]:
    """A bottleneck of `vectors` vectors of channels inside."""
    net, channels, outside = Net(), vectors * target.lanes(), 2 * target.lanes()
    y = net.conv(net.input(1, outside, size, size), channels, 1)
    y = net.conv(net.conv(y, channels, 3, group=channels), outside, 1)
    graph = net.done(net.op("Relu", y))
    context, found = PassContext(target), list[Layer]()

    class Seen(ChainConvolutions):
        def divide(self, layers: Sequence[Layer], context: PassContext) -> list[range]:
            found.extend(layers)
            return []

    run_pipeline(graph, ["choose-layout", "fuse", Seen()], context)
    return found


def test_large_tensors_are_chained_and_small_ones_are_not() -> None:
    target = Target.parse("x86-64-v3")
    large, small = wide(target, 112, 12), wide(target, 7, 60)
    assert cut(target, 1, large) == [range(3)]
    assert cut(target, 1, small) == [range(1), range(1, 2), range(2, 3)]
    assert schedules(target, 1, small)[0].plan is None


def test_memory_before_speed_chains_more() -> None:
    target = Target.parse("x86-64-v3")
    middle = wide(target, 28, 12)
    assert len(cut(target, 1, middle)) == 3
    assert cut(target, 1, middle, memory=True) == [range(3)]
