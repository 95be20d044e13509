"""Threads that exchange values, on the emulator: random programs equal to the interpreter bit by bit in every language,
reductions of networks, and faults that are planted."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

import c2c
from c2c.codegen.cuda import emit_cuda
from c2c.codegen.devices import DEVICES
from c2c.codegen.dialects import emit_kernels
from c2c.codegen.metal import emit_metal
from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.ir.errors import CodegenError
from c2c.ir.loops_interp import run_program
from c2c.ir.loops_random import ALL, random_inputs, random_program
from c2c.ir.program import Program

from ..emulation import COMPILER, Emulated, needs_compiler
from ..opencl import needs_opencl
from .test_metal import CUDA_SHIM, WITHOUT_F64, refused
from .test_opencl import on_grid
from .test_opencl_races import network

pytestmark = needs_compiler

INTEL = ("cl_intel_required_subgroup_size", "cl_intel_subgroups")
QUALCOMM = ("cl_qcom_reqd_sub_group_size", "cl_qcom_subgroup_shuffle")
FORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "metal": ("metal-ios", ()), "cuda": ("cuda", ()), "intel": ("opencl-intel", INTEL),
    "adreno": ("opencl-adreno", QUALCOMM), "old driver": ("opencl-intel", ()),
}  # fmt: skip
"""Targets, and extensions that their drivers have."""


@pytest.mark.parametrize("form", FORMS)
def test_exact_programs_are_equal(form: str, tmp_path: Path) -> None:
    target, defines = FORMS[form]
    device, first = DEVICES[target][0], 30
    program = random_program(
        range(first, first + 3), dtypes=ALL if device.f64 else WITHOUT_F64, subgroup=device.exchange
    )
    inputs = random_inputs(program, first)
    expected = run_program(program, inputs)
    emulated = Emulated(on_grid(program), device, tmp_path, defines=defines)
    found = emulated.run(inputs)
    assert len(re.findall(r"shuffle_xor|shfl_xor", emulated.text)) > 6, "the seeds exchange nothing"
    for port, a, b in zip(program.outputs, found, expected, strict=True):
        at = np.flatnonzero((a != b) & ~((a != a) & (b != b)))
        message = f"{port.name}, seeds from {first}: " + ", ".join(f"[{i}] {a[i]} for {b[i]}" for i in at[:5])
        assert np.array_equal(a, b, equal_nan=port.dtype.is_float), message
    assert emulated.faults == []


@pytest.fixture(scope="module")
def program() -> Program:
    return compiled("metal-ios")


@pytest.fixture(scope="module")
def text(program: Program) -> str:
    made: str = emit_metal(program, DEVICES["metal-ios"][0])
    return made


def compiled(target: str) -> Program:
    return compile_file(network().SerializeToString(), CompileOptions(Target.parse(target), name="net")).program


def run(program: Program, target: str, folder: Path, **options: object) -> tuple[np.ndarray, list[str]]:
    """The network's result, and what the emulator found, every access watched."""
    emulated = Emulated(program, DEVICES[target][0], folder, watched=True, **options)  # type: ignore[arg-type]
    (found,) = emulated.run([np.random.default_rng(2).standard_normal((1, 2, 5, 5)).astype(np.float32)])
    return found, emulated.faults


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    x = np.random.default_rng(2).standard_normal((1, 2, 5, 5)).astype(np.float32)
    return np.asarray(next(iter(ReferenceEvaluator(network()).run(None, {"x": x}))))


@pytest.mark.parametrize("form", FORMS)
def test_reductions_of_a_network(form: str, expected: np.ndarray, tmp_path: Path) -> None:
    target, defines = FORMS[form]
    found, faults = run(compiled(target), target, tmp_path, defines=defines)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert faults == []


BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


@pytest.mark.parametrize("form", ["metal", "adreno"])
def test_it_does_not_matter_which_threads_are_a_subgroup(form: str, tmp_path: Path) -> None:
    """Here they are no neighbours."""
    target, defines = FORMS[form]
    device = DEVICES[target][0]
    program = random_program(range(34, 36), dtypes=WITHOUT_F64, subgroup=device.exchange)
    inputs = random_inputs(program, 34)
    expected = run_program(program, inputs)
    emulated = Emulated(on_grid(program), device, tmp_path, defines=defines)
    ctypes.c_int.in_dll(emulated.library, "emulated_scattered").value = 1
    found = emulated.run(inputs)
    assert all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(found, expected, strict=True))
    assert emulated.faults == []


@needs_opencl
def test_a_driver_without_subgroups_runs_it(expected: np.ndarray) -> None:
    x = np.random.default_rng(2).standard_normal((1, 2, 5, 5)).astype(np.float32)
    (found,) = c2c.compile(network(), "opencl-intel").run({"x": x}).values()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


SHUFFLE = "simd_shuffle_xor("
EXCHANGE = re.compile(r"const float other\w* = simd_shuffle_xor\(\w+, (\d+)\);")


def test_an_exchange_that_some_threads_miss_is_found(program: Program, text: str, tmp_path: Path) -> None:
    """They go past it, or to the next one."""
    first = EXCHANGE.search(text)
    assert first is not None
    name, value = first.group(0).removeprefix("const float ").split(" = ")
    wrong = f"float {name} = 0; if (thread_of_group % 2) {name} = {value}"
    _, faults = run(program, "metal-ios", tmp_path, text=text.replace(first.group(0), wrong, 1))
    assert any("exchange divergence" in f for f in faults)


@pytest.mark.parametrize("mask", [3, 8, 32])
def test_a_wrong_mask_is_found(program: Program, text: str, mask: int, expected: np.ndarray, tmp_path: Path) -> None:
    """Threads that are merged twice or not at all, or of another subgroup."""
    found = [m for m in EXCHANGE.finditer(text) if m.group(1) == "4"]
    wrong = found[0].group(0).replace(", 4)", f", {mask})")
    value, faults = run(program, "metal-ios", tmp_path, text=text.replace(found[0].group(0), wrong, 1))
    assert any("beyond its subgroup" in f for f in faults) == (mask == 32)
    assert not np.allclose(value, expected, rtol=1e-5, atol=1e-7)


def test_an_exchange_orders_no_memory(program: Program, text: str, tmp_path: Path) -> None:
    """The barrier between subgroups' states is needed, although exchanges follow."""
    kernel = text.rindex("kernel void")
    barrier = text.index(BARRIER, kernel)
    _, faults = run(program, "metal-ios", tmp_path, text=text[:barrier] + text[barrier:].replace(BARRIER, "", 1))
    assert any("race in shared" in f for f in faults)


def test_strict_front_ends_take_the_text(text: str, tmp_path: Path) -> None:
    programs = [on_grid(random_program(range(30, 34), dtypes=WITHOUT_F64, subgroup=32))]
    for metal in (text, emit_metal(programs[0], DEVICES["metal-ios"][0])):
        assert SHUFFLE in metal and refused(metal, tmp_path) == ""
        assert refused(metal.replace(SHUFFLE, "simd_shuffle_xor(1, "), tmp_path)
    (tmp_path / "k.cu").write_text(CUDA_SHIM + emit_cuda(programs[0], DEVICES["cuda"][0]))
    flags = "-x cuda --cuda-device-only -nocudainc -nocudalib --cuda-gpu-arch=sm_70 -S -O1 -Werror".split()
    command = [COMPILER, *flags, "-Wno-unknown-cuda-version", "-o", "k.ptx", "k.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]


def test_intels_extension_is_called_as_declared(tmp_path: Path) -> None:
    """By clang, which has its functions and its attribute."""
    (tmp_path / "k.cl").write_text(emit_kernels(compiled("opencl-intel"), DEVICES["opencl-intel"][0]))
    flags = "-x cl -cl-std=CL2.0 -cl-no-stdinc -Xclang -finclude-default-header -target spir64 -fsyntax-only"
    quiet = "-Wall -Wextra -Werror -Wno-unused-variable -Wno-unused-parameter -Wno-unused-function"
    command = ["clang-19", *flags.split(), *quiet.split(), *(f"-D{e}" for e in INTEL), "k.cl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]


def test_what_a_device_cannot_exchange_is_refused() -> None:
    program = on_grid(random_program(range(30, 34), subgroup=32))
    for target in ("opencl", "opencl-intel"):
        with pytest.raises(CodegenError, match=r"threads that differ by \d+ exchange values on no such device"):
            emit_kernels(program, DEVICES[target][0])
