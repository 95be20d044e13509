"""Levels of 16 bits in integers: where a Clip bounds them, with exact sums, the same on every target."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import c2c
from c2c.codegen.target import Target
from c2c.compiler.onnx_import import import_model
from c2c.compiler.pipeline import pipeline
from c2c.passes.base import PassContext, run_pipeline

Array = np.ndarray[Any, Any]
SHAPE = (1, 16, 9, 10)
WIDE = 4095


class Network:
    """Convolutions in QDQ form, in the making; each method returns the name of its result."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(4)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"c{len(self.constants)}"))
        return str(self.constants[-1].name)

    def node(self, op: str, inputs: list[str], **attrs: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"n{len(self.nodes)}"], **attrs))
        return str(self.nodes[-1].output[0])

    def narrow(self, x: str, reach: float) -> str:
        return self._levels(x, np.float32(2 * reach / 255), np.uint8(128))

    def wide(self, x: str, reach: float, *, bounded: bool = True, moved: bool = False) -> str:
        """Levels 0 to 4095 around 2048 that span -reach to reach."""
        step, zero = np.float32(2 * reach / WIDE), 2048
        if bounded and not moved:
            ends = [self.constant(np.float32(step * e)) for e in (-zero, WIDE - zero)]
            x = self.node("Clip", [x, *ends])
        return self._levels(x, step, np.uint16(zero))

    def _levels(self, x: str, step: np.float32, zero: Any) -> str:
        scale = [self.constant(step), self.constant(zero)]
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [x, *scale]), *scale])

    def conv(self, x: str, most: int, maps: int, kernel: int, group: int = 1) -> str:
        w = self.rng.integers(-most, most + 1, (maps, 16 // group, kernel, kernel))
        w = w.astype(np.int8 if most < 128 else np.int16)
        steps = self.rng.uniform(0.4, 0.8, maps) / (most * kernel * np.sqrt(16 / group))
        names = [self.constant(a) for a in (w, steps.astype(np.float32), np.zeros(maps, w.dtype))]
        bias = self.constant(self.rng.normal(size=maps).astype(np.float32))
        levels = self.node("DequantizeLinear", names, axis=0)
        return self.node("Conv", [x, levels, bias], pads=[kernel // 2] * 4, group=group)

    def model(self, result: str) -> onnx.ModelProto:
        ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)]
        out = [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "g", ends, out, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def mixed() -> onnx.ModelProto:
    """Wide and narrow tensors and weights, a depthwise layer, a sum of both widths, a Concat, a mean and a product."""
    net = Network()
    x = net.wide("x", 4)
    a = net.wide(net.node("Relu", [net.conv(x, 127, 16, 3)]), 4)
    b = net.narrow(net.conv(a, 300, 16, 3, group=16), 4)
    c = net.wide(net.conv(b, 2000, 16, 1), 4)
    d = net.wide(net.node("Add", [c, a]), 6)
    both = net.wide(net.node("Concat", [d, net.wide(net.conv(d, 2000, 16, 1), 6)], axis=1), 6, moved=True)
    mean = net.node("GlobalAveragePool", [both])
    return net.model(net.wide(net.node("Flatten", [mean]), 2))


def operators(model: onnx.ModelProto, target: str = "x86-64-v3") -> list[str]:
    graph = import_model(model.SerializeToString())
    run_pipeline(graph, pipeline(2), PassContext(Target.parse(target)))
    return [m.op for n in graph.nodes for m in (n.attrs["body"].nodes if "body" in n.attrs else [n])]


def test_wide_levels_are_computed_in_integers_and_close_to_their_floats() -> None:
    model = mixed()
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    targets = ("native", "x86-64", "x86-64-v3", "x86-64-v4", "x86-64-v4+avx512vnni")
    found = [c2c.compile(model, target=t).run({"x": x}) for t in targets if Target.parse(t).runs_here]
    (first, *others) = [next(iter(f.values())) for f in found]
    assert all(np.array_equal(first, o) for o in others)
    assert np.unique(want).size > 20 and np.abs(first - want).max() <= 2 * 4 / WIDE
    for target in ("x86-64-v3", "x86-64-v4+avx512vnni", "arm64-neon", "arm64-dotprod"):
        ops = operators(model, target)
        assert ops.count("c2c.IntegerConv") == 4 and "Conv" not in ops, target


def test_sums_stay_whole_at_their_bounds() -> None:
    """Largest levels times largest weights: sums of 31 bits, which no float of 24 holds."""
    net = Network()
    x = net.wide("x", 4)
    w = np.full((16, 16, 1, 1), 32767, np.int16)
    w[:, 0, 0, 0] -= np.arange(16, dtype=np.int16)
    w[::2] *= -1
    step = np.full(16, 2.0**-30, np.float32)
    levels = net.node(
        "DequantizeLinear", [net.constant(w), net.constant(step), net.constant(np.zeros(16, np.int16))], axis=0
    )
    model = net.model(net.node("Conv", [x, levels]))
    assert "c2c.IntegerConv" in operators(model)
    (got,) = c2c.compile(model).run({"x": np.full(SHAPE, -8, np.float32)}).values()
    sums = w.astype(np.int64).sum((1, 2, 3)) * -2048
    want = sums.astype(np.float32) * (np.float32(8 / WIDE) * step)
    np.testing.assert_array_equal(got[0, :, 0, 0], want)


@pytest.mark.parametrize(
    ("most", "kernel", "group", "bounded"), [(127, 3, 1, False), (32767, 3, 1, True), (9000, 3, 16, True)]
)
def test_what_might_leave_its_sums_stays_in_floats(most: int, kernel: int, group: int, bounded: bool) -> None:
    net = Network()
    model = net.model(net.conv(net.wide("x", 4, bounded=bounded), most, 16, kernel, group))
    ops = operators(model)
    assert "Conv" in ops or "c2c.WinogradConv" in ops
    assert "c2c.IntegerConv" not in ops
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    (got,) = c2c.compile(model, winograd_error=0.0).run({"x": x}).values()
    np.testing.assert_allclose(got, np.asarray(want), atol=2e-3)
