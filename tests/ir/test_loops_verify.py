"""The loop IR verifier: each rule, broken once, is named with kernel and statement."""

from __future__ import annotations

from dataclasses import replace

import pytest

from c2c.ir import loops as ir
from c2c.ir.errors import VerifyError
from c2c.ir.loops_builder import Builder
from c2c.ir.loops_parse import parse_kernel
from c2c.ir.loops_random import RandomKernel, random_program
from c2c.ir.loops_ranges import Interval, interval
from c2c.ir.loops_verify import verify_kernel, verify_program
from c2c.ir.loops_visit import statements
from c2c.ir.program import Port, Program, Slot, Step
from c2c.ir.types import DType

HEAD = "kernel k(x: f32[16], y: f32[16], n: i64[4]) {"


def check(body: str, threads: int = 1) -> None:
    verify_kernel(parse_kernel(f"{HEAD}\n{body}\n}}"), threads)


@pytest.mark.parametrize("seed", range(20))
def test_random_kernels_pass(seed: int) -> None:
    verify_kernel(RandomKernel(seed, inexact=True).kernel)


@pytest.mark.parametrize(
    "body",
    [
        "store y[15] = 1.0:f32",
        "serial i = 0 to 2 { store y[i * 8] = x[i * 8; 8] }",
        "serial i = 0 to 16 step 8 { store y[i] = x[i; 8] }",
        "serial i = 0 to 0 { store y[16] = 1.0:f32 }",
        "serial i = 0 to n[0] { store y[99] = 1.0:f32 }",
        "serial i = 0 to 20 { if i < 16 { store y[i] = 1.0:f32 } }",
        "serial i = 0 to 32 { store y[i - i / 16 * 16] = 1.0:f32 }",
        "parallel i = 0 to 4 { store y[i * 4 + worker] = 1.0:f32 }",
        "alloc a: f32x8[2] register unroll u = 0 to 2 { store a[1 - u] = 1.0:f32x8 }",
        "store y[ramp<4, -5>(15)] = 1.0:f32x4",
        "prefetch y[-99]",
        "thread t = 0 to 8 { serial i = 0 to 2 { let a: f32 = subgroup_xor<5>(x[t]) store y[t] = a } }",
    ],
)
def test_right_kernels_pass(body: str) -> None:
    check(body, threads=4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("store y[16] = 1.0:f32", "index 16..16 is outside 'y' of 16 elements"),
        ("store y[9] = x[0; 8]", "index 9..16 is outside 'y'"),
        ("store y[0] = x[-1]", "index -1..-1 is outside 'x'"),
        ("serial i = 0 to 3 { store y[i * 8] = x[0] }", "index 0..16 is outside 'y'"),
        ("serial i = 0 to 2 { let j: i64 = i * 8 + 1 let v: f32x8 = x[j; 8] }", "index 1..16 is outside 'x'"),
        ("parallel i = 0 to 4 { store y[i * 4 + worker] = 1.0:f32 }", "index 0..16 is outside 'y'"),
        ("store y[ramp<4, -5>(14)] = 1.0:f32x4", "index -1..14 is outside 'y'"),
        ("store n[0] = 1.0:f32", "stores f32 into i64 buffer 'n'"),
        ("let a: i64 = 1 let a: i64 = 2", "name 'a' is defined twice"),
        ("grid g = 1 to 4 { store y[g] = x[g] }", "a grid loop runs from 0 to a constant by 1"),
        ("serial i = 0 to 4 { grid g = 0 to 4 { store y[g] = x[i] } }", "a grid loop stands inside of other loops"),
        ("thread t = 0 to 4 { grid g = 0 to 4 { store y[g] = x[t] } }", "a grid loop stands inside of other loops"),
        ("serial i = 0 to 4 { thread t = 0 to 4 { store y[t] = x[i] } }", "a thread loop stands inside of other loops"),
        (
            "grid a = 0 to 2 { grid b = 0 to 2 { grid c = 0 to 2 { grid d = 0 to 2 { store y[a] = x[b] } } } }",
            "more than 3 grid loops",
        ),
        ("grid g = 0 to 4 { barrier }", "a barrier stands where not all threads"),
        ("thread t = 0 to 4 { if t < 2 { barrier } }", "a barrier stands where not all threads"),
        ("thread t = 0 to 4 { serial i = 0 to n[t] { barrier } }", "a barrier stands where not all threads"),
        ("let a: f32 = subgroup_xor<1>(x[0])", "subgroup_xor stands where not all threads"),
        ("thread t = 0 to 4 { if t < 2 { let a: f32 = subgroup_xor<1>(x[t]) } }", "subgroup_xor stands where not all"),
        ("thread t = 0 to 4 { store y[t] = subgroup_xor<1>(x[t]) }", "stands inside of another expression"),
        ("thread t = 0 to 4 { let a: f32 = subgroup_xor<4>(x[t]) }", "subgroup_xor by 4 in work-groups of 4 threads"),
        ("thread t = 0 to 6 { let a: f32 = subgroup_xor<2>(x[t]) }", "subgroup_xor by 2 in work-groups of 6 threads"),
        ("thread t = 0 to 4 { let a: f32 = subgroup_xor<0>(x[t]) }", "subgroup_xor by 0"),
        ("thread t = 0 to 4 { let a: f32x4 = subgroup_xor<1>(x[0; 4]) }", "subgroup_xor of f32x4"),
        ("let x: i64 = 1", "name 'x' is defined twice"),
        ("serial i = 0 to 2 { parallel j = 0 to 2 { } }", "parallel loop must be the only statement"),
        ("let a: i64 = 1 parallel j = 0 to 2 { }", "parallel loop must be the only statement"),
        ("parallel j = 1 to 2 { }", "runs from 0 to a constant by 1"),
        ("parallel j = 0 to n[0] { }", "runs from 0 to a constant by 1"),
        ("unroll j = 0 to n[0] { }", "unrolled loop needs constant bounds"),
        ("serial j = 0 to 4 step 0 { }", "step 0 is not positive"),
        ("alloc a: f32x8[2] register serial u = 0 to 2 { store a[u] = 1.0:f32x8 }", "constant once unrolled"),
        ("alloc a: f32x8[2] register store a[0] = 1.0:f32x4", "holds vectors of 8 lanes, accessed with 4"),
        ("alloc a: f32[20000] stack", "80000 bytes"),
        ("alloc a: f32x65[2] register", "cannot allocate"),
        ("if 1 { }", "condition is i64x1"),
        ("serial j = 0 to 4:i32 { }", "end is i32x1"),
        ("store y[0:i32] = 1.0:f32", "index of 'y' is i32"),
        ("let a: f32 = 1.0:f32 + 1.0:f64", "add of f32x1 and f64x1"),
        ("let a: f32x8 = x[0; 8] + 1.0:f32x4", "add of f32x8 and f32x4"),
        ("let a: f32 = x[0] & x[1]", "and of f32"),
        ("let a: bool = true:bool << true:bool", "shl of bool"),
        ("let a: f32 = select(x[0], x[1], x[2])", "needs a bool condition"),
        ("let a: i64 = fma(1, 2, 3)", "are no floats"),
        ("let a: f32x4 = broadcast<4>(x[0; 2])", "of f32x2"),
        ("let a: f64 = bitcast<f64>(x[0])", "widths differ"),
        ("let a: f32 = lookup(x[0; 3], 1:i32)", "in f32x3 of i32x1"),
        ("let a: f32 = lookup(x[0; 4], 1)", "in f32x4 of i64x1"),
        ("let a: f32 = shuffle<8>(x[0; 8])", r"lanes \[8\] of 8"),
        ("let a: f32 = reduce<mul>(x[0; 8])", "mul of f32x8"),
        ("let a: f32 = reduce<add>(x[0; 3])", "add of f32x3"),
        ("let a: i64 = exp(1)", "exp of i64"),
        ("let a: u8 = 256:u8", "256 is no u8"),
        ("let a: bool = 2:bool", "2 is no bool"),
        ("prefetch y[0:i32]", "index of 'y' is i32"),
        ("alloc a: f32[8] stack prefetch a[0]", "prefetches 'a', which is no parameter"),
    ],
)  # fmt: skip
def test_wrong_kernels_are_refused(body: str, message: str) -> None:
    with pytest.raises(VerifyError, match=message) as error:
        check(body, threads=5)
    assert error.value.where.startswith("kernel k, ")


ON_MATRICES = """alloc s: f32[80] shared
thread part = 0 to 2 { thread t = 0 to 32 { alloc a: f32x64[2] matrix alloc h: f16x64[1] matrix BODY } }"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("matrix_load a[0] = s[part * 4; 9] store a[1] = 0.0:f32x64 matrix_multiply a[1] = a[0] * a[0]", ""),
        ("matrix_multiply a[1] = h[0] * h[0] serial i = 0 to 2 { matrix_store s[i * 8; 8] = a[0] }", ""),
        ("matrix_load a[0] = s[part * 10; 9]", "index 0..80 is outside 's'"),
        ("matrix_load a[2] = s[0; 9]", "index 2..2 is outside 'a'"),
        ("let m: i64 = t / 32 matrix_load a[0] = s[m; 9]", "place in 's' differs among the threads"),
        ("matrix_load a[0] = x[0; 9]", "'a' is no matrix of what 'x' holds in shared memory"),
        ("matrix_load h[0] = s[0; 9]", "'h' is no matrix of what 's' holds"),
        ("matrix_load a[0] = s[0; 7]", "rows of 's' are 7 apart"),
        ("serial i = 0 to 2 { matrix_load a[i] = s[0; 9] }", "matrix buffer 'a' needs an index that is constant"),
        ("if part < 1 { matrix_store s[0; 8] = a[0] }", "a statement on matrices stands where not all"),
        ("matrix_multiply h[0] = a[0] * a[1]", "multiplies f32 and f32 into f16 matrices"),
        ("matrix_multiply a[0] = a[0] * h[0]", "multiplies f32 and f16 into f32 matrices"),
        ("store a[0] = s[0; 64]", "stores into matrix 'a' what is no constant"),
        ("store y[0] = a[0] ", "elements of 'a' are no values"),
        ("alloc b: f32x32[2] matrix", "cannot allocate 2 of 32 lanes in matrix space"),
        ("alloc b: i32x64[2] matrix", "cannot allocate 2 of 64 lanes in matrix space"),
    ],
)
def test_rules_of_matrices(body: str, message: str) -> None:
    text = ON_MATRICES.replace("BODY", body)
    if not message:
        check(text)
        with pytest.raises(VerifyError, match="needs subgroups of 32 threads, not of 16"):
            check(text.replace("t = 0 to 32", "t = 0 to 16"))
        return
    with pytest.raises(VerifyError, match=message):
        check(text)


def test_names_that_are_not_in_scope_are_refused() -> None:
    k = Builder()
    y = k.param("y", DType.F32, 4)
    inside = []
    for i in k.loop("i", 4):
        inside += [i, k.let(i + 1)]
        tile = k.registers("acc", DType.F32, 1, 1)
    for name in inside:
        k.store(y, name, ir.const(0.0, DType.F32))
        with pytest.raises(VerifyError, match="is not defined here"):
            verify_kernel(k.kernel("k"))
        k._blocks[-1].pop()
    k.store(tile, 0, ir.const(0.0, DType.F32))
    with pytest.raises(VerifyError, match="'acc' is not in scope") as error:
        verify_kernel(k.kernel("k"))
    assert error.value.where == "kernel k, store to acc"


def test_intervals_are_exact_only_where_variables_are_independent() -> None:
    i, j = (ir.Var(DType.I64, 1, n) for n in "ij")
    ranges = {n: Interval(0, 7, True, frozenset(n)) for n in "ij"}
    assert interval(i * 8 + j, ranges) == Interval(0, 63, True, frozenset("ij"))
    difference = interval(i - i, ranges)
    assert difference is not None and not difference.exact
    assert interval((i - 4) / 3, ranges) == Interval(-1, 1, True, frozenset("i"))
    assert interval(i % 3, ranges) == Interval(0, 2, False, frozenset("i"))


# --- programs


def broken(program: Program, **changes: object) -> str:
    for name, value in changes.items():
        setattr(program, name, value)
    with pytest.raises(VerifyError) as error:
        verify_program(program)
    return f"{error.value.what} at {error.value.where}"


def test_preparing_steps_write_what_others_only_read() -> None:
    k = Builder()
    a, b = k.param("a", DType.F32, 4), k.param("b", DType.F32, 4)
    k.store(b, 0, k.load(a, 0, 4))
    kernel = k.kernel("copy")

    def program(*args: Slot) -> Program:
        first = Step("copy", (Slot("weights"), Slot("prepared")), "first")
        port = Port("y", DType.F32, (4,))
        steps = (Step("copy", args, "second"),)
        return Program("p", (), (port,), {"copy": kernel}, steps, 0, bytearray(16), prepare=(first,), prepared_bytes=16)

    verify_program(program(Slot("prepared"), Slot("output")))
    assert "of 8 of prepared" in broken(program(Slot("prepared"), Slot("output")), prepared_bytes=8)
    assert "'b' is written but bound to prepared" in broken(program(Slot("weights"), Slot("prepared")))
    outside = (Step("copy", (Slot("weights"), Slot("output")), "first"),)
    assert "sees only weights" in broken(program(Slot("prepared"), Slot("output")), prepare=outside)
    assert "used twice" in broken(program(Slot("prepared"), Slot("output")), prepare=outside * 2)


def test_programs_are_checked() -> None:
    def fresh() -> Program:
        program = random_program(range(2))
        verify_program(program)
        return program

    p = fresh()
    first, *rest = p.steps
    assert "no kernel 'none'" in broken(fresh(), steps=(replace(first, kernel="none"), *rest))
    assert "25 arguments for 26" in broken(fresh(), steps=(replace(first, args=first.args[1:]), *rest))
    assert "used twice" in broken(fresh(), steps=(first, first))

    def moved(position: int, slot: Slot) -> tuple[Step, ...]:
        args = list(first.args)
        args[position] = slot
        return (replace(first, args=tuple(args)), *rest)

    assert "takes bytes 4 to 12292 of 12288" in broken(fresh(), steps=moved(0, Slot("input", 4)))
    assert "no output 99" in broken(fresh(), steps=moved(0, Slot("output", 0, 99)))
    assert "of 0 of arena" in broken(fresh(), steps=moved(0, Slot("arena")))
    assert "is not aligned" in broken(fresh(), arena_bytes=1 << 20, steps=moved(0, Slot("arena", 2)))
    names = [b.name for b in p.kernels["random_0"].params]
    stored = next(n for n in names[13:] if n in {s.buffer.name for s in _stores(p.kernels["random_0"])})
    assert "is written but bound to weights" in broken(
        fresh(), weights=bytearray(1 << 20), steps=moved(names.index(stored), Slot("weights"))
    )


def _stores(kernel: ir.Kernel) -> list[ir.Store]:
    return [s for s in statements(kernel.body) if isinstance(s, ir.Store)]
