"""Decision trees as constants of a node: the operands of `c2c.TreeEnsemble`, and what they compute.

`c2c.TreeEnsemble(x, features, modes, missing, splits, children, roots, weights, targets, ends, members)`, attributes
`n_targets` and `aggregate` (SUM, AVERAGE, MIN, MAX): every row of x [N, F] goes through every tree to a leaf; leaves
give weights to targets; y [N, n_targets] has each target's weights together, 0 where no leaf gave any. It is the
TreeEnsemble of ai.onnx.ml, version 5, but that a leaf may give weights to several targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from .errors import ShapeError
from .graph import Node
from .types import DType, TensorType

TREES = "c2c.TreeEnsemble"
LEQ, LT, GTE, GT, EQ, NEQ, MEMBER = range(7)
"""What a node asks of its feature x: x <= split, x < split, …, whether x is a member of the node's set."""
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")

Array = np.ndarray


@dataclass(frozen=True, eq=False, slots=True)
class TreeEnsemble:
    """Trees whose nodes are numbered from 0, each before those below it.

    features i32 [nodes], modes u8 [nodes], missing bool [nodes] (NaN counts as true), splits [nodes] of x's type.
    children i32 [nodes, 2]: where true and where false leads; roots i32 [trees]. A number below 0 is leaf ~number.
    weights of x's type and targets i32 [entries]; leaf i has the entries from ends[i - 1] up to ends[i], i32 [leaves].
    members [any], of x's type: the sets of MEMBER nodes in their order, each closed by a NaN.
    """

    features: Array
    modes: Array
    missing: Array
    splits: Array
    children: Array
    roots: Array
    weights: Array
    targets: Array
    ends: Array
    members: Array

    @staticmethod
    def of(node: Node) -> TreeEnsemble:
        """The constants of a node; raises ShapeError where they are none, or no trees."""
        given = [v.data if v is not None else None for v in node.inputs[1:]]
        if len(given) != len(fields(TreeEnsemble)) or any(a is None for a in given):
            raise ShapeError(f"operator {node.op} takes its trees as ten constants", where=node.where)
        trees = TreeEnsemble(*(a for a in given if a is not None))
        problem = trees.problem(node)
        if problem:
            raise ShapeError(f"the trees of operator {node.op} are broken: {problem}", where=node.where)
        return trees

    def with_one_target(self) -> TreeEnsemble:
        """All weights given to target 0."""
        return replace(self, targets=np.zeros_like(self.targets))

    def operands(self) -> tuple[Array, ...]:
        """The constants in the order of the operator's inputs."""
        return tuple(getattr(self, f.name) for f in fields(self))

    @property
    def sets(self) -> dict[int, Array]:
        """The members of every MEMBER node, sorted, by its number."""
        ends = np.flatnonzero(np.isnan(self.members))
        parts = np.split(self.members, ends)
        return {
            int(n): np.unique(part[~np.isnan(part)])
            for n, part in zip(np.flatnonzero(self.modes == MEMBER), parts, strict=False)
        }

    def problem(self, node: Node) -> str:
        """What is wrong with them for a node's input and targets; "" where nothing is."""
        x, n, leaves = node.inputs[0], len(self.features), len(self.ends)
        assert x is not None
        lengths = {len(a) for a in (self.features, self.modes, self.missing, self.splits, self.children)}
        if lengths != {n} or self.children.shape != (n, 2) or len(self.weights) != len(self.targets):
            return "operands differ in length"
        floats = (self.splits, self.weights, self.members)
        if any(a.dtype != x.type.dtype.numpy for a in floats):
            return f"splits, weights and members are not all {x.type.dtype}"
        below = self.children.astype(np.int64)
        nodes = np.concatenate([below.reshape(-1), self.roots])
        if nodes.size and (nodes.max() >= n or (~nodes).max() >= leaves):
            return "a child does not exist"
        if np.any((below >= 0) & (below <= np.arange(n)[:, None])):
            return "a child stands before its parent"
        if n and (self.features.min() < 0 or self.features.max() >= x.type.dims[1] or self.modes.max() > MEMBER):
            return f"a feature is not among {x.type.dims[1]}, or a mode not among {MEMBER + 1}"
        if leaves and (np.any(np.diff(self.ends, prepend=0) < 0) or self.ends[-1] != len(self.weights)):
            return "leaves do not share the weights out"
        if self.targets.size and (self.targets.min() < 0 or self.targets.max() >= node.attrs["n_targets"]):
            return f"a target is not among {node.attrs['n_targets']}"
        if np.count_nonzero(self.modes == MEMBER) != np.count_nonzero(np.isnan(self.members)):
            return "sets and nodes of membership differ in number"
        return ""

    def reached(self, x: Array, root: int) -> Array:
        """The leaf i64 [N] at which each row of x [N, F] ends."""
        sets = self.sets
        at = np.full(len(x), root, np.int64)
        while len(rows := np.flatnonzero(at >= 0)):
            nodes = at[rows]
            value, split = x[rows, self.features[nodes]], self.splits[nodes]
            found = np.isnan(value) & self.missing[nodes]
            for mode in np.unique(self.modes[nodes]):
                of = self.modes[nodes] == mode
                if mode != MEMBER:
                    found[of] |= _COMPARE[int(mode)](value[of], split[of])
                for node in np.unique(nodes[of]) if mode == MEMBER else ():
                    found[nodes == node] |= np.isin(value[nodes == node], sets[int(node)])
            at[rows] = np.where(found, self.children[nodes, 0], self.children[nodes, 1])
        return ~at

    def evaluate(self, x: Array, n_targets: int, aggregate: str) -> Array:
        """y [N, n_targets] of x's type, summed in float64."""
        totals = np.zeros((len(x), n_targets))
        seen = np.zeros((len(x), n_targets), bool)
        join: Callable[..., Array] = {"MIN": np.minimum, "MAX": np.maximum}.get(aggregate, np.add)
        begins = np.concatenate([[0], self.ends[:-1]]).astype(np.int64)
        for root in self.roots:
            leaves = self.reached(x, int(root))
            counts = self.ends[leaves] - begins[leaves]
            for k in range(int(counts.max(initial=0))):
                rows = np.flatnonzero(counts > k)
                entry = begins[leaves[rows]] + k
                to = rows, self.targets[entry]
                weight = self.weights[entry].astype(np.float64)
                totals[to] = np.where(seen[to], join(totals[to], weight), weight)
                seen[to] = True
        return (totals / max(len(self.roots), 1) if aggregate == "AVERAGE" else totals).astype(x.dtype)


_COMPARE: Mapping[int, Callable[[Array, Array], Array]] = {
    LEQ: np.less_equal, LT: np.less, GTE: np.greater_equal, GT: np.greater, EQ: np.equal, NEQ: np.not_equal,
}  # fmt: skip


def infer_trees(node: Node) -> list[TensorType]:
    """The type of y; raises ShapeError where x is no matrix of f32 or f64."""
    x = node.inputs[0]
    if x is None or x.type.rank != 2 or x.type.dtype not in (DType.F32, DType.F64):
        raise ShapeError(f"operator {node.op} takes a matrix of f32 or f64", where=node.where)
    return [TensorType(x.type.dtype, (x.type.shape[0], node.attrs["n_targets"]))]
