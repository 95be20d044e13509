"""Products of few rows by weights of 4 and 8 bits in blocks on a grid, whose levels are expanded when they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_graph
from c2c.compiler.options import CompileOptions
from c2c.ir.reference import evaluate
from c2c.tests.opencl import needs_opencl, run_on_device
from c2c.tests.passes.lower.test_block_bytes import network

on_device: pytest.MarkDecorator = needs_opencl
SEED = 5
CASES = {
    "4 bits": (1, 4, 160, 50, 32, True),
    "4 bits, several rows, last block shorter": (3, 4, 151, 37, 64, True),
    "4 bits, one zero, by tiles": (6, 4, 96, 40, 16, False),
    "8 bits": (2, 8, 130, 33, 32, True),
    "8 bits, by tiles": (8, 8, 64, 20, 64, False),
}


@on_device
@pytest.mark.parametrize("target", ["opencl", pytest.param("opencl-cpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_results_and_bytes(name: str, target: str, tmp_path: Path) -> None:
    rows, bits, length, columns, size, zeros = CASES[name]
    graph = network(rows, bits, length, columns, size, zeros)
    x = np.random.default_rng(SEED).standard_normal((rows, length)).astype(np.float32)
    program = compile_graph(graph, CompileOptions(Target.parse(target), name="model")).program
    (found,) = run_on_device(program, target, [x], tmp_path)
    wanted = evaluate(graph, {graph.inputs[0].name: x})["out0"]
    tolerance = length * np.finfo(np.float32).eps * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance, err_msg=f"seed {SEED}")
    blocks = -(-length // size)
    levels, rest = -(-length * bits // 8) * (columns + 8), (5 * blocks + 4) * (columns + 8)
    assert len(program.weights) < levels + rest + 4 * 64
