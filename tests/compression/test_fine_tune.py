"""Labels that judge, and fine-tuning on tiny networks; the latter skips where PyTorch is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import c2c
from c2c.compression import onnx_model
from c2c.compression.coded import Coded
from c2c.compression.fine_tune import density_for
from c2c.compression.layers import Layer
from c2c.compression.onnx_compress import compress
from c2c.compression.reconstruct import Form
from c2c.compression.samples import split

onnxruntime: Any = pytest.importorskip("onnxruntime")
WITHOUT = "PyTorch is missing: pip install 'c2c[train]'"


@cache
def network(last: str = "") -> onnx.ModelProto:
    """A convolution, a Gemm and a MatMul of random weights, with a fixed batch in a Reshape; all answers are alike
    frequent."""
    x = np.random.default_rng(9).standard_normal((200, 2, 8, 8)).astype(np.float32)
    return _network(last, -outputs(_network("", np.zeros(5)), x).mean(0))


def _network(last: str, bias: np.ndarray) -> onnx.ModelProto:
    r = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return np.asarray(r.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), np.float32)

    weights = {
        "w1": normal(16, 2, 3, 3), "b1": normal(16), "shape": np.array([1, 256]),
        "w2": normal(32, 256), "b2": normal(32),
        "w3": normal(32, 5) * 3, "b3": bias.astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["p", "shape"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["g"], transB=1),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("MatMul", ["h", "w3"], ["m"]),
        helper.make_node("Add", ["m", "b3"], ["z" if last else "y"]),
    ]
    if last:
        nodes.append(helper.make_node(last, ["z"], ["y"]))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from threads, and other tests run beside these."""
    torch: Any = pytest.importorskip("torch", reason=WITHOUT)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few_steps(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing depends on how well is trained."""
    from c2c.compression import fine_tune, torch_lesson

    monkeypatch.setattr(torch_lesson, "LEAST_STEPS", 60)
    monkeypatch.setattr(fine_tune, "RATIOS", (6.0, 12.0, 30.0))


def outputs(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": a[None]})[0] for a in x])


def answers(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return np.asarray(outputs(proto, x).argmax(1))


def samples(count: int, seed: int) -> dict[str, np.ndarray]:
    """Labelled by the network itself, but for every tenth, which is labelled at random."""
    r = np.random.default_rng(seed)
    x = r.standard_normal((count, 2, 8, 8)).astype(np.float32)
    y = answers(network(), x)
    y[::10] = r.integers(0, 5, len(y[::10]))
    return {"x": x, "y": y}


def test_labels_judge() -> None:
    judge = samples(80, 3)
    small, report = compress(network(), samples(60, 2), max_size=1500, judge=judge, labels="y")
    right = [int((answers(proto, judge["x"]) == judge["y"]).sum()) for proto in (network(), small)]
    assert report.agreement.startswith(f"{right[1]}/80 right (dense {right[0]})")
    assert report.loss == pytest.approx((right[0] - right[1]) / 80, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"labels": "z"}, "no array 'z' of labels"),
        ({"data": {**samples(20, 2), "y": np.zeros(20, np.float32)}}, "the labels 'y' are float32"),
        ({"data": {**samples(20, 2), "y": np.zeros(19, np.int64)}}, "19 labels for 20 samples"),
        ({"data": {**samples(20, 2), "y": np.zeros((20, 7), np.int64)}}, "do not fit the output"),
        ({"data": None}, "labels are given without samples"),
        ({"epochs": 0}, "0 epochs"),
        ({"mix": 0.6}, "0.6 of mixed samples"),
    ],
)
def test_bad_requests(options: dict[str, Any], match: str) -> None:
    with pytest.raises(c2c.C2CError, match=match):
        compress(network(), **{"data": samples(20, 2), "labels": "y", "max_size": 1500, **options})


def test_without_torch_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(c2c.C2CError, match=r"c2c\[train\]"):
        compress(network(), samples(20, 2), fine_tune=True, labels="y", max_size=1500)


def test_density_grows_with_bits() -> None:
    found = [density_for(b) for b in (0.1, 0.5, 1.0, 2.0, 3.0, 5.0)]
    assert found == sorted(found) and found[-1] == 1.0
    p = found[1]
    assert -p * np.log2(p) - (1 - p) * np.log2(1 - p) + 2.5 * p == pytest.approx(0.5)


def lesson(labels: bool, classes: bool = True, mix: float = 0.0) -> Any:
    """On 1000 samples."""
    from c2c.compression import torch_lesson
    from c2c.compression.session import start

    data = samples(1000, 2)
    types = onnx_model.inputs_of(network())
    chosen = split(data, types, 0, calibration=10**6, held_out=4, labels="y")
    s = start(network(), chosen, Form(), measure="auto", output=None, seed=0, progress=lambda stage: None)
    marks = chosen.labels if labels else None
    return torch_lesson.lesson(
        s.graph, s.layers, 0, chosen.arrays, marks, classes=classes, epochs=1, mix=mix, seed=0
    )  # fmt: skip


def loss(learn: Any, given: Any) -> float:
    import torch

    with torch.no_grad():
        return float(learn.loss(given, learn.plain(torch.arange(learn.count))))


@pytest.mark.parametrize(("labels", "classes"), [(True, True), (False, True), (False, False)])
def test_pruning_keeps_what_matters(labels: bool, classes: bool, one_thread: None) -> None:
    from c2c.compression import torch_tune
    from c2c.compression.torch_graph import Given

    learn = lesson(labels, classes)
    dense = learn.dense
    found = torch_tune.prune(learn, dense, 0.3, lambda stage: None)
    total = sum(g.weight.numel() for g in found.values())
    kept = sum(int((g.weight != 0).sum()) for g in found.values())
    assert kept == pytest.approx(0.3 * total, abs=2)
    cut = {v: Given(g.weight * (g.weight.abs() > g.weight.abs().quantile(0.7)), g.bias) for v, g in dense.items()}
    assert loss(learn, found) < 0.6 * loss(learn, cut)


def test_levels_are_trained_and_indices_stay(one_thread: None) -> None:
    from c2c.compression import torch_tune

    learn = lesson(labels=False)
    coarse = {v: coded(v) for v in learn.layers}
    found = torch_tune.train_levels(learn, coarse, lambda stage: None)
    for v, c in found.items():
        assert np.array_equal(c.index, coarse[v].index) and len(c.levels) == 9 and c.levels[4] == 0
        assert c.bias is not None and np.any(c.levels != coarse[v].levels)
    assert loss(learn, torch_tune.coded_given(found)) < 0.8 * loss(learn, torch_tune.coded_given(coarse))


def coded(layer: Layer) -> Coded:
    """The nearest of nine levels."""
    most = np.abs(layer.dense).max()
    levels = np.linspace(-most, most, 9, dtype=np.float32)
    levels[4] = 0
    index = np.abs(layer.dense[..., None] - levels).argmin(-1).astype(np.uint8)
    return Coded(levels, index, None, layer.bias_vector(), 0.0)


@pytest.mark.parametrize("last", ["", "Softmax"])
def test_the_written_model_is_the_one_that_was_judged(last: str, few_steps: None) -> None:
    judge = samples(300, 3)
    small, report = compress(
        network(last), samples(300, 2), max_size=2700, judge=judge, labels="y", fine_tune=True, epochs=1
    )
    right = int((answers(small, judge["x"]) == judge["y"]).sum())
    assert report.size <= 2700 and report.agreement.startswith(f"{right}/300 right")
    assert c2c.compile(small).run({"x": judge["x"][:1]})["y"].argmax() == answers(small, judge["x"][:1])[0]


def test_stages_go_on_until_too_much_is_lost(few_steps: None) -> None:
    options: dict[str, Any] = {"judge": samples(300, 3), "labels": "y", "fine_tune": True, "epochs": 1}
    _, report = compress(network(), samples(300, 2), max_loss=0.2, **options)
    assert len(report.front) > 1 and report.loss <= 0.2
    assert report.constants == min(r["constants"] for r in report.front if r["loss"] <= 0.2)
    with pytest.raises(c2c.C2CError, match="no size gives a loss"):
        compress(network(), samples(300, 2), max_loss=0.0, **options)


def test_same_seed_same_bytes_and_resuming_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_steps: None
) -> None:
    from c2c.compression import torch_tune

    def files(folder: str, epochs: int = 1, resume: bool = False) -> tuple[bytes, bytes]:
        compress(
            network(), samples(100, 2), tmp_path / folder, max_size=1500, labels="y", fine_tune=True, epochs=epochs,
            resume=resume,
        )  # fmt: skip
        return (tmp_path / folder / "model.onnx").read_bytes(), (tmp_path / folder / "report.json").read_bytes()

    first = files("a")
    assert files("b") == first
    monkeypatch.setattr(torch_tune, "prune", None)
    assert files("a", resume=True) == first
    with pytest.raises(TypeError):
        files("a", epochs=2, resume=True)


def test_half_of_a_batch_is_mixed_and_the_dense_network_answers_the_mixture(one_thread: None) -> None:
    import torch

    from c2c.compression import torch_graph

    learn = lesson(labels=True, mix=0.5)
    batch = next(learn.batches(1))
    alone = batch.share == 1
    assert int(alone.sum()) == len(alone) // 2 and bool((batch.share >= 0).all())
    own, other = batch.labels
    assert torch.equal(own[alone], other[alone]) and not torch.equal(own, other)
    answers = torch_graph.run(learn.graph, batch.feeds, learn.dense, learn.result)
    torch.testing.assert_close(batch.taught, answers, rtol=1e-4, atol=1e-5)
    known = {a.numpy().tobytes() for a in learn.feeds["x"]}
    assert [a.numpy().tobytes() in known for a in batch.feeds["x"]] == alone.tolist()
