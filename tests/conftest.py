"""Shared fixtures: tools that may be missing, small models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import c2c

ROOT = Path(__file__).parent.parent
assert Path(c2c.__file__).parent == ROOT, f"tests import c2c from {c2c.__file__}: run make setup in this checkout"

INSTALL = {
    "gcc": "gcc",
    "g++": "g++",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "qemu-aarch64": "qemu-user",
    "glslangValidator": "glslang-tools",
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for tool in marker.args:
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} is missing: apt-get install {INSTALL.get(tool, tool)}")


@pytest.fixture
def small_cnn() -> onnx.ModelProto:
    """Conv + BatchNormalization + Relu + MaxPool + Conv + GlobalAveragePool + Gemm + Softmax on [1, 3, 16, 16]."""
    rng = np.random.default_rng(7)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        scale = 1 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        return numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(np.float32), name)

    positive = numpy_helper.from_array(rng.uniform(0.5, 1.5, 20).astype(np.float32), "var")
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["b1"], "bn1"),
        helper.make_node("Relu", ["b1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "bias2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], "pool2"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "bias3"], ["logits"], "fc", transB=1),
        helper.make_node("Softmax", ["logits"], ["y"], "softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "small_cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [
            weight("w1", 20, 3, 3, 3), weight("scale", 20), weight("shift", 20), weight("mean", 20), positive,
            weight("w2", 36, 20, 3, 3), weight("bias2", 36), weight("w3", 10, 36), weight("bias3", 10),
        ],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[onnx.ModelProto, str], Path]:
    """Write a model into the test's folder."""

    def write(model: onnx.ModelProto, name: str = "model.onnx") -> Path:
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return write
