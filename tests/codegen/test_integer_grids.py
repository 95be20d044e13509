"""Quantised networks on graphics processors give the bits of processors: on OpenCL, and on the emulator, whose OpenCL
and CUDA have dot products of bytes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import c2c
from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.ir.loops import bitcast, dot
from c2c.ir.loops_builder import Builder
from c2c.ir.loops_interp import run_program
from c2c.ir.loops_verify import verify_program
from c2c.ir.program import Port, Program, Slot, Step
from c2c.ir.types import DType
from c2c.passes.loops.spread import spread
from c2c.tests.passes.test_integer_arithmetic import residual_net

from ..emulation import Emulated, needs_compiler
from ..opencl import needs_opencl, run_on_device

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))
nets: Any = importlib.import_module("nets")

Array = np.ndarray[Any, Any]

KHRONOS = ("cl_khr_integer_dot_product", "__opencl_c_integer_dot_product_input_4x8bit_packed")
ARM = ("cl_arm_integer_dot_product_accumulate_int8",)
EMULATED: list[tuple[str, tuple[str, ...], str]] = [
    ("cuda", (), "__dp4a"), ("opencl+dots", KHRONOS, "dot_4x8packed_ss_int"), ("opencl-mali", ARM, "arm_dot_acc"),
    ("metal", (), ""), ("metal-ios", (), ""),
]  # fmt: skip
"""Target, what its compiler defines, and the instruction that is to be in the text."""
QUICK = ("cuda", "opencl+dots", "metal-ios")


def compiled(model: bytes, target: str) -> Program:
    return compile_file(model, CompileOptions(Target.parse(target), name="model")).program


def expected(model: bytes, x: Array) -> Array:
    """What processor code gives."""
    y: Array
    (y,) = c2c.compile(model).run({compiled(model, "native").inputs[0].name: x}).values()
    return y


def emulated(model: bytes, x: Array, target: str, defines: Iterable[str], folder: Path) -> tuple[Array, str]:
    """The result, and the kernels' text."""
    device = Target.parse(target).device
    assert device is not None
    run = Emulated(compiled(model, target), device, folder, defines=tuple(defines))
    (y,) = run.run([x])
    assert run.faults == []
    return y, run.text


@pytest.fixture(scope="module")
def small() -> tuple[bytes, Array]:
    """Convolutions of every kind, a residual sum, a mean and a dense layer; and what goes in."""
    net, result = residual_net()
    x = np.random.default_rng(2).normal(size=net.shape).astype(np.float32)
    return net.model([result], TensorProto.FLOAT).SerializeToString(), x


@needs_compiler
@pytest.mark.parametrize(
    ("target", "defines", "instruction"),
    [e if e[0] in QUICK else pytest.param(*e, marks=pytest.mark.slow) for e in EMULATED],
)
def test_the_emulator_gives_the_bits_of_processors(
    target: str, defines: tuple[str, ...], instruction: str, small: tuple[bytes, Array], tmp_path: Path
) -> None:
    y, text = emulated(*small, target, defines, tmp_path)
    assert np.array_equal(y, expected(*small))
    assert instruction in text and ("c2c_dot_ss" in text) == bool(instruction)


@needs_opencl
@pytest.mark.parametrize(
    "target", ["opencl-cpu", *(pytest.param(t, marks=pytest.mark.slow) for t in ("opencl", "opencl+dots"))]
)
def test_opencl_gives_the_bits_of_processors(target: str, small: tuple[bytes, Array], tmp_path: Path) -> None:
    (y,) = run_on_device(compiled(small[0], target), target, [small[1]], tmp_path)
    assert np.array_equal(y, expected(*small))


def dynamic() -> bytes:
    """Levels by a range found at run time, a product of rows of them and convolutions."""
    rng = np.random.default_rng(6)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "step", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["sums"]),
        helper.make_node("ConvInteger", ["q", "v", "zero"], ["more"], pads=[1, 1, 1, 1]),
        helper.make_node("ConvInteger", ["q", "v", "zero"], ["others"], pads=[1, 1, 1, 1], strides=[2, 1]),
        helper.make_node("Cast", ["others"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "step"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(rng.integers(-127, 128, shape).astype(np.int8), name)
        for name, shape in (("w", (13, 21)), ("v", (9, 6, 3, 3)))
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6, 5, 13])
    types = {"sums": TensorProto.INT32, "more": TensorProto.INT32, "y": TensorProto.FLOAT}
    results = [helper.make_tensor_value_info(n, t, None) for n, t in types.items()]
    graph = helper.make_graph(nodes, "g", [x], results, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


@needs_compiler
@pytest.mark.parametrize(("target", "defines"), [("opencl+dots", KHRONOS), ("metal", ()), ("opencl-cpu", ())])
def test_no_race_and_no_access_outside(target: str, defines: tuple[str, ...], tmp_path: Path) -> None:
    """And levels whose range is found at run time give the bits of processors, too."""
    device, model = Target.parse(target).device, dynamic()
    assert device is not None
    x = np.random.default_rng(7).normal(size=(1, 6, 5, 13)).astype(np.float32)
    options = CompileOptions(Target.parse(target), name="model", host_steps=False)
    run = Emulated(compile_file(model, options).program, device, tmp_path, defines=defines, watched=True)
    for y, wanted in zip(run.run([x]), c2c.compile(model).run({"x": x}).values(), strict=True):
        assert np.array_equal(y, wanted)
    assert run.faults == []
    assert run.text.count("c2c_dot_ss") == (4 if "dots" in target else 0)


def test_nothing_but_bytes_lies_between_convolutions(small: tuple[bytes, Array]) -> None:
    """The sums, and all that follows them, are in the kernels that write bytes."""
    program = compiled(small[0], "opencl+dots")
    made = [program.kernels[s.kernel].params[-1].dtype for s in program.steps if "conv_integer" in s.kernel]
    assert len(made) == 5 and {str(d) for d in made[:-1]} == {"i8"}


SIGNS = (DType.I8, DType.U8)
COUNT = 200


def all_dots() -> Program:
    """Dot products of the bytes of two words, added to a third, for every pair of signs."""
    k = Builder()
    a, b, c = (k.param(name, DType.I32, COUNT) for name in "abc")
    results = [k.param(f"y{i}", DType.I32, COUNT) for i in range(4)]
    for i in k.parallel("i", COUNT):
        for y, (left, right) in zip(results, product(SIGNS, SIGNS), strict=True):
            k.store(y, i, dot(bitcast(k.load(a, i), left), bitcast(k.load(b, i), right), k.load(c, i)))
    (kernel,) = spread(k.kernel("dots"))
    ports = [Port(p.name, DType.I32, (COUNT,)) for p in kernel.params]
    slots = [Slot("input", 0, i) for i in range(3)] + [Slot("output", 0, i) for i in range(4)]
    step = Step("dots", tuple(slots), "model__dots", ("dots",))
    program = Program("model", tuple(ports[:3]), tuple(ports[3:]), {"dots": kernel}, (step,), 0, bytearray())
    verify_program(program)
    return program


@needs_compiler
@pytest.mark.parametrize(("target", "defines", "instruction"), [*EMULATED, ("opencl", (), "")])
def test_dot_products_of_all_signs(target: str, defines: tuple[str, ...], instruction: str, tmp_path: Path) -> None:
    """By instructions and written out: the bits of the interpreter; sums wrap."""
    words = np.random.default_rng(4).integers(-(1 << 31), 1 << 31, (3, COUNT)).astype(np.int32)
    words[:, 0] = -1, -1, (1 << 31) - 1
    program, device = all_dots(), Target.parse(target).device
    assert device is not None
    run = Emulated(program, device, tmp_path, defines=defines)
    for found, wanted in zip(run.run(list(words)), run_program(program, list(words)), strict=True):
        assert np.array_equal(found, wanted)


def quantised(name: str, folder: Path) -> tuple[bytes, Array]:
    """A whole network at 64×64, all layers in bytes (accuracy means nothing here), and an image."""
    model: onnx.ModelProto = getattr(nets, name)(64)
    rng = np.random.default_rng(1)
    samples = {model.graph.input[0].name: rng.standard_normal((6, 3, 64, 64)).astype(np.float32)}
    made, _ = c2c.quantize(model, samples, folder, rounding="nearest", max_loss=1.0)
    return made.SerializeToString(), rng.standard_normal((1, 3, 64, 64)).astype(np.float32)


@pytest.mark.slow
@needs_opencl
@needs_compiler
@pytest.mark.parametrize("name", ["squeezenet11", "mobilenet_v2"])
def test_whole_networks_give_the_bits_of_processors(name: str, tmp_path: Path) -> None:
    model, x = quantised(name, tmp_path / "q")
    y = expected(model, x)
    for number, (target, defines, _) in enumerate(EMULATED):
        found, _ = emulated(model, x, target, defines, tmp_path / f"emulated{number}")
        assert np.array_equal(found, y), target
    for number, target in enumerate(("opencl", "opencl-cpu")):
        (found,) = run_on_device(compiled(model, target), target, [x], tmp_path / f"device{number}")
        assert np.array_equal(found, y), target
