"""Tree ensembles of ai.onnx.ml in all their forms, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import c2c
from c2c.compiler.onnx_import import import_model
from c2c.ir.errors import C2CError, OnnxImportError, UnsupportedOpError
from c2c.ir.graph_text import large_constants, parse_graph, print_graph
from c2c.ir.reference import evaluate
from c2c.ir.tree_ensemble import TREES
from c2c.ir.verify import verify

from ..forests import Array, classifier, forest, ml_model, ml_node, regressor, rows

onnxruntime = pytest.importorskip("onnxruntime")
SEED = 11


def by_onnxruntime(model: onnx.ModelProto, x: Array) -> list[Array]:
    return list(onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x}))


def agree(model: onnx.ModelProto, x: Array, trees: int) -> None:
    """Equal labels, scores within the rounding of sums of one weight a tree."""
    graph = import_model(model)
    verify(graph)
    found = list(evaluate(graph, {"x": x}).values())
    for got, expected in zip(found, by_onnxruntime(model, x), strict=True):
        tolerance = 0.0 if got.dtype == np.int64 else 4 * trees * float(np.finfo(np.float32).eps)
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance, err_msg=f"seed {SEED}")


REGRESSORS: dict[str, tuple[dict[str, Any], dict[str, Any], type]] = {
    "one target": ({}, {}, np.float32),
    "f64": ({}, {}, np.float64),
    "targets, a tree each": ({"targets": 3}, {"base_values": [0.5, -1.0, 2.0]}, np.float32),
    "targets, all at a leaf": ({"targets": 3, "every_target": True}, {"aggregate_function": "AVERAGE"}, np.float32),
    "least": ({"targets": 2, "every_target": True}, {"aggregate_function": "MIN"}, np.float32),
    "largest": ({}, {"aggregate_function": "MAX", "base_values": [0.25]}, np.float64),
    "logistic": ({"targets": 2}, {"post_transform": "LOGISTIC"}, np.float32),
    "softmax": ({"targets": 3}, {"post_transform": "SOFTMAX"}, np.float32),
    "softmax but zeros": ({"targets": 3}, {"post_transform": "SOFTMAX_ZERO"}, np.float32),
}


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors(name: str) -> None:
    grown, attrs, dtype = REGRESSORS[name]
    x = rows(SEED, 40, 6, dtype)
    agree(regressor({**forest(SEED, 9, 14, 6, **grown), **attrs}, x, grown.get("targets", 1)), x, 9)


def test_probit() -> None:
    """Its argument is a probability."""
    attrs = forest(SEED, 1, 9, 4)
    attrs["target_weights"] = np.random.default_rng(SEED).uniform(0.05, 0.95, len(attrs["target_weights"])).tolist()
    x = rows(SEED, 20, 4)
    agree(regressor({**attrs, "post_transform": "PROBIT"}, x), x, 8)


def test_doubles_given_as_tensors() -> None:
    """Version 3 has splits and weights in f64 for rows in f64; of f32 they would meet other rows."""
    attrs, x = forest(SEED, 5, 9, 3), rows(SEED, 30, 3, np.float64)
    for name in ("nodes_values", "target_weights"):
        wide = np.asarray(attrs.pop(name)) + np.random.default_rng(1).normal(size=1) * 1e-9
        attrs[f"{name}_as_tensor"] = numpy_helper.from_array(wide.astype(np.float64), name)
    x[0, :] = numpy_helper.to_array(attrs["nodes_values_as_tensor"])[0]
    agree(regressor(attrs, x), x, 5)


LABELS = {"integers": {"classlabels_int64s": [4, 9]}, "numbers": {"classlabels_int64s": [0, 1]}}


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("base", [[], [0.2]])
@pytest.mark.parametrize("labels", LABELS)
def test_two_classes_with_one_weight_a_leaf(transform: str, positive: bool, base: list[float], labels: str) -> None:
    attrs = forest(SEED, 6, 8, 4, of="class")
    if positive:
        attrs["class_weights"] = [abs(w) / 6 for w in attrs["class_weights"]]
    x = rows(SEED, 50, 4)
    extra = {"post_transform": transform, **LABELS[labels], **({"base_values": base} if base else {})}
    agree(classifier({**attrs, **extra}, x), x, 6)


def test_two_classes_of_which_leaves_name_the_second() -> None:
    attrs = forest(SEED, 6, 8, 4, of="class")
    attrs["class_ids"] = [1] * len(attrs["class_ids"])
    x = rows(SEED, 50, 4)
    agree(classifier({**attrs, "post_transform": "LOGISTIC", **LABELS["integers"]}, x), x, 6)


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC"])
def test_several_classes(every: bool, transform: str) -> None:
    attrs = forest(SEED, 9, 12, 5, of="class", targets=3, every_target=every)
    x = rows(SEED, 60, 5)
    extra = {"classlabels_int64s": [7, 3, 5], "base_values": [0.1, 0.0, -0.1], "post_transform": transform}
    agree(classifier({**attrs, **extra}, x), x, 9)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_classes_of_other_types(dtype: type) -> None:
    attrs = forest(SEED, 6, 12, 5, of="class", targets=3)
    x: Array = np.random.default_rng(SEED).integers(-3, 4, (40, 5)).astype(dtype)
    agree(classifier({**attrs, "classlabels_int64s": [0, 1, 2]}, x), x, 6)


def version_5(x: Array, **attrs: Any) -> onnx.ModelProto:
    """x0 in {1, 2, 5}: leaf 0, else x1 <= 0.5: leaf 1, else leaf 2; and a tree that is leaf 3."""
    element = x.dtype.type
    tensors = {
        "nodes_splits": np.asarray([0, 0.5, 0], element), "nodes_modes": np.asarray([6, 0, 0], np.uint8),
        "leaf_weights": np.asarray([1, -2, 3.5, 0.25], element),
        "membership_values": np.asarray([5, 1, 2, np.nan], element),
    }  # fmt: skip
    node = ml_node(
        "TreeEnsemble", ["x"], ["y"], n_targets=2, tree_roots=[0, 2], nodes_featureids=[0, 1, 0],
        nodes_truenodeids=[0, 1, 3], nodes_trueleafs=[1, 1, 1], nodes_falsenodeids=[1, 2, 3],
        nodes_falseleafs=[0, 1, 1], leaf_targetids=[0, 1, 0, 1],
        **{k: numpy_helper.from_array(v, k) for k, v in tensors.items()}, **attrs,
    )  # fmt: skip
    kind = TensorProto.FLOAT if element is np.float32 else TensorProto.DOUBLE
    return ml_model([node], {"x": x}, {"y": kind}, version=5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("attrs", [{}, {"aggregate_function": 0}, {"aggregate_function": 2}])
def test_version_5(dtype: type, attrs: dict[str, int]) -> None:
    x: Array = np.asarray([[1, 0], [5, 1], [3, 0], [4, 0.5], [0, 0.6], [2, 9]], dtype)
    agree(version_5(x, **attrs), x, 2)


def test_transforms_of_version_5() -> None:
    """By the specification's numbers; onnxruntime takes 1 for LOGISTIC and 2 for SOFTMAX."""
    x = np.asarray([[1, 0], [3, 0.5], [3, 2]], np.float32)
    scores = evaluate(import_model(version_5(x)), {"x": x})["y"].astype(np.float64)
    expected = {1: np.exp(scores) / np.exp(scores).sum(1, keepdims=True), 2: 1 / (1 + np.exp(-scores))}
    for number, wanted in expected.items():
        got = evaluate(import_model(version_5(x, post_transform=number)), {"x": x})["y"]
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_membership_of_what_is_missing() -> None:
    """Where NaN counts as true."""
    x = np.asarray([[np.nan, 1], [2, 1], [3, 1]], np.float32)
    model = version_5(x, nodes_missing_value_tracks_true=[1, 0, 0])
    np.testing.assert_array_equal(c2c.compile(model).run({"x": x})["y"], [[1, 0.25], [1, 0.25], [3.5, 0.25]])


def test_text_reads_back() -> None:
    x = rows(SEED, 2, 5)
    graph = import_model(regressor(forest(SEED, 5, 9, 5), x))
    assert [n.op for n in graph.nodes] == [TREES]
    again = parse_graph(print_graph(graph), large_constants(graph))
    verify(again)
    np.testing.assert_array_equal(evaluate(again, {"x": x})["y"], evaluate(graph, {"x": x})["y"])


def broken(change: dict[str, Any]) -> onnx.ModelProto:
    return regressor({**forest(SEED, 2, 3, 4, balanced=True), **change}, rows(SEED, 2, 4))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"nodes_truenodeids": [0, 3, 0, 0, 0] * 2}, OnnxImportError, "is not below its root"),
        (
            {
                "nodes_truenodeids": [0, 3, 0, 0, 0] * 2,
                "nodes_falsenodeids": [1, 2, 0, 0, 4] * 2,
                "nodes_modes": ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "BRANCH_LEQ"] * 2,
            },
            OnnxImportError,
            "tree 0 has no root",
        ),
        ({"nodes_truenodeids": [1, 1, 0, 0, 0] * 2}, OnnxImportError, "leads back to itself"),
        ({"nodes_truenodeids": [9, 3, 0, 0, 0] * 2}, OnnxImportError, "tree 0 has no node 9"),
        ({"nodes_featureids": [7] * 10}, C2CError, "a feature is not among 4"),
        ({"nodes_nodeids": [0, 1, 2, 3, 3] * 2}, OnnxImportError, "two nodes of a tree have one number"),
        ({"nodes_values": [0.0]}, OnnxImportError, "differ in length"),
        ({"nodes_modes": ["BRANCH_ODD"] * 10}, OnnxImportError, "'BRANCH_ODD', which does not exist"),
        ({"target_ids": [5] * 6}, C2CError, "a target is not among 1"),
        ({"base_values": [1.0, 2.0]}, OnnxImportError, "2 base_values for 1 targets"),
        ({"post_transform": "TANH"}, OnnxImportError, "post_transform 'TANH' does not exist"),
    ],
)
def test_broken_trees(change: dict[str, Any], error: type[C2CError], message: str) -> None:
    with pytest.raises(error, match=message):
        import_model(broken(change))


def test_two_base_values_of_one_score() -> None:
    attrs = {**forest(SEED, 2, 3, 4, of="class"), **LABELS["numbers"], "base_values": [1.0, 2.0]}
    with pytest.raises(UnsupportedOpError, match="have no defined meaning"):
        import_model(classifier(attrs, rows(SEED, 2, 4)))
