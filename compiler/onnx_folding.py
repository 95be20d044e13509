"""What import computes itself: constants, shapes of known types, cheap operators on constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..ir.errors import OnnxImportError, UnsupportedOpError
from ..ir.graph import Node
from ..ir.ops import Kind
from ..ir.ops import op as op_row
from ..ir.reference import evaluate_node

FOLD_BYTES = 1 << 20
"""Larger results of constant inputs are left to the graph passes."""

_KEPT = frozenset({"DequantizeLinear"})
"""What passes read in its quantised form before they fold it."""

_FOLD_WORK = 1 << 22
"""Reductions and products of larger constants are left to the graph passes."""


def constant_data(attrs: Mapping[str, Any]) -> np.ndarray:
    """The value of a Constant node in any of its forms."""
    if len(attrs) != 1:
        raise OnnxImportError(f"a Constant needs one value, {len(attrs)} are given")
    ((key, value),) = attrs.items()
    dtypes = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if key in dtypes:
        return np.asarray(value, dtypes[key])
    return np.asarray(value, object) if key.startswith("value_string") else np.asarray(value)


def from_type(node: Node) -> np.ndarray | None:
    """The result of Shape or Size where the input's shape is known."""
    value = node.input(0)
    if value is None or not value.type.is_static:
        return None
    if node.op == "Size":
        return np.asarray(value.type.size, np.int64)
    return np.asarray(value.type.dims[slice(node.attrs.get("start", 0), node.attrs.get("end"))], np.int64)


def folds(node: Node) -> bool:
    """Whether a node is computed now: constant inputs, pure, and cheap."""
    row = op_row(node.op)
    if node.op in _KEPT or not row.pure or any(v is not None and v.data is None for v in node.inputs):
        return False
    static = all(v.type.is_static for v in node.outputs)
    if static and sum(v.type.nbytes for v in node.outputs) > FOLD_BYTES:
        return False
    work = sum(v.data.size for v in node.inputs if v is not None and v.data is not None)
    return work <= _FOLD_WORK or (static and row.kind is Kind.INJECTIVE)


def fold(node: Node) -> list[np.ndarray] | None:
    """The results of a node of constant inputs; None where the evaluator lacks the operator or departs from inference.

    Raises ShapeError where the operator is not defined for these values.
    """
    try:
        results = evaluate_node(node, [None if v is None else v.data for v in node.inputs])
    except UnsupportedOpError:
        return None
    static = [(v.type.dims, r.shape) for v, r in zip(node.outputs, results, strict=True) if v.type.is_static]
    return results if all(a == b for a, b in static) else None
