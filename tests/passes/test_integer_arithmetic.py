"""Quantised networks in integers: exact where ONNX is, no tensors of floats between convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import c2c
from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.onnx_import import import_model
from c2c.compiler.options import CompileOptions
from c2c.compiler.pipeline import pipeline
from c2c.ir.graph import Graph
from c2c.ir.types import DType
from c2c.passes.base import PassContext, run_pipeline

Array = np.ndarray[Any, Any]


class Net:
    """A quantised network in the making; each method returns the name of its result."""

    def __init__(self, channels: int, height: int, width: int, levels: Any = np.uint8) -> None:
        self.rng = np.random.default_rng(3)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.channels, self.levels = {"x": channels}, levels
        self.shape = [1, channels, height, width]

    def constant(self, value: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op: str, inputs: list[str], **attrs: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attrs))
        return name

    def scale(self, zero: int) -> list[str]:
        step = np.float32(self.rng.uniform(0.02, 0.05))
        return [self.constant(np.asarray(step)), self.constant(np.asarray(zero, self.levels))]

    def weights(self, maps: int, channels: int, kernel: int) -> Array:
        return self.rng.integers(-127, 128, (maps, channels, kernel, kernel)).astype(np.int8)

    def quantized_conv(self, x: str, scale: list[str], maps: int, kernel: int, group: int = 1, **attrs: Any) -> Any:
        """QLinearConv with a scale for each channel and a bias: (result, its scale)."""
        channels = self.channels[x]
        w = self.weights(maps, channels // group, kernel)
        steps = self.rng.uniform(0.001, 0.02, maps).astype(np.float32)
        bias = self.rng.integers(-3000, 3000, maps).astype(np.int32)
        out = [self.constant(np.array(0.05 * np.sqrt(channels // group) * kernel, np.float32)), self.scale(101)[1]]
        names = [self.constant(a) for a in (w, steps, np.zeros(maps, np.int8), bias)]
        y = self.node("QLinearConv", [x, *scale, *names[:3], *out, names[3]], group=group, **attrs)
        self.channels[y] = maps
        return y, out

    def model(self, outputs: list[str], type_: int = TensorProto.UINT8) -> onnx.ModelProto:
        source = helper.make_tensor_value_info("x", type_, self.shape)
        results = [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in outputs]
        graph = helper.make_graph(self.nodes, "g", [source], results, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(model: onnx.ModelProto, x: Array, **options: Any) -> list[Array]:
    return list(c2c.compile(model.SerializeToString(), **options).run({"x": x}).values())


@pytest.mark.parametrize("options", [{"target": "native"}, {"target": "x86-64"}, {"threads": 2}, {"level": 1}])
def test_qlinear_convolutions_are_exact(options: dict[str, Any]) -> None:
    net = Net(3, 13, 11)
    scale = net.scale(130)
    a, a_scale = net.quantized_conv("x", scale, 20, 3, pads=[1, 1, 1, 1], strides=[2, 2])
    b, b_scale = net.quantized_conv(a, a_scale, 32, 1)
    c, c_scale = net.quantized_conv(b, b_scale, 32, 3, group=32, pads=[1, 1, 1, 1])
    d, d_scale = net.quantized_conv(c, c_scale, 24, 3, group=2, pads=[0, 1, 1, 0], dilations=[1, 2])
    pooled = net.node("MaxPool", [d], kernel_shape=[2, 2])
    net.channels[pooled] = 24
    e, _ = net.quantized_conv(pooled, d_scale, 17, 3, pads=[1, 1, 1, 1])
    model = net.model([a, b, c, d, e])
    x = np.random.default_rng(1).integers(0, 256, net.shape).astype(np.uint8)
    expected = ReferenceEvaluator(model).run(None, {"x": x})
    for got, want in zip(run(model, x, **options), expected, strict=True):
        assert got.dtype == np.uint8 and np.unique(want).size > 20
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("zeros", [None, "channels", "one"])
@pytest.mark.parametrize("options", [{"target": "native"}, {"target": "x86-64-v3"}, {"target": "x86-64"}])
def test_dynamic_convolutions_are_exact(zeros: str | None, options: dict[str, Any]) -> None:
    """ConvInteger of levels whose zero point comes at run time, as onnxruntime's quantize_dynamic writes them."""
    net = Net(13, 9, 11)
    levels, scale, zero = (f"dynamic{i}" for i in range(3))
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], [levels, scale, zero]))
    w = net.weights(40, 13, 3)
    inputs = [levels, net.constant(w), zero]
    if zeros:
        inputs.append(net.constant(net.rng.integers(-60, 60, 40 if zeros == "channels" else ()).astype(np.int8)))
    sums = net.node("Cast", [net.node("ConvInteger", inputs, pads=[1, 0, 1, 1], strides=[1, 2])], to=TensorProto.FLOAT)
    y = net.node("Relu", [net.node("Mul", [sums, scale])])
    model = net.model([y], TensorProto.FLOAT)
    x = np.random.default_rng(1).normal(0.3, 1, net.shape).astype(np.float32)
    loaded = c2c.compile(model.SerializeToString(), **options)
    nodes = [m for n in loaded.compiled.graph.nodes for m in (n, *n.attrs.get("body", loaded.compiled.graph).nodes)]
    assert {"c2c.IntegerConv"} == {n.op for n in nodes if "Conv" in n.op}
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    (got,) = loaded.run({"x": x}).values()
    np.testing.assert_allclose(got, np.asarray(want), rtol=1e-6)


def residual_net() -> tuple[Net, str]:
    """A block with a shortcut through a convolution, in QDQ form, with Relu and Clip, on 13 channels."""
    net = Net(13, 9, 10)

    def quantize(x: str, zero: int) -> str:
        scale = net.scale(zero)
        return net.node("DequantizeLinear", [net.node("QuantizeLinear", [x, *scale]), *scale])

    def conv(x: str, channels: int, maps: int, kernel: int) -> str:
        w, steps = net.weights(maps, channels, kernel), net.rng.uniform(0.0001, 0.0004, maps).astype(np.float32)
        zero = net.constant(np.zeros(maps, np.int8))
        levels = net.node("DequantizeLinear", [net.constant(w), net.constant(steps), zero], axis=0)
        bias = net.constant(net.rng.normal(size=maps).astype(np.float32))
        return net.node("Conv", [x, levels, bias], pads=[kernel // 2] * 4)

    x = quantize("x", 120)
    a = quantize(net.node("Relu", [conv(x, 13, 24, 3)]), 0)
    b = quantize(conv(a, 24, 24, 3), 128)
    c = quantize(conv(x, 13, 24, 1), 110)
    d = quantize(net.node("Relu", [net.node("Add", [b, c])]), 5)
    ends = [net.constant(np.array(v, np.float32)) for v in (0.0, 2.0)]
    e = quantize(net.node("Clip", [conv(d, 24, 16, 1), *ends]), 0)
    both = quantize(net.node("Concat", [e, d], axis=1), 0)
    mean = quantize(net.node("GlobalAveragePool", [both]), 0)
    return net, quantize(net.node("Flatten", [conv(mean, 40, 10, 1)]), 100)


def test_residual_blocks_are_close_to_their_floats() -> None:
    net, result = residual_net()
    model = net.model([result], TensorProto.FLOAT)
    x = np.random.default_rng(1).normal(size=net.shape).astype(np.float32)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    for options in ({"target": "native"}, {"target": "x86-64"}, {"threads": 2}):
        (got,) = run(model, x, **options)
        assert np.abs(got - want).max() <= 0.06, options  # a level or two of the last tensor


def optimised(model: onnx.ModelProto, target: str) -> Graph:
    graph = import_model(model.SerializeToString())
    run_pipeline(graph, pipeline(2), PassContext(Target.parse(target)))
    return graph


def test_a_sum_of_a_convolution_and_levels_is_not_divided() -> None:
    net = Net(16, 7, 7)

    def quantize(x: str, zero: int) -> str:
        scale = net.scale(zero)
        return net.node("DequantizeLinear", [net.node("QuantizeLinear", [x, *scale]), *scale])

    x = quantize("x", 120)
    w, steps = net.weights(16, 16, 1), net.rng.uniform(0.0002, 0.0008, 16).astype(np.float32)
    names = [net.constant(a) for a in (w, steps, np.zeros(16, np.int8), net.rng.normal(size=16).astype(np.float32))]
    levels = net.node("DequantizeLinear", names[:3], axis=0)
    y = net.node("Add", [x, net.node("Conv", [x, levels, names[3]])])
    model = net.model([quantize(net.node("Relu", [y]), 0)], TensorProto.FLOAT)
    ops = [
        m.op for n in optimised(model, "x86-64-v3").nodes for m in (n.attrs["body"].nodes if "body" in n.attrs else [n])
    ]
    assert "c2c.IntegerConv" in ops and ops.count("Div") == 1  # of the network's own input
    feed = np.random.default_rng(1).normal(size=net.shape).astype(np.float32)
    (want,) = ReferenceEvaluator(model).run(None, {"x": feed})
    for options in ({"target": "native"}, {"target": "x86-64"}):
        (got,) = run(model, feed, **options)
        assert np.abs(got - want).max() <= 0.06, options  # a level or two of the last tensor


def test_tensors_between_convolutions_are_integers() -> None:
    net, result = residual_net()
    graph = optimised(net.model([result], TensorProto.FLOAT), "x86-64-v3")
    mean = 40  # channels of what the mean reads: whole numbers in f32
    large = [
        v for n in graph.nodes for v in n.outputs if v.type.rank == 4 and v.type.size > 64 and v.type.dims[1] != mean
    ]
    assert len(large) >= 5
    assert [str(v.type) for v in large if v.type.dtype not in (DType.I16, DType.U8)] == []
    bodies = [n.attrs["body"].nodes for n in graph.nodes if n.op == "c2c.Fused"]
    assert sum(any(m.op == "c2c.IntegerConv" for m in body) for body in bodies) >= 5
    assert not any(m.op == "Div" for body in bodies[1:] for m in body)


def test_targets_agree(tmp_path: Any) -> None:
    net, result = residual_net()
    model = net.model([result], TensorProto.FLOAT)
    x = np.random.default_rng(2).normal(size=net.shape).astype(np.float32)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    targets = ("x86-64", "x86-64-v3", "x86-64-v4", "x86-64-v4+avx512vnni")
    found = [run(model, x, target=t)[0] for t in targets if Target.parse(t).runs_here]
    assert all(np.array_equal(f, found[0]) for f in found)
    for target in ("arm64-neon", "arm64-dotprod", "x86-64-v4+avx512vnni"):
        assert compile_file(path, CompileOptions(Target.parse(target), name="m")).program.steps


def products_net() -> tuple[Net, str]:
    """Rows through two products in QDQ form, per column and per tensor, with a residual beside the second."""
    net = Net(1, 1, 1)
    net.shape = [2, 7, 33]

    def quantize(x: str, zero: int) -> str:
        scale = net.scale(zero)
        return net.node("DequantizeLinear", [net.node("QuantizeLinear", [x, *scale]), *scale])

    def weights(rows: int, columns: int, single: bool) -> str:
        w = net.rng.integers(-127, 128, (rows, columns)).astype(np.int8)
        steps = net.rng.uniform(0.0005, 0.001, () if single else columns).astype(np.float32)
        zero = net.constant(np.zeros(steps.shape, np.int8))
        return net.node("DequantizeLinear", [net.constant(w), net.constant(steps), zero], axis=1)

    x = quantize("x", 120)
    bias = net.constant(net.rng.normal(size=33).astype(np.float32))
    y = net.node("Add", [net.node("MatMul", [x, weights(33, 33, False)]), bias])
    y = quantize(net.node("Relu", [y]), 10)
    z = quantize(net.node("MatMul", [y, weights(33, 33, True)]), 128)
    return net, quantize(net.node("Add", [z, x]), 128)


def test_products_of_rows_are_of_integers() -> None:
    net, result = products_net()
    model = net.model([result], TensorProto.FLOAT)
    x = np.random.default_rng(1).normal(size=net.shape).astype(np.float32)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    targets = ("native", "x86-64-v3", "x86-64")
    found = [run(model, x, target=t)[0] for t in targets if Target.parse(t).runs_here]
    assert all(np.array_equal(f, found[0]) for f in found)
    assert np.unique(want).size > 20 and np.abs(found[0] - want).max() <= 0.06
    bodies = [n.attrs["body"].nodes for n in optimised(model, "x86-64-v3").nodes if n.op == "c2c.Fused"]
    narrow = [b[-1].output.type.dtype for b in bodies if b[0].op == "MatMulInteger"]
    assert len(narrow) == 2 and narrow[0] in (DType.U8, DType.I16)
