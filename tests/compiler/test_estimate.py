"""Cycles expected of whole models."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_graph
from c2c.compiler.estimate import expected_cycles
from c2c.compiler.options import CompileOptions
from c2c.tests.passes.build import Net


def cycles(weights: np.ndarray, target: str, rows: int = 1) -> float:
    net = Net()
    graph = net.done(net.op("Relu", net.op("MatMul", net.input(rows, len(weights)), weights)))
    options = CompileOptions(Target.parse(target), keep_constants=True)
    return float(expected_cycles(compile_graph(graph, options)))


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "arm64-neon"])
def test_what_is_read_and_what_is_computed(target: str) -> None:
    """One row takes as long as its weights take to arrive; many rows as long as their products."""
    w = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    whole, half = cycles(w, target), cycles(w.astype(np.float16).astype(np.float32), target)
    assert 0.45 * whole < half < 0.75 * whole, "half the bytes"
    machine = Target.parse(target)
    peak = 2 * 64 * w.size / (2 * machine.lanes() * machine.fma_per_cycle)
    assert peak < cycles(w, target, 64) < 3 * peak


def test_few_levels_are_read_sooner() -> None:
    rng = np.random.default_rng(0)
    levels = rng.standard_normal(16).astype(np.float32)
    coded = rng.choice(levels, (1024, 1024))
    dense = rng.standard_normal((1024, 1024)).astype(np.float32)
    assert cycles(coded, "x86-64-v4") < 0.5 * cycles(dense, "x86-64-v4")


def test_tensors_that_leave_the_second_cache() -> None:
    """As many times the elements take as many times as long, and longer once they are read from farther away."""

    def relu(elements: int) -> float:
        net = Net()
        graph = net.done(net.op("Relu", net.input(1, elements)))
        options = CompileOptions(Target.parse("x86-64-v4"), keep_constants=True)
        return float(expected_cycles(compile_graph(graph, options)))

    assert relu(1 << 16) == pytest.approx(16 * relu(1 << 12), rel=0.01)
    assert relu(1 << 22) > 1.5 * 64 * relu(1 << 16)


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4+avx512vnni"])
def test_a_convolution_of_bytes_is_sooner_than_one_of_floats(target: str) -> None:
    """Four times the products an instruction with dot products, twice with pairs; not the sum of two estimates."""
    rng, machine = np.random.default_rng(0), Target.parse(target)
    found = []
    for integer in (True, False):
        net = Net()
        x = net.input(1, 64, 28, 28)
        weights = rng.standard_normal((64, 64, 1, 1)).astype(np.float32)
        if integer:
            scale = (np.array(0.1, np.float32), np.array(128, np.uint8))
            x = net.op("DequantizeLinear", net.op("QuantizeLinear", x, *scale), *scale)
            levels = rng.integers(-127, 128, weights.shape).astype(np.int8)
            w = net.op("DequantizeLinear", levels, np.full(64, 0.01, np.float32), np.zeros(64, np.int8), axis=0)
        graph = net.done(net.op("Conv", x, w if integer else weights))
        found.append(float(expected_cycles(compile_graph(graph, CompileOptions(machine, keep_constants=True)))))
    assert found[0] < (0.75 if machine.has_dot_prod else 1.0) * found[1]
