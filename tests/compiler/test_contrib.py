"""Operators of com.microsoft that quantisers write, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import c2c
from c2c.compiler.onnx_contrib import DOMAIN
from c2c.compiler.onnx_import import import_model
from c2c.ir.errors import UnsupportedOpError

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(5)


def u8(*shape: int) -> Array:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def i8(*shape: int) -> Array:
    return RNG.integers(-127, 128, shape).astype(np.int8)


def f32(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def step(value: float) -> Array:
    return np.asarray(value, np.float32)


def zero(value: int, dtype: type = np.uint8) -> Array:
    return np.asarray(value, dtype)


def model(op: str, inputs: list[Array | None], attrs: dict[str, Any], fed: int, results: list[int]) -> onnx.ModelProto:
    """One node whose first `fed` inputs are given at run time; `results`: element types."""
    names = ["" if a is None else f"i{k}" for k, a in enumerate(inputs)]
    outputs = [f"o{k}" for k in range(len(results))]
    given = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names[:fed], inputs[:fed], strict=True)
        if a is not None
    ]
    constants = [numpy_helper.from_array(a, n) for n, a in zip(names, inputs, strict=True) if a is not None]
    infos = [helper.make_tensor_value_info(n, t, None) for n, t in zip(outputs, results, strict=True)]
    node = helper.make_node(op, names, outputs, domain=DOMAIN, **attrs)
    graph = helper.make_graph([node], "g", given, infos, [c for c in constants if c.name not in names[:fed]])
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


A, B, Y = (step(0.03), zero(120)), (step(0.05), zero(7)), (step(0.08), zero(100))
CASES: list[tuple[str, list[Array | None], dict[str, Any], int, list[int], float]] = [
    ("QLinearAdd", [u8(2, 5, 7), *A, u8(2, 5, 7), *B, *Y], {}, 4, [TensorProto.UINT8], 1),
    ("QLinearAdd", [i8(2, 9), step(0.02), zero(3, np.int8), i8(9), step(0.1), zero(0, np.int8), step(0.1),
     zero(-4, np.int8)], {}, 1, [TensorProto.INT8], 1),
    ("QLinearMul", [u8(2, 5, 7), *A, u8(7), *B, *Y], {}, 1, [TensorProto.UINT8], 1),
    ("QLinearSigmoid", [u8(3, 17), *A, step(1 / 256), zero(0)], {}, 1, [TensorProto.UINT8], 1),
    ("QLinearLeakyRelu", [u8(3, 17), *A, *Y], {"alpha": 0.2}, 1, [TensorProto.UINT8], 1),
    ("QLinearGlobalAveragePool", [u8(1, 5, 7, 7), *A, *B], {}, 1, [TensorProto.UINT8], 1),
    ("QLinearAveragePool", [u8(1, 5, 8, 8), *A, *B], {"kernel_shape": [2, 2], "strides": [2, 2]}, 1,
     [TensorProto.UINT8], 1),
    ("QLinearConcat", [*Y, u8(2, 3), *A, u8(2, 4), *B], {"axis": 1}, 3, [TensorProto.UINT8], 1),
    ("QGemm", [u8(5, 33), *A, i8(20, 33), step(0.01), zero(0, np.int8), np.arange(20, dtype=np.int32), *Y],
     {"transB": 1}, 1, [TensorProto.UINT8], 0),
    ("QGemm", [u8(5, 33), *A, i8(33, 20), step(0.01), zero(0, np.int8)], {"alpha": 0.5}, 1, [TensorProto.FLOAT], 1e-4),
    ("MatMulIntegerToFloat", [u8(5, 33), i8(33, 20), step(0.1), step(0.01), zero(9), None, f32(20)], {}, 1,
     [TensorProto.FLOAT], 1e-4),
    ("DynamicQuantizeMatMul", [f32(5, 33), i8(33, 20), step(0.01), None, f32(20)], {}, 1, [TensorProto.FLOAT], 1e-4),
    ("MatMulNBits", [f32(1, 70), u8(24, 3, 16), f32(24 * 3)], {"K": 70, "N": 24, "bits": 4, "block_size": 32}, 1,
     [TensorProto.FLOAT], 1e-3),
    ("MatMulNBits", [f32(3, 64), u8(24, 2, 16), f32(24 * 2), u8(24)], {"K": 64, "N": 24, "bits": 4, "block_size": 32},
     1, [TensorProto.FLOAT], 1e-3),
    ("MatMulNBits", [f32(2, 64), u8(40, 4, 16), f32(40 * 4)], {"K": 64, "N": 40, "bits": 8, "block_size": 16}, 1,
     [TensorProto.FLOAT], 1e-1),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(CASES)))
def test_operators(case: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    op, inputs, attrs, fed, results, tolerance = CASES[case]
    proto = model(op, inputs, attrs, fed, results)
    constant = {3, 6} if op == "QLinearConcat" else set()
    feeds = {f"i{k}": a for k, a in enumerate(inputs[:fed]) if a is not None and k not in constant}
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, feeds)
    (got,) = c2c.compile(proto).run(feeds).values()
    assert got.dtype == want.dtype and got.shape == want.shape
    assert np.unique(want).size > 3
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), atol=tolerance)


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("levels", [np.int8, np.uint8])
def test_weights_alone(op: str, block: int, levels: type) -> None:
    """Products of few rows expand what DequantizeLinear makes of constants; others read what was expanded before."""
    for rows, k, n, most in ((1, 64, 40, 7), (3, 48, 9, 127), (20, 32, 24, 7)):
        least = -most if levels is np.int8 else 0
        w: Array = RNG.integers(least, most + 1, (k, n)).astype(levels)
        scales = RNG.uniform(0.1, 1, (k // block, n) if block else n).astype(np.float32)
        zeros: Array = RNG.integers(0, 5, scales.shape).astype(levels)
        across = op == "Gemm"
        stored = [np.ascontiguousarray(a.T) if across and a.ndim > 1 else a for a in (w, scales, zeros)]
        axis = (1 if across else 0) if block else (0 if across else 1)
        constants = [numpy_helper.from_array(a, c) for a, c in zip([*stored, f32(n)], "wszb", strict=True)]
        attrs: dict[str, Any] = {"block_size": block} if block else {}
        nodes = [helper.make_node("DequantizeLinear", list("wsz"), ["d"], axis=axis, **attrs)]
        nodes.append(
            helper.make_node("Gemm", ["x", "d", "b"], ["y"], transB=1)
            if across
            else helper.make_node("MatMul", ["x", "d"], ["y"])
        )
        info = [helper.make_tensor_value_info(v, TensorProto.FLOAT, s) for v, s in (("x", [rows, k]), ("y", None))]
        graph = helper.make_graph(nodes, "g", info[:1], info[1:], constants)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        x = f32(rows, k)
        steps = np.repeat(scales, block, 0) if block else scales
        offset = np.repeat(zeros, block, 0) if block else zeros
        want = x @ ((w.astype(np.float32) - offset) * steps) + (numpy_helper.to_array(constants[3]) if across else 0)
        compiled = c2c.compile(proto)
        (got,) = compiled.run({"x": x}).values()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3 * np.abs(want).max())
        expanded = any("block_product" in c.kernel.name for c in compiled.compiled.calls)
        assert expanded == (rows <= 8)


def dynamic_lstm(x: Array, *, zeros: int = 0, biased: bool = True, lengths: bool = False) -> list[Array | None]:
    """Operands of a bidirectional DynamicQuantizeLSTM of 8 inputs and 16 units."""
    hidden = 16
    given: list[Array | None] = [np.full(2, 0.004, np.float32), np.full(2, zeros, np.int8)]
    weights = [i8(2, 8, 4 * hidden), i8(2, hidden, 4 * hidden)]
    if zeros:
        weights = [np.clip(w, zeros - 100, zeros + 100) for w in weights]
    bias, count = f32(2, 8 * hidden) if biased else None, np.array([4], np.int32) if lengths else None
    return [x, *weights, bias, count, None, None, None, *given, *given]


@pytest.mark.parametrize("options", [{}, {"zeros": 20}, {"biased": False}, {"lengths": True}])
def test_a_dynamically_quantised_lstm(options: dict[str, Any]) -> None:
    """With lengths onnxruntime takes the range of the inputs from those steps that some sequence has."""
    onnxruntime = pytest.importorskip("onnxruntime")
    x = f32(6, 1, 8)
    inputs = dynamic_lstm(x, **options)
    attrs = {"direction": "bidirectional", "hidden_size": 16}
    proto = model("DynamicQuantizeLSTM", inputs, attrs, 1, [TensorProto.FLOAT] * 3)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    compiled = c2c.compile(proto)
    assert any(n.op == "c2c.DynamicLSTM" for n in compiled.compiled.graph.nodes)
    found = compiled.run({"i0": x}).values()
    for got, want in zip(found, session.run(None, {"i0": x}), strict=True):
        assert np.abs(want).max() > 0.3
        np.testing.assert_allclose(got, want, atol=0.03 if "lengths" in options else 1e-4)


def test_a_dynamically_quantised_lstm_with_options_is_near() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    x = f32(6, 1, 8)
    inputs = dynamic_lstm(x)
    attrs = {"direction": "bidirectional", "hidden_size": 16, "clip": 2.0}
    proto = model("DynamicQuantizeLSTM", inputs, attrs, 1, [TensorProto.FLOAT])
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"i0": x})
    (got,) = c2c.compile(proto).run({"i0": x}).values()
    np.testing.assert_allclose(got, want, atol=0.03)


def test_unknown_operators_are_refused_by_name() -> None:
    proto = model("QAttention", [f32(2, 3)], {}, 1, [TensorProto.FLOAT])
    with pytest.raises(UnsupportedOpError, match=r"com\.microsoft\.QAttention"):
        import_model(proto.SerializeToString())
