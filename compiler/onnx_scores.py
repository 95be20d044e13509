"""What classifiers and regressors of ai.onnx.ml make of their scores: post transforms, second classes, labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np

from ..ir.errors import OnnxImportError, UnknownShapeError, UnsupportedOpError
from ..ir.graph import Value
from ..ir.reference import element_type
from ..ir.types import DType
from .onnx_upgrade import Emit

POST_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
"""By their number in TreeEnsemble."""

_ZERO = 1e-7
"""Scores of smaller magnitude count as zeros in SOFTMAX_ZERO (onnxruntime's bound)."""
_WINITZKI = 0.147
"""a in S. Winitzki, "A handy approximation for the error function and its inverse" (2008): what onnxruntime uses."""


def one(emit: Emit, op: str, *inputs: Value | None, **attrs: Any) -> Value:
    """The one result of an operator."""
    (value,) = emit.emit(op, inputs, attrs)
    return value


def scalar(emit: Emit, like: Value, number: float) -> Value:
    """A constant of the element type of `like`."""
    return emit.constant(np.asarray(number, like.type.dtype.numpy))


def to_type(emit: Emit, x: Value, dtype: DType) -> Value:
    """x in an element type."""
    return x if x.type.dtype is dtype else one(emit, "Cast", x, to=element_type(dtype))


def columns_of(x: Value) -> int:
    """Features of a row; raises UnknownShapeError where the model does not say."""
    columns = x.type.shape[-1] if x.type.rank else 1
    if not isinstance(columns, int):
        raise UnknownShapeError(f"the number of features of '{x.name}' is not known", remedy="--shape INPUT=N,…")
    return columns


def post_transform(emit: Emit, scores: Value, transform: str) -> Value:
    """scores [N, targets] transformed; raises OnnxImportError for a name that does not exist."""
    if transform == "NONE":
        return scores
    if transform == "LOGISTIC":
        return one(emit, "Sigmoid", scores)
    if transform == "SOFTMAX":
        return one(emit, "Softmax", scores, axis=-1)
    if transform == "SOFTMAX_ZERO":
        return _softmax_zero(emit, scores)
    if transform == "PROBIT":
        return _probit(emit, scores)
    raise OnnxImportError(f"post_transform '{transform}' does not exist")


def _softmax_zero(emit: Emit, x: Value) -> Value:
    """Softmax over the scores that are not zero; zeros stay zeros."""
    axis = emit.constant(np.asarray([-1], np.int64))
    some = one(emit, "Greater", one(emit, "Abs", x), scalar(emit, x, _ZERO))
    power = one(emit, "Exp", one(emit, "Sub", x, one(emit, "ReduceMax", x, axis)))
    kept = one(emit, "Where", some, power, scalar(emit, x, 0))
    return one(emit, "Div", kept, one(emit, "ReduceSum", kept, axis))


def _probit(emit: Emit, p: Value) -> Value:
    """√2 · erf⁻¹(2p - 1), by Winitzki's formula: its error is below 2e-3."""
    x = one(emit, "Sub", one(emit, "Mul", p, scalar(emit, p, 2)), scalar(emit, p, 1))
    log = one(emit, "Log", one(emit, "Sub", scalar(emit, p, 1), one(emit, "Mul", x, x)))
    half = one(emit, "Mul", log, scalar(emit, p, 0.5))
    middle = one(emit, "Add", half, scalar(emit, p, 2 / (pi * _WINITZKI)))
    square = one(emit, "Sub", one(emit, "Mul", middle, middle), one(emit, "Mul", log, scalar(emit, p, 1 / _WINITZKI)))
    root = one(emit, "Sqrt", one(emit, "Sub", one(emit, "Sqrt", square), middle))
    return one(emit, "Mul", one(emit, "Mul", one(emit, "Sign", x), root), scalar(emit, p, 2**0.5))


def two_classes(emit: Emit, score: Value, transform: str, positive: bool, *, first: bool = True) -> Value:
    """Scores [N, 2] of two classes of which a model has but one score s [N, 1], as onnxruntime has them.

    first: leaves name the first class, though s speaks for the second: then the scores are by LOGISTIC σ(-s) and σ(s),
    else 1 - s and s where no weight is negative, -s and s where one is. Otherwise they are 0 and s, transformed.
    Raises UnsupportedOpError for PROBIT of a single score.
    """
    if not first:
        zero = one(emit, "Sub", score, score)
        return post_transform(emit, one(emit, "Concat", zero, score, axis=1), transform)
    if transform == "PROBIT":
        raise UnsupportedOpError("post_transform PROBIT of one score for two classes has no defined meaning")
    if transform not in POST_TRANSFORMS:
        raise OnnxImportError(f"post_transform '{transform}' does not exist")
    logistic = transform == "LOGISTIC"
    other = one(emit, "Sub", scalar(emit, score, 1), score) if positive and not logistic else one(emit, "Neg", score)
    scores = one(emit, "Concat", other, score, axis=1)
    return one(emit, "Sigmoid", scores) if logistic else scores


@dataclass(frozen=True, slots=True)
class Labels:
    """Names of classes in order: integers, or strings."""

    integers: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.integers) or len(self.strings)

    def pick(self, emit: Emit, index: Value) -> Value:
        """The labels i64 [N] of classes: `index` is i64, or bool [N, 1] where there are two. Of strings, the index."""
        if index.type.rank == 2:
            numbers = self.integers or (0, 1)
            first, second = (emit.constant(np.asarray(n, np.int64)) for n in numbers)
            chosen = one(emit, "Where", index, second, first)
            picked = one(emit, "Squeeze", chosen, emit.constant(np.asarray([1], np.int64)))
        elif not self.integers or self.integers == tuple(range(len(self.integers))):
            picked = index
        else:
            picked = one(emit, "Gather", emit.constant(np.asarray(self.integers, np.int64)), index)
        if self.strings:
            emit.label(picked, self.strings)
        return picked


def labels_of(attrs: Mapping[str, Any], integers: str) -> Labels:
    """The labels of a classifier; raises OnnxImportError where it has none."""
    found = Labels(tuple(attrs.get(integers, ())), tuple(attrs.get("classlabels_strings", ())))
    if not len(found) or (found.integers and found.strings):
        raise OnnxImportError(f"a classifier needs either {integers} or classlabels_strings")
    return found
