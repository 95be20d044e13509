"""Matrices of a simdgroup, on the emulator: statements on them against the interpreter, products of networks, and
faults that are planted."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from c2c.codegen.devices import DEVICES
from c2c.codegen.dialects import emit_kernels
from c2c.codegen.metal import emit_metal
from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.ir.errors import CodegenError
from c2c.ir.loops import const
from c2c.ir.loops_builder import Builder
from c2c.ir.loops_interp import run_program
from c2c.ir.loops_parse import parse_kernel
from c2c.ir.loops_text import print_kernel
from c2c.ir.loops_verify import verify_program
from c2c.ir.program import Port, Program, Slot, Step
from c2c.ir.types import DType
from c2c.passes.loops.count import flops
from c2c.passes.loops.pressure import registers
from c2c.passes.lower.schedule import Tuning

from ..emulation import Emulated, needs_compiler
from .test_metal import refused
from .test_opencl_races import without

pytestmark = needs_compiler
TARGET = "metal-ios"
DEVICE = DEVICES[TARGET][0]
SEED = 3
X = np.random.default_rng(SEED).standard_normal((1, 3, 7, 7)).astype(np.float32)

STATEMENTS = """kernel k(x: TYPE[288], y: f32[256]) {
  grid g = 0 to 2 {
    alloc near: TYPE[288] shared
    alloc far: f32[128] shared
    thread part = 0 to 2 {
      thread lane = 0 to 32 {
        let number: i64 = part * 32 + lane
        alloc a: TYPEx64[2] matrix
        alloc b: TYPEx64[1] matrix
        alloc sums: f32x64[1] matrix
        unroll e = 0 to 5 { if e * 64 + number < 288 { store near[e * 64 + number] = x[e * 64 + number] } }
        store sums[0] = 0.5:f32x64
        barrier
        matrix_load b[0] = near[part * 4 + g; 12] transposed
        unroll i = 0 to 2 {
          matrix_load a[i] = near[96 + part * 8 + i; 12]
          matrix_multiply sums[0] = a[i] * b[0]
        }
        matrix_store far[part * 8; 16] = sums[0]
        barrier
        unroll f = 0 to 2 { store y[g * 128 + f * 64 + number] = far[f * 64 + number] }
      }
    }
  }
}"""


def statements_on(dtype: DType) -> Program:
    kernel = parse_kernel(STATEMENTS.replace("TYPE", str(dtype)))
    step = Step("k", (Slot("input", 0, 0), Slot("output", 0, 0)), "step_0")
    ports = (Port("x", dtype, (288,)),), (Port("y", DType.F32, (256,)),)
    program = Program("p", *ports, {"k": kernel}, (step,), 0, bytearray())
    verify_program(program)
    return program


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16])
def test_statements_are_equal(dtype: DType, tmp_path: Path) -> None:
    """Of small whole numbers, so that every order of the sums is exact."""
    program = statements_on(dtype)
    x = [np.random.default_rng(SEED).integers(-8, 9, 288).astype(dtype.numpy)]
    emulated = Emulated(program, DEVICE, tmp_path, watched=True)
    (found,), (expected,) = emulated.run(x), run_program(program, x)
    assert len(set(expected)) > 100, "the input tells nothing apart"
    np.testing.assert_array_equal(found, expected)
    assert emulated.faults == []
    assert refused(emulated.text, tmp_path) == ""
    assert f"simdgroup_{'half' if dtype is DType.F16 else 'float'}8x8 a[2];" in emulated.text


def random_products(seed: int) -> Program:
    """Matrices from random places of shared memory, some turned, multiplied in random pairs by one subgroup or two."""
    rng, k = np.random.default_rng(seed), Builder()
    dtype, parts = (DType.F32, DType.F16)[int(rng.integers(2))], int(rng.integers(1, 3))
    x, y = k.param("x", dtype, 256), k.param("y", DType.F32, parts * 128)
    near, far = k.alloc("near", dtype, 256, "shared"), k.alloc("far", DType.F32, parts * 128, "shared")
    for part in k.loop("part", parts, kind="thread"):
        for lane in k.loop("lane", 32, kind="thread"):
            for e in k.loop("e", 256, part * 32 + lane, parts * 32):
                k.store(near, e, k.load(x, e))
            k.barrier()
            factors, sums = k.matrices("factors", dtype, 3), k.matrices("sums", DType.F32, 2)
            for i in range(2):
                k.store(sums, i, const(float(rng.integers(-3, 4)), DType.F32, 64))
            for i in range(3):
                stride = int(rng.integers(8, 33))
                step = int(rng.integers(0, 256 - 7 * stride - 8)) // parts
                k.matrix_load(factors, i, (near, part * step, stride), transposed=bool(rng.integers(2)))
            for at, a, b in rng.integers(0, (2, 3, 3), (5, 3)):
                k.matrix_multiply((sums, int(at)), (factors, int(a)), (factors, int(b)))
            for i in range(2):
                k.matrix_store((far, part * 128 + i * 8, 16), sums, i)
            k.barrier()
            for e in k.loop("o", 4):
                k.store(y, part * 128 + e * 32 + lane, k.load(far, part * 128 + e * 32 + lane))
    step_ = Step("k", (Slot("input", 0, 0), Slot("output", 0, 0)), "step_0")
    ports = (Port("x", dtype, (256,)),), (Port("y", DType.F32, (y.size,)),)
    program = Program("p", *ports, {"k": k.kernel("k")}, (step_,), 0, bytearray())
    verify_program(program)
    assert parse_kernel(print_kernel(program.kernels["k"])) == program.kernels["k"]
    return program


@pytest.mark.parametrize("seed", range(4))
def test_random_products_are_equal(seed: int, tmp_path: Path) -> None:
    program = random_products(seed)
    x = [np.random.default_rng(seed).integers(-8, 9, 256).astype(program.inputs[0].dtype.numpy)]
    emulated = Emulated(program, DEVICE, tmp_path, watched=True)
    (found,), (expected,) = emulated.run(x), run_program(program, x)
    np.testing.assert_array_equal(found, expected, err_msg=f"seed {seed}")
    assert emulated.faults == []


def test_work_and_registers_of_matrices_are_counted() -> None:
    """Two products of 8×8×8 in each of two subgroups and two work-groups; two registers of a thread for a matrix."""
    kernel = statements_on(DType.F32).kernels["k"]
    assert flops(kernel) == 2 * 2 * 2 * (2 * 8**3)
    fewer = replace(kernel, body=parse_kernel(STATEMENTS.replace("TYPE", "f32").replace("x64[2]", "x64[8]")).body)
    assert registers(fewer) - registers(kernel) == 6 * 2


@pytest.mark.parametrize("target", ["metal", "cuda", "opencl-intel"])
def test_other_devices_refuse(target: str) -> None:
    with pytest.raises(CodegenError, match="no matri(ces of a subgroup|x memory)"):
        emit_kernels(statements_on(DType.F32), DEVICES[target][0])


def products() -> onnx.ModelProto:
    """A convolution, a product of its result, and one whose second factor lies turned."""
    rng = np.random.default_rng(SEED)
    shapes = {"w": (20, 3, 3, 3), "b": (20,), "v": (70, 49)}
    constants = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    constants.append(numpy_helper.from_array(np.array([20, 49]), "shape"))
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["m"]), helper.make_node("Gemm", ["m", "v"], ["p"], transB=1),
        helper.make_node("Tanh", ["p"], ["t"]), helper.make_node("Gemm", ["t", "t"], ["y"], transB=1),
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [20, 20])
    graph = helper.make_graph(nodes, "products", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def compiled(tile: str) -> Program:
    """With a tile for all products."""
    options = CompileOptions(Target.parse(TARGET), name="net")
    problems = {c.key for call in compile_file(products().SerializeToString(), options).calls for c in call.choices}
    tuning = Tuning({key: tile for key in problems if key[0] == "grid-product"})
    return compile_file(products().SerializeToString(), replace(options, tuning=tuning)).program


@pytest.fixture(scope="module")
def program() -> Program:
    return compiled("simdgroup=32x32 depth=16")


@pytest.fixture(scope="module")
def text(program: Program) -> str:
    made: str = emit_metal(program, DEVICE)
    return made


def run(program: Program, text: str, folder: Path) -> tuple[np.ndarray, list[str]]:
    """The network's result, and what the emulator found, every access watched."""
    emulated = Emulated(program, DEVICE, folder, text=text, watched=True)
    return emulated.run([X])[0], emulated.faults


def test_products_of_a_network(program: Program, text: str, tmp_path: Path) -> None:
    """All with remainders of tiles."""
    using = [part for part in text.split("kernel void")[1:] if "simdgroup_multiply_accumulate" in part]
    assert len(using) == 3 and text.startswith("/* net: a compiled network in Metal 2.3;")
    found, faults = run(program, text, tmp_path)
    expected = next(iter(ReferenceEvaluator(products()).run(None, {"x": X})))
    np.testing.assert_allclose(found, expected, atol=1e-6 * 70, rtol=1e-5)
    assert faults == []
    assert refused(text, tmp_path) == ""


BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


@pytest.mark.parametrize("number", range(4))
def test_a_barrier_that_is_missing_is_found(program: Program, text: str, number: int, tmp_path: Path) -> None:
    """Before and after matrices are loaded, and around lines of results."""
    _, faults = run(program, without(text, BARRIER, number), tmp_path)
    assert any("race in shared" in f for f in faults)


@pytest.mark.parametrize(
    ("pattern", "new", "fault"),
    [
        (r"simdgroup_load\((a\[\w+\]), ([^,]+)", r"simdgroup_load(\1, \2 + lane % 2", "different matrices"),
        (r"(simdgroup_store\([^;]*), 16\)", r"\1, 8)", ""),
        (r"(simdgroup_multiply_accumulate\([^;]+;)", r"if (lane < 16) \1", "exchange divergence"),
        (r", ulong2\(0, 0\), true", "", ""),
    ],
)  # fmt: skip
def test_faults_are_found(program: Program, text: str, pattern: str, new: str, fault: str, tmp_path: Path) -> None:
    """A place of a thread's own, results beside their places, threads that miss a product, a matrix not turned."""
    right, _ = run(program, text, tmp_path / "right")
    wrong, count = re.subn(pattern, new, text)
    assert count, "the text does not have it"
    found, faults = run(program, wrong, tmp_path / "wrong")
    assert any(fault in f for f in faults) if fault else not np.allclose(found, right, 1e-4, 1e-6)


def test_the_strict_front_end_refuses(text: str, tmp_path: Path) -> None:
    """Matrices out of device memory, of another type, of another size."""
    for good, bad in (
        (r"simdgroup_load\((\w+\[\w+\]), tile_a", r"simdgroup_load(\1, y"),
        ("simdgroup_float8x8 a", "simdgroup_half8x8 a"),
        ("make_filled_simdgroup_matrix<float, 8, 8>", "make_filled_simdgroup_matrix<float, 4, 8>"),
    ):
        wrong, count = re.subn(good, bad, text)
        assert count and refused(wrong, tmp_path)
