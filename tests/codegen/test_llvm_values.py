"""Random expressions and every expression kind as machine code against numpy."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest

from c2c.codegen.llvm_program import emit_object
from c2c.codegen.object_file import read_object
from c2c.codegen.target import Target
from c2c.ir.loops import (
    CALLS,
    Binary,
    Bitcast,
    Broadcast,
    Call,
    Cast,
    Const,
    Expr,
    Fma,
    Load,
    Ramp,
    Reduce,
    Select,
    Shuffle,
    Unary,
    binary,
    bitcast,
    broadcast,
    call,
    cast,
    const,
    fma,
    lane,
    ramp,
    reduce,
    select,
    shuffle,
    unary,
)
from c2c.ir.loops_builder import Builder
from c2c.ir.program import Port, Program, Slot, Step
from c2c.ir.types import DType

SEED = 20240607
TYPES: list[DType] = [d for d in DType if d is not DType.STRING]
FLOATS = [d for d in TYPES if d.is_float]
INTS = [d for d in TYPES if d.is_int]
Array: TypeAlias = np.ndarray[Any, Any]
HERE = ["native", "x86-64", "x86-64-v3"]
ARM = pytest.param(
    "arm64-neon", marks=[pytest.mark.needs("qemu-aarch64"), pytest.mark.needs("aarch64-linux-gnu-gcc")]
)  # fmt: skip
ARM_FP16 = pytest.param("arm64-neon+fp16", marks=ARM.marks)
SIZE = 64


def data(dtype: DType, rng: np.random.Generator) -> Array:
    """SIZE values with the awkward ones among them."""
    if dtype is DType.BOOL:
        return rng.integers(0, 2, SIZE).astype(np.bool_)
    if dtype.is_int:
        info = np.iinfo(dtype.numpy)
        some = rng.integers(-100, 100, SIZE) if dtype.is_signed else rng.integers(0, 200, SIZE)
        values = some.astype(dtype.numpy)
        values[:2] = info.min, info.max
        return values
    values = (rng.standard_normal(SIZE) * 10.0 ** rng.integers(-3, 3, SIZE)).astype(dtype.numpy)
    values[:8] = np.array([0.0, -0.0, 0.5, -0.5, 1.5, -2.5, np.inf, 6e-8], dtype.numpy)
    return values


def evaluate(e: Expr, memory: dict[str, Array]) -> Array:
    """The lanes of an expression, by numpy, as the docstring of ir/loops.py defines them."""
    if isinstance(e, Const):
        return np.full(e.lanes, e.value).astype(e.dtype.numpy)
    parts = [evaluate(c, memory) for c in children(e)]
    if isinstance(e, Load):
        at = parts[0] if e.index.lanes > 1 else int(parts[0][0]) + np.arange(e.lanes)
        return np.asarray(memory[e.buffer.name][at])
    return EVALUATE[type(e)](e, *parts)


def children(e: Expr) -> list[Expr]:
    fields = [getattr(e, n) for n in ("index", "cond", "a", "b", "c", "base") if hasattr(e, n)]
    return [f for f in fields if isinstance(f, Expr)] + list(getattr(e, "args", ()))


def binary_by_numpy(e: Binary, a: Array, b: Array) -> Array:
    if e.op in ("min", "max"):
        return np.where(a < b if e.op == "min" else a > b, a, b)
    if e.op in ("div", "mod") and e.a.dtype.is_int:
        quotient = [truncated(int(x), int(y)) for x, y in zip(a, b, strict=True)]
        rest = [int(x) - q * int(y) for x, y, q in zip(a, b, quotient, strict=True)]
        return np.array(quotient if e.op == "div" else rest, dtype=a.dtype)
    table: dict[str, Callable[[Array, Array], Array]] = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "mod": np.fmod,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "shl": np.left_shift,
        "shr": np.right_shift, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
        "gt": np.greater, "ge": np.greater_equal,
    }  # fmt: skip
    return np.asarray(table[e.op](a, b), e.dtype.numpy)


def truncated(x: int, y: int) -> int:
    """x / y towards zero."""
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


def unary_by_numpy(e: Unary, a: Array) -> Array:
    if e.op == "not":
        return np.logical_not(a) if e.dtype is DType.BOOL else np.invert(a)
    if not e.dtype.is_float and e.op in ("floor", "ceil", "round", "trunc"):
        return a
    table = {"neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil,
             "round": np.rint, "trunc": np.trunc}  # fmt: skip
    return np.asarray(table[e.op](a), e.dtype.numpy)


def cast_by_numpy(e: Cast, a: Array) -> Array:
    if e.dtype in (DType.F16, DType.BF16) and e.a.dtype.is_int:
        a = a.astype(np.float32)
    return np.asarray(a != 0) if e.dtype is DType.BOOL else a.astype(e.dtype.numpy)


def reduce_by_numpy(e: Reduce, a: Array) -> Array:
    while len(a) > 1:
        half, rest = (len(a) + 1) // 2, len(a) // 2
        low, high = a[:rest], a[half:]
        made = low + high if e.op == "add" else np.where(low < high if e.op == "min" else low > high, low, high)
        a = np.concatenate([made.astype(e.dtype.numpy), a[rest:half]])
    return a


BY_NUMPY: dict[str, Callable[..., Array]] = {
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "asinh": np.arcsinh, "acosh": np.arccosh,
    "atanh": np.arctanh, "pow": np.power, "erf": lambda x: np.vectorize(math.erf)(x).astype(x.dtype),
}  # fmt: skip

EVALUATE: dict[type[Expr], Callable[..., Array]] = {
    Binary: binary_by_numpy, Unary: unary_by_numpy, Cast: cast_by_numpy, Reduce: reduce_by_numpy,
    Call: lambda e, *args: (BY_NUMPY.get(e.name) or getattr(np, e.name))(*args),
    Fma: lambda e, a, b, c: a * b + c,
    Bitcast: lambda e, a: a.view(e.dtype.numpy),
    Select: lambda e, cond, a, b: np.asarray(np.where(cond, a, b)),
    Broadcast: lambda e, a: np.repeat(a, e.lanes),
    Ramp: lambda e, base: base + e.stride * np.arange(e.lanes),
    Shuffle: lambda e, a, b=None: np.concatenate([a] if b is None else [a, b])[list(e.lanes_of)],
}  # fmt: skip


class Cases:
    """Expressions over one input of every element type; each becomes a kernel that stores it into its own output."""

    def __init__(self) -> None:
        rng = np.random.default_rng(SEED)
        self.inputs = {d: data(d, rng) for d in TYPES}
        self.exprs: list[Expr] = []
        self.builders: list[Builder] = []

    def new(self) -> Builder:
        k = Builder()
        self.builders.append(k)
        for d in TYPES:
            k.param(f"in_{d}", d, SIZE)
        return k

    def done(self, e: Expr) -> None:
        k = self.builders[-1]
        self.exprs.append(e)
        k.store(k.param("out", e.dtype, e.lanes), 0, e)

    def program(self) -> Program:
        kernels = {f"model__k{i}": k.kernel(f"model__k{i}") for i, k in enumerate(self.builders)}
        args = tuple(Slot("input", 0, i) for i in range(len(TYPES)))
        return Program(
            "model",
            tuple(Port(str(d), d, (SIZE,)) for d in TYPES),
            tuple(Port(f"y{i}", e.dtype, (e.lanes,)) for i, e in enumerate(self.exprs)),
            kernels,
            tuple(Step(n, (*args, Slot("output", 0, i)), f"model__{i}") for i, n in enumerate(kernels)),
            0,
            bytearray(),
        )

    def check(self, target: str, run: Callable[..., list[Array]], ulps: int = 0) -> None:
        program = self.program()
        memory = {f"in_{d}": a for d, a in self.inputs.items()}
        found = run(program, Target.parse(target), list(self.inputs.values()))
        for i, (e, y) in enumerate(zip(self.exprs, found, strict=True)):
            with np.errstate(all="ignore"):
                expected = evaluate(e, memory)
            message = f"seed {SEED}, case {i} on {target}: {e}"
            if e.dtype.is_float:
                wide = np.float64
                tolerance = ulps * float(np.finfo(np.float32).eps)
                np.testing.assert_allclose(y.astype(wide), expected.astype(wide), tolerance, tolerance, err_msg=message)
            else:
                np.testing.assert_array_equal(y, expected, err_msg=message)


def operand(k: Builder, dtype: DType, lanes: int, pick: random.Random) -> Expr:
    buffer = k.params[TYPES.index(dtype)]
    if pick.random() < 0.15:
        return const(pick.randint(0, 9) if not dtype.is_float else pick.uniform(-3, 3), dtype, lanes)
    return k.load(buffer, pick.randint(0, SIZE - lanes), lanes)


def tree(k: Builder, dtype: DType, lanes: int, depth: int, pick: random.Random) -> Expr:
    """A random expression; division by zero and undefined casts and shifts are kept out."""
    if depth == 0:
        return operand(k, dtype, lanes, pick)

    def sub(d: DType = dtype) -> Expr:
        return tree(k, d, lanes, depth - 1, pick)

    choice = pick.random()
    if choice < 0.15:
        return select(sub(DType.BOOL), sub(), sub())
    if choice < 0.25:
        source = pick.choice([d for d in TYPES if not (d.is_float and dtype.is_int)])
        return cast(sub(source), dtype)
    if choice < 0.3 and dtype.is_int:
        source = pick.choice(FLOATS)
        small = select(unary("abs", sub(source)) < 100.0, sub(source), 3.0)
        return cast(select(unary("abs", small) < 100.0, unary("abs", small), 1.0), dtype)
    if dtype is DType.BOOL:
        if choice < 0.7:
            other = pick.choice(TYPES)
            ops = ["eq", "ne", "lt", "le", "gt", "ge"] if other is not DType.BOOL else ["eq", "ne"]
            return binary(pick.choice(ops), sub(other), sub(other))
        return unary("not", sub()) if choice < 0.8 else binary(pick.choice(["and", "or", "xor"]), sub(), sub())
    if dtype.is_float:
        if choice < 0.5:
            return unary(pick.choice(["neg", "abs", "floor", "ceil", "round", "trunc"]), sub())
        if choice < 0.55:
            return unary("sqrt", unary("abs", sub()))
        return binary(pick.choice(["add", "sub", "mul", "div", "min", "max"]), sub(), sub())
    if choice < 0.4:
        return unary(pick.choice(["neg", "abs", "not"] if dtype.is_signed else ["not"]), sub())
    if choice < 0.5:
        return binary(pick.choice(["div", "mod"]), sub(), binary("or", binary("and", sub(), const(7, dtype, lanes)), 1))
    if choice < 0.6:
        return binary(pick.choice(["shl", "shr"]), sub(), const(pick.randint(0, dtype.bits - 1), dtype, lanes))
    return binary(pick.choice(["add", "sub", "mul", "min", "max", "and", "or", "xor"]), sub(), sub())


def random_cases() -> Cases:
    pick = random.Random(SEED)
    cases = Cases()
    for i in range(110):
        dtype, lanes = TYPES[i % len(TYPES)], pick.choice([1, 1, 2, 3, 4, 8, 16])
        cases.done(tree(cases.new(), dtype, lanes, 3, pick))
    return cases


def all_casts() -> Cases:
    """Between every two types; to integers from within their range."""
    cases = Cases()
    for a in TYPES:
        for b in TYPES:
            k = cases.new()
            value = k.load(k.params[TYPES.index(a)], 0, 8)
            if a.is_float and b.is_int:
                value = select(unary("abs", value) < 100.0, unary("abs", value), 7.0)
            cases.done(cast(value, b))
    return cases


@pytest.mark.parametrize("target", [*HERE, ARM, ARM_FP16])
def test_random_expressions(target: str, run_program: Callable[..., list[Array]]) -> None:
    random_cases().check(target, run_program)


@pytest.mark.parametrize("target", [*HERE, ARM])
def test_casts_between_all_types(target: str, run_program: Callable[..., list[Array]]) -> None:
    all_casts().check(target, run_program)


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v4+avx512fp16-windows", "arm64-neon-macos"])
def test_no_support_library_is_called(name: str) -> None:
    """Conversions and arithmetic of any type call nothing but fmod, on any target."""
    for cases in (random_cases(), all_casts()):
        made = read_object(emit_object(cases.program(), Target.parse(name)))
        assert set(made.undefined) <= {"fmod", "fmodf", "memcpy", "memset", "_fltused"}


REDUCTIONS = (
    (DType.F32, "add"), (DType.I32, "add"), (DType.F64, "max"), (DType.BF16, "min"), (DType.U8, "max"),
)  # fmt: skip

SHUFFLES: tuple[tuple[int, int | None, tuple[int, ...]], ...] = (
    (8, 8, (0, 8, 1, 9)), (8, None, (7,)), (4, 8, (11, 3, 0, 4)), (1, 4, (0, 4, 2)), (8, 8, (9,)),
    (1, None, (0, 0, 0)), (16, None, tuple(reversed(range(16)))),
)  # fmt: skip


@pytest.mark.parametrize("target", [*HERE, ARM])
def test_vector_forms(target: str, run_program: Callable[..., list[Array]]) -> None:
    """Loads along lines of every stride and through indices, ramps, shuffles, reductions of any width."""
    cases = Cases()
    for dtype in (DType.F32, DType.U8, DType.F16, DType.BOOL):
        for lanes, stride in ((4, 0), (8, 1), (8, 2), (16, 2), (8, 3), (12, 4), (5, 7), (8, -1), (3, 2), (16, 3)):
            k = cases.new()
            cases.done(k.load(k.params[TYPES.index(dtype)], ramp(const(9 if stride < 0 else 1), stride, lanes)))
    k = cases.new()
    index = ramp(const(2), 1, 8) * 3 + broadcast(k.load(k.params[TYPES.index(DType.I64)], 0), 8) * 0 + 1
    cases.done(k.load(k.params[0], index))
    k = cases.new()
    wild = cast(k.load(k.params[TYPES.index(DType.U8)], 3, 8) % 60, DType.I64)
    cases.done(k.load(k.params[0], wild))
    for lanes in (2, 3, 4, 7, 8, 12, 16, 64):
        for dtype, op in REDUCTIONS:
            k = cases.new()
            cases.done(reduce(op, k.load(k.params[TYPES.index(dtype)], 0, lanes)))
    for a, b, lanes_of in SHUFFLES:
        k = cases.new()
        x = k.load(k.params[0], 0, a)
        cases.done(shuffle(x, None if b is None else k.load(k.params[0], 20, b), lanes_of))
    k = cases.new()
    cases.done(lane(k.load(k.params[0], 8, 8), 3))
    k = cases.new()
    cases.done(ramp(k.load(k.params[TYPES.index(DType.I64)], 5), -3, 8))
    for source, to in ((DType.F32, DType.U32), (DType.F16, DType.I16), (DType.BF16, DType.F16), (DType.F64, DType.I64)):
        k = cases.new()
        cases.done(bitcast(k.load(k.params[TYPES.index(source)], 0, 8), to))
    cases.check(target, run_program)


@pytest.mark.parametrize("target", [*HERE, ARM, ARM_FP16])
def test_multiply_add_rounds_once_or_twice(target: str, run_program: Callable[..., list[Array]]) -> None:
    cases = Cases()
    for dtype, lanes in ((DType.F32, 8), (DType.F64, 4), (DType.F32, 1)):
        k = cases.new()
        x = k.params[TYPES.index(dtype)]
        cases.done(fma(k.load(x, 8, lanes), k.load(x, 20, lanes), k.load(x, 30, lanes)))
    cases.check(target, run_program, ulps=2)


LIBM_AT = {"log1p": 0.3, "atanh": 0.3, "asin": 0.3, "acos": 0.3, "acosh": 1.7}


@pytest.mark.parametrize("target", ["native", "x86-64", ARM])
def test_every_function(target: str, run_program: Callable[..., list[Array]]) -> None:
    cases = Cases()
    for dtype in (DType.F32, DType.F64):
        for name in CALLS:
            k = cases.new()
            x = cast(k.load(k.params[TYPES.index(DType.U8)], 8, 4), dtype) * 0.004 + LIBM_AT.get(name, 0.6)
            x = binary("min", x, 0.9) if name != "acosh" else x
            cases.done(call(name, x, x + 0.5) if name in ("pow", "fmod") else call(name, x))
    cases.check(target, run_program, ulps=8)
