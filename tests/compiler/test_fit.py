"""How kernels fit a chip: figures that are counted by hand on small kernels, and reports of targets with one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import c2c
from c2c.codegen.devices import ADRENO_740, APPLE_A16, DEVICES, MALI_G710
from c2c.codegen.target import Target
from c2c.compiler.cli import main
from c2c.compiler.driver import compile_file
from c2c.compiler.fit import fit_of, report
from c2c.compiler.options import CompileOptions
from c2c.ir.loops_parse import parse_kernel
from c2c.ir.program import Port, Program, Slot, Step
from c2c.passes.loops.count import dot_flops, flops, traffic
from c2c.passes.loops.pressure import ADDRESSES, POINTER, registers, shared_bytes

HEAD = "kernel k(x: f32[64], y: f32[64])"
CHIPS = {"metal-ios": APPLE_A16, "opencl-adreno": ADRENO_740, "opencl-mali": MALI_G710}


@pytest.mark.parametrize(
    ("body", "operations", "moved"),
    [
        ("grid i = 0 to 8 { store y[i] = x[i] * 2.0:f32 }", 8, 64),
        ("grid i = 0 to 8 { serial j = 0 to 4 { store y[i] = fma(x[j], x[i], y[i]) } }", 64, 8 * 4 * 16),
        ("grid i = 0 to 8 { if i < 4 { store y[i] = exp(x[i]) } }", 8 * 16, 64),
        ("grid i = 0 to 8 { store y[i * 2 + 1] = 0.0:f32 }", 0, 32),
        ("grid g = 0 to 2 { alloc s: f32[4] shared thread t = 0 to 4 { store s[t] = x[g * 4 + t] } }", 0, 32),
    ],
)
def test_operations_and_bytes_of_all_threads(body: str, operations: float, moved: float) -> None:
    kernel = parse_kernel(f"{HEAD} {{ {body} }}")
    assert (flops(kernel), traffic(kernel)) == (operations, moved)


@pytest.mark.parametrize(
    ("body", "alive"),
    [
        ("grid i = 0 to 8 { store y[i] = x[i] }", 1),
        ("grid i = 0 to 8 { let a: f32 = x[i] store y[i] = a }", 2),
        ("grid i = 0 to 8 { let a: f32 = x[i] let b: f32 = a * a let c: f32 = b * b store y[i] = c }", 3),
        ("grid i = 0 to 8 { let a: f64 = cast<f64>(x[i]) let b: f32 = x[i] store y[i] = cast<f32>(a) * b }", 4),
        ("grid i = 0 to 8 { alloc s: f32[5] register store s[0] = x[i] store y[i] = s[0] }", 6),
        ("grid i = 0 to 8 { serial j = 0 to 8 { store y[i] = x[j] } }", 2),
        ("grid i = 0 to 8 { unroll j = 0 to 8 { store y[i] = x[j] } }", 1),
    ],
)
def test_registers_are_what_is_alive_at_a_time(body: str, alive: int) -> None:
    """The loop of the grid counts as its number."""
    assert registers(parse_kernel(f"{HEAD} {{ {body} }}")) == ADDRESSES + 2 * POINTER + alive


def program_of(text: str) -> Program:
    kernel = parse_kernel(text)
    port = (Port("x", kernel.params[0].dtype, (64,)),)
    step = Step("k", (Slot("input"), Slot("output")), "s", ("node",))
    return Program("p", port, port, {"k": kernel}, (step, step), 0, bytearray())


def test_what_limits_the_work_groups_of_a_unit() -> None:
    device = replace(DEVICES["metal-ios"][0], chip=replace(APPLE_A16, units=2, flops=1e9, bandwidth=1e9))
    body = "alloc s: f32[{}] shared thread t = 0 to 48 {{ store s[t] = x[t] store y[t] = s[t] + 1.0:f32 }}"
    (fit,) = fit_of(program_of(f"{HEAD} {{ grid g = 0 to 4 {{ {body.format(64)} }} }}"), device)
    assert (fit.calls, fit.groups, fit.threads, fit.shared_bytes) == (2, 4, 48, 256)
    assert (fit.resident, fit.limit) == (1024 // 64, "threads")  # two subgroups of 32 are taken
    assert fit.occupancy == 16 * 48 / 1024 and fit.busy == 4 * 48 / 2048
    assert fit.bound == "memory" and fit.microseconds == pytest.approx(512 / 1e3) and fit.node == "node"
    (fit,) = fit_of(program_of(f"{HEAD} {{ grid g = 0 to 4 {{ {body.format(4000)} }} }}"), device)
    assert (fit.resident, fit.limit) == (2, "shared memory")
    many = "alloc r: f32[90] stack serial j = 0 to 90 {{ store r[j] = x[t] }} store y[t] = r[3]"
    (fit,) = fit_of(program_of(f"{HEAD} {{ grid g = 0 to 4 {{ thread t = 0 to 64 {{ {many.format()} }} }} }}"), device)
    assert fit.limit == "registers" and fit.resident == APPLE_A16.threads_with(fit.registers) // 64 < 16


def test_dot_products_of_bytes_count_by_their_own_rate() -> None:
    """Eight operations in one dot product, which takes `dots` multiply-adds of two."""
    body = "store y[i] = dot(bitcast<i8>(x[i]), bitcast<i8>(x[0]), y[i])"
    kernel = parse_kernel(f"kernel k(x: i32[64], y: i32[64]) {{ grid i = 0 to 16 {{ {body} }} }}")
    assert (dot_flops(kernel), flops(kernel)) == (16 * 8, 0)
    chip = replace(MALI_G710, flops=1e6, bandwidth=1e12)
    device = replace(DEVICES["opencl-mali"][0], chip=chip, dots=2.0)
    (fit,) = fit_of(program_of(f"kernel k(x: i32[64], y: i32[64]) {{ grid i = 0 to 16 {{ {body} }} }}"), device)
    assert (fit.flops, fit.dot_flops) == (128, 128)
    assert fit.bound == "arithmetic" and fit.microseconds == pytest.approx(16 * 2 * 2)


def test_figures_of_chips_are_those_of_their_sources() -> None:
    assert ADRENO_740.threads_with(24) == 2048 and ADRENO_740.threads_with(64) == 768
    assert MALI_G710.threads_with(32) == 1024 and MALI_G710.threads_with(33) == MALI_G710.threads_with(200) == 512
    assert APPLE_A16.threads_with(52) == 1024 and APPLE_A16.threads_with(128) == 384
    for chip in CHIPS.values():
        assert 10 < chip.ridge < 50 and "Mesa" in chip.source


def test_shared_bytes_are_those_of_all_buffers() -> None:
    body = "alloc s: f32[8] shared alloc t: f16[4] shared thread i = 0 to 4 { store s[i] = x[i] }"
    assert shared_bytes(parse_kernel(f"{HEAD} {{ grid g = 0 to 2 {{ {body} }} }}")) == 40


@pytest.fixture
def product() -> onnx.ModelProto:
    """[64, 32] · [32, 48]."""
    w = numpy_helper.from_array(np.ones((32, 48), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")],
        "p",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 48])],
        [w],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("target", CHIPS)
def test_a_product_has_the_operations_of_its_shape(product: onnx.ModelProto, target: str) -> None:
    options = CompileOptions(Target.parse(target), name="net")
    assert options.target.device is not None
    (fit,) = fit_of(compile_file(product.SerializeToString(), options).program, options.target.device)
    assert fit.flops == pytest.approx(2 * 64 * 48 * 32, rel=0.4)  # tiles reach beyond the result
    assert fit.tensors == 4 * (64 * 32 + 32 * 48 + 64 * 48)
    assert fit.bytes >= fit.tensors and fit.intensity <= fit.best_intensity
    assert 0 < fit.occupancy <= 1 and fit.node == "mm" and fit.chip == CHIPS[target].name


def test_manifest_and_output_have_the_fit(
    product: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(product, tmp_path / "m.onnx")
    assert main(["compile", str(tmp_path / "m.onnx"), "--target", "metal-ios", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "kernels on Apple A16, derived" in printed and "occupancy" in printed
    fit = json.loads((tmp_path / "out" / "manifest.json").read_text())["fit"]
    assert fit["chip"]["source"] == APPLE_A16.source and len(fit["kernels"]) == 1
    assert fit["kernels"][0]["intensity"] > 0 and fit["kernels"][0]["limit"]


def test_without_a_chip_there_is_none(product: onnx.ModelProto) -> None:
    program = compile_file(product.SerializeToString(), CompileOptions(Target.parse("opencl"), name="net")).program
    assert report(program, DEVICES["opencl"][0]) == {}
    assert c2c.compile(product, "opencl")
