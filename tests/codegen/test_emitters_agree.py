"""The LLVM emitter against the interpreter and generated C, on random programs: equal bit by bit where operations are
exact or correctly rounded (all integers, floats without contraction), close where Fma and libm take part.

What C computes is compared with the interpreter in test_c_source.py, so that both emitters have one oracle.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from c2c.codegen.llvm_program import emit_asm, emit_object
from c2c.codegen.target import Target
from c2c.ir.loops import CALLS, call, const, dot, fma, shuffle, unary
from c2c.ir.loops_builder import Builder
from c2c.ir.loops_interp import run_program
from c2c.ir.loops_random import random_inputs, random_program
from c2c.ir.loops_verify import verify_program
from c2c.ir.program import Port, Program, Slot, Step
from c2c.ir.types import DType
from c2c.passes.loops import optimise_kernel
from c2c.runtime_stub.loader import Loaded

Array = np.ndarray[Any, Any]


def run_native(program: Program, inputs: list[Array], target: str) -> list[Array]:
    outputs = [np.zeros(p.shape, p.dtype.numpy) for p in program.outputs]
    loaded = Loaded(emit_object(program, Target.parse(target), embed_weights=False), program.name, arena_bytes=0)
    assert loaded.run(inputs, outputs) == 0
    return outputs


@pytest.mark.parametrize("target", ["native", "x86-64", "x86-64-v3"])
@pytest.mark.parametrize("first", [0, 2000])
def test_exact_programs_are_equal(first: int, target: str) -> None:
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    program = random_program(range(first, first + 8))
    expected = run_program(program, random_inputs(program, first))
    program.kernels = {n: optimise_kernel(k) for n, k in program.kernels.items()}
    verify_program(program)
    found = run_native(program, random_inputs(program, first), target)
    for port, a, b in zip(program.outputs, found, expected, strict=True):
        message = f"{port.name}, seeds from {first}: {differences(a, b)}"
        assert np.array_equal(a, b, equal_nan=port.dtype.is_float), message


def differences(a: Array, b: Array) -> str:
    at = np.flatnonzero((a != b) & ~((a != a) & (b != b)))
    return ", ".join(f"[{i}] {a[i]} for {b[i]}" for i in at[:5])


def every_dot() -> Program:
    """Sums of 1, 2 and 4 neighbouring products of all pairs of small types, the first factor also repeated."""
    k = Builder()
    small = (DType.I8, DType.U8, DType.I16, DType.U16)
    xs = {d: k.param(f"x_{d}", d, 256) for d in small}
    c, y = k.param("x_c", DType.I32, 64), k.param("y", DType.I32, 16384)
    at = 0
    for a, b in itertools.product(small, small):
        for group, lanes in ((1, 4), (2, 1), (2, 4), (2, 8), (2, 16), (4, 4), (4, 8), (4, 16), (4, 3)):
            factors = k.load(xs[a], 3, group * lanes)
            repeated = shuffle(k.load(xs[a], 7, group), None, tuple(range(group)) * lanes)
            for factor in (factors, repeated):
                k.store(y, at, dot(factor, k.load(xs[b], 100, group * lanes), k.load(c, at % 40, lanes)))
                at += lanes
    kernel = k.kernel("dots")
    ports = tuple(Port(p.name, p.dtype, (p.size,)) for p in kernel.params)
    args = tuple(Slot("input", 0, i) for i in range(len(ports) - 1))
    step = Step("dots", (*args, Slot("output")), "step", ("dots",))
    return Program("dots", ports[:-1], ports[-1:], {"dots": kernel}, (step,), 0, bytearray())


@pytest.mark.parametrize("target", ["native", "x86-64", "x86-64-v3", "x86-64-v4"])
def test_every_dot_is_exact(target: str) -> None:
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    program = every_dot()
    verify_program(program)
    rng = np.random.default_rng(1)
    inputs = []
    for port in program.inputs:
        limits = np.iinfo(port.dtype.numpy)
        values = rng.integers(limits.min, limits.max, port.shape, endpoint=True)
        inputs.append(np.where(rng.random(port.shape) < 0.3, limits.min, values).astype(port.dtype.numpy))
    (expected,) = run_program(program, inputs)
    (found,) = run_native(program, inputs, target)
    assert np.array_equal(found, expected), differences(found, expected)


@pytest.mark.parametrize(
    ("target", "instruction"),
    [("x86-64-v3", "vpmaddwd"), ("x86-64-v3+avxvnni", "vpdpbusd"), ("x86-64-v4+avx512vnni", "vpdpbusd"),
     ("arm64-dotprod", "sdot"), ("arm64-dotprod", "udot"), ("arm64-neon+i8mm", "usdot")],
)  # fmt: skip
def test_dot_is_one_instruction(target: str, instruction: str) -> None:
    assert f"\t{instruction}\t" in emit_asm(every_dot(), Target.parse(target))


def narrow_dots() -> Program:
    """Sums in i16 of 2 and 4 products of bytes, from zero and from others."""
    k = Builder()
    xs = {d: k.param(f"x_{d}", d, 256) for d in (DType.U8, DType.I8)}
    c, y = k.param("x_c", DType.I16, 64), k.param("y", DType.I16, 4096)
    at = 0
    for a, b in itertools.product(xs, xs):
        for group, lanes in ((2, 1), (2, 8), (2, 16), (2, 32), (4, 8), (4, 16)):
            factors = k.load(xs[a], 3, group * lanes), k.load(xs[b], 100, group * lanes)
            for first in (const(0, DType.I16, lanes), k.load(c, at % 30, lanes)):
                k.store(y, at, dot(*factors, first))
                at += lanes
    kernel = k.kernel("dots")
    ports = tuple(Port(p.name, p.dtype, (p.size,)) for p in kernel.params)
    step = Step("dots", (*(Slot("input", 0, i) for i in range(3)), Slot("output")), "step", ("dots",))
    return Program("narrow", ports[:-1], ports[-1:], {"dots": kernel}, (step,), 0, bytearray())


@pytest.mark.parametrize("target", ["x86-64", "x86-64+ssse3", "x86-64-v3", "x86-64-v4"])
def test_sums_in_i16_are_exact(target: str) -> None:
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    program = narrow_dots()
    verify_program(program)
    rng = np.random.default_rng(2)
    inputs = [rng.integers(lo, hi, p.shape).astype(p.dtype.numpy) for p, (lo, hi) in zip(
        program.inputs, ((0, 90), (-90, 90), (-300, 300)), strict=True)]  # fmt: skip
    (expected,) = run_program(program, inputs)
    (found,) = run_native(program, inputs, target)
    assert np.array_equal(found, expected), differences(found, expected)
    assert ("pmaddubsw" in emit_asm(program, Target.parse(target))) == (target != "x86-64")


def every_call() -> Program:
    """fma and all functions of libm in f32 and f64, as scalars and as vectors, on arguments in their domains."""
    k = Builder()
    buffers = {d: (k.param(f"x_{d}", d, 64), k.param(f"y_{d}", d, 2048)) for d in (DType.F32, DType.F64)}
    for x, y in buffers.values():
        at = 0
        for name in (*CALLS, "fma"):
            for lanes in (1, 8):
                a, b = k.load(x, 8, lanes), k.load(x, 24, lanes)
                if name in ("log", "pow", "acosh"):
                    a = unary("abs", a) + 1.5
                if name in ("log1p", "asin", "acos", "atanh"):
                    a = a * 0.125
                args = (a, b) if name in ("pow", "fmod") else (a,)
                k.store(y, at, fma(a, b, -a) if name == "fma" else call(name, *args))
                at += lanes
    ins, outs = ([b[i] for b in buffers.values()] for i in (0, 1))
    slots = [Slot(base, 0, i) for i in range(2) for base in ("input", "output")]
    ports = [tuple(Port(p.name, p.dtype, (p.size,)) for p in side) for side in (ins, outs)]
    kernels = {"calls": k.kernel("calls")}
    return Program("calls_", ports[0], ports[1], kernels, (Step("calls", tuple(slots), "step"),), 0, bytearray())


@pytest.mark.parametrize("target", ["native", "x86-64"])
def test_inexact_operations_are_close(target: str) -> None:
    program = every_call()
    verify_program(program)
    rng = np.random.default_rng(11)
    inputs = [rng.uniform(-2, 2, 64).astype(p.dtype.numpy) for p in program.inputs]
    expected = run_program(program, inputs)
    for port, a, b in zip(program.outputs, run_native(program, inputs, target), expected, strict=True):
        assert np.count_nonzero(b) > 150, "most results are zero: nothing is compared"
        eps = float(np.finfo(port.dtype.numpy).eps)
        np.testing.assert_allclose(a, b, rtol=4 * eps, atol=2 * eps)


def pairs_of_bf16() -> Program:
    """Sums in f32 of pairs of bf16, the first factor also repeated."""
    k = Builder()
    xs = [k.param(f"x_{i}", DType.BF16, 128) for i in range(2)]
    c, y = k.param("x_c", DType.F32, 64), k.param("y", DType.F32, 128)
    at = 0
    for lanes in (1, 4, 8, 16):
        repeated = shuffle(k.load(xs[0], 7, 2), None, (0, 1) * lanes)
        for factor in (k.load(xs[0], 3, 2 * lanes), repeated):
            k.store(y, at, dot(factor, k.load(xs[1], 50, 2 * lanes), k.load(c, at % 40, lanes)))
            at += lanes
    kernel = k.kernel("dots")
    ports = tuple(Port(p.name, p.dtype, (p.size,)) for p in kernel.params)
    step = Step("dots", (*(Slot("input", 0, i) for i in range(3)), Slot("output")), "step", ("dots",))
    return Program("halves", ports[:-1], ports[-1:], {"dots": kernel}, (step,), 0, bytearray())


@pytest.mark.parametrize("target", ["native", "x86-64", "x86-64-v3"])
def test_pairs_of_bf16_are_added_in_f32(target: str) -> None:
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    program = pairs_of_bf16()
    verify_program(program)
    rng = np.random.default_rng(2)
    inputs = [rng.normal(size=p.shape).astype(p.dtype.numpy) for p in program.inputs]
    (expected,) = run_program(program, inputs)
    (found,) = run_native(program, inputs, target)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "instruction"), [("arm64-neon+bf16", "bfdot"), ("x86-64-v4+avx512bf16", "vdpbf16ps")]
)
def test_pairs_of_bf16_are_one_instruction(target: str, instruction: str) -> None:
    assert f"\t{instruction}\t" in emit_asm(pairs_of_bf16(), Target.parse(target))
