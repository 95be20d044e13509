"""Lookups in tables against the interpreter, on every kind of target, and that they are permutations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from c2c.codegen.llvm_program import emit_asm
from c2c.codegen.target import Target
from c2c.ir import loops_interp
from c2c.ir.loops import lookup
from c2c.ir.loops_builder import Builder
from c2c.ir.loops_verify import verify_program
from c2c.ir.program import Port, Program, Slot, Step
from c2c.ir.types import DType

Array = np.ndarray[Any, Any]
TABLES = ((DType.I8, (16, 64)), (DType.BF16, (16, 32, 64)), (DType.F32, (2, 8, 16, 32, 64)), (DType.F64, (4,)))
ARM = [pytest.mark.needs("qemu-aarch64"), pytest.mark.needs("aarch64-linux-gnu-gcc")]


def every_lookup() -> Program:
    """Tables of all widths and sizes, by fewer, as many and more indices than registers have lanes."""
    k = Builder()
    indices = {bits: k.param(f"x_{bits}", DType(f"u{bits}"), 128) for bits in (8, 16, 32, 64)}
    tables = {d: k.param(f"t_{d}", d, 64) for d, _ in TABLES}
    results = {d: k.param(f"y_{d}", d, 1024) for d, _ in TABLES}
    for d, sizes in TABLES:
        at = 0
        for entries in sizes:
            for lanes in (1, 4, 8, 16, 20, 64):
                found = lookup(k.load(tables[d], 0, entries), k.load(indices[d.bits], 11, lanes))
                k.store(results[d], at, found)
                at += lanes
        k.store(results[d], at, k.load(results[d], 0, 1))
        for i in k.loop("i", 1024, at):
            k.store(results[d], i, k.load(results[d], 0))
    ports = tuple(Port(b.name, b.dtype, (b.size,)) for b in k.params)
    ins = len(indices) + len(tables)
    slots = [Slot("input", 0, i) for i in range(ins)] + [Slot("output", 0, i) for i in range(len(results))]
    kernel, step = k.kernel("lookups"), Step("lookups", tuple(slots), "step", ("lookups",))
    return Program("model", ports[:ins], ports[ins:], {"lookups": kernel}, (step,), 0, bytearray())


@pytest.mark.parametrize(
    "target",
    ["native", "x86-64", "x86-64+ssse3", "x86-64-v3", "x86-64-v4", "x86-64-v4+avx512vbmi",
     pytest.param("arm64-neon", marks=ARM)],
)  # fmt: skip
def test_every_lookup_is_exact(target: str, run_program: Callable[..., list[Array]]) -> None:
    parsed, program = Target.parse(target), every_lookup()
    if not parsed.runs_here and parsed.arch != "aarch64":
        pytest.skip(f"{target} does not run on this machine")
    verify_program(program)
    rng = np.random.default_rng(2)
    inputs = [np.frombuffer(rng.bytes(p.dtype.nbytes * p.shape[0]), p.dtype.numpy) for p in program.inputs]
    expected = loops_interp.run_program(program, inputs)
    for port, a, b in zip(program.outputs, run_program(program, parsed, inputs), expected, strict=True):
        bits = f"u{port.dtype.nbytes}"
        wrong = np.flatnonzero(a.view(bits) != b.view(bits))
        assert not wrong.size, f"{port.name} at {wrong[:8]}: {a[wrong[:8]]} for {b[wrong[:8]]}"


@pytest.mark.parametrize(
    ("target", "instruction"),
    [("x86-64-v3", "vpermd"), ("x86-64-v3", "vpshufb"), ("x86-64+ssse3", "pshufb"), ("x86-64-v4", "vpermi2ps"),
     ("x86-64-v4", "vpermw"), ("x86-64-v4+avx512vbmi", "vpermb"), ("arm64-neon", "tbl")],
)  # fmt: skip
def test_a_lookup_is_a_permutation(target: str, instruction: str) -> None:
    assert f"\t{instruction}\t" in emit_asm(every_lookup(), Target.parse(target))
