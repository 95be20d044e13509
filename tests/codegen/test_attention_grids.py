"""Attention as text, on the emulator with every access watched, against float64: by matrices of a simdgroup and by
threads of a row, in f32 and f16; and barriers that are taken away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from c2c.codegen.devices import DEVICES
from c2c.codegen.dialects import emit_kernels
from c2c.codegen.target import Target
from c2c.compiler.bundle import write_bundle
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.ir.program import Program
from c2c.passes.lower.grid import attention_tile
from c2c.passes.lower.schedule import Tuning

from ..emulation import Array, Emulated, needs_compiler
from ..oclgrind import faults as oclgrind_faults
from ..oclgrind import needs_oclgrind, simulate
from ..opencl import needs_opencl, run_on_device
from .test_metal import refused
from .test_opencl_races import without

pytestmark = needs_compiler
SEED = 7
HEADS, ROWS, KEYS, SIZE, WIDE = 2, 21, 37, 12, 10
NEAR = "simdgroup rows=16 keys=32 subgroups=2x2 back=near"
HELD = "simdgroup rows=16 keys=16 subgroups=2x1 held"
SHARED = "simdgroup rows=8 keys=32 subgroups=1x2"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


def data(dtype: type) -> list[Array]:
    """q, k, v and what is added to the scores: some keys are nobody's, the first row has none in the first block."""
    rng = np.random.default_rng(SEED)
    shapes = [(1, HEADS, n, size) for n, size in ((ROWS, SIZE), (KEYS, SIZE), (KEYS, WIDE))]
    mask = np.where(rng.random((ROWS, KEYS)) < 0.2, -np.inf, rng.standard_normal((ROWS, KEYS)))
    mask[0, :32], mask[:, KEYS - 1] = -np.inf, 0
    return [x.astype(dtype) for x in (*(rng.standard_normal(s) for s in shapes), mask)]


def model(dtype: type) -> onnx.ModelProto:
    *operands, mask = data(dtype)
    element = TensorProto.FLOAT if dtype is np.float32 else TensorProto.FLOAT16
    nodes = [
        helper.make_node("Transpose", ["k"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "turned"], ["p"]), helper.make_node("Mul", ["p", "scale"], ["s"]),
        helper.make_node("Add", ["s", "mask"], ["scores"]), helper.make_node("Softmax", ["scores"], ["w"], axis=-1),
        helper.make_node("MatMul", ["w", "v"], ["y"]),
    ]  # fmt: skip
    constants = [numpy_helper.from_array(mask, "mask"), numpy_helper.from_array(np.asarray(0.25, dtype), "scale")]
    inputs = [helper.make_tensor_value_info(n, element, x.shape) for n, x in zip("qkv", operands, strict=True)]
    y = helper.make_tensor_value_info("y", element, (1, HEADS, ROWS, WIDE))
    graph = helper.make_graph(nodes, "attention", inputs, [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def expected(dtype: type) -> Array:
    q, k, v, mask = (x.astype(np.float64) for x in data(dtype))
    scores = q @ k.swapaxes(-1, -2) * 0.25 + mask
    power = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(power / power.sum(-1, keepdims=True) @ v)


def compiled(target: str, dtype: type = np.float32, form: str = "") -> Program:
    """With a form by name, or the one that is chosen."""
    options = CompileOptions(Target.parse(target), name="net")
    made = compile_file(model(dtype).SerializeToString(), options)
    choices = [c for call in made.calls for c in call.choices]
    assert {c.family for c in choices} == {"grid-attention"}, "it is not fused"
    if not form:
        return made.program
    options = replace(options, tuning=Tuning({choices[0].key: form}))
    return compile_file(model(dtype).SerializeToString(), options).program


def run(program: Program, target: str, folder: Path, text: str = "") -> tuple[Array, list[str]]:
    """The result, and what the emulator found."""
    device = DEVICES[target][0]
    emulated = Emulated(program, device, folder, text=text or emit_kernels(program, device), watched=True)
    inputs = dict(zip("qkv", data(program.inputs[0].dtype.numpy.type), strict=False))
    return emulated.run([inputs[p.name] for p in program.inputs])[0], emulated.faults


def check(found: Array, dtype: type) -> None:
    """Of halves weights and results are rounded, and scores twice, which are below 4."""
    largest = np.abs(data(dtype)[2]).max()
    tolerance = np.finfo(dtype).eps * largest * (8 + 4 * KEYS**0.5 if dtype is np.float32 else 1 + 2 * 4)
    np.testing.assert_allclose(found, expected(dtype), rtol=0, atol=tolerance, err_msg=f"seed {SEED}")


@pytest.fixture(autouse=True)
def all_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """However unlikely they are to win."""
    monkeypatch.setattr(attention_tile, "CAN_WIN", np.inf)


FORMS = (("metal-ios", HELD), ("metal-ios", SHARED), ("metal", ""), ("cuda", ""), ("opencl-intel", ""))


@pytest.mark.parametrize(
    ("target", "form", "dtype"),
    [*((*form, dtype) for form in FORMS for dtype in (np.float32, np.float16)), ("metal-ios", NEAR, np.float32)],
)
def test_against_float64(target: str, form: str, dtype: type, tmp_path: Path) -> None:
    found, faults = run(compiled(target, dtype, form), target, tmp_path)
    check(found, dtype)
    assert faults == []


@needs_opencl
@pytest.mark.parametrize("target", ["opencl-cpu", pytest.param("opencl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_on_opencl(target: str, dtype: type, tmp_path: Path) -> None:
    program = compiled(target, dtype)
    inputs = dict(zip("qkv", data(dtype), strict=False))
    (found,) = run_on_device(program, target, [inputs[p.name] for p in program.inputs], tmp_path)
    check(found, dtype)


@needs_oclgrind
@pytest.mark.needs("gcc")
def test_no_race_from_memory(tmp_path: Path) -> None:
    """And no access outside of a buffer, where the last block begins before the end of the one before."""
    write_bundle(compiled("opencl-cpu"), CompileOptions(Target.parse("opencl-cpu"), name="net"), tmp_path)
    assert oclgrind_faults(simulate(tmp_path, DATA_RACES="1")) == []


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_matrices_are_of_what_tensors_hold(dtype: type, tmp_path: Path) -> None:
    program = compiled("metal-ios", dtype, HELD)
    text = emit_kernels(program, DEVICES["metal-ios"][0])
    factors = "simdgroup_half8x8" if dtype is np.float16 else "simdgroup_float8x8"
    assert f"{factors} held[" in text and "simdgroup_float8x8 sums[" in text
    assert refused(text, tmp_path) == ""


@pytest.mark.parametrize("form", [HELD, NEAR, pytest.param(SHARED, marks=pytest.mark.slow)])
def test_a_barrier_that_is_missing_is_found(form: str, tmp_path: Path) -> None:
    """Before q is held; before and after scores, and before and after products with values."""
    program = compiled("metal-ios", form=form)
    text = emit_kernels(program, DEVICES["metal-ios"][0])
    count = text.count(BARRIER)
    assert count == {HELD: 5, SHARED: 4, NEAR: 6}[form]
    for number in range(count):
        _, faults = run(program, "metal-ios", tmp_path / str(number), without(text, BARRIER, number))
        assert any("race in shared" in f for f in faults), number
