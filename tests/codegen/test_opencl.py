"""OpenCL C against the interpreter, run on whatever OpenCL is installed: random programs equal bit by bit where
operations are exact or correctly rounded; and the text itself, by a strict front end."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2c.codegen.devices import DEVICES
from c2c.codegen.opencl import OpenClOperators, OpenClStyle, emit_opencl
from c2c.ir.loops import const
from c2c.ir.loops_builder import Builder
from c2c.ir.loops_interp import run_program
from c2c.ir.loops_parse import parse_kernel
from c2c.ir.loops_random import ALL, random_inputs, random_program
from c2c.ir.loops_verify import verify_program
from c2c.ir.program import Program, Slot, Step
from c2c.ir.types import DType
from c2c.passes.loops import optimise_kernel
from c2c.passes.loops.spread import spread

from ..emulation import check_equal
from ..opencl import OPENCL, needs_opencl, run_on_device

Array = np.ndarray[Any, Any]


def on_grid(program: Program) -> Program:
    """The program with kernels for a grid; a kernel that becomes several is several steps. Outputs are cleared first,
    since random kernels leave gaps in them."""
    kernels, steps = {}, []
    for n, port in enumerate(program.outputs):
        k = Builder()
        y = k.param("y", port.dtype, int(np.prod(port.shape)))
        for i in k.parallel("i", y.size):
            k.store(y, i, const(0, port.dtype))
        (kernels[f"clear_{n}"],) = spread(k.kernel(f"clear_{n}"))
        steps.append(Step(f"clear_{n}", (Slot("output", 0, n),), f"step_{n}", ("clear",)))
    for step in program.steps:
        old = program.kernels[step.kernel]
        slots = {p.name: slot for p, slot in zip(old.params, step.args, strict=True)}
        for n, kernel in enumerate(spread(optimise_kernel(old))):
            name = f"{step.kernel}_{n}"
            kernels[name] = replace(kernel, name=name)
            args = tuple(slots[p.name] for p in kernel.params)
            steps.append(Step(name, args, f"{step.symbol}_{n}", step.origin))
    program.kernels, program.steps = kernels, tuple(steps)
    verify_program(program)
    return program


@needs_opencl
@pytest.mark.parametrize("target", OPENCL)
@pytest.mark.parametrize("first", [0, 2000])
def test_exact_programs_are_equal(first: int, target: str, tmp_path: Path) -> None:
    program = random_program(range(first, first + 8))
    expected = run_program(program, random_inputs(program, first))
    program = on_grid(program)
    found = run_on_device(program, target, random_inputs(program, first), tmp_path)
    check_equal(program, found, expected, f"seeds from {first}")


@pytest.mark.skipif(shutil.which("clang-19") is None, reason="clang-19 is missing: apt-get install clang-19")
@pytest.mark.parametrize("target", OPENCL)
@pytest.mark.parametrize("halves", [False, True])
def test_a_strict_front_end_takes_the_text(target: str, halves: bool, tmp_path: Path) -> None:
    if halves:
        program = on_grid(random_program(range(8), inexact=True, dtypes=tuple(d for d in ALL if d is not DType.F64)))
    else:
        program = on_grid(random_program(range(8), inexact=True))
    path = tmp_path / "k.cl"
    path.write_text(emit_opencl(program, replace(DEVICES[target][0], fp16=halves)))
    flags = "-x cl -cl-std=CL1.2 -Xclang -finclude-default-header -target spir64 -Wall -Wextra -Werror"
    quiet = "-Wno-unused-variable -Wno-unused-parameter -Wno-unused-function -fsyntax-only"
    done = subprocess.run(
        ["clang-19", *flags.split(), *quiet.split(), path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[:3000]


def test_names_of_places_are_the_kernels_own() -> None:
    body = "{ grid i = 0 to 8 { let x_at: i64 = 7 - i let y_base: f32 = x[x_at] store y[x_at] = y_base * y_base } }"
    kernel = parse_kernel(f"kernel k(x: f32[8], y: f32[8]) {body}")
    text = OpenClStyle(kernel, OpenClOperators(), DEVICES["opencl"][0]).text()
    declared = re.findall(r"\b(\w+)(?= =|,|\))", text.split("k(")[1])
    for name in ("x_at", "y_base"):
        assert len([d for d in re.findall(r"(?:uint|int|float|restrict) \*?(\w+)\b", text) if d == name]) == 1, text
    assert {"x_at_0", "y_base_0"} <= set(declared)
