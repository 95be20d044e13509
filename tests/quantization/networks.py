"""Small networks in the float form that quantisation starts from."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    weights: dict[str, np.ndarray],
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.asarray(rng.standard_normal(shape) / np.sqrt(max(prod(shape[1:]), 1)), np.float32)


def residual_network(opset: int = 17) -> onnx.ModelProto:
    """Batch norm, Clip, a depthwise layer of very different channels, a residual sum, MaxPool, Concat, a gate by an
    activation written in parts, a mean, a Gemm and a MatMul with its bias added behind."""
    r = np.random.default_rng(0)
    spread = r.uniform(0.1, 6, (8, 1, 1, 1)).astype(np.float32)
    weights = {
        "w1": normal(r, 8, 3, 3, 3), "s": r.uniform(0.5, 2, 8).astype(np.float32), "t": normal(r, 8),
        "m": normal(r, 8), "v": r.uniform(0.5, 2, 8).astype(np.float32),
        "w2": normal(r, 8, 1, 3, 3) * spread, "b2": normal(r, 8),
        "w3": normal(r, 8, 8, 1, 1), "b3": normal(r, 8),
        "w4": normal(r, 8, 8, 3, 3), "b4": normal(r, 8), "w5": normal(r, 24, 16), "b5": normal(r, 24),
        "w6": normal(r, 24, 10), "b6": normal(r, 10),
        "zero": np.array(0, np.float32), "six": np.array(6, np.float32),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c1", "s", "t", "m", "v"], ["n1"]),
        node("Clip", ["n1", "zero", "six"], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"], group=8, pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["r2"]),
        node("Conv", ["r2", "w3", "b3"], ["c3"]),
        node("Add", ["c3", "r1"], ["a3"]),
        node("MaxPool", ["a3"], ["p3"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p3", "w4", "b4"], ["c4"], pads=[1, 1, 1, 1]),
        node("Sigmoid", ["c4"], ["g4"]),
        node("Mul", ["c4", "g4"], ["h4"]),
        node("Concat", ["h4", "p3"], ["k4"], axis=1),
        node("GlobalAveragePool", ["k4"], ["q4"]),
        node("Flatten", ["q4"], ["f4"]),
        node("Gemm", ["f4", "w5", "b5"], ["g5"], transB=1),
        node("Relu", ["g5"], ["r5"]),
        node("MatMul", ["r5", "w6"], ["m6"]),
        node("Add", ["m6", "b6"], ["y"]),
    ]
    return model(nodes, {"x": ["N", 3, 12, 12]}, {"y": ["N", 10]}, weights, opset)


def perceptron(rows: int | str = 5) -> onnx.ModelProto:
    """Two products of several rows, one of them with its matrix transposed."""
    r = np.random.default_rng(4)
    weights = {"w1": normal(r, 40, 64), "b1": normal(r, 64), "w2": normal(r, 10, 64), "b2": normal(r, 10)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m1"]),
        helper.make_node("Add", ["m1", "b1"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["y"], transB=1),
    ]
    return model(nodes, {"x": [rows, 40]}, {"y": [rows, 10]}, weights)


def samples(count: int = 60, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 12, 12)).astype(np.float32)}
