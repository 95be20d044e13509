"""Which calls run on the host: against every choice of small random models, and in whole models on a device."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import c2c
from c2c.codegen.target import Target
from c2c.compiler.cli import main
from c2c.ir.graph import Graph, Node, Value
from c2c.ir.loops_parse import parse_kernel, parse_program
from c2c.ir.loops_text import print_program
from c2c.ir.types import DType, TensorType
from c2c.passes.host_steps import Model, Times, on_host
from c2c.passes.lower.context import Call

from ..forests import forest, ml_model, ml_node
from ..opencl import needs_opencl

TARGET = Target.parse("opencl")
KERNEL = parse_kernel("kernel k(x: f32[1], y: f32[1]) { store y[0] = x[0] }")


def chain(chance: random.Random) -> tuple[Graph, list[Call], list[Times]]:
    """A random graph whose calls read one or two earlier values."""
    made = [Value("x", TensorType(DType.F32, (1,)))]
    calls, times = [], []
    for i in range(chance.randint(1, 7)):
        out = Value(f"v{i}", TensorType(DType.F32, (chance.choice((1, 1000)),)))
        inputs = tuple(dict.fromkeys(chance.choices(made, k=2)))
        calls.append(Call(KERNEL, (*inputs, out), Node("Identity", inputs, (out,), {})))
        host = None if chance.random() < 0.2 else chance.uniform(0, 3e4)
        times.append(Times(chance.uniform(0, 4e5), host))
        made.append(out)
    outputs = [made[-1], *([made[1]] if chance.random() < 0.3 and len(made) > 2 else [])]
    return Graph("g", [made[0]], outputs, [c.node for c in calls], [v.name for v in outputs]), calls, times


def cost(graph: Graph, calls: list[Call], times: list[Times], hosts: set[int]) -> float:
    """What a choice takes, by the definition."""
    device = TARGET.device
    assert device is not None
    sum_ = 0.0
    for i, t in enumerate(times):
        assert i not in hosts or t.host is not None
        sum_ += (t.host or 0.0) if i in hosts else t.device
    for v in {v for c in calls for v in c.args}:
        sides = {i in hosts for i, c in enumerate(calls) if v in c.args} | (
            {False} if v in (*graph.inputs, *graph.outputs) else set()
        )
        sum_ += (device.hand_over + v.type.nbytes * device.hand_over_byte) * (len(sides) > 1)
    return sum_


@pytest.mark.parametrize("seed", range(40))
def test_no_choice_takes_less(seed: int) -> None:
    graph, calls, times = chain(random.Random(seed))
    found = on_host(calls, times, Model(graph, {}, TARGET))
    free = [i for i, t in enumerate(times) if t.host is not None]
    assert found <= set(free)
    all_ = [set(c) for n in range(len(free) + 1) for c in itertools.combinations(free, n)]
    least = min(cost(graph, calls, times, c) for c in all_)
    assert cost(graph, calls, times, found) <= least + 2 * len(calls) + 10  # capacities are whole nanoseconds


@pytest.fixture(scope="module")
def mixed() -> onnx.ModelProto:
    return mixed_network()


def mixed_network() -> onnx.ModelProto:
    """A convolution, then the largest of its results and their running sum."""
    seeded = np.random.default_rng(7)
    weights = {
        "w": seeded.standard_normal((8, 3, 3, 3)).astype(np.float32) / 4, "flat": np.array([1, -1]),
        "k": np.array([300]), "axis": np.array(1),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["mean"]),
        helper.make_node("Reshape", ["r", "flat"], ["f"]),
        helper.make_node("TopK", ["f", "k"], ["top", "at"], axis=1),
        helper.make_node("CumSum", ["top", "axis"], ["sums"]),
        helper.make_node("Sqrt", ["sums"], ["y"]),
    ]
    types = {"y": TensorProto.FLOAT, "at": TensorProto.INT64, "mean": TensorProto.FLOAT}
    graph = helper.make_graph(
        nodes, "mixed", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 48, 48])],
        [helper.make_tensor_value_info(n, t, None) for n, t in types.items()],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_serial_steps_go_to_the_host_and_others_do_not(mixed: onnx.ModelProto, tmp_path: Path) -> None:
    model = c2c.compile(mixed, "opencl", name="net")
    model.save(tmp_path / "some")
    hosted = json.loads((tmp_path / "some" / "manifest.json").read_text())["host_steps"]
    assert "top" in hosted and "r" not in hosted
    text = (tmp_path / "some" / "net.cl").read_text()
    assert "top_k" not in text and "net__top_k(" in (tmp_path / "some" / "net_host.h").read_text()
    c2c.compile(mixed, "opencl", name="net", host_steps=False).save(tmp_path / "none")
    assert not json.loads((tmp_path / "none" / "manifest.json").read_text())["host_steps"]
    assert not (tmp_path / "none" / "net_host.h").exists() and "top_k" in (tmp_path / "none" / "net.cl").read_text()


def test_text_of_a_program_keeps_sides(mixed: onnx.ModelProto) -> None:
    program = c2c.compile(mixed, "opencl").compiled.program
    again = parse_program(print_program(program), bytes(program.weights))
    assert [s.host for s in again.steps] == [s.host for s in program.steps] and any(s.host for s in program.steps)


@pytest.mark.needs("gcc", "g++")
def test_its_c_builds_without_a_warning(mixed: onnx.ModelProto, tmp_path: Path) -> None:
    c2c.compile(mixed, "opencl", name="net").save(tmp_path)
    strict = "-std=c99 -D_DEFAULT_SOURCE -Wall -Wextra -Wpedantic -Werror".split()
    sources = ["example.c", "net.c", "c2c_opencl.c", "c2c_gpu.c"]
    subprocess.run(["gcc", *strict, *sources, "-lm", "-ldl", "-o", "example"], cwd=tmp_path, check=True)


@needs_opencl
@pytest.mark.needs("gcc")
@pytest.mark.parametrize("host_steps", [True, False])
def test_both_sides_together_are_right(mixed: onnx.ModelProto, host_steps: bool) -> None:
    x = np.random.default_rng(1).standard_normal((1, 3, 48, 48)).astype(np.float32)
    y, at, mean = c2c.compile(mixed, "opencl", host_steps=host_steps).run({"x": x}).values()
    sums, places, means = map(np.asarray, ReferenceEvaluator(mixed).run(None, {"x": x}))
    np.testing.assert_allclose(y, sums, rtol=1e-5)
    np.testing.assert_array_equal(at, places)
    np.testing.assert_allclose(mean, means, rtol=1e-5)


def recommender(wide: bool) -> onnx.ModelProto:
    """Embeddings and numbers, a product of both, and trees on what it makes: in f64 (`wide`) or f32."""
    seeded = np.random.default_rng(7)
    constants = {
        "table": seeded.standard_normal((50, 12)).astype(np.float32),
        "w": seeded.standard_normal((16, 10)).astype(np.float32),
    }
    labels = ["no", "maybe", "yes"]
    trees = forest(7, 60, 24, 10, of="class", modes=["BRANCH_LEQ"], targets=3, missing=False)
    nodes = [
        helper.make_node("Gather", ["table", "item"], ["embedding"]),
        helper.make_node("Concat", ["embedding", "numbers"], ["both"], axis=1),
        helper.make_node("MatMul", ["both", "w"], ["product"]),
        helper.make_node("Tanh", ["product"], ["features"]),
        helper.make_node("Cast", ["features"], ["typed"], to=TensorProto.DOUBLE if wide else TensorProto.FLOAT),
        ml_node("TreeEnsembleClassifier", ["typed"], ["label", "scores"], **trees,
                classlabels_strings=labels, post_transform="SOFTMAX"),
        ml_node("ZipMap", ["scores"], ["probabilities"], classlabels_strings=labels),
    ]  # fmt: skip
    model = ml_model(nodes, recommender_inputs(), {"label": TensorProto.STRING, "probabilities": 0})
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    return model


def recommender_inputs() -> dict[str, np.ndarray]:
    seeded = np.random.default_rng(3)
    return {"item": seeded.integers(0, 50, 9), "numbers": seeded.standard_normal((9, 4)).astype(np.float32)}


def detector() -> onnx.ModelProto:
    """Scores by a convolution, then the best boxes of each class, and where they are."""
    seeded = np.random.default_rng(5)
    constants = {
        "w": seeded.standard_normal((3, 8, 3, 3)).astype(np.float32), "flat": np.array([1, 3, -1]),
        "most": np.array([20]), "half": np.array([0.5], np.float32), "column": np.array(2),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Reshape", ["s", "flat"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "half", "half"], ["chosen"]),
        helper.make_node("Gather", ["chosen", "column"], ["which"], axis=1),
        helper.make_node("Gather", ["boxes", "which"], ["found"], axis=1),
    ]
    inputs = [("x", [1, 8, 24, 24]), ("boxes", [1, 576, 4])]
    outputs = [("chosen", TensorProto.INT64), ("found", TensorProto.FLOAT)]
    graph = helper.make_graph(
        nodes, "detector", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs],
        [helper.make_tensor_value_info(n, t, None) for n, t in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@needs_opencl
@pytest.mark.needs("gcc")
@pytest.mark.parametrize("wide", [True, False])
def test_trees_behind_a_product(wide: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The device has no 64-bit floats: such trees run on the host, those of f32 on a grid of rows and trees."""
    onnxruntime = pytest.importorskip("onnxruntime")
    proto, feeds = recommender(wide), recommender_inputs()
    label, scores = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)
    model = c2c.compile(proto, "opencl", name="net")
    found = model.run(feeds)
    assert [("no", "maybe", "yes")[i] for i in found["label"]] == list(label)
    expected = [[row[n] for n in ("no", "maybe", "yes")] for row in scores]
    np.testing.assert_allclose(found["probabilities"], expected, atol=60 * float(np.finfo(np.float32).eps))
    steps = {s.kernel: s.host for s in model.compiled.program.steps}
    assert {host for kernel, host in steps.items() if "tree" in kernel} == {wide}
    assert not any(host for kernel, host in steps.items() if "gather" in kernel or "matmul" in kernel)
    onnx.save(proto, tmp_path / "net.onnx")
    assert main(["compile", str(tmp_path / "net.onnx"), "--target", "opencl", "-o", str(tmp_path / "out")]) == 0
    assert ("TreeEnsembleClassifier_label: the device has no 64-bit floats" in capsys.readouterr().out) == wide
    hosted = json.loads((tmp_path / "out" / "manifest.json").read_text())["host_steps"]
    assert ("TreeEnsembleClassifier_label" in hosted) == wide


@needs_opencl
@pytest.mark.needs("gcc")
def test_boxes_are_chosen_on_the_host() -> None:
    model = c2c.compile(detector(), "opencl", name="net")
    hosted = [", ".join(s.origin) for s in model.compiled.program.steps if s.host]
    assert "chosen" in hosted and "s" not in hosted and "c" not in hosted
    rng = np.random.default_rng(2)
    corner = rng.random((1, 576, 2)) * 100
    boxes = np.concatenate([corner, corner + 5 + rng.random((1, 576, 2)) * 20], -1).astype(np.float32)
    feeds = {"x": rng.standard_normal((1, 8, 24, 24)).astype(np.float32), "boxes": boxes}
    chosen, found = map(np.asarray, ReferenceEvaluator(detector()).run(None, feeds))
    assert 20 < len(chosen) <= 60
    results = model.run(feeds)
    np.testing.assert_array_equal(results["chosen"], chosen)
    np.testing.assert_array_equal(results["found"], found)
