"""Elementwise operators as compiled code against ONNX's reference evaluator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from c2c.ir.graph import Graph, Node, Value
from c2c.tests.passes.lower.harness import Case, fused, in_blocks, run_graph, run_op, run_ops

SEED = 20
FLOATS = (np.float32, np.float64, np.float16)
SIGNED = (np.int8, np.int16, np.int32, np.int64)
UNSIGNED = (np.uint8, np.uint16, np.uint32, np.uint64)
TOLERANCE = {np.dtype(np.float32): 3e-6, np.dtype(np.float64): 1e-13, np.dtype(np.float16): 2e-3}


def numbers(rng: np.random.Generator, dtype: Any, shape: tuple[int, ...] = (3, 4, 21), scale: float = 2.0) -> Any:
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(max(-100, limits.min), min(100, limits.max), shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    return (rng.standard_normal(shape) * scale).astype(dtype)


def check(cases: list[Case], rtol: float | None = None) -> None:
    """Every case in one object, 4 lanes over a remainder each."""
    for case, found in zip(cases, run_ops(cases), strict=True):
        for got, expected in zip(found, case.expected(), strict=True):
            tolerance = rtol if rtol is not None else TOLERANCE.get(expected.dtype, 0)
            label = f"{case.op} {[None if a is None else (a.dtype, a.shape) for a in case.inputs]} {case.attrs}"
            wide = np.float64 if expected.dtype.kind not in "iub" else expected.dtype
            np.testing.assert_allclose(
                got.astype(wide), expected.astype(wide), rtol=tolerance, atol=tolerance, err_msg=label
            )


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_functions(dtype: Any) -> None:
    rng = np.random.default_rng(SEED)
    x = numbers(rng, dtype)
    unary = (
        "Abs Neg Exp Erf Sigmoid Tanh Relu LeakyRelu Elu Selu Celu HardSigmoid HardSwish Softplus Softsign Gelu Mish "
        "Floor Ceil Round Sign Reciprocal Sin Cos Tan Atan Sinh Cosh Asinh ThresholdedRelu Swish"
    ).split()
    imprecise = ("Erf", "Gelu") if dtype is np.float64 else ()  # the evaluator's erf is in f32
    cases = [Case(op, [x]) for op in unary if op not in imprecise]
    if dtype is not np.float64:  # constants of the evaluator's definition are in f32
        cases.append(Case("Gelu", [x], {"approximate": "tanh"}))
    inside = np.clip(x / 4, -0.9, 0.9).astype(dtype)
    cases += [Case(op, [inside]) for op in ("Asin", "Acos", "Atanh")]
    positive = (np.abs(x) + dtype(1)).astype(dtype)
    cases += [Case(op, [positive]) for op in ("Sqrt", "Log", "Acosh")]
    cases += [
        Case("LeakyRelu", [x], {"alpha": 0.3}), Case("Elu", [x], {"alpha": 0.7}), Case("Celu", [x], {"alpha": 0.6}),
        Case("Selu", [x], {"alpha": 2.0, "gamma": 1.5}), Case("HardSigmoid", [x], {"alpha": 0.4, "beta": 0.3}),
        Case("Shrink", [x], {"lambd": 0.8, "bias": 0.2}),
        Case("ThresholdedRelu", [x], {"alpha": 0.4}), Case("Swish", [x], {"alpha": 1.7}),
    ]  # fmt: skip
    check(cases)


def test_erf_in_double() -> None:
    x = numbers(np.random.default_rng(SEED), np.float64)
    expected = np.vectorize(math.erf)(x)
    np.testing.assert_allclose(run_op("Erf", [x])[0], expected, rtol=1e-15)
    gelu = x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    np.testing.assert_allclose(run_op("Gelu", [x])[0], gelu, rtol=1e-13, atol=1e-15)


def test_half_rounding_ties() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 1e9, 0.49999997], np.float32)
    check([Case("Round", [x])])


@pytest.mark.parametrize("dtype", (*FLOATS, *SIGNED, *UNSIGNED))
def test_arithmetic(dtype: Any) -> None:
    rng = np.random.default_rng(SEED + 1)
    a, b, c = numbers(rng, dtype), numbers(rng, dtype, (4, 1)), numbers(rng, dtype, (21,))
    divisor = np.where(b == 0, 3, b).astype(dtype)
    scalar = np.array(3, dtype)
    cases = [Case(op, [a, b]) for op in ("Add", "Sub", "Mul", "Equal", "Less", "LessOrEqual", "Greater")]
    cases += [Case("GreaterOrEqual", [b, a]), Case("Add", [a, scalar], constants=frozenset({1}))]
    cases += [Case("Max", [a, b, c]), Case("Min", [a, b, c]), Case("Where", [a > b, a, c])]
    cases += [Case("Clip", [a, np.array(2, dtype), np.array(9, dtype)]), Case("Clip", [a, None, np.array(9, dtype)])]
    cases += [Case("Mod", [a, divisor], {"fmod": 1})]
    if np.dtype(dtype).kind == "f":
        cases += [Case("Div", [a, divisor]), Case("Sum", [a, b, c]), Case("Mean", [a, b, c]), Case("PRelu", [a, b])]
        cases += [Case("Pow", [np.abs(a), c]), *(Case("Pow", [a, np.array(e)]) for e in (2, 3, 4, 0, -1))]
    else:
        cases += [Case("Mod", [a, divisor])]
    check(cases)


def test_integer_division_truncates_and_never_traps() -> None:
    a = np.array([7, -7, 7, -7, -(2**31), 5] * 5, np.int32)
    b = np.array([2, 2, -2, -2, -1, 0] * 5, np.int32)
    (got,) = run_op("Div", [a, b])
    assert got[:5].tolist() == [3, -3, -3, 3, -(2**31)]
    (got,) = run_op("Mod", [a, b])
    assert got[:5].tolist() == [1, 1, -1, -1, 0]


def test_logic_and_bits() -> None:
    rng = np.random.default_rng(SEED + 2)
    p, q = numbers(rng, bool), numbers(rng, bool, (21,))
    cases = [Case(op, [p, q]) for op in ("And", "Or", "Xor", "Equal")] + [Case("Not", [p])]
    for dtype in (*SIGNED, *UNSIGNED):
        a, b = numbers(rng, dtype), numbers(rng, dtype)
        cases += [Case(op, [a, b]) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")] + [Case("BitwiseNot", [a])]
    for dtype in UNSIGNED:
        a, by = numbers(rng, dtype), rng.integers(0, np.dtype(dtype).itemsize * 8, (3, 4, 21)).astype(dtype)
        cases += [Case("BitShift", [a, by], {"direction": d}) for d in ("LEFT", "RIGHT")]
    check(cases)


def test_not_numbers() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0] * 5, np.float32)
    y = np.array([1.0, np.nan, 2.0] * 12, np.float32)[:35]
    signs = [{"detect_negative": n, "detect_positive": p} for n in (0, 1) for p in (0, 1)]
    cases = [Case("IsNaN", [x]), *(Case("IsInf", [x], attrs) for attrs in signs)]
    cases += [Case(op, [x, y]) for op in ("Max", "Min", "Equal", "Less", "Greater")]
    names = "Relu Abs Neg Sqrt Exp Sigmoid Tanh Erf Floor Sign Softplus Sin Cos Log Mish Gelu Elu Selu LeakyRelu"
    with np.errstate(all="ignore"):
        for op in names.split():
            (got,), (expected,) = run_op(op, [x]), Case(op, [x]).expected()
            if op in ("Mish", "Gelu"):  # inf - inf in the definition is no contract
                keep = np.isfinite(x)
                got, expected = got[keep], expected[keep]
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-37, err_msg=op)
        check(cases)


CASTS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, *SIGNED, *UNSIGNED, np.bool_)


@pytest.mark.parametrize("source", CASTS)
def test_cast(source: Any) -> None:
    rng = np.random.default_rng(SEED + 3)
    x = np.append(numbers(rng, np.float32, (37,), 30), [0, 1]).astype(np.float32)
    if np.dtype(source).kind == "u":
        x = np.abs(x)
    x = x.astype(source)
    kinds = [c for c in CASTS if np.dtype(c).kind != "u" or not np.any(x.astype(np.float32) < 0)]
    check([Case("CastLike", [x, np.zeros(1, c)]) for c in kinds], rtol=0)


def test_double_to_half_rounds_once() -> None:
    x = np.array([1 + 2**-11 + 2**-40, 1 + 2**-11, 1 + 2**-11 - 2**-40, -(1 + 2**-11 + 2**-40), 65520.0, 1e-8, 3e-8])
    for dtype in (np.float16, ml_dtypes.bfloat16):
        (got,) = run_op("CastLike", [x, np.zeros(1, dtype)])
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(got, x.astype(dtype))


@pytest.mark.parametrize("dtype", (np.uint8, np.int8, np.uint16, np.int16))
def test_quantisation(dtype: Any) -> None:
    rng = np.random.default_rng(SEED + 4)
    x = numbers(rng, np.float32, (2, 5, 3, 7), 40)
    zero, zeros = np.array(3, dtype), np.arange(5).astype(dtype)
    scale, scales = np.float32(0.37), rng.uniform(0.1, 1, 5).astype(np.float32)
    q = numbers(rng, dtype, (2, 5, 3, 7))
    check(
        [
            Case("QuantizeLinear", [x, np.array(scale), zero]), Case("QuantizeLinear", [x, scales, zeros], {"axis": 1}),
            Case("DequantizeLinear", [q, np.array(scale), zero]), Case("DequantizeLinear", [q, np.array(scale)]),
            Case("DequantizeLinear", [q, scales, zeros], {"axis": -3}, frozenset({1, 2})),
        ],
        rtol=1e-6,
    )  # fmt: skip


def test_blocked_quantisation() -> None:
    rng = np.random.default_rng(SEED + 5)
    q, scale = numbers(rng, np.int8, (4, 6)), rng.uniform(0.1, 1, (4, 3)).astype(np.float32)
    attrs, zero = {"axis": 1, "block_size": 2}, numbers(rng, np.int8, (4, 3))
    for constants in (frozenset[int](), frozenset({1, 2})):
        check([Case("DequantizeLinear", [q, scale, zero], attrs, constants)], rtol=1e-6)


SHAPES: list[list[tuple[int, ...]]] = [
    [(), ()], [(1,), (1, 1)], [(7,), ()], [(100, 1), (1, 33)], [(2, 3, 4, 5), (3, 1, 5)], [(64,), (3, 1, 64)],
    [(5, 1, 3), (1, 70, 1)], [(0, 3), (3,)], [(2, 1, 9, 1, 3), (4, 1, 2, 1)],
]  # fmt: skip


@pytest.mark.parametrize("target", ("native", "x86-64"))
def test_broadcasts(target: str) -> None:
    rng = np.random.default_rng(SEED + 6)
    pairs = [[numbers(rng, np.float32, s) for s in shapes] for shapes in SHAPES]
    for (a, b), (got,) in zip(pairs, run_ops([Case("Sub", p) for p in pairs], target=target), strict=True):
        np.testing.assert_array_equal(got, a - b, err_msg=f"{a.shape} {b.shape}")


@pytest.mark.parametrize("block", (4, 8, 16))
@pytest.mark.parametrize("channels", (16, 21))
def test_blocked_layout(block: int, channels: int) -> None:
    rng = np.random.default_rng(SEED + 7)
    x = numbers(rng, np.float32, (2, channels, 3, 5))
    for shape in ((2, channels, 3, 5), (channels, 1, 1), (2, channels, 1, 1), (), (1, 1, 3, 5)):
        for constants in (frozenset[int](), frozenset({1})):
            y = numbers(rng, np.float32, shape)
            graph = in_blocks(Case("Mul", [x, y], constants=constants), block)
            (got,) = run_graph(graph, [x] if constants else [x, y])
            np.testing.assert_array_equal(got, x * y, err_msg=f"{shape} {constants}")


def chain(arrays: list[Any]) -> Iterator[tuple[Graph, Any]]:
    """sigmoid(x + b) * c as a group, for broadcast operands."""
    x, b, c = arrays
    values = [Value(n, Case("Abs", [a]).node().output.type) for n, a in zip("xbc", arrays, strict=True)]
    total = Node("Add", (values[0], values[1]), (Value("s", values[0].type),))
    gate = Node("Sigmoid", (total.output,), (Value("g", values[0].type),))
    product = Node("Mul", (gate.output, values[2]), (Value("p", values[0].type),))
    yield fused([total, gate, product], values), 1 / (1 + np.exp(-(x + b).astype(np.float64))) * c


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("shape", ((33,), (3, 1000), (40, 50, 30), (2, 30001)))
def test_groups(shape: tuple[int, ...], threads: int) -> None:
    rng = np.random.default_rng(SEED + 8)
    arrays = [numbers(rng, np.float32, s) for s in (shape, shape[-1:], shape)]
    for graph, expected in chain(arrays):
        (got,) = run_graph(graph, arrays, threads=threads)
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6)
