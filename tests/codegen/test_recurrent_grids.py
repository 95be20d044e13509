"""Recurrences whose sequences have lengths of their own: on OpenCL, on the emulator with every access watched, and
under Oclgrind, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import c2c
from c2c.codegen.devices import DEVICES
from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.ir.program import Program
from c2c.tests.oclgrind import faults, needs_oclgrind, simulate
from c2c.tests.passes.lower.harness import Array, Case
from c2c.tests.passes.lower.test_recurrent import LENGTHS, SEED, case, expected

from ..emulation import Emulated, needs_compiler
from ..opencl import needs_opencl, run_on_device

TOLERANCE = 4e-6
"""Of sums of 10 products and functions of them, over four steps."""


def subject(op: str) -> Case:
    return case(op, 4, 3, 10, lengths=[4, 1, 3], direction="bidirectional", state=True)


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


def compiled(one: Case, target: str) -> Program:
    made = model(one, one.constants).SerializeToString()
    return compile_file(made, CompileOptions(Target.parse(target), name="net", host_steps=False)).program


def check(program: Program, one: Case, results: list[Array]) -> None:
    for port, got, wanted in zip(program.outputs, results, expected(one), strict=True):
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0, err_msg=f"{port.name}, seed {SEED}")


def feeds(program: Program, one: Case) -> list[Array]:
    return [np.asarray(one.inputs[int(p.name[1:])]) for p in program.inputs]


@needs_opencl
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_on_opencl(op: str, tmp_path: Path) -> None:
    one = subject(op)
    program = compiled(one, "opencl")
    check(program, one, run_on_device(program, "opencl", feeds(program, one), tmp_path))


@needs_compiler
@pytest.mark.parametrize("target", ["metal-ios", "cuda"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_watched(op: str, target: str, tmp_path: Path) -> None:
    one = subject(op)
    program = compiled(one, target)
    emulated = Emulated(program, DEVICES[target][0], tmp_path, watched=True)
    check(program, one, emulated.run(feeds(program, one)))
    assert emulated.faults == []


@needs_oclgrind
@pytest.mark.needs("gcc")
@pytest.mark.parametrize("op", ["LSTM", pytest.param("GRU", marks=pytest.mark.slow)])
def test_no_race(op: str, tmp_path: Path) -> None:
    one = subject(op)
    made = model(one, one.constants | {LENGTHS})
    c2c.compile(made, "opencl", name="net", host_steps=False).save(tmp_path)
    assert faults(simulate(tmp_path, DATA_RACES="1")) == []
