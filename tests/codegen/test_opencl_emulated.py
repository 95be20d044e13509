"""OpenCL text on the emulator, which has what the installed OpenCL may lack (arithmetic in 16 bits, dot products of
bytes): random programs equal to the interpreter bit by bit, a network, and races that are planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import c2c
from c2c.codegen.devices import DEVICES
from c2c.codegen.opencl import emit_opencl
from c2c.ir.loops_interp import run_program
from c2c.ir.loops_random import random_inputs, random_program

from ..emulation import Emulated, build, check_equal, needs_compiler
from .test_metal import compiled, half_program
from .test_opencl import on_grid
from .test_opencl_races import without

pytestmark = needs_compiler
TARGETS = ("opencl", "opencl-cpu")


@pytest.mark.parametrize(("first", "target"), [(0, "opencl"), (2000, "opencl-cpu")])
def test_exact_programs_are_equal(first: int, target: str, tmp_path: Path) -> None:
    program = random_program(range(first, first + 5))
    expected = run_program(program, random_inputs(program, first))
    emulated = Emulated(on_grid(program), DEVICES[target][0], tmp_path)
    found = emulated.run(random_inputs(program, first))
    check_equal(program, found, expected, f"seeds from {first}")
    assert emulated.faults == []


@pytest.mark.parametrize(("first", "target"), [(0, "opencl"), (2000, "opencl-cpu")])
def test_arithmetic_in_halves_is_equal(first: int, target: str, tmp_path: Path) -> None:
    program, device = half_program(first), replace(DEVICES[target][0], fp16=True)
    expected = run_program(program, random_inputs(program, first))
    emulated = Emulated(on_grid(program), device, tmp_path)
    check_equal(program, emulated.run(random_inputs(program, first)), expected, f"seeds from {first}")
    assert emulated.text.count("c2c_fma_half(") > 2


@pytest.mark.parametrize("target", TARGETS)
def test_a_network_is_right(small_cnn: onnx.ModelProto, target: str, tmp_path: Path) -> None:
    x = np.random.default_rng(5).standard_normal((1, 3, 16, 16)).astype(np.float32)
    (expected,) = c2c.compile(small_cnn, dims={"N": 1}).run({"x": x}).values()
    emulated = Emulated(compiled(small_cnn, target), DEVICES[target][0], tmp_path, watched=True)
    (found,) = emulated.run([x])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert emulated.faults == []


def test_a_barrier_that_is_missing_is_found(small_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    program, device = compiled(small_cnn, "opencl"), DEVICES["opencl"][0]
    text = without(emit_opencl(program, device), "barrier(CLK_LOCAL_MEM_FENCE);", 0)
    emulated = Emulated(program, device, tmp_path, text=text, watched=True)
    emulated.run([np.random.default_rng(5).standard_normal((1, 3, 16, 16)).astype(np.float32)])
    assert any("race in shared" in f for f in emulated.faults)


HALF = """\
__kernel void k(__global half *y, const uint y_at)
{
    y[y_at] = y[y_at] * y[y_at];
}
"""
DOT = "__kernel void k(__global int *y, const uint y_at) { y[y_at] = dot_4x8packed_ss_int(y[y_at], y[y_at]); }"


@pytest.mark.parametrize(
    ("text", "head", "defines"),
    [(HALF, "#pragma OPENCL EXTENSION cl_khr_fp16 : enable\n", ()), (DOT, "", ("cl_khr_integer_dot_product",))],
)
def test_extensions_must_be_asked_for(text: str, head: str, defines: tuple[str, ...], tmp_path: Path) -> None:
    build(head + text, "opencl", ["k"], tmp_path, defines=defines)
    with pytest.raises(AssertionError, match="half|dot_4x8packed"):
        build(text, "opencl", ["k"], tmp_path)
