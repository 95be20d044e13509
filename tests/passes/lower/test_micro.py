"""The inner loop of products where factors are lanes of vectors: ragged convolutions and products, emulated."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_graph
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_as_program
from c2c.ir import reference
from c2c.ir.graph import Graph
from c2c.tests.passes.build import Net, feeds_for


def convolutions() -> Graph:
    """Rows of taps of plain and of blocked tensors, strides, dilation, borders wider than a tile, partial blocks."""
    net = Net(6)
    x = net.input(1, 3, 29, 23)
    stem = net.op("Relu", net.conv(x, 36, 7, strides=[2, 2]))
    wide = net.op("Relu", net.conv(stem, 22, 3, strides=[2, 2]))
    results = [
        net.conv(x, 20, 3, dilations=[2, 2], pads=[2] * 4),
        net.conv(x, 12, 11),
        net.conv(stem, 24, 3, group=2),
        net.conv(stem, 13, 5),
        net.conv(wide, 52, 1),
        net.conv(net.op("Relu", net.conv(stem, 48, 3, strides=[1, 2])), 20, 3, dilations=[1, 2], pads=[1, 2, 1, 2]),
    ]
    return net.done(*(net.op("Relu", y) for y in results))


def products() -> Graph:
    """Vectors and matrices times constants and each other, with sums of every length modulo the unrolling."""
    net = Net(7)
    results = [
        net.op("MatMul", net.input(m, k), net.random(k, n, scale=k**-0.5))
        for m, k, n in ((1, 37, 29), (1, 64, 100), (2, 19, 33), (9, 41, 70), (13, 3, 8))
    ]
    a, b = net.input(2, 7, 21), net.input(2, 21, 18)
    return net.done(*results, net.op("MatMul", a, b))


@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
@pytest.mark.parametrize("graph", [convolutions(), products()])
def test_ragged_shapes_on_arm(graph: Graph) -> None:
    feeds = feeds_for(graph, 3)
    expected = reference.evaluate(graph, feeds)
    compiled = compile_graph(graph, CompileOptions(Target.parse("arm64-neon"), name="model"))
    for name, array in run_as_program(compiled, feeds).items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5 * float(np.abs(expected[name]).max()))
