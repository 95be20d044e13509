"""A quantised network gives the same bits on every target that runs here or under qemu."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from onnx import TensorProto

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.ir.program import Program
from c2c.tests.passes.test_integer_arithmetic import residual_net

Runner: TypeAlias = Callable[[Program, Target, Sequence[np.ndarray]], list[np.ndarray]]


@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
def test_targets_give_the_same_bits(run_program: Runner, tmp_path: Path) -> None:
    net, result = residual_net()
    path = tmp_path / "m.onnx"
    path.write_bytes(net.model([result], TensorProto.FLOAT).SerializeToString())
    x = np.random.default_rng(2).normal(size=net.shape).astype(np.float32)
    found = []
    bytes_too = ("x86-64-v4+avx512vnni", "x86-64-v3+avxvnni", "arm64-dotprod", "arm64-dotprod+i8mm")
    for name in ("x86-64", "x86-64-v3", "x86-64-v4", "arm64-neon", *bytes_too):
        target = Target.parse(name)
        if target.arch == "x86_64" and not target.runs_here:
            continue
        program = compile_file(path, CompileOptions(target, name="model")).program
        found.append(run_program(program, target, [x])[0])
    assert len(found) >= 2
    assert all(np.array_equal(f, found[0]) for f in found)
