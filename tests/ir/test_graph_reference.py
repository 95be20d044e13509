"""Evaluation, inference and export through ONNX."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest

from c2c.ir.errors import ShapeError, UnknownShapeError, UnsupportedOpError
from c2c.ir.graph import Graph, Node, Value, constant
from c2c.ir.reference import dtype_of, element_type_of, evaluate, evaluate_node, infer_node, schema_of, to_onnx
from c2c.ir.types import DType, TensorType

from .graphs import conv_relu, f32, fused, value

X = {"x": np.random.default_rng(1).standard_normal((1, 3, 6, 6)).astype(np.float32)}


def direct(graph: Graph, x: np.ndarray) -> np.ndarray:
    """relu(conv(x, w) + b), written out."""
    w, b = graph.nodes[0].constant(1), graph.nodes[0].constant(2)
    assert w is not None and b is not None
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    return np.asarray(np.maximum(np.einsum("nchwrs,kcrs->nkhw", windows, w) + b[:, None, None], 0))


@pytest.mark.parametrize("op", ["", "Conv", "c2c.WinogradConv"])
def test_groups_reorders_and_winograd_mean_what_they_stand_for(op: str) -> None:
    graph = fused(op=op) if op else conv_relu()
    found = evaluate(graph, X)
    assert list(found) == ["out"]
    np.testing.assert_allclose(found["out"], direct(conv_relu(), X["x"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [conv_relu, fused])
def test_export_is_a_valid_model_with_the_same_results(make: object) -> None:
    assert callable(make)
    graph = make()
    model = to_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    (found,) = onnx.reference.ReferenceEvaluator(model).run(None, X)
    np.testing.assert_array_equal(found, evaluate(graph, X)["out"])


def test_one_value_may_serve_several_outputs() -> None:
    x, y, k = value("x", 2), value("y", 2), constant("k", np.array([1, 2], np.float32))
    graph = Graph("g", [x], [y, y, x, k], [Node("Neg", (x,), (y,))], ["b", "y", "same", "k2"])
    onnx.checker.check_model(to_onnx(graph))
    found = evaluate(graph, {"x": np.array([3, 4], np.float32)})
    assert {n: a.tolist() for n, a in found.items()} == {"b": [-3, -4], "y": [-3, -4], "same": [3, 4], "k2": [1, 2]}


def test_an_inner_value_may_have_an_output_s_name() -> None:
    x, a, b = value("x", 1), value("out", 1), value("b", 1)
    graph = Graph("g", [x], [b], [Node("Neg", (x,), (a,)), Node("Abs", (a,), (b,))], ["out"])
    onnx.checker.check_model(to_onnx(graph))
    assert evaluate(graph, {"x": np.array([2], np.float32)})["out"].tolist() == [2]


def test_evaluate_node() -> None:
    x = value("x", 3)
    add = Node("Add", (x, x), (value("y", 3),))
    a = np.array([1, 2, 3], np.float32)
    assert evaluate_node(add, [a, a])[0].tolist() == [2, 4, 6]
    group = fused().nodes[1]
    weights = [group.constant(1), group.constant(2)]
    (found,) = evaluate_node(group, [X["x"], *weights])
    np.testing.assert_allclose(found, direct(conv_relu(), X["x"]), rtol=1e-4, atol=1e-5)


def test_evaluation_that_fails_names_the_node() -> None:
    node = Node("Reshape", (value("x", 3), constant("s", np.array([2]))), (value("y", 2),), {}, ("shrink",))
    with pytest.raises(ShapeError, match="cannot be evaluated") as caught:
        evaluate_node(node, [np.zeros(3, np.float32), np.array([2])])
    assert "node 'shrink' (Reshape)" in caught.value.where


def test_inference_knows_small_constants() -> None:
    y = value("y", 1)
    node = Node("Reshape", (value("x", 4, 6), constant("s", np.array([3, -1]))), (y,))
    assert infer_node(node) == [f32(3, 8)]
    node = Node("Reshape", (value("x", 4, 6), Value("s", TensorType(DType.I64, (2,)))), (y,))
    assert [d for d in infer_node(node)[0].shape if isinstance(d, int)] == []


def test_inference_through_functions_and_unknown_shapes() -> None:
    scale = constant("s", np.ones(4, np.float32))
    for op, inputs in (("MeanVarianceNormalization", ()), ("GroupNormalization", (scale, scale)), ("Celu", ())):
        attrs = {"num_groups": 2} if op == "GroupNormalization" else {}
        assert infer_node(Node(op, (value("x", 1, 4, 2, 2), *inputs), (value("y"),), attrs)) == [f32(1, 4, 2, 2)]
    with pytest.raises(UnknownShapeError):
        infer_node(Node("Squeeze", (value("x", 1, 4), Value("a", TensorType(DType.I64, (1,)))), (value("y"),)))


def test_inference_refuses_inputs_that_do_not_fit() -> None:
    node = Node("MatMul", (value("a", 2, 3), value("b", 4, 5)), (value("y"),), {}, ("product",))
    with pytest.raises(ShapeError, match="do not fit operator MatMul") as caught:
        infer_node(node)
    assert caught.value.where == "node 'product' (MatMul), inputs f32[2,3], f32[4,5]"


def test_element_types() -> None:
    for dtype in DType:
        assert dtype_of(element_type_of(dtype)) is dtype
    with pytest.raises(UnsupportedOpError, match="element type complex64 is not supported"):
        dtype_of(onnx.TensorProto.COMPLEX64)
    with pytest.raises(UnsupportedOpError, match="element type number 999"):
        dtype_of(999)


def test_schemas() -> None:
    assert schema_of("Nothing") is None and schema_of("com.nobody.Op") is None
    assert schema_of("ai.onnx.ml.Scaler") is not None
    old = schema_of("Clip", 7)
    assert old is not None and old.since_version == 6
