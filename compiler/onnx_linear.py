"""Linear models and support vectors of ai.onnx.ml, in terms of ONNX's own operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.errors import OnnxImportError, UnsupportedOpError
from ..ir.graph import Value
from ..ir.types import DType
from .onnx_scores import columns_of, labels_of, one, post_transform, scalar, to_type, two_classes
from .onnx_upgrade import Emit, OldNode

_DIRECT = 1 << 20
"""Elements of differences from support vectors up to which distances are sums of their squares."""


def linear_regressor(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """x · coefficientsᵀ + intercepts, transformed: [N, targets]."""
    a = node.attrs
    y = _linear(node, emit, int(a.get("targets", 1)), a.get("coefficients", ()), a.get("intercepts", ()))
    return (post_transform(emit, y, a.get("post_transform", "NONE")),)


def linear_classifier(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """Labels and scores; one row of coefficients speaks for the second of two classes."""
    a, labels = node.attrs, labels_of(node.attrs, "classlabels_ints")
    transform, coefficients = a.get("post_transform", "NONE"), a.get("coefficients", ())
    if len(coefficients) == columns_of(node.data) and len(labels) == 2:
        score = _linear(node, emit, 1, coefficients, a.get("intercepts", ()))
        above = one(emit, "Greater", score, scalar(emit, score, 0))
        return labels.pick(emit, above), two_classes(emit, score, transform, True)
    scores = _linear(node, emit, len(labels), coefficients, a.get("intercepts", ()))
    best = one(emit, "ArgMax", scores, axis=1, keepdims=0)
    return labels.pick(emit, best), post_transform(emit, scores, transform)


def svm_regressor(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """Σ coefficient · kernel(x, support vector) + rho: [N, 1]; of one class its sign, as 1 or -1."""
    a, x = node.attrs, _matrix(node, emit)
    weights, rho = np.asarray(a.get("coefficients", ()), np.float32), np.asarray(a.get("rho", ()), np.float32)
    if rho.size != 1:
        raise OnnxImportError(f"{rho.size} values of rho for a regressor")
    count = int(a.get("n_supports", 0))
    values = _kernel(a, emit, x, count) if count else x
    if weights.size != columns_of(values):
        raise OnnxImportError(f"{weights.size} coefficients for {columns_of(values)} support vectors")
    y = one(emit, "Gemm", values, emit.constant(weights.reshape(-1, 1)), emit.constant(rho))
    if a.get("one_class", 0):
        above = one(emit, "Greater", y, scalar(emit, y, 0))
        return (one(emit, "Where", above, scalar(emit, y, 1), scalar(emit, y, -1)),)
    return (post_transform(emit, y, a.get("post_transform", "NONE")),)


def svm_classifier(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """Classes by support vectors, each pair of them by a score: above 0 the first has the pair's vote.

    Of two classes the scores are -s and s, or probabilities by Platt's sigmoid; of more the scores of all pairs.
    Raises UnsupportedOpError for probabilities of more than two classes, which are found by iterations, and for
    classifiers without support vectors.
    """
    a, x, labels = node.attrs, _matrix(node, emit), labels_of(node.attrs, "classlabels_ints")
    sizes = [int(n) for n in a.get("vectors_per_class", ())]
    if not sum(sizes) or len(sizes) != len(labels) or len(labels) > 2 and a.get("prob_a"):
        raise UnsupportedOpError(
            "SVMClassifier is supported by support vectors of each class, with probabilities for two classes",
            remedy="export without probabilities, or a linear model",
        )
    weights, rho = _pairs(a, sizes), np.asarray(a.get("rho", ()), np.float32)
    if rho.size != weights.shape[1]:
        raise OnnxImportError(f"{rho.size} values of rho for {weights.shape[1]} pairs of classes")
    transform = a.get("post_transform", "NONE")
    scores = one(emit, "Gemm", _kernel(a, emit, x, sum(sizes)), emit.constant(weights), emit.constant(rho))
    if len(labels) > 2:
        return labels.pick(emit, _winner(emit, scores, len(labels))), post_transform(emit, scores, transform)
    below = one(emit, "LessOrEqual", scores, scalar(emit, scores, 0))
    slope, shift = (np.asarray(a.get(n, ()), np.float32) for n in ("prob_a", "prob_b"))
    if slope.size:
        logit = one(emit, "Add", one(emit, "Mul", scores, emit.constant(slope)), emit.constant(shift))
        scores = one(emit, "Sigmoid", one(emit, "Concat", one(emit, "Neg", logit), logit, axis=1))
        return labels.pick(emit, below), post_transform(emit, scores, transform)
    if transform not in ("NONE", "LOGISTIC"):
        raise UnsupportedOpError(f"SVMClassifier without probabilities and with post_transform {transform}")
    return labels.pick(emit, below), two_classes(emit, scores, transform, False)


def _pairs(a: dict[str, Any], sizes: list[int]) -> np.ndarray:
    """Coefficients [vectors, pairs]: of pair (i, j) those of i's vectors against j and of j's against i (libsvm)."""
    count, vectors = len(sizes), sum(sizes)
    given = np.asarray(a.get("coefficients", ()), np.float32)
    if given.size != (count - 1) * vectors:
        raise OnnxImportError(f"{given.size} coefficients for {vectors} support vectors of {count} classes")
    given, begins = given.reshape(count - 1, vectors), np.concatenate([[0], np.cumsum(sizes)])
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    found = np.zeros((vectors, len(pairs)), np.float32)
    for p, (i, j) in enumerate(pairs):
        for of, other in ((i, j - 1), (j, i)):
            rows = slice(begins[of], begins[of + 1])
            found[rows, p] = given[other, rows]
    return found


def _winner(emit: Emit, scores: Value, classes: int) -> Value:
    """The class i64 [N] with the most votes, of equal ones the first."""
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    for_first, for_second = (np.zeros((len(pairs), classes), np.float32) for _ in range(2))
    for p, (i, j) in enumerate(pairs):
        for_first[p, i] = for_second[p, j] = 1
    first = to_type(emit, one(emit, "Greater", scores, scalar(emit, scores, 0)), DType.F32)
    votes = one(emit, "Gemm", first, emit.constant(for_first - for_second), emit.constant(for_second.sum(0)))
    return one(emit, "ArgMax", votes, axis=1, keepdims=0)


def _matrix(node: OldNode, emit: Emit) -> Value:
    """x [N, features] in f32."""
    x = to_type(emit, node.data, DType.F32)
    return x if x.type.rank == 2 else one(emit, "Unsqueeze", x, emit.constant(np.asarray([0], np.int64)))


def _linear(node: OldNode, emit: Emit, rows: int, coefficients: Any, intercepts: Any) -> Value:
    x, weights = _matrix(node, emit), np.asarray(coefficients, np.float32)
    features = columns_of(x)
    if weights.size != rows * features or len(intercepts) not in (0, rows):
        raise OnnxImportError(
            f"{weights.size} coefficients and {len(intercepts)} intercepts for {rows} results of {features} features"
        )
    bias = emit.constant(np.asarray(intercepts, np.float32)) if intercepts else None
    matrix = emit.constant(np.ascontiguousarray(weights.reshape(rows, -1).T))
    return one(emit, "Gemm", x, matrix, *([bias] if bias else []))


def _kernel(a: dict[str, Any], emit: Emit, x: Value, count: int) -> Value:
    """kernel(x, v) of each support vector v: [N, count]."""
    kind = a.get("kernel_type", "LINEAR")
    gamma, shift, degree = (*a.get("kernel_params", ()), 0.0, 0.0, 0.0)[:3]
    vectors = np.asarray(a.get("support_vectors", ()), np.float32)
    if vectors.size != count * columns_of(x):
        raise OnnxImportError(f"{vectors.size} numbers of {count} support vectors of {columns_of(x)} features")
    vectors = vectors.reshape(count, -1)
    if kind == "RBF":
        return one(emit, "Exp", one(emit, "Mul", _distances(emit, x, vectors), scalar(emit, x, -gamma)))
    product = one(emit, "MatMul", x, emit.constant(np.ascontiguousarray(vectors.T)))
    if kind == "LINEAR":
        return product
    affine = one(emit, "Add", one(emit, "Mul", product, scalar(emit, x, gamma)), scalar(emit, x, shift))
    if kind == "POLY":
        return one(emit, "Pow", affine, scalar(emit, x, degree))
    if kind == "SIGMOID":
        return one(emit, "Tanh", affine)
    raise OnnxImportError(f"kernel_type '{kind}' does not exist")


def _distances(emit: Emit, x: Value, vectors: np.ndarray) -> Value:
    """Squares of distances [N, count]; of many as |x|² - 2 x·v + |v|², which rounds by the lengths' squares."""
    if x.type.is_static and x.type.size * len(vectors) <= _DIRECT:
        apart = one(
            emit, "Sub", one(emit, "Unsqueeze", x, emit.constant(np.asarray([1], np.int64))), emit.constant(vectors)
        )
        return one(emit, "ReduceSumSquare", apart, emit.constant(np.asarray([2], np.int64)), keepdims=0)
    own = one(emit, "ReduceSumSquare", x, emit.constant(np.asarray([1], np.int64)))
    others = emit.constant(np.square(vectors.astype(np.float64)).sum(1).astype(np.float32))
    product = one(emit, "MatMul", x, emit.constant(np.ascontiguousarray(-2 * vectors.T)))
    return one(emit, "Max", one(emit, "Add", one(emit, "Add", own, others), product), scalar(emit, x, 0))
