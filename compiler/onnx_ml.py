"""Operators of the domain ai.onnx.ml in terms of ONNX's own and of `c2c.TreeEnsemble`: a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..ir.errors import OnnxImportError, UnsupportedOpError
from ..ir.graph import Value
from ..ir.types import DType
from .onnx_features import (
    array_feature_extractor,
    binarizer,
    feature_vectorizer,
    imputer,
    normalizer,
    one_hot_encoder,
    scaler,
)
from .onnx_labels import REMEDY, STRINGS, category_mapper, label_encoder, zip_map
from .onnx_linear import linear_classifier, linear_regressor, svm_classifier, svm_regressor
from .onnx_trees import tree_classifier, tree_ensemble, tree_regressor
from .onnx_upgrade import Emit, OldNode

DOMAIN = "ai.onnx.ml"

MlRule = Callable[[OldNode, Emit], tuple[Value, ...]]


def is_ml(op: str) -> bool:
    """Whether the table has an operator, named with its domain."""
    return op in _RULES


def expand_ml(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """Results of an operator of the domain; raises UnsupportedOpError for one that is not in the table."""
    rule = _RULES.get(node.op)
    if rule is None:
        raise UnsupportedOpError(f"operator {node.op} is not supported", remedy="see docs/operators.md for what is")
    if node.input(0) is None:
        raise OnnxImportError(f"the first input of operator {node.op} is left out")
    if node.op not in _TAKE_LABELS:
        for value in node.inputs:
            if value is not None and emit.names_of(value) is not None:
                raise UnsupportedOpError(STRINGS, remedy=REMEDY)
    if node.data.type.dtype is DType.STRING and node.op not in _TAKE_STRINGS:
        raise UnsupportedOpError(STRINGS, remedy=REMEDY)
    return rule(node, emit)


_TAKE_LABELS = frozenset(f"{DOMAIN}.{op}" for op in ("LabelEncoder", "CategoryMapper", "OneHotEncoder"))
"""Operators that take labels as a model makes them."""
_TAKE_STRINGS = frozenset({f"{DOMAIN}.ArrayFeatureExtractor"})

_RULES: Mapping[str, MlRule] = {
    "ai.onnx.ml.ArrayFeatureExtractor": array_feature_extractor,
    "ai.onnx.ml.Binarizer": binarizer,
    "ai.onnx.ml.CategoryMapper": category_mapper,
    "ai.onnx.ml.FeatureVectorizer": feature_vectorizer,
    "ai.onnx.ml.Imputer": imputer,
    "ai.onnx.ml.LabelEncoder": label_encoder,
    "ai.onnx.ml.LinearClassifier": linear_classifier,
    "ai.onnx.ml.LinearRegressor": linear_regressor,
    "ai.onnx.ml.Normalizer": normalizer,
    "ai.onnx.ml.OneHotEncoder": one_hot_encoder,
    "ai.onnx.ml.SVMClassifier": svm_classifier,
    "ai.onnx.ml.SVMRegressor": svm_regressor,
    "ai.onnx.ml.Scaler": scaler,
    "ai.onnx.ml.TreeEnsemble": tree_ensemble,
    "ai.onnx.ml.TreeEnsembleClassifier": tree_classifier,
    "ai.onnx.ml.TreeEnsembleRegressor": tree_regressor,
    "ai.onnx.ml.ZipMap": zip_map,
}
