"""Which tensors become f16, and what the convolutions between them compute on a machine with such arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_graph
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_as_program
from c2c.ir import reference
from c2c.ir.errors import OptionsError
from c2c.ir.graph import Graph
from c2c.ir.types import DType
from c2c.passes.base import run_pipeline
from c2c.tests.passes.build import CONTEXT, Net, check, feeds_for

HALF = replace(CONTEXT, precision=DType.F16)


def network(channels: int = 20) -> Graph:
    """A stem, an inverted bottleneck with its sum, a strided layer and means: with `channels` that fill no block."""
    net = Net(4)
    x = net.op("Relu", net.conv(net.input(1, 3, 15, 13), channels, strides=[2, 2]))
    y = net.op("Clip", net.conv(x, 40, 1), 0.0, 6.0)
    y = net.op("Clip", net.conv(y, 40, 3, group=40), 0.0, 6.0)
    x = net.op("Add", net.conv(y, channels, 1), x)
    x = net.op("MaxPool", net.conv(x, 24, 3, strides=[2, 2]), kernel_shape=[2, 2])
    y = net.op("Softmax", net.op("Flatten", net.op("GlobalAveragePool", x)))
    return net.done(y, x)


def winograd() -> Graph:
    """Two layers that Winograd computes, on an image that whole tiles do not fill."""
    net = Net(5)
    x = net.op("Relu", net.conv(net.input(1, 32, 23, 18), 64))
    return net.done(net.op("Relu", net.conv(x, 40)))


def test_convolutions_and_what_reads_them() -> None:
    graph = network()
    assert check(graph, "narrow-floats", tolerance=4e-3, context=HALF)
    types = {node.op: node.output.type.dtype for node in graph.nodes}
    half = {"Conv", "Relu", "Clip", "Add", "MaxPool"}
    assert {op for op, dtype in types.items() if dtype is DType.F16 and op != "Cast"} == half
    assert all(v.type.dtype is DType.F32 for v in (*graph.inputs, *graph.outputs))
    casts = [node.inputs[0] for node in graph.nodes if node.op == "Cast"]
    assert len(casts) == 2, "one at the way in, one shared at the way out"


def test_only_when_asked() -> None:
    graph = network()
    assert not check(graph, "narrow-floats")
    with pytest.raises(OptionsError, match="no arithmetic in f16"):
        CompileOptions(Target.parse("arm64-neon"), precision="f16")
    with pytest.raises(OptionsError, match="no precision 'f8'"):
        CompileOptions(Target.parse("arm64-neon+fp16"), precision="f8")


def test_weights_beyond_the_range_stay() -> None:
    net = Net()
    graph = net.done(net.op("Conv", net.input(1, 8, 4, 4), np.full((8, 8, 1, 1), 1e5, np.float32)))
    assert not check(graph, "narrow-floats", context=HALF)


@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
@pytest.mark.parametrize(("graph", "tolerance"), [(network(20), 8e-3), (network(32), 8e-3), (winograd(), 4e-2)])
def test_computes_in_half_precision(graph: Graph, tolerance: float) -> None:
    graph = graph.clone()
    feeds = feeds_for(graph, 3)
    expected = reference.evaluate(graph, feeds)
    select = graph.clone()
    run_pipeline(select, ["select-winograd"], replace(CONTEXT, target=Target.parse("arm64-neon+fp16")))
    options = CompileOptions(Target.parse("arm64-neon+fullfp16"), name="model", precision="f16")
    compiled = compile_graph(graph, options)
    assert any(n.op == "c2c.WinogradConv" for n in select.nodes) == (len(graph.outputs) == 1)
    assert any(b.dtype is DType.F16 for k in compiled.program.kernels.values() for b in k.params)
    for name, array in run_as_program(compiled, feeds).items():
        error = np.abs(array - expected[name]).max() / np.abs(expected[name]).max()
        assert 1e-6 < error < tolerance, f"{name}: {error:.2g}"


@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
@pytest.mark.parametrize("graph", [network(20), network(32), network(21), winograd()])
def test_products_of_bf16(graph: Graph) -> None:
    graph = graph.clone()
    feeds = feeds_for(graph, 3)
    expected = reference.evaluate(graph, feeds)
    compiled = compile_graph(graph, CompileOptions(Target.parse("arm64-neon+bf16"), name="model", precision="bf16"))
    assert not any(n.op == "c2c.WinogradConv" for n in compiled.graph.nodes)
    assert any(b.dtype is DType.BF16 for k in compiled.program.kernels.values() for b in k.params)
    for name, array in run_as_program(compiled, feeds).items():
        error = np.abs(array - expected[name]).max() / np.abs(expected[name]).max()
        assert 1e-5 < error < 4e-2, f"{name}: {error:.2g}"
