"""`--precision f16` on grids: what is computed in f16, how far sums are off, and that blocks of them do not overflow;
executed by the emulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2c.codegen.devices import DEVICES
from c2c.codegen.target import Target
from c2c.compiler.driver import compile_graph
from c2c.compiler.options import CompileOptions
from c2c.ir import reference
from c2c.ir.graph import Graph
from c2c.ir.loops import Binary, Expr, Fma, Unary
from c2c.ir.loops_interp import run_program
from c2c.ir.loops_visit import uses
from c2c.ir.program import Program
from c2c.ir.types import DType
from c2c.passes.lower.grid.halves import BLOCK
from c2c.tests.emulation import Emulated, check_equal, needs_compiler
from c2c.tests.passes.build import Net, feeds_for
from c2c.tests.passes.test_narrow_floats import network

pytestmark = needs_compiler

UNIT = 2.0**-11
"""Relative error of a rounding to f16."""
IN_F16 = ("opencl-mali", "opencl-adreno", "opencl-intel")
"""Targets whose sums are f16 within a block."""
STORED = ("opencl", "cuda")
MIXED = ("metal-ios", "cuda-volta")
"""Those that compute in f16 and sum its products in f32."""


def compiled(graph: Graph, target: str) -> Program:
    return compile_graph(graph.clone(), CompileOptions(Target.parse(target), name="net", precision="f16")).program


def run(program: Program, target: str, feeds: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    emulated = Emulated(program, DEVICES[target][0], folder)
    outputs = emulated.run([feeds[p.name] for p in program.inputs])
    assert emulated.faults == []
    return dict(zip((p.name for p in program.outputs), outputs, strict=True))


def computes_in_f16(program: Program, *kinds: type[Expr]) -> bool:
    def is_half(e: Expr) -> bool:
        return isinstance(e, kinds) and e.dtype is DType.F16

    return any(uses(k, is_half) for k in program.kernels.values())


def small_winograd() -> Graph:
    """One layer that Winograd computes, on an image that whole tiles do not fill."""
    net = Net(5)
    return net.done(net.op("Relu", net.conv(net.input(1, 32, 23, 18), 32)))


@pytest.mark.parametrize("target", IN_F16)
def test_convolutions_by_computed_weights_stay_f32(target: str) -> None:
    net = Net(7)
    x, w = net.input(1, 8, 9, 9), net.input(8, 1, 3, 3)
    program = compiled(net.done(net.op("Conv", x, w, group=8, kernel_shape=(3, 3))), target)
    assert not computes_in_f16(program, Fma)


@pytest.mark.parametrize(
    ("graph", "tolerance", "target"),
    [
        *((network(20), 8, target) for target in (*IN_F16[:1], *MIXED, *STORED)),
        (small_winograd(), 40, IN_F16[0]),
        pytest.param(small_winograd(), 40, MIXED[0], marks=pytest.mark.slow),
    ],
)
def test_networks_are_right(graph: Graph, tolerance: float, target: str, tmp_path: Path) -> None:
    """Within what processors lose that sum in f16 throughout; in f16 where the row says so, and nowhere else."""
    feeds = feeds_for(graph, 3)
    expected = reference.evaluate(graph.clone(), feeds)
    program = compiled(graph, target)
    assert computes_in_f16(program, Fma) == (target in IN_F16 or target in MIXED and tolerance > 8)
    assert computes_in_f16(program, Binary, Unary) == (target not in STORED)
    for name, array in run(program, target, feeds, tmp_path).items():
        error = np.abs(array - expected[name]).max() / np.abs(expected[name]).max()
        assert 1e-6 < error < tolerance * 1e-3, f"{name}: {error:.2g}"


@pytest.mark.parametrize("target", IN_F16[:1])
def test_equal_to_the_interpreter(target: str, tmp_path: Path) -> None:
    """Convolutions of all kinds; multiply-adds of f32, which round as targets like, are none among them."""
    net = Net(3)
    x = net.op("Relu", net.conv(net.input(1, 2, 5, 6), 5, strides=[2, 2]))
    y = net.op("MaxPool", net.op("Add", net.conv(x, 5, 3, group=5), x), kernel_shape=[2, 2])
    graph = net.done(y)
    program, feeds = compiled(graph, target), feeds_for(graph, 3)
    found = run(program, target, feeds, tmp_path)
    expected = run_program(program, [feeds[p.name] for p in program.inputs])
    check_equal(program, list(found.values()), expected, "seed 3")


def long_sum(weights: np.ndarray) -> Graph:
    """A pointwise convolution of 4 channels whose filters are all the same."""
    net = Net(7)
    w = np.repeat(weights.astype(np.float32)[None, :, None, None], 4, axis=0)
    return net.done(net.op("Conv", net.input(1, len(weights), 5, 7), w))


@pytest.mark.parametrize("target", [IN_F16[0], MIXED[0]])
@pytest.mark.parametrize("depth", [512, 33, 5])
def test_sums_are_as_exact_as_their_blocks(target: str, depth: int, tmp_path: Path) -> None:
    """|error| <= BLOCK u Σ|p|, and beside it the rounding of the result; sums in f16 throughout lose several times as
    much where all products have one sign."""
    rng = np.random.default_rng(depth)
    weights = rng.uniform(0.01, 1, depth).astype(np.float16)
    graph = long_sum(weights)
    x = rng.uniform(0.01, 1, (1, depth, 5, 7)).astype(np.float16)
    (found,) = run(compiled(graph, target), target, {graph.inputs[0].name: x.astype(np.float32)}, tmp_path).values()
    exact = np.einsum("c,nchw->nhw", weights.astype(np.float64), x.astype(np.float64))[:, None]
    error = np.abs(found - exact) / exact
    block = min(BLOCK, depth) if target in IN_F16 else 0
    assert error.max() <= (block + 1) * UNIT, f"seed {depth}"
    if depth == 512:
        total = np.zeros((1, 5, 7), np.float16)
        for c in range(depth):
            total = (total.astype(np.float32) + weights[c].astype(np.float32) * x[:, c]).astype(np.float16)
        assert error.max() < 0.5 * (np.abs(total[:, None] - exact) / exact).max()


@pytest.mark.parametrize("target", [IN_F16[0], MIXED[0]])
def test_partial_sums_beyond_f16_fit(target: str, tmp_path: Path) -> None:
    """128 products of 1024, then as many of -1024, but for the last: twice what f16 holds on the way, not in a block,
    where all of them are exact."""
    weights = np.repeat([1024.0, -1024.0], 128)
    weights[-1] += 16
    graph = long_sum(weights)
    x = np.ones((1, 256, 5, 7), np.float32)
    (found,) = run(compiled(graph, target), target, {graph.inputs[0].name: x}, tmp_path).values()
    assert (found == 16).all()
