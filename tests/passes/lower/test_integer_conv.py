"""c2c.IntegerConv: each form gives the exact sums, on ragged images and channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import c2c
from c2c.codegen.target import Target
from c2c.compiler.api import from_compiled
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_as_program
from c2c.ir.types import DType
from c2c.passes.lower import conv_pairs, integer_conv, winograd_integer
from c2c.tests.passes.test_integer_arithmetic import Net, run


@pytest.mark.parametrize(("form", "transform"), [("F4", -1e9), ("direct", 1e9)])
@pytest.mark.parametrize("target", ["x86-64-v4+avx512vnni", "x86-64-v3", "x86-64"])
@pytest.mark.parametrize("shape", [(13, 9, 5, 7), (24, 40, 13, 10), (8, 16, 4, 4), (35, 21, 9, 18)])
def test_forms_are_exact(
    shape: tuple[int, int, int, int], target: str, form: str, transform: float, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    monkeypatch.setattr(integer_conv, "TRANSFORM", transform)
    channels, maps, height, width = shape
    if form == "F4" and min(channels, maps) < Target.parse(target).lanes(DType.I32):
        pytest.skip("channels do not fill a vector")
    net = Net(channels, height, width)
    y, _ = net.quantized_conv("x", net.scale(77), maps, 3, pads=[1, 1, 0, 1])
    model = net.model([y])
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    compiled = compile_file(path, CompileOptions(Target.parse(target), name="m"))
    chosen = [c.name for call in compiled.calls for c in call.choices if c.family == "integer-conv"]
    assert set(chosen) == {form}
    x = np.random.default_rng(4).choice(np.array([0, 255, 3, 200], np.uint8), net.shape)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    (got,) = from_compiled(compiled).run({"x": x}).values()
    np.testing.assert_array_equal(got, want)


def hostile(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Levels whose sums just fit, do so nearly everywhere, half of the time, or nowhere."""
    rng = np.random.default_rng(6)
    small = rng.integers(0, 65, shape)
    few = np.where(rng.random(shape) < {"rare": 0.002, "often": 0.05}.get(kind, 0), 255, small)
    made = {"edge": np.full(shape, 64), "pairs": np.full(shape, 128), "all": np.full(shape, 255)}
    return made.get(kind, few).astype(np.uint8)


@pytest.mark.parametrize("target", ["x86-64-v4", "x86-64-v3", "x86-64+ssse3"])
@pytest.mark.parametrize("shape", [(16, 16, 5, 7), (21, 40, 6, 5), (130, 9, 3, 5), (64, 100, 9, 9)])
@pytest.mark.parametrize("threads", [1, 2])
def test_products_of_bytes_never_saturate(
    shape: tuple[int, int, int, int], target: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    monkeypatch.setattr(conv_pairs, "SAVED", 9.0)
    channels, maps, height, width = shape
    net = Net(channels, height, width)
    net.shape[0] = 2
    rng = np.random.default_rng(1)
    monkeypatch.setattr(net, "weights", lambda *dims: rng.choice([-128, 127], (*dims, 1)).astype(np.int8))
    y, _ = net.quantized_conv("x", net.scale(0), maps, 1)
    model = net.model([y])
    loaded = c2c.compile(model.SerializeToString(), target=target, threads=threads)
    chosen = [c.name for call in loaded.compiled.calls for c in call.choices if c.family == "integer-conv"]
    assert set(chosen) == {"pairs"}
    for kind in ("edge", "pairs", "rare", "often", "all"):
        x = hostile(kind, tuple(net.shape))
        (want,) = ReferenceEvaluator(model).run(None, {"x": x})
        np.testing.assert_array_equal(loaded.run({"x": x})[y], want, kind)


@pytest.mark.parametrize(("target", "zero", "form"), [
    ("x86-64-v3", 0, "pairs"), ("x86-64-v3", 9, "direct"), ("x86-64-v4", 0, "pairs"), ("x86-64", 0, "direct"),
    ("x86-64-v4+avx512vnni", 0, "direct"), ("arm64-neon", 0, "direct"),
])  # fmt: skip
def test_bytes_are_added_in_pairs_where_that_pays(target: str, zero: int, form: str, tmp_path: Path) -> None:
    net = Net(256, 14, 14)
    y, _ = net.quantized_conv("x", net.scale(zero), 256, 1)
    path = tmp_path / "m.onnx"
    path.write_bytes(net.model([y]).SerializeToString())
    compiled = compile_file(path, CompileOptions(Target.parse(target), name="m"))
    chosen = [c.name for call in compiled.calls for c in call.choices if c.family == "integer-conv"]
    assert set(chosen) == {form}


@pytest.mark.parametrize(("target", "channels", "form", "said"), [
    ("arm64-neon", 64, "floats", "integers in floats"), ("arm64-neon", 2048, "direct", "floats are thought"),
    ("arm64-dotprod", 2048, "direct", ""), ("x86-64-v3", 64, "direct", ""),
])  # fmt: skip
def test_floats_are_taken_where_they_are_exact(
    target: str, channels: int, form: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integer_conv, "CONVERTED", 1.0)
    net = Net(channels, 14, 14)
    y, _ = net.quantized_conv("x", net.scale(9), 64, 1)
    path = tmp_path / "m.onnx"
    path.write_bytes(net.model([y]).SerializeToString())
    compiled = compile_file(path, CompileOptions(Target.parse(target), name="m"))
    choices = {c for call in compiled.calls for c in call.choices if c.family == "integer-conv"}
    assert {c.name for c in choices} == {form}
    assert all(said in c.reason if said else not c.reason for c in choices)


@pytest.mark.parametrize("shape", [(16, 40, 1, 1), (21, 20, 3, 2), (3, 24, 3, 1), (40, 9, 5, 1)])
@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
def test_floats_are_exact(shape: tuple[int, int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_conv, "CONVERTED", 0.0)
    channels, maps, kernel, stride = shape
    net = Net(channels, 9, 11)
    y, _ = net.quantized_conv("x", net.scale(77), maps, kernel, pads=[kernel // 2] * 4, strides=[stride] * 2)
    model = net.model([y])
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    compiled = compile_file(path, CompileOptions(Target.parse("arm64-neon"), name="m"))
    assert {c.name for call in compiled.calls for c in call.choices if c.family == "integer-conv"} == {"floats"}
    x = np.random.default_rng(4).choice(np.array([0, 255, 3, 200], np.uint8), net.shape)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    (got,) = run_as_program(compiled, {"x": x}).values()
    np.testing.assert_array_equal(got, want)


CASES = [
    # channels, maps, kernel, group, height, width, strides, pads, dilation
    (32, 48, 1, 1, 13, 11, (1, 1), (0, 0, 0, 0), 1),
    (3, 40, 7, 1, 13, 11, (2, 2), (3, 3, 3, 3), 1),
    (24, 40, 3, 1, 2, 3, (1, 1), (1, 1, 1, 1), 1),
    (24, 40, 3, 1, 15, 12, (1, 1), (2, 2, 2, 2), 2),
    (32, 32, 3, 4, 9, 33, (2, 1), (1, 0, 1, 1), 1),
    (37, 37, 3, 37, 15, 33, (1, 1), (1, 1, 1, 1), 1),
    (37, 37, 3, 37, 9, 19, (2, 2), (1, 1, 1, 1), 1),
    (16, 16, 5, 16, 7, 15, (1, 1), (2, 2, 2, 2), 1),
    (16, 16, 7, 16, 9, 20, (2, 2), (0, 2, 3, 1), 1),
    (32, 32, 3, 32, 5, 3, (1, 1), (1, 1, 1, 1), 1),
]


@pytest.mark.parametrize("target", ["x86-64-v4+avx512vnni", "x86-64-v3"])
@pytest.mark.parametrize("levels", [np.uint8, np.int8])
def test_zero_points_and_borders(target: str, levels: type) -> None:
    """Bytes, where the target multiplies them, give back what taps beyond the image have taken."""
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    for channels, maps, kernel, group, height, width, strides, pads, dilation in CASES:
        net = Net(channels, height, width, levels)
        more = {"strides": strides, "pads": pads, "dilations": [dilation] * 2}
        y, _ = net.quantized_conv("x", net.scale(77), maps, kernel, group, **more)
        model = net.model([y], TensorProto.UINT8 if levels is np.uint8 else TensorProto.INT8)
        x: np.ndarray = np.random.default_rng(4).integers(0, 256, net.shape).astype(np.uint8).view(levels)
        (want,) = ReferenceEvaluator(model).run(None, {"x": x})
        (got,) = run(model, x, target=target)
        np.testing.assert_array_equal(got, want, str((channels, maps, kernel, group, height, width)))


def test_bytes_are_multiplied_as_they_are(tmp_path: Path) -> None:
    net = Net(16, 9, 9)
    y, scale = net.quantized_conv("x", net.scale(77), 32, 3)
    z, _ = net.quantized_conv(y, scale, 32, 3, 32)
    path = tmp_path / "m.onnx"
    path.write_bytes(net.model([z]).SerializeToString())
    compiled = compile_file(path, CompileOptions(Target.parse("x86-64-v4+avx512vnni"), name="m"))
    assert [n for n in {c.kernel.name for c in compiled.calls} if "depthwise" in n]
    types = {b.dtype for c in compiled.calls for b in c.kernel.params}
    assert DType.I16 not in types and {DType.U8, DType.I8} <= types


def test_matrices_give_576_times_the_convolution() -> None:
    rng = np.random.default_rng(0)
    d, g = rng.integers(-255, 256, (6, 6)), rng.integers(-128, 128, (3, 3))
    a, b, w = winograd_integer.OUTPUT, winograd_integer.INPUT, winograd_integer.WEIGHTS
    found = a @ ((w @ g @ w.T) * (b @ d @ b.T)) @ a.T
    want = [[(d[i : i + 3, j : j + 3] * g).sum() for j in range(4)] for i in range(4)]
    np.testing.assert_array_equal(found, 576 * np.array(want))
    assert np.abs(b).sum(1).max() ** 2 * winograd_integer.LARGEST <= 32767
    assert winograd_integer.NINTH * 9 % (1 << 32) == 1


@pytest.mark.parametrize("target", ["x86-64-v4", "x86-64-v3", "x86-64"])
def test_depthwise_layers_have_any_bias(target: str) -> None:
    """Biases that f32 does not hold beside the sums, as channels of small scales have them."""
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    net = Net(21, 9, 11)
    scale = net.scale(101)
    w = net.weights(21, 1, 3)
    bias = net.rng.integers(-(1 << 30), 1 << 30, 21).astype(np.int32)
    steps = (net.rng.uniform(20, 90, 21) / (1 << 30)).astype(np.float32)
    out = [net.constant(np.array(0.02, np.float32)), net.scale(101)[1]]
    names = [net.constant(a) for a in (w, steps, np.zeros(21, np.int8), bias)]
    y = net.node("QLinearConv", ["x", *scale, *names[:3], *out, names[3]], group=21, pads=[1, 1, 1, 1])
    model = net.model([y])
    loaded = c2c.compile(model.SerializeToString(), target=target)
    assert any("depthwise" in c.kernel.name for c in loaded.compiled.calls)
    x: np.ndarray = np.random.default_rng(4).integers(0, 256, net.shape).astype(np.uint8)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    assert np.unique(want).size > 20
    np.testing.assert_array_equal(loaded.run({"x": x})[y], want)
