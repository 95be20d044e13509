"""Loop IR text: what is printed parses back to an equal tree, and bad text is refused with its place."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.ir import loops as ir
from c2c.ir.errors import ParseError
from c2c.ir.loops import Const, Kernel
from c2c.ir.loops_builder import Builder
from c2c.ir.loops_parse import parse_kernel, parse_program
from c2c.ir.loops_random import RandomKernel, random_program
from c2c.ir.loops_text import print_expr, print_kernel, print_program
from c2c.ir.program import Port, Program, Slot, Step
from c2c.ir.types import DType


def round_trip(kernel: Kernel) -> str:
    text: str = print_kernel(kernel)
    again = parse_kernel(text)
    assert again == kernel
    assert print_kernel(again) == text
    return text


@pytest.mark.parametrize("seed", range(25))
def test_random_kernels_round_trip(seed: int) -> None:
    round_trip(RandomKernel(seed, inexact=True).kernel)


def test_exchanges_round_trip() -> None:
    assert "subgroup_xor<" in round_trip(RandomKernel(3, subgroup=16).kernel)


MATRICES = """kernel k(x: f16[160], y: f32[128]) {
  alloc near: f16[160] shared
  alloc far: f32[128] shared
  thread part = 0 to 2 {
    thread lane = 0 to 32 {
      alloc a: f16x64[2] matrix
      alloc sums: f32x64[1] matrix
      serial e = part * 32 + lane to 160 step 64 {
        store near[e] = x[e]
      }
      store sums[0] = 0.0:f32x64
      barrier
      unroll i = 0 to 2 {
        matrix_load a[i] = near[part * 8; 20] transposed
        matrix_multiply sums[0] = a[i] * a[0]
      }
      matrix_store far[part * 8; 16] = sums[0]
      barrier
      store y[part * 32 + lane] = far[part * 32 + lane]
    }
  }
}
"""


def test_statements_on_matrices_round_trip() -> None:
    assert round_trip(parse_kernel(MATRICES)) == MATRICES


def every_node() -> Kernel:
    """A kernel with every kind of node and every optional part."""
    k = Builder()
    x, y = k.param("x", DType.F32, 64, align=64), k.param("y", DType.F32, 64)
    n = k.param("n", DType.I64, 8)
    for i in k.parallel("i", 4):
        tile = k.registers("acc", DType.F32, 2, 8)
        stack = k.alloc("tmp", DType.I32, 4)
        for u in k.loop("u", 2, kind="unroll"):
            k.store(tile, u, ir.const(-0.0, DType.F32, 8))
        k.prefetch(x, i * 8 + 100)
        k.prefetch(x, i * 8 + 50, near=True)
        for j in k.loop("j", k.load(n, 0), i + 1, step=3):
            a = k.let(k.load(x, i * 8, 8), "a")
            mixed = ir.shuffle(a, k.load(x, ir.ramp(j, -2, 8), 8), (0, 15, 1, 14, 2, 13, 3, 12))
            k.store(tile, 0, ir.fma(a, mixed, k.load(tile, 1)))
            for _ in k.when((i < 2) & ~(j >= 5)):
                k.store(stack, j % 4, ir.bitcast(ir.lane(a, 3), DType.I32))
        total = ir.reduce("max", ir.maximum(k.load(tile, 0), ir.call("pow", k.load(tile, 0), k.load(tile, 1))))
        chosen = ir.select(k.load(tile, 0) > 1.5, ir.broadcast(total, 8), ir.unary("sqrt", k.load(tile, 1)))
        k.store(
            y, i * 8 - (i - (i - 1)) * 2, chosen + ir.cast(k.load(stack, 0), DType.F32) + ir.cast(k.worker, DType.F32)
        )
    return k.kernel("every", shaped=False, inplace=True)


def test_every_node_round_trips() -> None:
    text = round_trip(every_node())
    assert "y[i * 8 - (i - (i - 1)) * 2] = " in text, "parentheses are not the needed ones"
    assert "unroll u = 0 to 2 {" in text and "step 3" in text and "-0.0:f32x8" in text


def test_statements_that_lowerings_do_not_make_round_trip() -> None:
    one = ir.const(1)
    inner = ir.Block((ir.Barrier(), ir.Block((ir.Let("t", one),))))
    cond = ir.binary("or", ir.Var(DType.I64, 1, "worker") < 3, Const(DType.BOOL, 1, True))
    body = ir.Block((ir.For("g", one, one, 2, "grid", ir.Block((ir.If(cond, inner, ir.Block()),))),))
    round_trip(Kernel("odd", (ir.Buffer("c", DType.F16, 3, "constant", 1, 16),), body))


@pytest.mark.parametrize(
    "value",
    [0.1, -0.0, 1e-45, 3.4028234663852886e38, math.inf, -math.inf, math.nan, 1e300, 5e-324, 7, -7, 1 / 3],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [DType.F32, DType.F64, DType.BF16])
def test_constants_keep_type_and_bits(dtype: DType, value: float) -> None:
    kernel = Kernel("k", (), ir.Block((ir.Let("t", Const(dtype, 4, value)),)))
    let = parse_kernel(print_kernel(kernel)).body.body[0]
    assert isinstance(let, ir.Let) and isinstance(let.value, Const)
    assert type(let.value.value) is type(value)
    assert struct.pack("<d", let.value.value) == struct.pack("<d", value)


def test_a_nan_keeps_its_payload() -> None:
    value = struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000123))[0]
    kernel = Kernel("k", (), ir.Block((ir.Let("t", Const(DType.F64, 1, value)),)))
    let = parse_kernel(print_kernel(kernel)).body.body[0]
    assert isinstance(let, ir.Let) and isinstance(let.value, Const)
    assert struct.pack("<d", let.value.value) == struct.pack("<d", value)


@pytest.mark.parametrize(
    "text",
    ["a - (b - c)", "a - b - c", "a * (b + c)", "a * b + c", "(a < b) == (b < c)", "a & b | c << 2 >> b", "a - -3"],
)
def test_parentheses_are_minimal(text: str) -> None:
    head = "kernel k() {\n  let a: i64 = worker\n  let b: i64 = a\n  let c: i64 = b\n"
    kernel = parse_kernel(f"{head}  let t: {'bool' if '<' in text and '<<' not in text else 'i64'} = {text}\n}}")
    let = kernel.body.body[-1]
    assert isinstance(let, ir.Let)
    assert print_expr(let.value) == text


def program() -> Program:
    result = random_program(range(3))
    result.weights = bytearray(b"weights of a program")
    result.arena_bytes = 4096
    result.notes = {"model": 'a "quoted" \\ name\n'}
    result.steps += (Step("random_0", result.steps[0].args[:-1] + (Slot("arena", 128),), "again", ("a", 'b"')),)
    result.inputs += (Port("näme with spaces", DType.I64, ()),)
    return result


def test_programs_round_trip() -> None:
    before = program()
    text = print_program(before)
    after = parse_program(text, bytes(before.weights))
    assert print_program(after) == text
    for name in ("name", "inputs", "outputs", "kernels", "steps", "arena_bytes", "weights", "threads", "notes"):
        assert getattr(after, name) == getattr(before, name), name


def test_other_weights_are_refused() -> None:
    text = print_program(program())
    with pytest.raises(ParseError, match="not the 20 bytes"):
        parse_program(text, b"weights of some other")
    with pytest.raises(ParseError, match="not the 20 bytes"):
        parse_program(text)


@pytest.mark.parametrize(
    ("line", "message", "place"),
    [
        ("store y[0] = z", "no variable 'z'", "2:16"),
        ("store z[0] = 1.0:f32", "no buffer 'z'", "2:"),
        ("store y[0] = 1.0", "needs a type", "2:"),
        ("store y[0] = foo(1)", "no function 'foo'", "2:"),
        ("store y[0] = max(1)", "no function 'max' of 1", "2:"),
        ("let t: f32 = 1.0:f64", "declared f32, its value is f64", "2:"),
        ("let t: f33 = 1.0:f32", "unknown element type 'f33'", "2:"),
        ("store y[0] = ?", "unexpected character", "2:16"),
        ("for i = 0 to 3 { }", "expected a statement, found 'for'", "2:3"),
        ("store y[0] = ramp<1>(0)", "wrong number of parameters of ramp", "2:"),
        ("serial i = 0 to 3 {", "expected a name", "3:2"),
    ],
)  # fmt: skip
def test_bad_text_is_refused_with_its_place(line: str, message: str, place: str) -> None:
    with pytest.raises(ParseError, match=message) as error:
        parse_kernel(f"kernel k(y: f32[4]) {{\n  {line}\n}}")
    assert error.value.where.startswith(place)


@pytest.mark.parametrize("target", ["x86-64-v3", "arm64-neon"])
def test_programs_of_models_round_trip(
    small_cnn: onnx.ModelProto, save: Callable[[onnx.ModelProto, str], Path], target: str
) -> None:
    options = CompileOptions(Target.parse(target), name="m", threads=2, dims={"N": 1})
    before = compile_file(save(small_cnn, "model.onnx"), options).program
    text = print_program(before)
    after = parse_program(text, bytes(before.weights))
    assert print_program(after) == text
    assert (after.kernels, after.steps, after.weights) == (before.kernels, before.steps, before.weights)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_text_parses_or_is_refused(seed: int) -> None:
    """No other exception than ParseError, whatever is cut out, doubled or replaced."""
    rng = np.random.default_rng(seed)
    text = print_program(program())[:20000]
    refused = 0
    for _ in range(25):
        at, to = sorted(int(i) for i in rng.integers(0, len(text), 2))
        to = min(to, at + 12)
        middle = str(rng.choice(["", text[at:to] * 2, "(", "}", '"\\q"', "9", "-", "f32", "\x00", "é"]))
        try:
            parse_program(text[:at] + middle + text[to:], b"weights of a program")
        except ParseError as error:
            assert error.where
            refused += 1
    assert refused > 12, f"seed {seed}"


def test_text_that_nests_too_deeply_is_refused() -> None:
    with pytest.raises(ParseError, match="nested too deeply"):
        parse_kernel("kernel k(y: f32[4]) { store y[0] = " + "(" * 20000 + "1" + ")" * 20000 + " }")
