"""Metal and CUDA text against the interpreter, executed by the emulator: random programs equal bit by bit where
operations are exact or correctly rounded; and the text itself, by strict front ends."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import c2c
from c2c.codegen.cuda import emit_cuda
from c2c.codegen.devices import DEVICES
from c2c.codegen.launch import GROUPS_ALONG
from c2c.codegen.metal import emit_metal
from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.ir.errors import CodegenError
from c2c.ir.loops import Expr, const
from c2c.ir.loops_builder import Builder
from c2c.ir.loops_interp import run_program
from c2c.ir.loops_random import ALL, INTS, random_inputs, random_program
from c2c.ir.loops_verify import verify_program
from c2c.ir.program import Port, Program, Slot, Step
from c2c.ir.types import DType
from c2c.passes.loops.spread import spread

from ..emulation import COMPILER, HERE, Emulated, check_equal, needs_compiler
from .test_opencl import on_grid

WITHOUT_F64 = tuple(d for d in ALL if d is not DType.F64)
DTYPES = {"metal": WITHOUT_F64, "cuda": ALL}
HALVES = (DType.F16, DType.BF16, *INTS, DType.BOOL)
"""With these, multiply-adds are of f16 alone: products are exact in f32, and the interpreter rounds as the emulator."""


@needs_compiler
@pytest.mark.parametrize("dialect", DTYPES)
@pytest.mark.parametrize("first", [0, 2000])
def test_exact_programs_are_equal(first: int, dialect: str, tmp_path: Path) -> None:
    program = random_program(range(first, first + 8), dtypes=DTYPES[dialect])
    expected = run_program(program, random_inputs(program, first))
    emulated = Emulated(on_grid(program), DEVICES[dialect][0], tmp_path)
    found = emulated.run(random_inputs(program, first))
    check_equal(program, found, expected, f"seeds from {first}")
    assert emulated.faults == []


@needs_compiler
@pytest.mark.parametrize(("first", "dialect"), [(0, "metal"), (2000, "cuda")])
def test_arithmetic_in_halves_is_equal(first: int, dialect: str, tmp_path: Path) -> None:
    program, device = half_program(first), replace(DEVICES[dialect][0], fp16=True)
    expected = run_program(program, random_inputs(program, first))
    emulated = Emulated(on_grid(program), device, tmp_path)
    check_equal(program, emulated.run(random_inputs(program, first)), expected, f"seeds from {first}")
    assert ("fma.rn.f16" if dialect == "cuda" else "half(") in emulated.text


def half_program(first: int, count: int = 5) -> Program:
    """Random kernels with arithmetic in f16, multiply-adds included."""
    return random_program(range(first, first + count), dtypes=HALVES, inexact=True)


STRICT = """-x cl -cl-std=clc++2021 -target spir64 -Xclang -finclude-default-header -Wall -Wextra -Werror -fsyntax-only
 -Wno-unknown-attributes -Wno-unused-variable -Wno-unused-parameter -Wno-unused-function""".split()


def refused(text: str, folder: Path) -> str:
    """What the front end of C++ for OpenCL has to say about Metal text: both know address spaces."""
    (folder / "k.metal").write_text(text)
    command = [COMPILER, *STRICT, "-I", str(HERE / "strict"), "k.metal"]
    return str(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stderr)


@needs_compiler
def test_a_strict_front_end_takes_the_text(tmp_path: Path) -> None:
    program, halves = on_grid(random_program(range(8), dtypes=WITHOUT_F64)), on_grid(half_program(0))
    assert refused(emit_metal(program, DEVICES["metal"][0]), tmp_path) == ""
    assert refused(emit_metal(halves, replace(DEVICES["metal"][0], fp16=True)), tmp_path) == ""


@needs_compiler
@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("threadgroup float tile_a", "float tile_a"),
        ("device float *y", "device const float *y"),
        ("float sums[", "device float sums["),
        ("const int number = ", "thread float *wrong = w; const int number = "),
    ],
)
def test_the_strict_front_end_refuses(small_cnn: onnx.ModelProto, good: str, bad: str, tmp_path: Path) -> None:
    """Spaces that are missing or wrong: here at places of a product, where the text is right."""
    program = compiled(small_cnn, "metal")
    text = emit_metal(program, DEVICES["metal"][0])
    assert good in text and refused(text, tmp_path) == ""
    if bad == "float tile_a":  # memory of a thread's own is legal, and wrong: what runs finds it
        text = text.replace(good, bad)
        assert not np.allclose(*outputs_of(program, text, tmp_path), atol=1e-3)
    else:
        assert refused(text.replace(good, bad), tmp_path)


def outputs_of(program: Program, text: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first output with a text, and with the right one."""
    x = [np.random.default_rng(1).standard_normal(p.shape).astype(np.float32) for p in program.inputs]
    device = DEVICES["metal"][0]
    wrong, right = (Emulated(program, device, folder / str(t is None), text=t).run(x)[0] for t in (text, None))
    return wrong, right


def compiled(model: onnx.ModelProto, target: str) -> Program:
    options = CompileOptions(Target.parse(target), name="net", dims={"N": 1})
    return compile_file(model.SerializeToString(), options).program


@needs_compiler
@pytest.mark.parametrize("dialect", DTYPES)
def test_a_network_is_right(small_cnn: onnx.ModelProto, dialect: str, tmp_path: Path) -> None:
    x = np.random.default_rng(5).standard_normal((1, 3, 16, 16)).astype(np.float32)
    (expected,) = c2c.compile(small_cnn, dims={"N": 1}).run({"x": x}).values()
    (found,) = Emulated(compiled(small_cnn, dialect), DEVICES[dialect][0], tmp_path).run([x])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


CUDA_SHIM = """
#define __CUDACC_RTC__
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __launch_bounds__(n) __attribute__((launch_bounds(n)))
struct three { unsigned x, y, z; };
extern const __device__ three threadIdx, blockIdx;
__device__ void __syncthreads();
__device__ int __shfl_xor_sync(unsigned, int, int);
__device__ unsigned __shfl_xor_sync(unsigned, unsigned, int);
__device__ long long __shfl_xor_sync(unsigned, long long, int);
__device__ unsigned long long __shfl_xor_sync(unsigned, unsigned long long, int);
__device__ float __shfl_xor_sync(unsigned, float, int);
__device__ double __shfl_xor_sync(unsigned, double, int);
__device__ int min(int, int);
__device__ int max(int, int);
__device__ unsigned __float_as_uint(float);
__device__ float __uint_as_float(unsigned);
__device__ float __int_as_float(int);
__device__ double __longlong_as_double(long long);
__device__ long long __double_as_longlong(double);
__device__ float __double2float_rz(double);
extern "C" {
__device__ float sqrtf(float), floorf(float), ceilf(float), rintf(float), truncf(float), fabsf(float);
__device__ float fmodf(float, float), fmaf(float, float, float);
__device__ double sqrt(double), floor(double), ceil(double), rint(double), trunc(double), fabs(double);
__device__ double fmod(double, double), fma(double, double, double);
}
"""


@needs_compiler
@pytest.mark.parametrize("halves", [False, True])
def test_a_front_end_for_cuda_takes_the_text(halves: bool, tmp_path: Path) -> None:
    """Compiled for a device, as far as assembly: clang checks the constraints of PTX instructions."""
    device = DEVICES["cuda"][0]
    program = on_grid(half_program(0) if halves else random_program(range(8)))
    text = emit_cuda(program, replace(device, fp16=halves))
    (tmp_path / "k.cu").write_text(CUDA_SHIM + text)
    flags = "-x cuda --cuda-device-only -nocudainc -nocudalib --cuda-gpu-arch=sm_70 -S -O1 -Werror".split()
    command = [COMPILER, *flags, "-Wno-unknown-cuda-version", "-o", "k.ptx", "k.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    assert len(re.findall(r"\.visible \.entry", (tmp_path / "k.ptx").read_text())) == text.count("__global__")


def one_kernel(inputs: int, dims: tuple[int, ...], dtype: DType = DType.F32) -> Program:
    """y[i, …] = Σ x_n[0] over a grid of `dims`."""
    k = Builder()
    xs = [k.param(f"x{n}", dtype, 1) for n in range(inputs)]
    y = k.param("y", dtype, int(np.prod(dims)))

    def fill(index: Any, left: tuple[int, ...]) -> None:
        if left:
            for i in k.loop(f"i{len(left)}", left[0]):
                fill(i if index is None else index * left[0] + i, left[1:])
            return
        total: Expr = const(0, dtype)
        for x in xs:
            total = total + k.load(x, 0)
        k.store(y, index, total)

    fill(None, dims)
    (kernel,) = spread(k.kernel("many"))
    slots = {p.name: Slot("input", 0, n) for n, p in enumerate(xs)} | {"y": Slot("output")}
    ins = tuple(Port(x.name, dtype, (1,)) for x in xs)
    step = Step("many", tuple(slots[p.name] for p in kernel.params), "step_0", ("Sum_3",))
    program = Program(
        "p", ins, (Port("y", dtype, (y.size,)),), {"many": replace(kernel, name="many")}, (step,), 0, bytearray()
    )
    verify_program(program)
    return program


def test_what_metal_cannot_do_names_the_node() -> None:
    device = DEVICES["metal"][0]
    emit_metal(one_kernel(30, (4,)), device)
    with pytest.raises(CodegenError, match=r"32 tensors: Metal binds 31\n  at: node 'Sum_3'"):
        emit_metal(one_kernel(31, (4,)), device)
    with pytest.raises(CodegenError, match=r"no 64-bit floats\n  at: node 'Sum_3', kernel many\n  do: cast to float32"):
        emit_metal(one_kernel(1, (4,), DType.F64), device)


def wide_model() -> onnx.ModelProto:
    """x + x in 64-bit floats, and the powers of a tensor in 32 bits."""
    node = helper.make_node("Add", ["x", "x"], ["y"], "twice")
    exp = helper.make_node("Exp", ["z"], ["e"], "power")
    x, y = (helper.make_tensor_value_info(n, TensorProto.DOUBLE, ["N"]) for n in "xy")
    z, e = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N"]) for n in "ze")
    graph = helper.make_graph([node, exp], "m", [x, z], [y, e])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_a_model_in_f64_is_refused_for_metal_by_node() -> None:
    options = CompileOptions(Target.parse("metal"), name="net", dims={"N": 4}, host_steps=False)
    program = compile_file(wide_model().SerializeToString(), options).program
    with pytest.raises(CodegenError, match=r"64-bit floats\n  at: node 'twice'"):
        emit_metal(program, DEVICES["metal"][0])


@needs_compiler
def test_the_host_runs_what_metal_cannot(tmp_path: Path) -> None:
    """64-bit floats; and no other step."""
    options = CompileOptions(Target.parse("metal"), name="net", dims={"N": 70000})
    compiled = compile_file(wide_model().SerializeToString(), options)
    assert {s.host for s in compiled.program.steps} == {True, False}
    reasons = [c.reason for call in compiled.calls if call.host for c in call.choices]
    assert any("no 64-bit floats" in r for r in reasons)
    x = np.random.default_rng(4).standard_normal(70000)
    z = x.astype(np.float32)
    y, e = Emulated(compiled.program, DEVICES["metal"][0], tmp_path).run([x, z])
    np.testing.assert_array_equal(y, x + x)
    np.testing.assert_allclose(e, np.exp(z), rtol=1e-5)


@needs_compiler
@pytest.mark.parametrize("dims", [(GROUPS_ALONG + 3, 1, 64), (2, GROUPS_ALONG + 1, 64), (3, 5, 7)])
def test_grids_beyond_what_cuda_launches_lie_along_x(dims: tuple[int, ...], tmp_path: Path) -> None:
    program = one_kernel(1, dims)
    emulated = Emulated(program, DEVICES["cuda"][0], tmp_path, watched=max(dims) < 100)
    assert ("blockIdx.y" in emulated.text) == (max(dims) < 100)
    (found,) = emulated.run([np.array([3], np.float32)])
    assert (found == 3).all() and emulated.faults == []
