"""Statements as machine code: loops, branches, local memory, scattered stores."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from c2c.codegen.llvm_program import emit_asm
from c2c.codegen.target import Target
from c2c.ir.loops import Block, For, If, Kernel, Store, broadcast, cast, const, ramp, select
from c2c.ir.loops_builder import Builder
from c2c.ir.program import Port, Program, Slot, Step
from c2c.ir.types import DType

ARM = pytest.param(
    "arm64-neon", marks=[pytest.mark.needs("qemu-aarch64"), pytest.mark.needs("aarch64-linux-gnu-gcc")]
)  # fmt: skip
TARGETS = ["native", "x86-64", ARM]
Run = Callable[..., list[np.ndarray]]


def run_kernel(run: Run, target: str, kernel: Kernel, inputs: list[np.ndarray], *outputs: np.ndarray) -> None:
    """Run a kernel whose parameters are the inputs, then the outputs; `outputs` are filled."""
    program = one_kernel(kernel, inputs, outputs)
    for result, array in zip(run(program, Target.parse(target), inputs), outputs, strict=True):
        array[...] = result


def one_kernel(kernel: Kernel, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Program:
    slots = [Slot("input", 0, i) for i in range(len(inputs))] + [Slot("output", 0, i) for i in range(len(outputs))]
    return Program(
        "model",
        tuple(Port(f"x{i}", DType.of(a.dtype), a.shape) for i, a in enumerate(inputs)),
        tuple(Port(f"y{i}", DType.of(a.dtype), a.shape) for i, a in enumerate(outputs)),
        {"model__k": kernel},
        (Step("model__k", tuple(slots), "model__000_k"),),
        0,
        bytearray(),
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shaped", [True, False])
def test_register_tile_matmul(target: str, shaped: bool, run_program: Run) -> None:
    """Register-space accumulators over an unrolled loop of rows, a reduction loop kept rolled."""
    m, n, kk = 12, 16, 9
    k = Builder()
    a, b, c = k.param("a", DType.F32, m * kk), k.param("b", DType.F32, kk * n), k.param("c", DType.F32, m * n)
    for i in k.parallel("i", m // 4):
        acc = k.registers("acc", DType.F32, 8, 8)
        for r in range(8):
            k.store(acc, r, const(0.0, DType.F32, 8))
        for t in k.loop("t", kk):
            for row in k.loop("r", 4, kind="unroll"):
                factor = k.let(broadcast(k.load(a, (i * 4 + row) * kk + t), 8))
                for v in range(2):
                    k.store(acc, row * 2 + v, factor * k.load(b, t * n + v * 8, 8) + k.load(acc, row * 2 + v))
        for r in range(8):
            k.store(c, (i * 4 + r // 2) * n + r % 2 * 8, k.load(acc, r))
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((m, kk)).astype(np.float32), rng.standard_normal((kk, n)).astype(np.float32)
    out = np.empty((m, n), np.float32)
    run_kernel(run_program, target, k.kernel("model__k", shaped=shaped), [x, y], out)
    np.testing.assert_allclose(out, x @ y, 1e-5, 1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_branches_and_empty_loops(target: str, run_program: Run) -> None:
    """Loops whose bounds are known only at run time, some empty, with steps; both sides of a branch."""
    n = 20
    k = Builder()
    lo, hi, y = k.param("lo", DType.I64, n), k.param("hi", DType.I64, n), k.param("y", DType.I32, n)
    for i in k.loop("i", n):
        begin, end = k.let(k.load(lo, i)), k.let(k.load(hi, i))
        k.store(y, i, const(0, DType.I32))
        for _ in k.loop("j", end, begin, step=3):
            k.store(y, i, k.load(y, i) + 1)
    kernel = k.kernel("model__k")
    loop = kernel.body.body[0]
    assert isinstance(loop, For)
    branch = If(
        k.load(lo, 0) < k.load(hi, 0),
        Block((Store(y, const(0), const(77, DType.I32)),)),
        Block((Store(y, const(0), const(55, DType.I32)),)),
    )
    kernel = Kernel("model__k", kernel.params, Block((loop, branch)))
    begins = np.arange(-10, 10)
    ends = np.array([5, -20, 0, 9, 3] * 4)
    out = np.empty(n, np.int32)
    run_kernel(run_program, target, kernel, [begins, ends], out)
    want = np.array([len(range(b, e, 3)) for b, e in zip(begins, ends, strict=True)], np.int32)
    want[0] = 77
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("target", TARGETS)
def test_scattered_stores_come_in_order(target: str, run_program: Run) -> None:
    k = Builder()
    at, y, z = k.param("at", DType.I64, 8), k.param("y", DType.U8, 16), k.param("z", DType.BOOL, 16)
    for i in k.loop("i", 16):
        k.store(y, i, const(0, DType.U8))
        k.store(z, i, const(False, DType.BOOL))
    k.store(y, k.load(at, 0, 8), k.load(y, 0, 8) + cast(ramp(const(1), 1, 8), DType.U8))
    k.store(z, ramp(const(1), 2, 8), k.load(at, 0, 8) < 5)
    index = np.array([3, 7, 3, 0, 15, 15, 2, 1])
    small, flags = np.empty(16, np.uint8), np.empty(16, np.bool_)
    run_kernel(run_program, target, k.kernel("model__k"), [index], small, flags)
    want = np.zeros(16, np.uint8)
    for position, value in zip(index, range(1, 9), strict=True):
        want[position] = value
    np.testing.assert_array_equal(small, want)
    np.testing.assert_array_equal(flags[1::2], index < 5)
    assert not flags[::2].any()


@pytest.mark.parametrize("target", TARGETS)
def test_stack_buffers(target: str, run_program: Run) -> None:
    """A table in local memory, filled and read through computed indices."""
    k = Builder()
    x, y = k.param("x", DType.F32, 32), k.param("y", DType.F32, 32)
    table = k.alloc("table", DType.F32, 32)
    flags = k.alloc("flags", DType.BOOL, 32)
    for i in k.loop("i", 32):
        k.store(table, const(31) - i, k.load(x, i) * 2.0)
        k.store(flags, i, k.load(x, i) > 0.0)
    for i in k.loop("i", 8):
        k.store(y, i * 4, select(k.load(flags, i * 4, 4), k.load(table, i * 4, 4), -1.0))
    values = np.random.default_rng(2).standard_normal(32).astype(np.float32)
    out = np.empty(32, np.float32)
    run_kernel(run_program, target, k.kernel("model__k"), [values], out)
    np.testing.assert_array_equal(out, np.where(values > 0, values[::-1] * 2, np.float32(-1)))


@pytest.mark.parametrize("target", TARGETS)
def test_prefetching_changes_nothing(target: str, run_program: Run) -> None:
    """Neither inside nor far outside of the buffer; both levels of cache have an instruction of their own."""
    k = Builder()
    x, y = k.param("x", DType.F32, 64), k.param("y", DType.F32, 64)
    for i in k.loop("i", 8):
        k.prefetch(x, i * 100_000 - 300_000)
        k.prefetch(y, i * 100_000, near=True)
        k.store(y, i * 8, k.load(x, i * 8, 8) * 2.0)
    given, out = np.arange(64, dtype=np.float32), np.empty(64, np.float32)
    kernel = k.kernel("model__k")
    run_kernel(run_program, target, kernel, [given], out)
    np.testing.assert_array_equal(out, given * 2)
    asm = emit_asm(one_kernel(kernel, [given], [out]), Target.parse(target))
    assert len(set(re.findall(r"prefetcht\d|prfm\s+\w+", asm))) == 2
