"""Groups: what joins, what must not."""

from __future__ import annotations

import numpy as np

from c2c.ir.graph import Graph
from c2c.passes.base import run_pipeline
from c2c.passes.lower import lower_graph
from c2c.tests.passes.build import CONTEXT, Net, check, i64, op_names


def test_residual_block_is_two_groups() -> None:
    net = Net()
    x = net.op("Relu", net.input(1, 8, 6, 6))
    y = net.op("Relu", net.conv(x, 8))
    graph = net.done(net.op("Relu", net.op("Add", net.conv(y, 8), x)))
    check(graph, "fuse")
    assert op_names(graph) == ["Relu", "Conv+Relu", "Conv+Add+Relu"]


def test_the_later_of_two_anchors_takes_the_sum() -> None:
    net = Net()
    x = net.input(1, 8, 6, 6)
    graph = net.done(net.op("Add", net.conv(x, 8), net.conv(x, 8, 1, pads=[0] * 4)))
    check(graph, "fuse")
    assert op_names(graph) == ["Conv", "Conv+Add"]


def test_a_value_read_inside_twice_joins() -> None:
    net = Net()
    y = net.conv(net.input(1, 8, 6, 6), 8)
    graph = net.done(net.op("Neg", net.op("Mul", y, net.op("Softplus", y))))
    check(graph, "fuse")
    assert op_names(graph) == ["Conv+Softplus+Mul+Neg"]


def test_a_value_read_outside_ends_the_group() -> None:
    net = Net()
    y = net.op("Relu", net.conv(net.input(1, 8, 6, 6), 8))
    graph = net.done(net.op("Neg", y), net.op("Softmax", y, axis=1))
    check(graph, "fuse")
    assert op_names(graph) == ["Conv+Relu", "Neg", "Softmax"]


def test_an_output_of_the_graph_ends_the_group() -> None:
    net = Net()
    y = net.conv(net.input(1, 8, 6, 6), 8)
    graph = net.done(net.op("Relu", y), y)
    check(graph, "fuse")
    assert op_names(graph) == ["Conv", "Relu"]


def test_a_growing_result_stays_outside() -> None:
    net = Net()
    x = net.input(1, 8, 6, 6)
    mean = net.op("GlobalAveragePool", x)
    graph = net.done(net.op("Mul", net.op("Sigmoid", mean), x))
    check(graph, "fuse")
    assert op_names(graph) == ["GlobalAveragePool+Sigmoid", "Mul"]


def test_elementwise_heads_and_matrix_products() -> None:
    net = Net()
    x = net.input(5, 8)
    y = net.op("Gelu", net.op("Add", net.op("MatMul", x, net.random(8, 6)), net.random(6)))
    z = net.op("Cast", net.op("Less", net.op("Abs", y), 0.5), to=1)
    graph = net.done(z, net.op("Reshape", net.op("Exp", net.op("Tanh", x)), i64(40)))
    check(graph, "fuse", tolerance=3e-6)
    assert sorted(op_names(graph)) == ["Less+Cast", "MatMul+Add+Gelu+Abs", "Reshape", "Tanh+Exp"]


def test_no_group_closes_a_circle() -> None:
    """Both operands of the last Add come from groups that read each other's heads."""
    net = Net()
    x = net.input(1, 8, 6, 6)
    a = net.conv(x, 8)
    b = net.op("Add", net.conv(net.op("Relu", a), 8), a)
    graph = net.done(net.op("Mul", b, net.op("Sigmoid", net.conv(b, 8))))
    check(graph, "fuse")
    assert op_names(graph) == ["Conv", "Relu", "Conv+Add", "Conv+Sigmoid+Mul"]


def test_origin_ends_with_the_node_whose_value_it_is() -> None:
    net = Net()
    graph = net.done(net.op("Relu", net.conv(net.input(1, 8, 6, 6), 8)))
    names = [n.origin[-1] for n in graph.nodes]
    check(graph, "fuse")
    assert graph.nodes[0].origin == tuple(names)


def test_random_graphs_stay_equal() -> None:
    """Elementwise graphs with shared values, small maps and several outputs."""
    for seed in range(20):
        graph = _random_graph(seed)
        before = len(graph.nodes)
        check(graph, "fuse", tolerance=1e-5, seed=seed)
        assert len(graph.nodes) <= before, f"seed {seed}"
        lower_graph(graph, CONTEXT.target, 1)


def _random_graph(seed: int) -> Graph:
    net = Net(seed)
    values = [net.input(1, 4, 3, 3), net.input(1, 4, 3, 3), net.input(1, 4, 1, 1)]
    for _ in range(12):
        kind = net.rng.integers(4)
        a = values[net.rng.integers(len(values))]
        if kind == 0:
            full = a if a.type.shape == (1, 4, 3, 3) else values[0]
            values.append(net.conv(full, 4))
        elif kind == 1:
            values.append(net.op(["Tanh", "Relu", "Sigmoid"][net.rng.integers(3)], a))
        else:
            values.append(net.op(["Add", "Mul"][kind - 2], a, values[net.rng.integers(len(values))]))
    picks = sorted({int(i) for i in net.rng.integers(3, len(values), 2)} | {len(values) - 1})
    return net.done(*(values[i] for i in picks))


def test_per_axis_quantisation_stays_alone() -> None:
    net = Net()
    y = net.op("Relu", net.input(1, 4, 3, 3))
    q = net.op("QuantizeLinear", y, net.positive(4), np.zeros(4, np.uint8), axis=1)
    graph = net.done(net.op("DequantizeLinear", q, net.positive(4), np.zeros(4, np.uint8), axis=1))
    run_pipeline(graph, ["fuse"], CONTEXT)
    assert op_names(graph) == ["Relu", "QuantizeLinear", "DequantizeLinear"]
