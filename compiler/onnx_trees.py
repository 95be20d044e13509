"""Tree ensembles of ai.onnx.ml, in every form, as `c2c.TreeEnsemble` and ordinary operators on its sums.

Where the specification is silent, onnxruntime decides: a classifier of two classes whose leaves name the first one only
has one score s a row, and the second class wins above 0 (above 0.5 where no weight is negative).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..ir.errors import OnnxImportError, UnsupportedOpError
from ..ir.graph import Value
from ..ir.tree_ensemble import AGGREGATES, EQ, GT, GTE, LEQ, LT, MEMBER, NEQ, TREES, TreeEnsemble
from ..ir.types import DType
from .onnx_scores import POST_TRANSFORMS, labels_of, one, post_transform, to_type, two_classes
from .onnx_upgrade import Emit, OldNode

_MODES = {"BRANCH_LEQ": LEQ, "BRANCH_LT": LT, "BRANCH_GTE": GTE, "BRANCH_GT": GT, "BRANCH_EQ": EQ, "BRANCH_NEQ": NEQ}
_LEAF = "LEAF"


def tree_ensemble(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """TreeEnsemble of version 5."""
    a, x = node.attrs, _rows(node, emit)
    modes = np.asarray(a["nodes_modes"]).reshape(-1).astype(np.uint8)
    n = len(modes)
    for name in ("nodes_featureids", "nodes_splits"):
        if len(np.asarray(a[name]).reshape(-1)) != n:
            raise OnnxImportError(f"{name} and nodes_modes differ in length")
    arms = [_arms(a, side, n) for side in ("true", "false")]
    children = np.stack(arms, axis=1) if n else np.zeros((0, 2), np.int64)
    roots = np.asarray(a["tree_roots"], np.int64)
    if roots.size and (roots.min() < 0 or roots.max() >= n):
        raise OnnxImportError(f"a tree's root is not among {n} nodes")
    alone = (children[roots, 0] == children[roots, 1]) & (children[roots, 0] < 0)
    roots = np.where(alone, children[roots, 0], roots)
    leaves = len(a["leaf_targetids"])
    missing = np.asarray(a.get("nodes_missing_value_tracks_true", (0,) * n), bool)
    if len(missing) != n:
        raise OnnxImportError(f"{len(missing)} values of nodes_missing_value_tracks_true for {n} nodes")
    element = x.type.dtype.numpy
    found = TreeEnsemble(
        np.asarray(a["nodes_featureids"]), modes, missing, np.asarray(a["nodes_splits"]).astype(element), children,
        roots, np.asarray(a["leaf_weights"]).astype(element), np.asarray(a["leaf_targetids"]), np.arange(1, leaves + 1),
        np.asarray(a.get("membership_values", ())).astype(element),
    )  # fmt: skip
    aggregate = AGGREGATES[_among(a.get("aggregate_function", 1), len(AGGREGATES), "aggregate_function")]
    y = _emit(emit, x, _in_order(found), int(a.get("n_targets", 1)), aggregate)
    y = post_transform(emit, y, POST_TRANSFORMS[_among(a.get("post_transform", 0), 5, "post_transform")])
    return (to_type(emit, y, node.data.type.dtype),)


def tree_regressor(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """TreeEnsembleRegressor: y [N, targets] in f32."""
    a, x = node.attrs, _rows(node, emit)
    count = int(a.get("n_targets", 1))
    aggregate = a.get("aggregate_function", "SUM")
    if aggregate not in AGGREGATES:
        raise OnnxImportError(f"aggregate_function '{aggregate}' does not exist")
    y = _emit(emit, x, _old_form(a, "target", x.type.dtype), count, aggregate)
    base = _floats(a, "base_values", x.type.dtype)
    if base.size not in (0, count):
        raise OnnxImportError(f"{base.size} base_values for {count} targets")
    if base.size:
        y = one(emit, "Add", y, emit.constant(base))
    return (to_type(emit, post_transform(emit, y, a.get("post_transform", "NONE")), DType.F32),)


def tree_classifier(node: OldNode, emit: Emit) -> tuple[Value, ...]:
    """TreeEnsembleClassifier: labels [N] and scores [N, classes] in f32."""
    a, x = node.attrs, _rows(node, emit)
    labels = labels_of(a, "classlabels_int64s")
    count, ids = len(labels), np.asarray(a.get("class_ids", ()), np.int64)
    base, transform = _floats(a, "base_values", x.type.dtype), a.get("post_transform", "NONE")
    form = _old_form(a, "class", x.type.dtype)
    if count == 2 and len(np.unique(ids)) == 1 and ids[0] in (0, 1):
        if base.size > 1 or ids[0] == 1 and np.any(base):
            raise UnsupportedOpError(f"{base.size} base_values for one score of two classes have no defined meaning")
        score = _emit(emit, x, form.with_one_target(), 1, "SUM")
        if base.size:
            score = one(emit, "Add", score, emit.constant(base))
        positive = bool(np.all(form.weights >= 0))
        above = one(emit, "Greater", score, emit.constant(np.asarray(0.5 if positive else 0, base.dtype)))
        scores = two_classes(emit, score, transform, positive, first=ids[0] == 0)
        return labels.pick(emit, above), to_type(emit, scores, DType.F32)
    if base.size not in (0, count):
        raise OnnxImportError(f"{base.size} base_values for {count} classes")
    scores = _emit(emit, x, form, count, "SUM")
    if base.size:
        scores = one(emit, "Add", scores, emit.constant(base))
    best = one(emit, "ArgMax", scores, axis=1, keepdims=0)
    return labels.pick(emit, best), to_type(emit, post_transform(emit, scores, transform), DType.F32)


# ---- pieces


def _rows(node: OldNode, emit: Emit) -> Value:
    """x as a matrix of f32 or f64, the type in which splits are compared."""
    x = node.data
    if x.type.rank == 1:
        x = one(emit, "Unsqueeze", x, emit.constant(np.asarray([0], np.int64)))
    return x if x.type.dtype is DType.F64 else to_type(emit, x, DType.F32)


def _emit(emit: Emit, x: Value, form: TreeEnsemble, targets: int, aggregate: str) -> Value:
    operands = [emit.constant(a) for a in form.operands()]
    return one(emit, TREES, x, *operands, n_targets=targets, aggregate=aggregate)


def _among(value: int, count: int, what: str) -> int:
    if not 0 <= value < count:
        raise OnnxImportError(f"{what} {value} does not exist")
    return value


def _floats(a: Mapping[str, Any], name: str, dtype: DType) -> np.ndarray:
    """An attribute that is given as floats or as a tensor, in the type of x."""
    given = a.get(f"{name}_as_tensor", a.get(name, ()))
    return np.asarray(given).reshape(-1).astype(dtype.numpy)


def _arms(a: Mapping[str, Any], side: str, count: int) -> np.ndarray:
    ids, leafs = (np.asarray(a[f"nodes_{side}{what}"], np.int64) for what in ("nodeids", "leafs"))
    if len(ids) != count or len(leafs) != count:
        raise OnnxImportError(f"{len(ids)} nodes_{side}nodeids and {len(leafs)} nodes_{side}leafs for {count} nodes")
    end = np.where(leafs != 0, len(a["leaf_targetids"]), count)
    if np.any((ids < 0) | (ids >= end)):
        raise OnnxImportError(f"nodes_{side}nodeids name a node that does not exist")
    return np.where(leafs != 0, ~ids, ids)


def _old_form(a: Mapping[str, Any], of: str, dtype: DType) -> TreeEnsemble:
    """The trees of versions 1 and 3, whose nodes and weights are lists; `of` is target or class."""
    names = ("nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_truenodeids", "nodes_falsenodeids")
    trees, ids, features, true, false = (np.asarray(a.get(n, ()), np.int64) for n in names)
    modes, splits = a.get("nodes_modes", ()), _floats(a, "nodes_values", dtype)
    missing = np.asarray(a.get("nodes_missing_value_tracks_true", ()) or (0,) * len(modes), bool)
    if {len(v) for v in (trees, ids, features, true, false, splits, missing)} != {len(modes)}:
        raise OnnxImportError("lists of the trees' nodes differ in length")
    unknown = sorted({*modes} - {*_MODES, _LEAF})
    if unknown:
        raise OnnxImportError(f"a tree's node has the mode '{unknown[0]}', which does not exist")
    places = {key: i for i, key in enumerate(zip(trees.tolist(), ids.tolist(), strict=True))}
    if len(places) != len(modes):
        raise OnnxImportError("two nodes of a tree have one number")
    is_leaf = np.asarray([m == _LEAF for m in modes], bool)
    number = np.where(is_leaf, ~(np.cumsum(is_leaf) - 1), np.cumsum(~is_leaf) - 1)
    inner = np.flatnonzero(~is_leaf)
    arms = np.asarray([_places(places, trees[inner], side[inner]) for side in (true, false)], np.int64).T.reshape(-1, 2)
    below = {*arms.reshape(-1).tolist()}
    tops: dict[int, int] = {}
    for i in range(len(modes)):
        if i not in below:
            tops.setdefault(int(trees[i]), i)
    without = sorted({*trees.tolist()} - {*tops})
    if without:
        raise OnnxImportError(f"tree {without[0]} has no root: every node is below another one")
    roots = number[list(tops.values())]
    found = TreeEnsemble(
        features[inner], np.asarray([_MODES[modes[i]] for i in inner], np.uint8), missing[inner], splits[inner],
        number[arms], roots, *_entries(a, of, places, number, dtype), np.zeros(0, dtype.numpy),
    )  # fmt: skip
    ordered = _in_order(found)
    if len(ordered.features) != len(inner):
        raise OnnxImportError("a tree's node is not below its root")
    return ordered


def _places(places: Mapping[tuple[int, int], int], trees: np.ndarray, ids: np.ndarray) -> list[int]:
    try:
        return [places[key] for key in zip(trees.tolist(), ids.tolist(), strict=True)]
    except KeyError as e:
        tree, node = e.args[0]
        raise OnnxImportError(f"tree {tree} has no node {node}") from None


def _entries(
    a: Mapping[str, Any], of: str, places: Mapping[tuple[int, int], int], number: np.ndarray, dtype: DType
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights and targets sorted by leaf, and the leaves' ends."""
    trees, ids, targets = (np.asarray(a.get(f"{of}_{n}", ()), np.int64) for n in ("treeids", "nodeids", "ids"))
    weights = _floats(a, f"{of}_weights", dtype)
    if {len(trees), len(ids), len(targets)} != {len(weights)}:
        raise OnnxImportError(f"lists of the leaves' {of} weights differ in length")
    leaves = ~number[_places(places, trees, ids)] if len(trees) else np.zeros(0, np.int64)
    kept = leaves >= 0
    leaves, targets, weights = leaves[kept], targets[kept], weights[kept]
    order = np.argsort(leaves, kind="stable")
    counts = np.bincount(leaves, minlength=int(np.count_nonzero(number < 0)))
    return weights[order], targets[order], np.cumsum(counts)


def _in_order(form: TreeEnsemble) -> TreeEnsemble:
    """Nodes numbered anew, parents first; those that no root leads to are dropped. Sets keep to their nodes."""
    order = np.asarray(_parents_first(form.children.tolist(), form.roots.tolist()), np.int64)
    new = np.zeros(len(form.features) + 1, np.int64)
    new[order] = np.arange(len(order))
    children, roots = (np.where(c < 0, c, new[np.maximum(c, 0)]).astype(np.int32) for c in (form.children, form.roots))
    if np.count_nonzero(form.modes == MEMBER) != np.count_nonzero(np.isnan(form.members)):
        raise OnnxImportError("membership_values do not hold one set for each BRANCH_MEMBER node")
    sets = form.sets
    closed = [np.append(sets[int(n)], np.nan).astype(form.splits.dtype) for n in order if form.modes[n] == MEMBER]
    members = np.concatenate(closed) if closed else np.zeros(0, form.splits.dtype)
    return TreeEnsemble(
        form.features[order].astype(np.int32), form.modes[order], form.missing[order], form.splits[order],
        children[order], roots, form.weights, form.targets.astype(np.int32), form.ends.astype(np.int32), members,
    )  # fmt: skip


def _parents_first(children: Sequence[Sequence[int]], roots: Sequence[int]) -> list[int]:
    """All nodes below `roots`, each before those below it; raises OnnxImportError for a tree that bites its tail."""
    done, opened = [False] * len(children), [False] * len(children)
    order: list[int] = []
    for root in reversed(roots):
        stack = [root]
        while stack:
            at = stack[-1]
            if at < 0 or done[at]:
                stack.pop()
            elif opened[at]:
                done[at] = True
                order.append(stack.pop())
            else:
                opened[at] = True
                below = [c for c in children[at] if c >= 0 and not done[c]]
                if any(opened[c] for c in below):
                    raise OnnxImportError("a tree's node leads back to itself")
                stack += below
    return order[::-1]
