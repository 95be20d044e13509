"""Operators of ai.onnx.ml around trees, and whole pipelines as skl2onnx writes them, against onnxruntime."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import c2c
from c2c.compiler.cli import main
from c2c.compiler.onnx_import import import_model
from c2c.ir.errors import C2CError, OnnxImportError, UnknownShapeError, UnsupportedOpError
from c2c.ir.graph_text import large_constants, parse_graph, print_graph
from c2c.ir.reference import evaluate
from c2c.ir.verify import verify

from ..forests import Array, classifier, forest, ml_model, ml_node, rows

onnxruntime = pytest.importorskip("onnxruntime")
SEED = 21
RNG = np.random.default_rng(SEED)
F32, F64, I64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64
X = RNG.normal(size=(7, 4)).astype(np.float32)
WHOLE = RNG.integers(-2, 4, (7, 4)).astype(np.int64)
GAPS = rows(SEED, 7, 4)
NAMES = ["cat", "dog", "owl"]


def agree(model: onnx.ModelProto, feeds: Mapping[str, Array], tolerance: float = 2e-6) -> None:
    """Equal labels, whatever they are; scores within the rounding of short sums."""
    graph = import_model(model)
    verify(graph)
    found = evaluate(graph, feeds)
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, dict(feeds))
    for (name, got), expected in zip(found.items(), wanted, strict=True):
        names = graph.labels.get(name)
        if isinstance(expected, list):  # of maps
            assert names is not None
            expected = np.asarray([[row[type(next(iter(row)))(n)] for n in names] for row in expected], np.float32)
        if expected.dtype == object:
            assert names is not None
            np.testing.assert_array_equal(np.asarray(names, object)[got], expected, err_msg=f"seed {SEED}")
            continue
        assert got.dtype == expected.dtype and got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance, err_msg=f"seed {SEED}")


SINGLE: list[tuple[str, Array, dict[str, Any], Sequence[int]]] = [
    ("Binarizer", X, {"threshold": 0.25}, [F32]),
    ("Scaler", X, {"offset": [0.5, -1.0, 0.0, 2.0], "scale": [2.0, 0.5, 1.0, 3.0]}, [F32]),
    ("Scaler", X.astype(np.float64), {"offset": [0.5], "scale": [2.0]}, [F32]),
    ("Scaler", WHOLE, {"offset": [0.5], "scale": [2.0]}, [F32]),
    ("Normalizer", X, {"norm": "L1"}, [F32]),
    ("Normalizer", X, {"norm": "L2"}, [F32]),
    ("Normalizer", np.abs(X), {"norm": "MAX"}, [F32]),
    ("Normalizer", WHOLE * (np.arange(7) > 2).astype(np.int64)[:, None], {"norm": "L2"}, [F32]),
    ("Imputer", GAPS, {"imputed_value_floats": [1.0, 2.0, 3.0, 4.0], "replaced_value_float": float("nan")}, [F32]),
    ("Imputer", GAPS, {"imputed_value_floats": [7.0], "replaced_value_float": 1.0}, [F32]),
    ("Imputer", WHOLE, {"imputed_value_int64s": [9], "replaced_value_int64": -1}, [I64]),
    ("OneHotEncoder", WHOLE, {"cats_int64s": [0, 2, 1], "zeros": 1}, [F32]),
    ("OneHotEncoder", WHOLE.astype(np.float32), {"cats_int64s": [3, -1], "zeros": 1}, [F32]),
    ("LabelEncoder", WHOLE, {"keys_int64s": [1, 2, -2], "values_floats": [0.5, 1.5, 2.5], "default_float": -7.0},
     [F32]),
    *((op, GAPS, {"keys_floats": [float("nan"), 1.0], "values_int64s": [5, 6], "default_int64": 3}, [I64])
      for op in ("LabelEncoder", "LabelEncoder 4")),
    ("LabelEncoder", WHOLE, {"keys_int64s": [0, 1], "values_strings": ["no", "yes"], "default_string": "?"},
     [TensorProto.STRING]),
    ("CategoryMapper", WHOLE, {"cats_int64s": [0, 3, 1], "cats_strings": NAMES, "default_string": "none"},
     [TensorProto.STRING]),
    ("LinearRegressor", X, {"coefficients": [0.5, -1.0, 2.0, 0.25], "intercepts": [0.5], "targets": 1}, [F32]),
    ("LinearRegressor", X, {"coefficients": [0.5, -1.0, 2.0, 0.25] * 2, "targets": 2, "post_transform": "SOFTMAX"},
     [F32]),
    *(("LinearClassifier", X, {"coefficients": [0.5, -1.0, 2.0, 0.25] * n, "intercepts": [0.1] * n,
                               "classlabels_ints": [3, 8], "post_transform": t}, [I64, F32])
      for n, t in ((1, "NONE"), (1, "LOGISTIC"), (2, "SOFTMAX"))),
    ("LinearClassifier", X, {"coefficients": RNG.normal(size=12).tolist(), "intercepts": [0.1, 0.2, -0.3],
                             "classlabels_strings": NAMES, "post_transform": "LOGISTIC"}, [TensorProto.STRING, F32]),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(SINGLE)), ids=[f"{i} {c[0]}" for i, c in enumerate(SINGLE)])
def test_operators(case: int) -> None:
    op, x, attrs, results = SINGLE[case]
    names = [f"y{i}" for i in range(len(results))]
    op, _, version = op.partition(" ")
    node = ml_node(op, ["x"], names, **attrs)
    model = ml_model([node], {"x": x}, dict(zip(names, results, strict=True)), int(version or 3))
    agree(model, {"x": x})


KERNELS: dict[str, list[float]] = {
    "LINEAR": [0, 0, 0], "RBF": [0.5, 0, 0], "POLY": [0.5, 0.1, 3], "SIGMOID": [0.5, 0.1, 0],
}  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
def test_support_vectors(kernel: str) -> None:
    vectors = np.random.default_rng(SEED).normal(size=(5, 4))
    attrs = {
        "kernel_type": kernel, "kernel_params": [float(p) for p in KERNELS[kernel]],
        "support_vectors": vectors.reshape(-1).tolist(), "coefficients": [0.5, -1.0, 2.0, 0.25, -0.75], "rho": [0.1],
    }  # fmt: skip
    for one_class in (0, 1):
        node = ml_node("SVMRegressor", ["x"], ["y"], n_supports=5, one_class=one_class, **attrs)
        agree(ml_model([node], {"x": X}, {"y": F32}), {"x": X}, 1e-5)
    sides = {"vectors_per_class": [3, 2], "classlabels_ints": [4, 6]}
    # onnxruntime finds probabilities by iterations that end within 0.0025.
    for probability in ({}, {"prob_a": [-1.5], "prob_b": [0.2]}):
        node = ml_node("SVMClassifier", ["x"], ["label", "y"], **attrs, **sides, **probability)
        agree(ml_model([node], {"x": X}, {"label": I64, "y": F32}), {"x": X}, 5e-3 if probability else 1e-5)


@pytest.mark.parametrize("classes", [3, 4])
def test_votes_of_support_vectors(classes: int) -> None:
    chance = np.random.default_rng(SEED + classes)
    sizes = [3, 2, 4, 1][:classes]
    pairs = classes * (classes - 1) // 2
    attrs = {
        "kernel_type": "RBF", "kernel_params": [0.5, 0.0, 0.0], "vectors_per_class": sizes,
        "support_vectors": chance.normal(size=sum(sizes) * 4).tolist(), "rho": chance.normal(size=pairs).tolist(),
        "coefficients": chance.normal(size=(classes - 1) * sum(sizes)).tolist(),
        "classlabels_ints": [7, 5, 6, 9][:classes],
    }  # fmt: skip
    x = chance.normal(size=(60, 4)).astype(np.float32)
    node = ml_node("SVMClassifier", ["x"], ["label", "y"], **attrs)
    agree(ml_model([node], {"x": x}, {"label": I64, "y": F32}), {"x": x}, 1e-5)
    with pytest.raises(UnsupportedOpError, match="with probabilities for two classes"):
        node = ml_node("SVMClassifier", ["x"], ["label", "y"], **attrs, prob_a=[1.0] * pairs, prob_b=[1.0] * pairs)
        import_model(ml_model([node], {"x": x}, {"label": I64, "y": F32}))


def test_distances_of_many_support_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    from c2c.compiler import onnx_linear

    vectors = np.random.default_rng(SEED).normal(size=(5, 4)).reshape(-1).tolist()
    node = ml_node(
        "SVMRegressor", ["x"], ["y"], n_supports=5, kernel_type="RBF", kernel_params=[0.5, 0.0, 0.0],
        support_vectors=vectors, coefficients=[0.5, -1.0, 2.0, 0.25, -0.75], rho=[0.1],
    )  # fmt: skip
    monkeypatch.setattr(onnx_linear, "_DIRECT", 0)
    agree(ml_model([node], {"x": X}, {"y": F32}), {"x": X}, 1e-5)


def pipeline(labels: dict[str, Any]) -> onnx.ModelProto:
    """StandardScaler and GradientBoostingClassifier of three classes, with ZipMap."""
    strings = "classlabels_strings" in labels
    trees = forest(SEED, 9, 7, 4, of="class", modes=["BRANCH_LEQ"], targets=3, missing=False)
    nodes = [
        ml_node("Scaler", ["X"], ["variable"], offset=[0.1, -0.2, 0.0, 0.3], scale=[1.5, 0.75, 1.0, 2.0]),
        ml_node("TreeEnsembleClassifier", ["variable"], ["label", "probabilities"], **trees, **labels,
                base_values=[0.1, 0.2, -0.3], post_transform="SOFTMAX"),
        helper.make_node("Identity", ["label"], ["output_label"]) if strings else
        helper.make_node("Cast", ["label"], ["output_label"], to=I64),
        ml_node("ZipMap", ["probabilities"], ["output_probability"], **labels),
    ]  # fmt: skip
    kind = TensorProto.STRING if strings else I64
    return ml_model(nodes, {"X": GAPS}, {"output_label": kind, "output_probability": 0})


LABELS: dict[str, dict[str, Any]] = {
    "strings": {"classlabels_strings": NAMES}, "integers": {"classlabels_int64s": [10, 20, 30]},
}  # fmt: skip


@pytest.mark.parametrize("labels", LABELS)
def test_boosting_pipeline(labels: str) -> None:
    agree(pipeline(LABELS[labels]), {"X": GAPS})


def by_catboost(bias: float) -> onnx.ModelProto:
    """Oblivious trees whose leaves have a weight and its opposite, base values likewise, no opset but ai.onnx.ml's."""
    trees = forest(SEED, 8, 16, 4, of="class", modes=["BRANCH_GT"], targets=2, every_target=True, balanced=True,
                   oblivious=True)  # fmt: skip
    weights = trees["class_weights"]
    trees["class_weights"] = [w if i % 2 else -weights[i + 1] for i, w in enumerate(weights)]
    base = {"base_values": [-bias, bias]} if bias else {}
    labels = {"classlabels_int64s": [0, 1]}
    nodes = [
        ml_node("TreeEnsembleClassifier", ["features"], ["label", "probability_tensor"], **trees, **labels, **base,
                post_transform="LOGISTIC"),
        ml_node("ZipMap", ["probability_tensor"], ["probabilities"], **labels),
    ]  # fmt: skip
    model = ml_model(nodes, {"features": GAPS}, {"label": I64, "probabilities": 0}, 2)
    del model.opset_import[0]
    return model


def test_catboost() -> None:
    """Base values are left out for onnxruntime, which takes the second for a score."""
    agree(by_catboost(0), {"features": GAPS})
    plain, biased = (
        evaluate(import_model(by_catboost(b)), {"features": GAPS})["probabilities"].astype(np.float64) for b in (0, 0.5)
    )
    np.testing.assert_allclose(
        np.log(biased / (1 - biased)) - np.log(plain / (1 - plain)), [[-0.5, 0.5]] * 7, atol=1e-4
    )
    label = evaluate(import_model(by_catboost(0.5)), {"features": GAPS})["label"]
    np.testing.assert_array_equal(label, biased[:, 1] > 0.5)


def test_pipeline_of_columns() -> None:
    """ColumnTransformer: numbers imputed and scaled beside categories one-hot; a forest of two classes by strings that
    are looked up (ArrayFeatureExtractor), reshaped and cast, as for classifiers without string labels of their own."""
    trees = forest(SEED, 12, 9, 5, of="class", modes=["BRANCH_LEQ"], missing=False)
    trees["class_weights"] = [abs(w) / 12 for w in trees["class_weights"]]
    nodes = [
        ml_node("Imputer", ["numbers"], ["filled"], imputed_value_floats=[0.5, -0.5],
                replaced_value_float=float("nan")),
        ml_node("Scaler", ["filled"], ["scaled"], offset=[0.1, 0.2], scale=[2.0, 3.0]),
        ml_node("OneHotEncoder", ["kind"], ["hot"], cats_int64s=[0, 1, 2], zeros=1),
        helper.make_node("Reshape", ["hot", "columns"], ["flat"]),
        ml_node("FeatureVectorizer", ["scaled", "flat"], ["features"], inputdimensions=[2, 3]),
        ml_node("TreeEnsembleClassifier", ["features"], ["class", "probabilities"], **trees, classlabels_int64s=[0, 1]),
        ml_node("ArrayFeatureExtractor", ["names", "class"], ["named"]),
        helper.make_node("Reshape", ["named", "vector"], ["row"]),
        helper.make_node("Cast", ["row"], ["label"], to=TensorProto.STRING),
    ]  # fmt: skip
    feeds = {"numbers": GAPS[:, :2].copy(), "kind": np.abs(WHOLE[:, :1])}
    model = ml_model(nodes, feeds, {"label": TensorProto.STRING, "probabilities": F32})
    model.graph.initializer.extend([
        numpy_helper.from_array(np.asarray([-1, 3]), "columns"), numpy_helper.from_array(np.asarray([-1]), "vector"),
        numpy_helper.from_array(np.asarray(["no", "yes"], object), "names"),
    ])  # fmt: skip
    agree(model, feeds)


def test_encoded_labels_are_decoded_again() -> None:
    """Labels that a model made itself may be keys."""
    nodes = [
        ml_node("LabelEncoder", ["x"], ["name"], keys_int64s=[0, 1, 2], values_strings=NAMES, default_string="none"),
        ml_node("LabelEncoder", ["name"], ["y"], keys_strings=["owl", "cat", "owl"], values_floats=[3.0, 1.0, 5.0],
                default_float=9.0),
        ml_node("OneHotEncoder", ["name"], ["z"], cats_strings=["dog", "none"], zeros=1),
    ]  # fmt: skip
    agree(ml_model(nodes, {"x": WHOLE}, {"y": F32, "z": F32}), {"x": WHOLE})


@pytest.mark.needs("gcc")
def test_labels_reach_the_app(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the header, the manifest, what the compiler says, and the loaded model."""
    names = ['a "b"', "c\\d", "été?1"]
    model = pipeline({"classlabels_strings": names})
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["compile", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "output 'output_label' numbers 3 strings" in said
    assert "output 'output_probability' is a tensor of floats in place of maps" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [o["labels"] for o in manifest["outputs"]] == [names, names]
    program = '#include "m.h"\n#include <stdio.h>\nint main(void) { for (int i = 0; i < M_OUTPUT_LABEL_LABELS; i++) '
    (tmp_path / "show.c").write_text(f"{program}puts(m_output_label_labels[i]); return 0; }}")
    command = ["gcc", "-Wall", "-Wextra", "-Werror", "-I", str(tmp_path / "out"), str(tmp_path / "show.c")]
    subprocess.run([*command, "-o", str(tmp_path / "show")], check=True)
    shown = subprocess.run([tmp_path / "show"], check=True, capture_output=True).stdout.decode()
    assert shown.splitlines() == names
    loaded = c2c.load(tmp_path / "out")
    assert loaded.outputs[0].labels == tuple(names)
    (expected, _) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"X": GAPS})
    got = loaded.run({"X": GAPS})["output_label"]
    assert [names[i] for i in got] == list(expected)


def test_text_keeps_labels() -> None:
    graph = import_model(pipeline(LABELS["strings"]))
    again = parse_graph(print_graph(graph), large_constants(graph))
    assert again.labels == graph.labels == {"output_label": tuple(NAMES), "output_probability": tuple(NAMES)}


def refused(nodes: Sequence[onnx.NodeProto], feeds: Mapping[str, Array]) -> onnx.ModelProto:
    return ml_model(nodes, feeds, {"y": F32})


STRINGS = np.asarray([["a"], ["b"]], object)


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        ([ml_node("LabelEncoder", ["s"], ["y"], keys_strings=["a"], values_floats=[1.0])], UnsupportedOpError,
         "string tensors are not supported"),
        ([ml_node("LabelEncoder", ["i"], ["n"], keys_int64s=[1], values_strings=["a"]),
          helper.make_node("StringNormalizer", ["n"], ["y"])], UnsupportedOpError, "string tensors are not supported"),
        ([ml_node("Scaler", ["x"], ["y"], offset=[1.0, 2.0], scale=[1.0])], OnnxImportError, "2 values of offset"),
        ([ml_node("Normalizer", ["x"], ["y"], norm="L3")], OnnxImportError, "norm 'L3' does not exist"),
        ([ml_node("LinearRegressor", ["x"], ["y"], coefficients=[1.0])], OnnxImportError, "1 coefficients and 0"),
        ([ml_node("ZipMap", ["x"], ["y"], classlabels_int64s=[1])], OnnxImportError, "1 labels of ZipMap"),
        ([ml_node("DictVectorizer", ["x"], ["y"], int64_vocabulary=[1])], UnsupportedOpError,
         "DictVectorizer is not supported"),
    ],
)  # fmt: skip
def test_refused(nodes: Sequence[onnx.NodeProto], error: type[C2CError], message: str) -> None:
    feeds: dict[str, Array] = {"x": X, "i": WHOLE, "s": STRINGS}
    used = {n: a for n, a in feeds.items() if n in nodes[0].input}
    with pytest.raises(error, match=message):
        import_model(refused(nodes, used))


def test_open_number_of_features() -> None:
    model = refused([ml_node("Scaler", ["x"], ["y"], offset=[1.0, 2.0], scale=[1.0])], {"x": X})
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"
    with pytest.raises(UnknownShapeError, match="the number of features of 'x' is not known"):
        import_model(model)


def test_classifier_of_one_row_and_string_labels() -> None:
    attrs = {**forest(SEED, 5, 6, 4, of="class"), "classlabels_strings": ["no", "yes"], "post_transform": "LOGISTIC"}
    x = rows(SEED, 1, 4)
    agree(classifier(attrs, x), {"x": x})
