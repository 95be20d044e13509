"""`compress` end to end on small networks: the written model, budgets, determinism, resuming, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import c2c
from c2c.compression import search
from c2c.compression.onnx_compress import compress
from c2c.compression.session import Session

onnxruntime: Any = pytest.importorskip("onnxruntime")


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    weights: dict[str, np.ndarray],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.asarray(rng.standard_normal(shape) / np.sqrt(max(prod(shape[1:]), 1)), np.float32)


def network() -> onnx.ModelProto:
    """Convolution and batch norm, depthwise, a bias added behind, a Gemm and a MatMul."""
    r = np.random.default_rng(0)
    weights = {
        "w1": normal(r, 8, 3, 3, 3), "s": r.uniform(0.5, 2, 8).astype(np.float32), "t": normal(r, 8),
        "m": normal(r, 8), "v": r.uniform(0.5, 2, 8).astype(np.float32),
        "w2": normal(r, 8, 1, 5, 5) * r.uniform(0.2, 4, (8, 1, 1, 1)).astype(np.float32),
        "w3": normal(r, 16, 8, 1, 1), "b3": normal(r, 1, 16, 1, 1),
        "w4": normal(r, 24, 16), "b4": normal(r, 24), "w5": normal(r, 24, 10),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c1", "s", "t", "m", "v"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], group=8, auto_pad="SAME_UPPER", kernel_shape=[5, 5]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["c3"]),
        helper.make_node("Add", ["c3", "b3"], ["a3"]),
        helper.make_node("Relu", ["a3"], ["r3"]),
        helper.make_node("GlobalAveragePool", ["r3"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["g"], transB=1),
        helper.make_node("Relu", ["g"], ["r4"]),
        helper.make_node("MatMul", ["r4", "w5"], ["y"]),
    ]
    return model(nodes, {"x": ["N", 3, 12, 12]}, {"y": ["N", 10]}, weights)


def samples(count: int = 60, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 12, 12)).astype(np.float32)}


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def test_the_written_model_is_the_one_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    original = Session.run

    def spying(self: Session, price: float) -> object:
        runner_run = self.runner.run

        def keep(*a: Any, **k: Any) -> Any:
            results = runner_run(*a, **k)
            seen.append(results[1][0])
            return results

        monkeypatch.setattr(self.runner, "run", keep)
        try:
            return original(self, price)
        finally:
            monkeypatch.setattr(self.runner, "run", runner_run)

    monkeypatch.setattr(Session, "run", spying)
    data = samples()
    small, report = compress(network(), data, max_size=1800)
    order = np.random.default_rng(0).permutation(60)
    x = data["x"][order]
    judged = next(s for s in seen if np.allclose(s[0], run(small, {"x": x[:1]}), atol=1e-4))
    inside = judged.reshape(60, 10)
    np.testing.assert_allclose(run(small, {"x": x}), inside, rtol=1e-4, atol=1e-5)
    compiled = c2c.compile(small, shapes={"x": (1, 3, 12, 12)}, winograd_error=0.0)
    for i in range(5):
        np.testing.assert_allclose(compiled.run({"x": x[i : i + 1]})["y"][0], inside[i], rtol=1e-4, atol=1e-5)
    onnx.checker.check_model(small)
    assert {n.op_type for n in small.graph.node} <= {
        "Conv", "Relu", "Add", "Mul", "GlobalAveragePool", "Flatten", "Gemm", "MatMul", "Gather", "Cast",
    }  # fmt: skip
    assert len(report.layers) == 5


def test_a_size_is_kept() -> None:
    for most in (1500, 2000):
        _, report = compress(network(), samples(), max_size=most)
        assert most * 0.7 < report.size <= most


def test_a_loss_is_kept() -> None:
    _, report = compress(network(), samples(150), max_loss=0.06, measure="top1")
    assert report.loss <= 0.06
    small = [r for r in report.front if r["constants"] < report.constants]
    assert all(r["loss"] > 0.06 for r in small)


def test_same_seed_same_bytes_and_resuming_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def files(folder: str, **options: Any) -> tuple[bytes, bytes]:
        compress(network(), samples(), tmp_path / folder, max_size=1800, **options)
        return (tmp_path / folder / "model.onnx").read_bytes(), (tmp_path / folder / "report.json").read_bytes()

    first = files("a")
    assert files("b") == first
    calls: list[int] = []
    interrupted = _stop_after(4, calls)
    monkeypatch.setattr(Session, "_compress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files("c")
    monkeypatch.undo()
    fresh: list[int] = []
    monkeypatch.setattr(Session, "_compress", _stop_after(10**9, fresh))
    assert files("c", resume=True) == first
    fully: list[int] = []
    monkeypatch.undo()
    monkeypatch.setattr(Session, "_compress", _stop_after(10**9, fully))
    assert files("d") == first
    assert len(fully) - len(fresh) == 4


def _stop_after(count: int, calls: list[int]) -> Callable[..., object]:
    original = Session._compress

    def counted(self: Session, *a: Any) -> object:
        if len(calls) == count:
            raise KeyboardInterrupt
        calls.append(1)
        return original(self, *a)

    return counted


def test_samples_of_their_own_judge() -> None:
    """Judges that are like nothing that was fitted to: they alone count, and all other samples are fitted to."""
    alien = {"x": 40 * samples(20, 9)["x"] + 7}
    small, report = compress(network(), samples(30), max_size=1800, judge=alien, measure="cosine")
    assert (report.calibration, report.held_out) == (30, 20)
    a, b = (run(proto, alien).astype(np.float64) for proto in (network(), small))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert report.loss == pytest.approx(1 - cosine.mean(), abs=2e-5)


@pytest.mark.parametrize("changed", [{"judge": samples(20, 4)}, {"seed": 1}, {"levels": 99}, {"sparsity": 0.5}])
def test_other_options_do_not_resume(tmp_path: Path, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"max_size": 1800, "judge": samples(20, 3)}
    compress(network(), samples(), tmp_path, **options)
    kept = {p.name for p in (tmp_path / ".state").iterdir()}
    fresh: list[int] = []
    monkeypatch.setattr(Session, "_compress", _stop_after(0, fresh))
    with pytest.raises(KeyboardInterrupt):
        compress(network(), samples(), tmp_path, **(options | changed), resume=True)
    assert not kept & {p.name for p in (tmp_path / ".state").iterdir()} - {"key.npz", "survey.npz"}


def test_another_version_does_not_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from c2c.compression import session

    source = tmp_path / "session.py"
    source.write_text("one")
    monkeypatch.setattr(session, "__file__", str(source))
    compress(network(), samples(), tmp_path / "out", max_size=1800)
    source.write_text("other")
    monkeypatch.setattr(Session, "_compress", _stop_after(0, []))
    with pytest.raises(KeyboardInterrupt):
        compress(network(), samples(), tmp_path / "out", max_size=1800, resume=True)


def test_sparse_blocks_are_demanded() -> None:
    small, _ = compress(network(), samples(), max_size=1800, sparsity=0.5, pattern="4x1")
    constants = {t.name: numpy_helper.to_array(t) for t in small.graph.initializer}
    w = constants["w4.book"][constants["w4.index"]] != 0
    blocks = w.reshape(6, 4, 16)
    assert (~blocks.any(1)).mean() >= 0.5


def _passed(price: float, **options: Any) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The network at one price of a bit, and each layer's form."""
    from c2c.compression.onnx_model import write_coded

    found: list[Any] = []

    def once(session: Session, *_: Any) -> tuple[Any, list[Any]]:
        found.append(session.run(price))
        return found[0], found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_by_size", once)
        compress(network(), samples(), max_size=10**9, **options)
    forms = {layer.name: c.form for layer, c in found[0].coded.items()}
    kept = next(iter(found[0].coded))
    assert kept is not None
    return write_coded(onnx.load_from_string(_folded()), found[0].coded), forms


def _folded() -> bytes:
    from c2c.compression.onnx_model import fold_batch_norm

    proto = network()
    fold_batch_norm(proto)
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("price", "form", "operators"),
    [(1e-30, "dense", set()), (1e-7, "f16", {"Cast"}), (1e-3, "code book", {"Gather", "Cast"})],
)
def test_the_form_follows_the_price_of_a_bit(price: float, form: str, operators: set[str]) -> None:
    small, forms = _passed(price)
    assert {f.removeprefix("sparse ") for f in forms.values()} == {form}
    plain = {n.op_type for n in network().graph.node} | {"Mul", "Add"}
    assert {n.op_type for n in small.graph.node} - plain == operators
    onnx.checker.check_model(small)
    x = samples()["x"]
    tolerance = {"dense": 2e-5, "f16": 4e-3, "code book": 0.5}[form]
    dense = run(network(), {"x": x})
    assert np.abs(run(small, {"x": x}) - dense).max() < tolerance * np.abs(dense).max()


def test_whole_numbers_are_dequantised(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8, which seldom is the cheapest form, taken everywhere."""
    from c2c.compression import reconstruct
    from c2c.compression.coded import Kind

    original = reconstruct.spelt

    def only_whole(dense: np.ndarray) -> list[Any]:
        return [c for c in original(dense) if c.kind is Kind.INT8]

    monkeypatch.setattr(reconstruct, "spelt", only_whole)
    fitted = reconstruct.fit_layer
    monkeypatch.setattr(reconstruct, "fit_layer", lambda *a: replace(fitted(*a), error=1e9))
    small, forms = _passed(1e-9)
    assert set(forms.values()) == {"int8"}
    onnx.checker.check_model(small)
    whole = [t for t in small.graph.initializer if t.data_type == TensorProto.INT8]
    assert len(whole) == 5 and {n.op_type for n in small.graph.node} >= {"DequantizeLinear"}
    x = samples()["x"]
    dense, got = run(network(), {"x": x}), run(small, {"x": x})
    assert np.abs(got - dense).max() < 0.03 * np.abs(dense).max()
    compiled = c2c.compile(small, shapes={"x": (1, 3, 12, 12)}, winograd_error=0.0)
    np.testing.assert_allclose(compiled.run({"x": x[:1]})["y"], got[:1], rtol=1e-4, atol=1e-5)


def test_few_indices_are_a_sparse_initialiser() -> None:
    small, report = compress(network(), samples(), max_size=1200, sparsity=0.95, measure="cosine")
    sparse = {t.values.name: t for t in small.graph.sparse_initializer}
    assert sparse and set(sparse) <= {f"{row['layer']}.index" for row in report.layers}
    onnx.checker.check_model(small)
    x = samples()["x"][:3]
    compiled = c2c.compile(small, shapes={"x": (3, 3, 12, 12)}, winograd_error=0.0)
    np.testing.assert_allclose(compiled.run({"x": x})["y"], run(small, {"x": x}), rtol=1e-4, atol=1e-5)


def test_the_front_has_sizes_and_speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "RATIOS", (2.0, 20.0))
    _, report = compress(network(), samples(), tmp_path, pareto=True, targets=["native", "arm64-neon"])
    assert len(report.front) == 2 and sum(row["kept"] for row in report.front) == 1
    assert all({"native", "arm64-neon"} == set(row["speeds"]) for row in report.front)
    assert report.front[0]["bytes"] < report.front[1]["bytes"]
    kept = next(row for row in report.front if row["kept"])
    packed = (tmp_path / "model.c2w").stat().st_size
    assert packed < report.size == kept["bytes"]
    made = c2c.compile(tmp_path / "model.onnx", shapes={"x": (1, 3, 12, 12)}, winograd_weights="load")
    made.save(tmp_path / "bundle", weights="packed")
    assert (tmp_path / "bundle" / "model.c2w").read_bytes() == (tmp_path / "model.c2w").read_bytes()


def test_speed_is_worth_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide pointwise layer gets zeros in a pattern that the target has kernels for, and runs faster; aimed at size it
    gets none."""
    r = np.random.default_rng(2)
    weights = {"w1": normal(r, 96, 3, 1, 1), "w2": normal(r, 96, 96, 1, 1), "w3": normal(r, 8, 96, 1, 1)}
    nodes = []
    for i, name in enumerate(("x", "r1", "r2"), 1):
        nodes += [helper.make_node("Conv", [name, f"w{i}"], [f"c{i}"]), helper.make_node("Relu", [f"c{i}"], [f"r{i}"])]
    nodes += [helper.make_node("GlobalAveragePool", ["r3"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    proto = model(nodes, {"x": ["N", 3, 12, 12]}, {"y": ["N", 8]}, weights)
    options: dict[str, Any] = {"max_size": 10**9, "measure": "cosine", "targets": ["x86-64-v3", "arm64-neon"]}
    monkeypatch.setattr(search, "_by_size", lambda s, most, known: (p := s.run(1e-6), [p]))
    _, small = compress(proto, samples(), **options)
    found, fast = compress(proto, samples(), aim="speed", **options)
    assert not {row["form"] for row in small.layers} & {"4x1 code book", "2:4 code book"}
    assert next(row for row in fast.layers if row["layer"] == "w2")["zeros"] >= 0.5
    assert fast.speeds["x86-64-v3"] > max(1.2, small.speeds["x86-64-v3"])
    assert set(fast.speeds) == {"x86-64-v3", "arm64-neon"}
    onnx.checker.check_model(found)


def test_levels_are_at_most_what_was_asked() -> None:
    small, report = compress(network(), samples(), max_size=2500, levels=8)
    assert max(r["levels"] for r in report.layers) <= 8
    assert all(len(t.raw_data) <= 32 for t in small.graph.initializer if t.name.endswith(".book"))


def test_without_samples_some_are_made_up() -> None:
    _, report = compress(network(), max_size=1800)
    assert report.synthetic and report.size <= 1800


def test_made_up_samples_follow_batch_norms() -> None:
    """A network trained on inputs unlike the noise that is made up: its norms alone tell how large activations are."""
    r = np.random.default_rng(5)
    weights = {"w1": normal(r, 8, 3, 3, 3), "w2": normal(r, 12, 8, 3, 3), "w3": normal(r, 10, 12, 1, 1)}
    real = (30 + 25 * r.standard_normal((80, 3, 12, 12))).astype(np.float32)

    def nodes(norms: bool) -> list[onnx.NodeProto]:
        found = []
        for i, name in enumerate(("x", "r1", "r2"), 1):
            found.append(helper.make_node("Conv", [name, f"w{i}"], [f"c{i}"]))
            if norms and i < 3:
                found.append(helper.make_node("BatchNormalization", [f"c{i}", *(f"{k}{i}" for k in "stmv")], [f"n{i}"]))
            found.append(helper.make_node("Relu", [f"{'n' if norms and i < 3 else 'c'}{i}"], [f"r{i}"]))
        return [
            *found[:-1],
            helper.make_node("GlobalAveragePool", ["c3"], ["p"]),
            helper.make_node("Flatten", ["p"], ["y"]),
        ]

    shapes: dict[str, list[int | str]] = {"x": ["N", 3, 12, 12]}
    for i, channels in ((1, 8), (2, 12)):  # norms as training leaves them
        weights |= {f"s{i}": r.uniform(0.5, 2, channels).astype(np.float32), f"t{i}": normal(r, channels)}
        weights |= {f"m{i}": np.zeros(channels, np.float32), f"v{i}": np.ones(channels, np.float32)}
        part = helper.make_graph(
            nodes(True)[: 3 * i - 2], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes["x"])],
            [helper.make_tensor_value_info(f"c{i}", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(w, n) for n, w in weights.items()],
        )  # fmt: skip
        made = run(helper.make_model(part, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), {"x": real})
        weights |= {f"m{i}": made.mean((0, 2, 3)), f"v{i}": made.var((0, 2, 3))}
    proto = model(nodes(True), shapes, {"y": ["N", 10]}, weights)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"

    def off() -> float:
        small, report = compress(proto, max_size=1500)
        assert report.synthetic
        a, b = run(proto, {"x": real}), run(small, {"x": real})
        return float(np.square(a - b).sum() / np.square(a - a.mean(0)).sum())

    settled = off()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("c2c.compression.runner.Runner.settle", lambda *a: None)
        plain = off()
    assert settled < 0.7 * plain


def test_lstm_and_embedding() -> None:
    r = np.random.default_rng(3)
    weights = {"table": normal(r, 40, 16), "w": normal(r, 1, 32, 16), "r": normal(r, 1, 32, 8), "o": normal(r, 8, 20)}
    nodes = [
        helper.make_node("Cast", ["ids"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "i"], ["e"]),
        helper.make_node("LSTM", ["e", "w", "r"], ["h", "", ""], hidden_size=8),
        helper.make_node("MatMul", ["h", "o"], ["y"]),
    ]
    proto = model(nodes, {"ids": [6, 1]}, {"y": [6, 1, 1, 20]}, weights)
    ids = r.integers(0, 40, (40, 6, 1)).astype(np.float32)
    small, report = compress(proto, {"ids": ids}, max_size=2900, measure="cosine")
    assert [row["operator"] for row in report.layers] == ["Gather", "LSTM", "LSTM", "MatMul"]
    a, b = run(proto, {"ids": ids[0]}), run(small, {"ids": ids[0]})
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.98


@pytest.mark.parametrize(
    ("options", "data", "match"),
    [
        ({}, {"z": np.zeros((9, 3, 12, 12), np.float32)}, "no such input"),
        ({}, {}, "no array 'x'"),
        ({}, {"x": np.zeros((9, 3, 12, 13), np.float32)}, "samples of shape"),
        ({}, {"x": np.zeros((9, 3), np.float32)}, "dimensions"),
        ({}, {"x": np.full((9, 3, 12, 12), np.nan, np.float32)}, "not finite"),
        ({}, {"x": np.zeros((2, 3, 12, 12), np.float32)}, "too few"),
        ({}, {"x": np.zeros((9, 3, 12, 12), np.complex64)}, "complex64"),
        ({"max_size": 5}, samples(), "does not fit"),
        ({"max_size": 0}, samples(), "no sense"),
        ({"max_loss": 2.0}, samples(), "no sense"),
        ({"max_loss": 0.1, "max_size": 9}, samples(), "give one of them"),
        ({"levels": 1}, samples(), "levels"),
        ({"sparsity": 1.0}, samples(), "sparsity"),
        ({"pattern": "5x5"}, samples(), "pattern"),
        ({"measure": "taste"}, samples(), "measured"),
        ({"judged": "z"}, samples(), "no output 'z'"),
        ({"judge": {}}, samples(), "no array 'x'"),
        ({"aim": "fame"}, samples(), "fame"),
        ({"targets": ["pdp-11"]}, samples(), "pdp-11"),
    ],
)
def test_bad_requests(options: dict[str, Any], data: dict[str, np.ndarray], match: str) -> None:
    with pytest.raises(c2c.C2CError, match=match):
        compress(network(), data, **options)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(c2c.C2CError, match="cannot read samples"):
        compress(network(), tmp_path / "a.npz")
    (tmp_path / "m.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(c2c.C2CError, match="cannot read the model"):
        compress(tmp_path / "m.onnx", samples())


def test_the_price_finds_the_size() -> None:
    assert search.Budget(max_size=10).max_loss is None
