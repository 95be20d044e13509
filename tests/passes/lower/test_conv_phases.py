"""Strided convolutions by the phases of their stride: results, whatever the padding, and where the form is chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c2c.codegen.target import Target, native
from c2c.compiler.driver import compile_graph
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_as_program
from c2c.ir import reference
from c2c.ir.graph import Graph
from c2c.passes.lower import conv, lower_node
from c2c.passes.lower.conv_phases import Phases
from c2c.passes.lower.window import Axis
from c2c.tests.passes.build import Net, feeds_for
from c2c.tests.passes.lower.harness import run_graph

CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "filter": ((1, 1, 411), (1, 1, 64), {"strides": [2]}),
    "padded": ((2, 3, 200), (4, 3, 9), {"strides": [3], "pads": [4, 2]}),
    "stride above the filter": ((1, 2, 301), (3, 2, 3), {"strides": [5], "pads": [1, 0]}),
    "groups": ((2, 4, 150), (6, 2, 5), {"strides": [2], "group": 2, "pads": [3, 4]}),
    "image": ((1, 3, 9, 101), (2, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "rows are left out": ((2, 1, 11, 97), (1, 1, 5, 4), {"strides": [3, 2], "pads": [2, 0, 0, 5], "dilations": [2, 1]}),
    "volume": ((1, 2, 4, 5, 80), (3, 2, 2, 3, 3), {"strides": [1, 2, 2], "pads": [0, 1, 2, 1, 1, 0]}),
}
"""Shapes of image and weights, attributes."""


def graph_of(name: str) -> Graph:
    net = Net()
    shape, weights, attrs = CASES[name]
    y = net.op("Conv", net.input(*shape), net.random(*weights), net.random(weights[0]), **attrs)
    return net.done(net.op("Relu", y))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_results(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "phased", lambda _, found: Phases(found.window.w))
    graph = graph_of(name)
    feeds = feeds_for(graph, 1)
    expected = reference.evaluate(graph, feeds)["out0"]
    (found,) = run_graph(graph, list(feeds.values()), threads=threads)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
def test_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "phased", lambda _, found: Phases(found.window.w))
    graph = graph_of("padded")
    feeds = feeds_for(graph, 1)
    expected = reference.evaluate(graph, feeds)["out0"]
    compiled = compile_graph(graph, CompileOptions(Target.parse("arm64-neon"), name="model"))
    assert any("phases" in name for name in compiled.program.kernels)
    found = run_as_program(compiled, feeds)["out0"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def test_phases_of_a_row() -> None:
    phases = Phases(Axis(size=10, out=5, kernel=4, stride=3, pad=2, pad_end=4))
    assert (phases.before, phases.shift, phases.taps, phases.size) == (1, 1, 2, 6)
    assert phases.as_axis == Axis(6, 5, 2)


def kernels(shape: tuple[int, ...], weights: tuple[int, ...], **attrs: Any) -> list[str]:
    net = Net()
    graph = net.done(net.op("Conv", net.input(*shape), net.random(*weights), **attrs))
    return [call.kernel.name for call in lower_node(graph.nodes[0], native())]


def test_choice() -> None:
    """One filter of many taps; not where lanes along channels work, nor where taps stand apart."""
    long = (1, 1, 1, 20000)
    assert kernels(long, (1, 1, 1, 256), strides=[1, 2]) == ["phases", "conv_planar"]
    assert kernels(long, (64, 1, 1, 256), strides=[1, 2]) == ["conv"]
    assert "phases" not in kernels(long, (1, 1, 1, 256), strides=[1, 2], dilations=[1, 2])
