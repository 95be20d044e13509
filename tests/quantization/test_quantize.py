"""`quantize` end to end on small networks: the written model, integers in the compiler, budgets, resuming, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import c2c
from c2c.quantization import mixed
from c2c.quantization.judge import Judge
from c2c.quantization.session import Session
from c2c.tests.quantization.networks import perceptron, residual_network, samples

onnxruntime: Any = pytest.importorskip("onnxruntime")

SHAPE = {"x": (1, 3, 12, 12)}


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What onnxruntime computes of each node by itself."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.sqrt(np.square(got - want).mean() / want.var()))


@pytest.fixture(scope="module")
def quantized() -> tuple[onnx.ModelProto, Any]:
    proto, report = c2c.quantize(residual_network(), samples(), max_loss=1.0)
    return proto, report


def test_the_network_answers_as_the_one_of_floats(quantized: tuple[onnx.ModelProto, Any]) -> None:
    small, report = quantized
    onnx.checker.check_model(small)
    fresh = samples(40, seed=9)
    assert relative(run(small, fresh), run(residual_network(), fresh)) < 0.04
    assert [r["form"] for r in report.layers] == ["int8"] * 6
    assert report.held_out == 20 and report.calibration == 40


def test_the_compiler_answers_as_onnxruntime_does(quantized: tuple[onnx.ModelProto, Any]) -> None:
    small, _ = quantized
    compiled = c2c.compile(small, shapes=SHAPE)
    step = {t.name: numpy_helper.to_array(t) for t in small.graph.initializer}["r5.scale"]
    for i in range(10):
        x = samples(10, seed=3)["x"][i : i + 1]
        (got,) = compiled.run({"x": x}).values()
        assert np.abs(got - run(small, {"x": x})).max() < 2 * step
    bodies = [n.attrs["body"].nodes if "body" in n.attrs else [n] for n in compiled.compiled.graph.nodes]
    ops = [n.op for body in bodies for n in body]
    assert ops.count("c2c.IntegerConv") == 6 and not {"Conv", "Gemm", "MatMul", "c2c.WinogradConv"} & set(ops)


def test_the_bias_of_a_channel_next_to_nothing_is_kept() -> None:
    """In units of its sums it would leave an i32, were the scale that of its weights."""
    proto = residual_network()
    weights = {t.name: t for t in proto.graph.initializer}
    for name, factor, by in (("w4", 1e-9, 0.0), ("b4", 0.0, 3.0)):
        data = numpy_helper.to_array(weights[name]).copy()
        data[2] = data[2] * np.float32(factor) + np.float32(by)
        weights[name].CopyFrom(numpy_helper.from_array(data, name))
    small, _ = c2c.quantize(proto, samples(), max_loss=1.0)
    fresh = samples(40, seed=9)
    want = run(proto, fresh)
    assert relative(run(small, fresh), want) < 0.04
    got = np.concatenate([*c2c.compile(small, shapes={"x": (40, 3, 12, 12)}).run(fresh).values()])
    assert relative(got, want) < 0.04


def test_old_opsets_are_brought_up(quantized: tuple[onnx.ModelProto, Any]) -> None:
    small, _ = c2c.quantize(residual_network(12), samples(), max_loss=1.0)
    x = samples(8, seed=5)
    np.testing.assert_allclose(run(small, x), run(quantized[0], x), atol=1e-6)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_every_method_gives_a_network_that_answers_alike(method: str) -> None:
    fresh = samples(40, seed=9)
    small, _ = c2c.quantize(residual_network(), samples(), max_loss=1.0, method=method)
    assert relative(run(small, fresh), run(residual_network(), fresh)) < 0.08


def test_the_same_seed_gives_the_same_bytes_and_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = c2c.quantize(residual_network(), samples(), tmp_path / "whole", max_loss=1.0)
    fitted: list[str] = []
    original = Session._fitted

    def stopping(self: Session, layer: Any, *inputs: Any) -> Any:
        if len(fitted) == 3:
            raise KeyboardInterrupt
        fitted.append(layer.name)
        return original(self, layer, *inputs)

    monkeypatch.setattr(Session, "_fitted", stopping)
    with pytest.raises(KeyboardInterrupt):
        c2c.quantize(residual_network(), samples(), tmp_path / "parts", max_loss=1.0)
    assert not (tmp_path / "parts" / "model.onnx").exists()
    fitted.clear()

    def counting(self: Session, layer: Any, *inputs: Any) -> Any:
        fitted.append(layer.name)
        return original(self, layer, *inputs)

    monkeypatch.setattr(Session, "_fitted", counting)
    resumed, _ = c2c.quantize(residual_network(), samples(), tmp_path / "parts", max_loss=1.0, resume=True)
    assert len(fitted) == 3
    assert resumed.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
    written = (tmp_path / "whole" / "model.onnx").read_bytes()
    assert (tmp_path / "parts" / "model.onnx").read_bytes() == written
    assert not (tmp_path / "parts" / ".state").exists()


def count_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that counts the noise of the answers: a loss of 10 % for what 8 bits make, less by its amplitude."""
    noises: list[float] = []
    original = Judge.agreement

    def strict(self: Judge, model: Any) -> Any:
        found = original(self, model)
        noises.append(found.noise)
        lost = round(100000 * min(float(np.sqrt(found.noise / noises[0])), 10.0))
        return type(found)("top1", 1000000 - lost, 1000000, found.cosine, found.noise)

    monkeypatch.setattr(Judge, "agreement", strict)


@pytest.mark.parametrize("share", [0.5, 0.02])
def test_numbers_get_16_bits_until_the_loss_fits(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    coarse, _ = c2c.quantize(residual_network(), samples(), max_loss=1.0)
    count_noise(monkeypatch)
    small, report = c2c.quantize(residual_network(), samples(), max_loss=0.1 * np.sqrt(share))
    onnx.checker.check_model(small)
    forms = [r["form"] for r in report.layers]
    floats = forms.count("float")
    assert forms.count("int16") >= 1 and floats <= (0 if share > 0.1 else 2)
    assert forms.count("int8") >= (2 if share > 0.1 else 1)
    assert report.tried[0]["wide"] == 0 < report.tried[-1]["wide"] and report.tried[-1]["kept"]
    assert report.speed is not None and report.original > 0
    fresh = samples(40, seed=9)
    want = run(residual_network(), fresh)
    assert relative(run(small, fresh), want) < 1.5 * np.sqrt(share) * relative(run(coarse, fresh), want)
    compiled = c2c.compile(small, shapes=SHAPE)
    for i in range(10):
        x = fresh["x"][i : i + 1]
        (got,) = compiled.run({"x": x}).values()
        assert relative(got, run(small, {"x": x})) < 0.01
    bodies = [n.attrs["body"].nodes if "body" in n.attrs else [n] for n in compiled.compiled.graph.nodes]
    ops = [n.op for body in bodies for n in body]
    assert ops.count("c2c.IntegerConv") == 6 - floats
    assert sum(ops.count(op) for op in ("Conv", "Gemm", "MatMul", "c2c.WinogradConv")) == floats


def test_layers_stay_in_floats_where_16_bits_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    count_noise(monkeypatch)
    monkeypatch.setattr(mixed, "_widest", lambda *args: None)
    small, report = c2c.quantize(residual_network(), samples(), max_loss=0.1 * np.sqrt(0.3))
    forms = [r["form"] for r in report.layers]
    assert 1 <= forms.count("float") < 6
    costs = {r["layer"]: r["cost"] for r in report.layers}
    worst = sorted(costs, key=lambda k: -costs[k])[: forms.count("float")]
    assert {r["layer"] for r in report.layers if r["form"] == "float"} == set(worst)
    assert len(report.tried) > 1 and sum(t["kept"] for t in report.tried) == 1
    onnx.checker.check_model(small)


def test_fewest_layers_are_found_by_halving() -> None:
    asked: list[int] = []

    def without(count: int) -> Any:
        asked.append(count)
        precision = type("Precision", (), {"floats": (None,) * count})()
        return type("Outcome", (), {"precision": precision})()

    found = mixed._fewest(without, 50, lambda o: len(o.precision.floats) >= 11)
    assert found is not None and len(found.precision.floats) == 11 and len(asked) <= 9
    assert mixed._fewest(without, 5, lambda o: False) is None


def test_products_of_several_rows_are_of_integers() -> None:
    data = {"x": np.random.default_rng(2).standard_normal((60, 5, 40)).astype(np.float32)}
    small, report = c2c.quantize(perceptron(), data, max_loss=1.0)
    x = np.random.default_rng(3).standard_normal((5, 40)).astype(np.float32)
    want = run(perceptron(), {"x": x})
    assert relative(run(small, {"x": x}), want) < 0.02
    np.testing.assert_allclose(c2c.compile(small).run({"x": x})["y"], run(small, {"x": x}), atol=0.05)
    assert [r["form"] for r in report.layers] == ["int8", "int8"]
    assert report.size < 0.55 * report.original


def test_without_samples_ranges_are_taken_at_run_time() -> None:
    small, report = c2c.quantize(perceptron())
    assert report.form == "dynamic" and report.agreement is None
    assert [n.op_type for n in small.graph.node].count("MatMulInteger") == 2
    x = np.random.default_rng(3).standard_normal((5, 40)).astype(np.float32)
    assert relative(run(small, {"x": x}), run(perceptron(), {"x": x})) < 0.03
    np.testing.assert_allclose(c2c.compile(small).run({"x": x})["y"], run(small, {"x": x}), atol=1e-4)


@pytest.mark.parametrize(("bits", "block", "most"), [(8, None, 0.01), (8, 16, 0.01), (4, None, 0.15), (4, 16, 0.13)])
def test_weights_only(bits: int, block: int | None, most: float) -> None:
    small, report = c2c.quantize(perceptron(), form="weights", bits=bits, block=block)
    onnx.checker.check_model(small)
    x = np.random.default_rng(3).standard_normal((5, 40)).astype(np.float32)
    assert relative(run(small, {"x": x}), run(perceptron(), {"x": x})) < most
    np.testing.assert_allclose(c2c.compile(small).run({"x": x})["y"], run(small, {"x": x}), rtol=1e-4, atol=1e-5)
    assert {r["form"] for r in report.layers} == {f"int{bits} weights"}


def test_weights_are_fitted_to_samples_where_there_are_some() -> None:
    spread = np.linspace(0.05, 2, 40, dtype=np.float32)
    draw = np.random.default_rng(2)
    data = {"x": draw.standard_normal((200, 5, 40)).astype(np.float32) * spread}
    x = draw.standard_normal((5, 40)).astype(np.float32) * spread
    want = run(perceptron(), {"x": x})
    plain, _ = c2c.quantize(perceptron(), form="weights", bits=4)
    error = {"plain": relative(run(plain, {"x": x}), want)}
    for rounding in ("nearest", "reconstruct"):
        fitted, _ = c2c.quantize(perceptron(), data, form="weights", bits=4, max_loss=1.0, rounding=rounding)
        error[rounding] = relative(run(fitted, {"x": x}), want)
    assert error["reconstruct"] < 0.8 * min(error["plain"], error["nearest"])


def test_made_up_samples_are_said_to_be() -> None:
    _, report = c2c.quantize(residual_network(), max_loss=1.0, calibration=24, held_out=8)
    assert report.synthetic and report.form == "static"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"form": "qat"}, "there is no form 'qat'"),
        ({"method": "median"}, "there is no method 'median'"),
        ({"rounding": "up"}, "there is no rounding 'up'"),
        ({"form": "weights", "bits": 3}, "weights of 3 bits"),
        ({"bits": 4}, "give --form weights"),
        ({"form": "weights", "block": -1}, "a block of -1"),
        ({"max_loss": 2.0}, "a loss of 2.0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], text: str) -> None:
    with pytest.raises(c2c.C2CError, match=text):
        c2c.quantize(perceptron(), **options)


def test_a_quantised_model_is_refused(quantized: tuple[onnx.ModelProto, Any]) -> None:
    with pytest.raises(c2c.C2CError, match="quantised already: node '.*' is a QuantizeLinear"):
        c2c.quantize(quantized[0], samples())


def test_a_model_without_products_is_refused() -> None:
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    from c2c.tests.quantization.networks import model

    with pytest.raises(c2c.C2CError, match="no product by a constant matrix"):
        c2c.quantize(model(nodes, {"x": [1, 4]}, {"y": [1, 4]}, {}))
