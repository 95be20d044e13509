"""Products by weights in blocks whose rows are rounded to bytes: error as stated, and the same on every target."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.driver import Compiled, compile_graph
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_compiled
from c2c.ir.graph import Graph
from c2c.ir.reference import evaluate
from c2c.tests.passes.build import Array, Net

CASES = {
    "4 bits": (1, 4, 512, 300, 32, True),
    "4 bits, several rows": (3, 4, 512, 272, 64, True),
    "4 bits, one zero": (1, 4, 512, 260, 128, False),
    "8 bits": (2, 8, 512, 300, 32, True),
    "last block shorter": (1, 4, 496, 300, 64, True),
}


def network(rows: int, bits: int, length: int, columns: int, size: int, zeros: bool) -> Graph:
    net = Net(3)
    blocks, top = -(-length // size), 1 << bits
    levels = net.rng.integers(0, top, (length, columns)).astype(np.uint8)
    zero = net.rng.integers(0, top, (blocks, columns)) if zeros else np.full((blocks, columns), top // 2)
    scale = net.rng.uniform(0.5, 1.5, (blocks, columns)).astype(np.float32)
    w = net.op("DequantizeLinear", levels, scale, zero.astype(np.uint8), axis=0, block_size=size)
    return net.done(net.op("Add", net.op("MatMul", net.input(rows, length), w), net.random(columns)))


def compiled(name: str, target: str) -> tuple[Compiled, dict[str, Array]]:
    graph = network(*CASES[name])
    x = np.random.default_rng(5).standard_normal(graph.inputs[0].type.dims).astype(np.float32)
    options = CompileOptions(Target.parse(target), name="model", activations="int8")
    return compile_graph(graph, options), {graph.inputs[0].name: x}


@pytest.mark.parametrize("name", CASES)
def test_error_and_bits(name: str) -> None:
    graph, results = network(*CASES[name]), []
    for target in ("native", "x86-64-v3", "x86-64-v4"):
        if Target.parse(target).runs_here:
            made, feeds = compiled(name, target)
            (found,) = made.program.rounded
            results.append(run_compiled(made, feeds)["out0"])
    expected = evaluate(graph, feeds)["out0"]
    error = np.abs(results[0] - expected)
    assert 0 < error.max() <= found.largest * np.abs(next(iter(feeds.values()))).max()
    relative = np.sqrt(np.square(error).mean() / np.square(expected).mean())
    assert 0.5 < relative / found.expected < 1.5
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
@pytest.mark.parametrize("target", ["arm64-neon", "arm64-dotprod", "arm64-neon+i8mm"])
def test_arm_agrees_to_the_bit(target: str) -> None:
    for name in ("4 bits, several rows", "8 bits"):
        made, feeds = compiled(name, target)
        assert len(made.program.rounded) == 1
        here, _ = compiled(name, "native")
        np.testing.assert_array_equal(run_compiled(made, feeds)["out0"], run_compiled(here, feeds)["out0"])


def test_only_when_asked() -> None:
    graph = network(*CASES["4 bits"])
    made = compile_graph(graph, CompileOptions(Target.parse("native"), name="model"))
    assert not made.program.rounded and len(made.calls) == 2
