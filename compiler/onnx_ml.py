"""Operators of the domain ai.onnx.ml in terms of ONNX's own and of `c2c.TreeEnsemble`: a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..ir.errors import UnsupportedOpError
from ..ir.graph import Value
from .onnx_trees import tree_classifier, tree_ensemble, tree_regressor
from .onnx_upgrade import Emit, OldNode

DOMAIN = "ai.onnx.ml"

MlRule = Callable[[OldNode, Emit], tuple[Value, ...]]


def expand_ml(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """Results of an operator of the domain; raises UnsupportedOpError for one that is not in the table."""
    rule = _RULES.get(node.op)
    if rule is None:
        raise UnsupportedOpError(f"operator {node.op} is not supported", remedy="see docs/operators.md for what is")
    return rule(node, emit)


_RULES: Mapping[str, MlRule] = {
    "ai.onnx.ml.TreeEnsemble": tree_ensemble,
    "ai.onnx.ml.TreeEnsembleClassifier": tree_classifier,
    "ai.onnx.ml.TreeEnsembleRegressor": tree_regressor,
}
