"""Kernels under Oclgrind: no race and no access outside of a buffer; and faults that are planted are found."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import c2c
from c2c.tests.forests import forest, regressor, rows
from c2c.tests.oclgrind import faults, needs_oclgrind, simulate

pytestmark = [needs_oclgrind, pytest.mark.needs("gcc")]
SEED = 9


def network() -> onnx.ModelProto:
    """Tiles with remainders, teams of threads, windows with padding, copies: one of each on small shapes."""
    rng = np.random.default_rng(SEED)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["d"], pads=[1, 1, 1, 1], group=9),
        helper.make_node("MaxPool", ["d"], ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["p"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["t", "shape"], ["m"]),
        helper.make_node("MatMul", ["m", "w3"], ["q"]),
        helper.make_node("LayerNormalization", ["q", "scale", "shift"], ["n"]),
        helper.make_node("Softmax", ["n"], ["y"]),
    ]
    constants = [
        weight("w1", 9, 2, 3, 3), weight("b1", 9), weight("w2", 9, 1, 3, 3), weight("w3", 9, 130), weight("scale", 130),
        weight("shift", 130), numpy_helper.from_array(np.array([9, 9]), "shape"),
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [9, 130])
    graph = helper.make_graph(nodes, "races", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    c2c.compile(network(), "opencl", name="net").save(folder)
    return folder


def reports(folder: Path, plan: str) -> list[str]:
    """What Oclgrind has to say about a run with this plan."""
    (folder / "net_plan.h").write_text(plan)
    found: list[str] = faults(simulate(folder, DATA_RACES="1"))
    return found


@pytest.fixture(scope="module")
def plan(bundle: Path) -> str:
    return (bundle / "net_plan.h").read_text()


def test_there_is_no_race_and_no_access_outside(bundle: Path, plan: str) -> None:
    assert reports(bundle, plan) == []


def without(plan: str, text: str, number: int, new: str = "") -> str:
    """The plan with the occurrence `number` of a piece of kernel text replaced."""
    places = [m.start() for m in re.finditer(re.escape(text), plan)]
    at = places[number]
    return plan[:at] + new + plan[at + len(text) :]


BARRIER = "barrier(CLK_LOCAL_MEM_FENCE);"


@pytest.mark.parametrize("number", [0, 1, 4, 6, -9, -1])
def test_a_barrier_that_is_missing_is_found(bundle: Path, plan: str, number: int) -> None:
    """In the loop of a product, on both sides of it, and in reductions of a team."""
    assert any("race" in r for r in reports(bundle, without(plan, BARRIER, number)))


def test_an_index_that_is_off_by_one_is_found(bundle: Path, plan: str) -> None:
    """Of the result: past the end of its memory, and where another thread has written."""
    stores = [m.group(0) for m in re.finditer(r"y\[[^\]\\;]+\] = ", plan)]
    wrong = without(plan, stores[-1], -1, stores[-1].replace("] = ", " + 1] = "))
    assert reports(bundle, wrong)


def test_a_guard_that_is_missing_is_found(bundle: Path, plan: str) -> None:
    """Of the last columns of a product."""
    guard = re.search(r"if \(\(row < \d+\) & \(column < \d+\)\)", plan)
    assert guard is not None
    assert reports(bundle, plan.replace(guard.group(0), "if (1)"))


def test_trees_stay_inside_their_tables(tmp_path: Path) -> None:
    """Rows and chunks of trees on a grid; a child that is one too far reads beyond the last node."""
    for every in (False, True):
        attrs = forest(SEED, 131, 4, 5, targets=3, every_target=every)
        c2c.compile(regressor(attrs, rows(SEED, 3, 5), 3), "opencl", name="net", host_steps=False).save(tmp_path)
        plan = (tmp_path / "net_plan.h").read_text()
        assert reports(tmp_path, plan) == []
    assert reports(tmp_path, re.sub(r"(at\[0\] = [^;]*?) \+ ", r"\1 + 1000000 + ", plan))
