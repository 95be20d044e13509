"""Which tensors are blocked, where conversions stand, and that results stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.ir.graph import Graph, Value
from c2c.ir.types import PLAIN, Layout
from c2c.passes.lower.context import Call, KernelBuilder, Lowering
from c2c.passes.plan_memory import plan
from c2c.tests.passes.build import CONTEXT, Net, check, i64, op_names


def _blocks(graph: Graph) -> dict[str, int]:
    return {v.name: v.type.layout.block for v in graph.values() if not v.is_constant}


def _reorders(graph: Graph) -> int:
    return sum(n.op == "c2c.Reorder" for n in graph.nodes)


def _block_of_two(net: Net, x: Value, channels: int) -> Value:
    y = net.op("Relu", net.conv(x, channels))
    return net.op("Relu", net.op("Add", net.conv(y, channels), net.op("Mul", y, net.random(channels, 1, 1))))


def test_a_chain_of_convolutions_is_blocked_inside() -> None:
    net = Net()
    x = net.input(1, 3, 20, 20)
    y = _block_of_two(net, _block_of_two(net, x, 32), 48)
    graph = net.done(net.op("Reshape", net.op("GlobalAveragePool", y), i64(1, 48)))
    check(graph, "choose-layout", tolerance=1e-6)
    assert _reorders(graph) == 1, op_names(graph)
    convs = [n for n in graph.nodes if n.op == "Conv"]
    assert [n.inputs[0].type.layout.block for n in convs if n.inputs[0]] == [0, 16, 16, 16]
    assert all(n.output.type.layout.block == 16 for n in convs)
    scale = next(n for n in graph.nodes if n.op == "Mul").inputs[1]
    assert scale is not None and scale.type.layout.block == 16 and scale.type.shape == (1, 32, 1, 1)
    assert scale.data is not None and scale.data.shape == (1, 32, 1, 1)


def test_the_border_of_the_graph_is_plain() -> None:
    net = Net()
    x = net.input(1, 32, 20, 20)
    y = net.conv(net.op("Relu", net.conv(x, 32)), 32)
    graph = net.done(y, net.op("Relu", y))
    check(graph, "choose-layout")
    assert all(v.type.layout == PLAIN for v in (*graph.inputs, *graph.outputs))
    assert 16 in _blocks(graph).values()


def test_graphs_without_convolutions_stay_plain() -> None:
    net = Net()
    x = net.input(1, 32, 20, 20)
    graph = net.done(net.op("Softmax", net.op("Tanh", net.op("Add", x, net.random(32, 1, 1))), axis=1))
    assert not check(graph, "choose-layout")


def test_few_channels_at_the_end_run_along_the_width() -> None:
    net = Net()
    y = net.op("Relu", net.conv(net.input(1, 32, 64, 64), 32))
    graph = net.done(net.op("Sigmoid", net.conv(y, 1)))
    check(graph, "choose-layout")
    assert graph.nodes[-1].output.type.layout == PLAIN and _reorders(graph) <= 2


def test_whole_blocks_pass_concat_and_split() -> None:
    net = Net()
    y = net.op("Relu", net.conv(net.input(1, 3, 20, 20), 64))
    a, b = net.ops("Split", y, i64(32, 32), outputs=2, axis=1)
    z = net.op("Concat", net.conv(a, 32), net.op("MaxPool", b, kernel_shape=[3, 3], pads=[1] * 4), axis=1)
    graph = net.done(net.op("GlobalAveragePool", net.conv(z, 32)))
    check(graph, "canonicalize", "choose-layout")
    assert _reorders(graph) == 1, op_names(graph)


def test_a_squeeze_and_excite_branch_is_blocked_throughout() -> None:
    net = Net()
    y = net.conv(net.conv(net.input(1, 3, 20, 20), 40), 40, group=40)
    gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", y), 10, 1, pads=[0] * 4))
    gate = net.op("HardSigmoid", net.conv(gate, 40, 1, pads=[0] * 4))
    graph = net.done(net.op("GlobalAveragePool", net.conv(net.op("Mul", y, gate), 64)))
    check(graph, "choose-layout")
    assert _reorders(graph) == 1, op_names(graph)


def test_a_map_for_all_channels_stays_plain() -> None:
    net = Net()
    mask = net.op("Sigmoid", net.input(1, 1, 20, 20))
    y = net.op("Mul", net.conv(net.conv(net.input(1, 3, 20, 20), 32), 32), mask)
    graph = net.done(net.op("GlobalMaxPool", net.conv(net.op("Add", y, net.random(20, 20)), 32)))
    check(graph, "choose-layout")
    mul = next(n for n in graph.nodes if n.op == "Mul")
    assert [v.type.layout.block for v in mul.inputs if v is not None] == [16, 0]


@pytest.mark.parametrize("name", ["arm64-neon", "x86-64-v3"])
def test_the_block_is_the_vector(name: str) -> None:
    net = Net()
    target = Target.parse(name)
    y = net.op("Relu", net.conv(net.input(1, 3, 20, 20), 32))
    graph = net.done(net.op("Softmax", net.conv(y, 32), axis=1))
    check(graph, "choose-layout", context=replace(CONTEXT, target=target))
    assert {b for b in _blocks(graph).values() if b} == {target.lanes()}


def test_random_networks_stay_equal() -> None:
    for seed in range(12):
        graph = _random_network(seed)
        check(graph, "choose-layout", "fuse", "place-concats", "own-outputs", seed=seed, tolerance=1e-5)
        for node in graph.nodes:
            assert node.op == "c2c.Reorder" or len({v.type.layout for v in node.outputs}) == 1, f"seed {seed}"


def _random_network(seed: int) -> Graph:
    net = Net(seed)
    values = [net.input(1, 8, 9, 9)]
    for _ in range(10):
        x = values[int(net.rng.integers(max(0, len(values) - 3), len(values)))]
        channels = x.type.dims[1]
        match int(net.rng.integers(7)):
            case 0 | 1:
                values.append(net.conv(x, int(net.rng.choice([4, 16, 20, 32]))))
            case 2:
                values.append(net.conv(x, channels, group=channels))
            case 3:
                values.append(net.op("Add", x, net.random(channels, 1, 1)))
            case 4:
                values.append(net.op("Mul", x, net.op("Sigmoid", net.op("GlobalAveragePool", x))))
            case 5:
                values.append(net.op("Concat", x, net.op("Tanh", x), axis=1))
            case _:
                values.append(net.op("Softmax", x, axis=1))
    return net.done(values[-1], *(v for v in values[1:-1] if net.rng.random() < 0.2))


def test_constants_lie_in_blocks() -> None:
    net = Net()
    graph = net.done(net.op("Relu", net.input(2)))
    data = np.arange(20, dtype=np.float32).reshape(1, 20, 1, 1)
    value = Value("c", graph.inputs[0].type.with_shape((1, 20, 1, 1)).with_layout(Layout(16)), data)
    kernel = KernelBuilder(Lowering(graph.nodes[0], CONTEXT.target, 1)).kernel("k")
    memory = plan([Call(kernel, (value,), graph.nodes[0])], graph, {})
    laid = np.frombuffer(memory.weights, np.float32)
    assert laid.tolist() == [*range(20), *[0] * 12]


def test_channels_are_not_scattered_into_a_plain_sum() -> None:
    """A plain operand that meets a convolution's result is converted, rather than the result written lane by lane."""
    net = Net()
    x = net.input(1, 32, 24, 24)
    y = net.op("Relu", net.conv(net.op("Relu", net.conv(x, 32)), 48))
    other = net.op("Relu", net.op("ConvTranspose", net.input(1, 8, 12, 12), net.random(8, 48, 2, 2), strides=[2, 2]))
    graph = net.done(net.op("Relu", net.conv(net.op("Add", y, other), 32)))
    check(graph, "choose-layout", tolerance=1e-5)
    total = next(n for n in graph.nodes if n.op == "Add")
    assert all(v is not None and v.type.layout.block == 16 for v in total.inputs)


@pytest.mark.parametrize(
    ("outputs", "kernel", "attrs", "blocked"),
    [
        (24, 2, {"strides": [2, 2]}, True),
        (24, 4, {"strides": [2, 2], "pads": [1, 1, 1, 1]}, True),
        (4, 2, {"strides": [2, 2]}, False),  # lanes along the width
        (24, 2, {"strides": [3, 3]}, False),  # results without taps
    ],
)
def test_transposed_convolutions_of_whole_blocks(
    outputs: int, kernel: int, attrs: dict[str, object], blocked: bool
) -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input(1, 24, 12, 12), 24))
    y = net.op("ConvTranspose", x, net.random(24, outputs, kernel, kernel), **attrs)
    graph = net.done(net.conv(net.op("Relu", y), 32))
    check(graph, "choose-layout", tolerance=1e-6)
    (node,) = (n for n in graph.nodes if n.op == "ConvTranspose")
    assert bool(node.output.type.layout.block) == blocked


def test_patches_are_made_of_blocks() -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input(1, 24, 12, 18), 24))
    graph = net.done(net.op("ConvTranspose", x, net.random(24, 1, 2, 2), strides=[2, 2]))
    check(graph, "choose-layout", tolerance=1e-6)
    (node,) = (n for n in graph.nodes if n.op == "ConvTranspose")
    assert node.inputs[0] is not None and node.inputs[0].type.layout.block == 16 and not node.output.type.layout.block


def test_strided_depthwise_convolutions_between_sparse_ones() -> None:
    """Lists of weights take either layout; pixels that lie apart make lanes along the width slow."""
    net = Net()
    rng = np.random.default_rng(0)
    wide = [rng.standard_normal((64, 64, 1, 1)) * (rng.random((64, 64, 1, 1)) < 0.1) for _ in range(2)]
    x = net.op("Conv", net.input(1, 64, 28, 28), wide[0].astype(np.float32))
    depthwise = {"group": 64, "strides": [2, 2], "pads": [1, 1, 1, 1]}
    y = net.op("Conv", x, net.random(64, 1, 3, 3), **depthwise)
    graph = net.done(net.op("Conv", y, wide[1].astype(np.float32)))
    check(graph, "choose-layout", tolerance=1e-5)
    (middle,) = (n for n in graph.nodes if n.attrs.get("group", 1) > 1)
    assert middle.output.type.layout.block


def test_a_pooling_alone_stays_plain() -> None:
    """Neighbouring pixels are vectors of a plain row as well: two conversions would be three passes more."""
    net = Net()
    graph = net.done(net.op("AveragePool", net.input(1, 32, 64, 64), kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    check(graph, "choose-layout", tolerance=1e-6)
    assert op_names(graph) == ["AveragePool"]
