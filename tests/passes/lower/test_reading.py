"""Winograd convolutions that read through a pad and an enlargement: what joins their groups, and what they compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c2c.codegen.target import native
from c2c.ir import reference
from c2c.ir.graph import Graph, Value
from c2c.passes.base import PassContext, run_pipeline
from c2c.tests.passes.build import Net, feeds_for, i64, op_names
from c2c.tests.passes.lower.harness import run_graph

CONTEXT = PassContext(native())
NEAREST: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def enlarged(net: Net, x: Value, factor: float = 2.0, **attrs: Any) -> Value:
    scales = np.array([1, 1, factor, factor], np.float32)
    return net.op("Resize", x, None, scales, **{**NEAREST, **attrs})


def padded(net: Net, x: Value, *amounts: int, mode: str = "reflect") -> Value:
    return net.op("Pad", x, i64(0, 0, *amounts[:2], 0, 0, *amounts[2:]), mode=mode)


def fused(net: Net, *outputs: Value, m: int = 4) -> Graph:
    """The graph with its convolutions by F(m x m, 3 x 3), layouts chosen and groups made."""
    graph = net.done(*outputs)
    for node in graph.nodes:
        if node.op == "Conv":
            node.op, node.attrs = "c2c.WinogradConv", node.attrs | {"m": m}
    run_pipeline(graph, ("choose-layout", "fuse"), CONTEXT)
    return graph


CASES: list[tuple[tuple[int, ...], float, tuple[int, ...], str]] = [
    ((1, 16, 12, 16), 1, (1, 1, 1, 1), "reflect"),
    ((2, 24, 9, 7), 1, (2, 1, 0, 3), "reflect"),
    ((1, 16, 9, 11), 1, (1, 2, 3, 1), "edge"),
    ((1, 24, 8, 6), 2, (1, 1, 1, 1), "reflect"),
    ((2, 16, 5, 9), 2, (3, 0, 2, 1), "edge"),
    ((1, 16, 7, 6), 2, (), ""),
]


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("shape", "factor", "amounts", "mode"), CASES)
def test_results(
    shape: tuple[int, ...], factor: float, amounts: tuple[int, ...], mode: str, threads: int, m: int
) -> None:
    net = Net()
    x = net.op("Relu", net.input(*shape))
    y = enlarged(net, x, factor) if factor > 1 else x
    y = padded(net, y, *amounts, mode=mode) if amounts else y
    y = net.op("Relu", net.conv(y, 40, pads=[0] * 4 if amounts else [1, 1, 0, 2]))
    graph = fused(net, y, m=m)
    names = [*(["Resize"] if factor > 1 else []), *(["Pad"] if amounts else []), "c2c.WinogradConv", "Relu"]
    assert "+".join(names) in op_names(graph)
    feeds = feeds_for(graph, 3)
    (expected,) = reference.evaluate(graph, feeds).values()
    (got,) = run_graph(graph, list(feeds.values()), threads=threads)
    np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6 * float(np.abs(expected).max()))


def test_what_is_read_elsewhere_is_made() -> None:
    net = Net()
    y = padded(net, net.op("Relu", net.input(1, 16, 20, 20)), 1, 1, 1, 1)
    graph = fused(net, net.conv(y, 24, pads=[0] * 4), net.op("ReduceMax", y, i64(2, 3)))
    assert not any("Pad+" in name for name in op_names(graph))


@pytest.mark.parametrize(
    "attrs", [{"mode": "linear"}, {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "ceil"}]
)
def test_other_enlargements_are_made(attrs: dict[str, Any]) -> None:
    net = Net()
    y = enlarged(net, net.op("Relu", net.input(1, 16, 20, 20)), **attrs)
    assert not any("Resize+" in name for name in op_names(fused(net, net.conv(y, 24))))


def test_a_tile_begins_at_a_source_pixel() -> None:
    net = Net()
    y = enlarged(net, net.op("Relu", net.input(1, 16, 20, 20)), 3)
    assert not any("Resize+" in name for name in op_names(fused(net, net.conv(y, 24))))


def test_two_paddings_are_not_mixed() -> None:
    net = Net()
    y = padded(net, net.op("Relu", net.input(1, 16, 20, 20)), 1, 1, 1, 1)
    assert not any("Pad+" in name for name in op_names(fused(net, net.conv(y, 24))))
