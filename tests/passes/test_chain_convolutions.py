"""Chains: which convolutions join, and what must keep them apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from c2c.ir.errors import TuningError
from c2c.ir.graph import Graph, Value
from c2c.passes.base import PassContext, run_pipeline
from c2c.passes.lower.schedule import Tuning
from c2c.tests.passes.build import CONTEXT, Net, check

PASSES = ("choose-layout", "fuse", "chain-convolutions")
SMALL = replace(CONTEXT, target=replace(CONTEXT.target, l2_bytes=128 << 10))
"""A machine whose second cache holds none of the tensors below."""


def expand(net: Net, x: Value, channels: int = 48) -> Value:
    """Expand and depthwise."""
    y = net.op("Relu", net.conv(x, channels, 1))
    return net.op("Relu", net.conv(y, channels, 3, group=channels))


def ops(graph: Graph) -> list[str]:
    """Operators but for reorders; of a chain those inside."""
    nodes = [n for n in graph.nodes if n.op != "c2c.Reorder"]
    return ["+".join(m.op for m in n.attrs["body"].nodes) if "body" in n.attrs else n.op for n in nodes]


def bottleneck() -> Graph:
    net = Net()
    x = net.op("Relu", net.conv(net.input(1, 16, 28, 28), 16, 1))
    return net.done(net.op("Add", net.conv(expand(net, x), 16, 1), x))


def test_a_bottleneck_is_one_chain() -> None:
    graph = bottleneck()
    check(graph, *PASSES, context=SMALL)
    assert ops(graph) == ["Conv+Relu", "Conv+Relu+Conv+Relu+Conv+Add"]
    (chain,) = [n for n in graph.nodes if n.op == "c2c.ConvChain"]
    assert chain.attrs["strip"] >= 1 and chain.origin[-1].startswith("Add")


def test_what_stays_in_the_cache_stays_apart() -> None:
    graph = bottleneck()
    check(graph, *PASSES, context=replace(CONTEXT, target=replace(CONTEXT.target, l2_bytes=4 << 20)))
    assert ops(graph) == ["Conv+Relu", "Conv+Relu", "Conv+Relu", "Conv+Add"]


@pytest.mark.parametrize("output", [False, True])
def test_a_value_read_elsewhere_ends_a_chain(output: bool) -> None:
    net = Net()
    y = net.op("Relu", net.conv(expand(net, net.op("Relu", net.input(1, 16, 28, 28))), 16, 1))
    z = net.op("Relu", net.conv(y, 48, 1))
    graph = net.done(z, y if output else net.op("Softmax", y, axis=1))
    check(graph, *PASSES, context=SMALL)
    assert ops(graph)[:3] == ["Relu", "Conv+Relu+Conv+Relu+Conv+Relu", "Conv+Relu"]


def test_a_stage_that_is_an_operand_only_is_no_link() -> None:
    """The later convolution reads the earlier one's result in its tail, not as its data."""
    net = Net()
    x, z = net.input(1, 16, 28, 28), net.input(1, 16, 28, 28)
    y = net.op("Relu", net.conv(net.op("Relu", x), 48, 1))
    graph = net.done(net.op("Relu", net.op("Add", net.conv(net.op("Neg", z), 48, 1), y)))
    check(graph, *PASSES, context=SMALL)
    assert ops(graph) == ["Relu", "Conv+Relu", "Neg", "Conv+Add+Relu"]


def test_a_tuning_names_the_strip_or_keeps_the_layers_apart() -> None:
    plain = replace(SMALL, choices=[])
    run_pipeline(bottleneck(), PASSES, plain)
    (choice,) = [c for c in plain.choices if c.family == "conv-chain"]
    assert choice.origin and {name for name, _ in choice.candidates} >= {"apart", "strip=1", "strip=2"}

    def tuned(name: str) -> PassContext:
        return replace(SMALL, tuning=Tuning({choice.key: name}), choices=[])

    graph = bottleneck()
    check(graph, *PASSES, context=tuned("strip=1"))
    assert [n.attrs["strip"] for n in graph.nodes if n.op == "c2c.ConvChain"] == [1]
    graph = bottleneck()
    check(graph, *PASSES, context=tuned("apart"))
    assert "c2c.ConvChain" not in {n.op for n in graph.nodes}
    with pytest.raises(TuningError):
        run_pipeline(bottleneck(), PASSES, tuned("strip=1000"))
