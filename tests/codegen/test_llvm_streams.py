"""Loads of several registers: what a kernel computes with them, and the pointers that carry them through loops."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from c2c.codegen.llvm_program import emit_asm
from c2c.codegen.target import Target
from c2c.ir.loops import Expr, const, shuffle
from c2c.ir.loops_builder import Builder
from c2c.ir.loops_interp import run_program as interpret
from c2c.ir.program import Port, Program, Slot, Step
from c2c.ir.types import DType
from c2c.passes.loops import optimise_kernel

ARM = Target.parse("arm64-neon")
SIZE = 512


def program(dtype: DType) -> Program:
    """y = sums of registers loaded by threes and fours: in order, backwards, from behind, and outside of any loop."""
    k, lanes = Builder(), ARM.lanes(dtype)
    x, z, y = k.param("x", dtype, SIZE), k.param("z", dtype, SIZE), k.param("y", dtype, 8 * lanes)
    acc = k.registers("acc", dtype, 8, lanes)
    for a in range(8):
        k.store(acc, a, const(0, dtype, lanes))

    def add(buffer: int, at: Expr, count: int, first: int) -> None:
        value = k.let(k.load((x, z)[buffer], at, count * lanes), "v")
        for r in range(count):
            part = shuffle(value, None, tuple(range(r * lanes, (r + 1) * lanes)))
            k.store(acc, first + r, k.load(acc, first + r) + part)

    for i in k.loop("i", 7, 2):
        at = k.let(i * 24 + 8, "at")
        add(0, at + 4 * lanes, 4, 0)
        add(1, at + lanes, 1, 4)
        add(0, at, 3, 4)
        add(1, at - 8, 4, 0)
        add(1, 100 - i * 8, 2, 6)
    add(0, const(64), 4, 4)
    for a in range(8):
        k.store(y, a * lanes, k.load(acc, a))
    ports = (Port("x", dtype, (SIZE,)), Port("z", dtype, (SIZE,))), (Port("y", dtype, (8 * lanes,)),)
    step = Step("k", (Slot("input", 0, 0), Slot("input", 0, 1), Slot("output", 0, 0)), "step")
    return Program("model", *ports, {"k": optimise_kernel(k.kernel("k"))}, (step,), 0, bytearray())


@pytest.mark.needs("qemu-aarch64")
@pytest.mark.needs("aarch64-linux-gnu-gcc")
@pytest.mark.parametrize("dtype", [DType.F32, DType.I32, DType.F64])
def test_computes_what_the_interpreter_does(
    dtype: DType, run_program: Callable[[Program, Target, Sequence[np.ndarray]], list[np.ndarray]]
) -> None:
    made = program(dtype)
    rng = np.random.default_rng(3)
    inputs = [rng.integers(-50, 50, SIZE).astype(dtype.numpy) for _ in range(2)]
    (got,), (expected,) = run_program(made, ARM, inputs), interpret(made, inputs)
    np.testing.assert_array_equal(got, expected)


def test_pointers_step_by_themselves() -> None:
    """In the loop every address is that of the load before it, advanced by a register: no arithmetic beside it."""
    k = Builder()
    x, y = k.param("x", DType.F32, 4096), k.param("y", DType.F32, 16)
    acc = k.registers("acc", DType.F32, 4, 4)
    for a in range(4):
        k.store(acc, a, const(0, DType.F32, 4))
    for i in k.loop("i", 50):
        for at in (0, 16, 32):
            value = k.let(k.load(x, i * 80 + at, 16), "v")
            for r in range(4):
                k.store(acc, r, k.load(acc, r) + shuffle(value, None, tuple(range(4 * r, 4 * r + 4))))
    for a in range(4):
        k.store(y, a * 4, k.load(acc, a))
    ports = (Port("x", DType.F32, (4096,)),), (Port("y", DType.F32, (16,)),)
    step = Step("k", (Slot("input", 0, 0), Slot("output", 0, 0)), "step")
    made = Program("model", *ports, {"k": optimise_kernel(k.kernel("k"))}, (step,), 0, bytearray())
    (loop,) = re.findall(r"\.LBB\d+_\d+:[^:]*b\.ne", emit_asm(made, ARM))
    instructions = [line.split()[0] for line in loop.splitlines()[1:]]
    assert sorted(instructions) == sorted(["ld1"] * 3 + ["fadd"] * 12 + ["subs", "b.ne"]), loop
    assert len(re.findall(r"ld1\t\{ v.*\}, \[x\d+\], x\d+", loop)) == 3, loop
