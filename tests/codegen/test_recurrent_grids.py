"""Recurrences whose sequences have lengths of their own, by teams and by a kernel a step: on OpenCL, on the emulator
with every access watched, and under Oclgrind, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from c2c.codegen.devices import DEVICES
from c2c.codegen.target import Target
from c2c.compiler.bundle import write_bundle
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.ir.program import Program
from c2c.passes.lower.schedule import Tuning
from c2c.tests.passes.lower.harness import Array, Case
from c2c.tests.passes.lower.test_recurrent import LENGTHS, SEED, case, expected

from ..emulation import Emulated, needs_compiler
from ..oclgrind import faults, needs_oclgrind, simulate
from ..opencl import needs_opencl, run_on_device

TOLERANCE = 4e-6
"""Of sums of 18 products and functions of them, over four steps."""


UNITS = 18
FORMS = ("team=32", "step=16x8")


def subject(op: str) -> Case:
    return case(op, 4, 3, UNITS, lengths=[4, 1, 3], direction="bidirectional", state=True)


def model(one: Case, constants: frozenset[int]) -> onnx.ModelProto:
    names = [f"x{i}" if a is not None else "" for i, a in enumerate(one.inputs)]
    outputs = [f"y{i}" for i in range(one.outputs)]
    given = {i: a for i, a in enumerate(one.inputs) if a is not None}
    graph = helper.make_graph(
        [helper.make_node(one.op, names, outputs, **one.attrs)],
        "recurrence",
        [helper.make_tensor_value_info(names[i], helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
         for i, a in given.items() if i not in constants],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(given[i], names[i]) for i in sorted(constants & given.keys())],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def options_for(one: Case, target: str, form: str) -> CompileOptions:
    products = " in two products" * (one.op == "GRU")
    tuning = Tuning({("grid-recurrent", f"{one.op} 4 of 3x2x{UNITS} f32{products}"): form})
    return CompileOptions(Target.parse(target), name="net", host_steps=False, tuning=tuning)


def compiled(one: Case, target: str, form: str) -> Program:
    made = compile_file(model(one, one.constants).SerializeToString(), options_for(one, target, form))
    assert {c.name for call in made.calls for c in call.choices if c.family == "grid-recurrent"} == {form}
    return made.program


def check(program: Program, one: Case, results: list[Array]) -> None:
    for port, got, wanted in zip(program.outputs, results, expected(one), strict=True):
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0, err_msg=f"{port.name}, seed {SEED}")


def feeds(program: Program, one: Case) -> list[Array]:
    return [np.asarray(one.inputs[int(p.name[1:])]) for p in program.inputs]


@needs_opencl
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", ["GRU", *(pytest.param(op, marks=pytest.mark.slow) for op in ("LSTM", "RNN"))])
def test_on_opencl(op: str, form: str, tmp_path: Path) -> None:
    one = subject(op)
    program = compiled(one, "opencl", form)
    check(program, one, run_on_device(program, "opencl", feeds(program, one), tmp_path))


@needs_compiler
@pytest.mark.parametrize("target", ["metal-ios", "cuda"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", ["GRU", *(pytest.param(op, marks=pytest.mark.slow) for op in ("LSTM", "RNN"))])
def test_watched(op: str, form: str, target: str, tmp_path: Path) -> None:
    one = subject(op)
    program = compiled(one, target, form)
    emulated = Emulated(program, DEVICES[target][0], tmp_path, watched=True)
    check(program, one, emulated.run(feeds(program, one)))
    assert emulated.faults == []


@needs_oclgrind
@pytest.mark.needs("gcc")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", ["LSTM", pytest.param("GRU", marks=pytest.mark.slow)])
def test_no_race(op: str, form: str, tmp_path: Path) -> None:
    one = subject(op)
    made, options = model(one, one.constants | {LENGTHS}), options_for(one, "opencl", form)
    write_bundle(compile_file(made.SerializeToString(), options).program, options, tmp_path)
    assert faults(simulate(tmp_path, DATA_RACES="1")) == []
