"""Largest magnitudes on samples against f16's range."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from c2c.codegen.target import Target
from c2c.compiler import cli
from c2c.compiler.options import CompileOptions
from c2c.compiler.ranges import LIMIT, RangeReport, check_ranges
from c2c.ir.errors import OnnxImportError, OptionsError

OPTIONS = CompileOptions(Target.parse("native"))


def network(gain: float = 1.0) -> bytes:
    """A convolution whose filters cancel, a batch norm, Relu, and a factor."""
    w = np.zeros((4, 2, 1, 1), np.float32)
    w[:, 0], w[:, 1] = 3, -3
    arrays = {
        "w": w, "s": np.full(4, gain, np.float32), "b": np.zeros(4, np.float32), "m": np.zeros(4, np.float32),
        "v": np.ones(4, np.float32) - np.float32(1e-5),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("Tanh", ["r"], ["y"], name="tanh"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c, 5, 5]) for n, c in (("x", 2), ("y", 4)))
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(a, n) for n, a in arrays.items()])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def samples(size: float) -> dict[str, np.ndarray]:
    x = np.full((3, 2, 5, 5), 1.0, np.float32)
    x[1, 0, 2, 2], x[1, 1, 2, 2] = size + 1, size
    return {"x": x}


def found(report: RangeReport) -> dict[str, tuple[float, float | None]]:
    return {r.node: (r.largest, r.sums) for r in report.ranges}


def test_results_and_bounds() -> None:
    report = check_ranges(network(), samples(100), OPTIONS)
    assert report.samples == 3 and report.ok and not report.doubtful
    by_name = found(report)
    assert by_name["x"] == (101, None)
    assert by_name["norm"] == pytest.approx((3, 606), rel=1e-5), "the folded norm's result"
    assert by_name["relu"][0] == pytest.approx(3, rel=1e-5) and by_name["tanh"][0] == pytest.approx(
        np.tanh(3), rel=1e-5
    )


def test_sums_that_cancel_are_doubtful() -> None:
    report = check_ranges(network(), samples(15_000), OPTIONS)
    assert report.ok and [r.node for r in report.doubtful] == ["norm"]
    assert "partial sums may overflow: node 'norm'" in str(report) and "nothing overflows" in str(report)


def test_winograds_transforms_have_a_bound_of_their_own() -> None:
    """Inputs of 1000: filters of 1e-3 keep results and sums small, 100 times the inputs do not fit."""
    w = numpy_helper.from_array(np.random.default_rng(1).standard_normal((8, 8, 3, 3)).astype(np.float32) * 1e-3, "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 8, 9, 9]) for n in "xy")
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])]
    graph = helper.make_graph(nodes, "g", [x], [y], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    inputs = {"x": np.full((2, 8, 9, 9), 1000, np.float32)}
    report = check_ranges(model, inputs, OPTIONS)
    assert report.ok and not report.doubtful and [r.node for r in report.transformed] == ["conv"]
    assert "Winograd's form may overflow: node 'conv' (Conv) comes by 100000 at most" in str(report)
    assert not check_ranges(model, inputs, replace(OPTIONS, winograd_error=0.0)).transformed
    assert not check_ranges(model, {"x": inputs["x"] / 10}, OPTIONS).transformed


def test_overflow_is_found_where_it_happens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = check_ranges(network(3e4), samples(1000), OPTIONS)
    assert not report.ok and {r.node for r in report.overflows} == {"norm", "relu"}
    assert min(r.largest for r in report.overflows) > LIMIT
    (tmp_path / "m.onnx").write_bytes(network(3e4))
    np.savez(tmp_path / "x.npz", allow_pickle=False, **samples(1000))
    arguments = ["check", str(tmp_path / "m.onnx"), "--ranges", str(tmp_path / "x.npz")]
    assert cli.main(arguments) == 1
    assert "OVERFLOW: node 'norm' (Conv)" in capsys.readouterr().out
    assert cli.main([*arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({}, "no array 'x'"),
        ({"x": np.zeros((2, 5), np.float32)}, "dimensions"),
        ({"x": np.zeros((0, 2, 5, 5))}, "none"),
    ],
)
def test_bad_samples(wrong: dict[str, np.ndarray], match: str) -> None:
    with pytest.raises(OptionsError, match=match):
        check_ranges(network(), wrong, OPTIONS)


def test_a_missing_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(OnnxImportError, match="cannot read the model"):
        check_ranges(tmp_path / "none.onnx", samples(1), OPTIONS)
