"""c2c.IntegerConv: each form gives the exact sums, on ragged images and channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from c2c.codegen.target import Target
from c2c.compiler.api import from_compiled
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.passes.lower import integer_conv, winograd_integer
from c2c.tests.passes.test_integer_arithmetic import Net


@pytest.mark.parametrize(("form", "transform"), [("F4", -1e9), ("direct", 1e9)])
@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64"])
@pytest.mark.parametrize("shape", [(13, 9, 5, 7), (24, 40, 13, 10), (8, 16, 4, 4), (35, 21, 9, 18)])
def test_forms_are_exact(
    shape: tuple[int, int, int, int], target: str, form: str, transform: float, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    monkeypatch.setattr(integer_conv, "TRANSFORM", transform)
    channels, maps, height, width = shape
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


def test_matrices_give_576_times_the_convolution() -> None:
    rng = np.random.default_rng(0)
    d, g = rng.integers(-255, 256, (6, 6)), rng.integers(-128, 128, (3, 3))
    a, b, w = winograd_integer.OUTPUT, winograd_integer.INPUT, winograd_integer.WEIGHTS
    found = a @ ((w @ g @ w.T) * (b @ d @ b.T)) @ a.T
    want = [[(d[i : i + 3, j : j + 3] * g).sum() for j in range(4)] for i in range(4)]
    np.testing.assert_array_equal(found, 576 * np.array(want))
    assert np.abs(b).sum(1).max() ** 2 * winograd_integer.LARGEST <= 32767
    assert winograd_integer.NINTH * 9 % (1 << 32) == 1
