"""Operators in PyTorch against onnxruntime, mapped over a batch; skipped where PyTorch is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from c2c.codegen.target import Target
from c2c.compiler.driver import load_graph
from c2c.compiler.options import CompileOptions
from c2c.ir.errors import UnsupportedOpError
from c2c.ir.graph import Graph

torch: Any = pytest.importorskip("torch", reason="PyTorch is missing: pip install 'c2c[train]'")
onnxruntime: Any = pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)
IMAGE = [1, 4, 9, 8]
W33 = {"w": RNG.standard_normal((6, 4, 3, 3)).astype(np.float32), "b": RNG.standard_normal(6).astype(np.float32)}
GROUPED = {"w": RNG.standard_normal((8, 2, 3, 3)).astype(np.float32)}
MATRIX = {"w": RNG.standard_normal((5, 12)).astype(np.float32), "b": RNG.standard_normal((1, 5)).astype(np.float32)}
CHANNELS = {k: RNG.uniform(0.5, 2, 4).astype(np.float32) for k in ("s", "t", "m", "v")}
WINDOW = {"kernel_shape": [3, 2], "strides": [2, 2]}

CASES: list[tuple[str, list[int], dict[str, np.ndarray], dict[str, Any]]] = [
    ("Conv", IMAGE, W33, {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", IMAGE, W33, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", IMAGE, W33, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("Conv", IMAGE, W33, {"dilations": [2, 1]}),
    ("Conv", IMAGE, GROUPED, {"group": 2, "auto_pad": "VALID"}),
    ("Conv", [1, 4, 9], {"w": W33["w"][..., 0]}, {}),
    ("MaxPool", IMAGE, {}, {**WINDOW, "pads": [1, 0, 1, 1]}),
    ("MaxPool", IMAGE, {}, {**WINDOW, "ceil_mode": 1}),
    ("MaxPool", IMAGE, {}, {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    ("AveragePool", IMAGE, {}, {**WINDOW, "pads": [1, 0, 1, 1]}),
    ("AveragePool", IMAGE, {}, {**WINDOW, "pads": [1, 0, 1, 1], "count_include_pad": 1}),
    ("AveragePool", IMAGE, {}, {**WINDOW, "ceil_mode": 1}),
    ("GlobalAveragePool", IMAGE, {}, {}),
    ("GlobalMaxPool", IMAGE, {}, {}),
    ("BatchNormalization", IMAGE, CHANNELS, {"epsilon": 1e-3}),
    ("Gemm", [3, 12], MATRIX, {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [12, 3], MATRIX, {"transA": 1, "transB": 1}),
    ("MatMul", [2, 3, 12], {"w": MATRIX["w"].T.copy()}, {}),
    ("LayerNormalization", [2, 3, 4], {"s": CHANNELS["s"], "t": CHANNELS["t"]}, {"axis": -1}),
    ("Flatten", IMAGE, {}, {"axis": 2}),
    ("Reshape", IMAGE, {"shape": np.array([1, 8, -1])}, {}),
    ("Squeeze", [1, 4, 1], {"axes": np.array([0, 2])}, {}),
    ("Unsqueeze", [3, 4], {"axes": np.array([1])}, {}),
    ("Transpose", IMAGE, {}, {"perm": [0, 2, 3, 1]}),
    ("Concat", [1, 4], {"c": CHANNELS["s"].reshape(1, 4)}, {"axis": 1}),
    ("Gather", IMAGE, {"i": np.array([[0, -1], [2, 3]])}, {"axis": 1}),
    ("Clip", IMAGE, {"low": np.array(-0.3, np.float32), "high": np.array(0.4, np.float32)}, {}),
    ("ReduceMean", IMAGE, {"axes": np.array([2, -1])}, {"keepdims": 0}),
    ("ReduceSum", IMAGE, {"axes": np.array([1])}, {}),
    ("ReduceMax", IMAGE, {"axes": np.array([1, 2])}, {}),
    ("PRelu", IMAGE, {"slope": CHANNELS["s"].reshape(4, 1, 1)}, {}),
    ("LeakyRelu", IMAGE, {}, {"alpha": 0.2}),
    ("Elu", IMAGE, {}, {"alpha": 0.7}),
    ("HardSigmoid", IMAGE, {}, {"alpha": 0.3, "beta": 0.4}),
    ("Softmax", IMAGE, {}, {"axis": 1}),
    ("LogSoftmax", IMAGE, {}, {}),
    *[(op, IMAGE, {}, {}) for op in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "Erf", "Exp", "Abs", "Neg")],
    *[(op, IMAGE, {"c": CHANNELS["s"].reshape(4, 1, 1)}, {}) for op in ("Add", "Sub", "Mul", "Div")],
]


def load(
    op: str, shape: list[int], constants: dict[str, np.ndarray], attrs: dict[str, Any]
) -> tuple[onnx.ModelProto, Graph]:
    """One node behind a Mul, so that its data is no graph input."""
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "x"], ["u"]), helper.make_node("Sub", ["u", "x"], ["z"]),
         helper.make_node(op, ["z", *constants], ["y"], **attrs)],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("y")], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    return model, load_graph(model.SerializeToString(), CompileOptions(Target.parse("native")))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{'-'.join(c[3])}")
def test_operator(case: tuple[str, list[int], dict[str, np.ndarray], dict[str, Any]]) -> None:
    from c2c.compression import torch_graph

    model, graph = load(*case)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((3, *case[1])).astype(np.float32)
    expected = np.stack([session.run(None, {"x": a})[0] for a in x])
    torch_graph.check(graph, graph.outputs[0])
    found = torch_graph.run(graph, {"x": torch.from_numpy(x)}, {}, graph.outputs[0]).numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_an_unknown_operator_is_named() -> None:
    from c2c.compression import torch_graph

    _, graph = load("Acos", IMAGE, {}, {})
    with pytest.raises(UnsupportedOpError, match="Acos"):
        torch_graph.check(graph, graph.outputs[0])
