"""What leaves give to targets: a weight a leaf where each tree has one target, else a row of weights a leaf."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.loops import Expr, binary, const, select
from ...ir.tree_ensemble import TreeEnsemble
from ...ir.types import DType
from .tree_tests import Tests

_NEUTRAL = {"MIN": np.inf, "MAX": -np.inf}


@dataclass(frozen=True, eq=False, slots=True)
class Leaves:
    """sections: trees by number, those of each target where each tree has one (`single`), else all in one section.

    weights [leaves, columns] of x's type: columns is 1 where trees have one target each, else n_targets. aggregate: as
    the operator has it; of MIN and MAX an infinity stands for a target to which a leaf gives nothing.
    """

    sections: tuple[tuple[int, ...], ...]
    weights: np.ndarray
    single: bool
    aggregate: str
    trees: int

    @property
    def columns(self) -> int:
        return int(self.weights.shape[1])

    @property
    def neutral(self) -> float:
        return _NEUTRAL.get(self.aggregate, 0.0)

    def join(self, a: Expr, b: Expr) -> Expr:
        """Two partial results of a target together."""
        return binary({"MIN": "min", "MAX": "max"}.get(self.aggregate, "add"), a, b)

    def finish(self, total: Expr) -> Expr:
        """The result of a target by all trees together."""
        if self.aggregate == "AVERAGE":
            return total / const(self.trees, total.dtype, total.lanes)
        if self.aggregate == "SUM":
            return total
        nothing = const(self.neutral, total.dtype, total.lanes)
        return select(binary("eq", total, nothing), const(0, total.dtype, total.lanes), total)


def leaves_of(trees: TreeEnsemble, tests: Tests, n_targets: int, aggregate: str) -> Leaves:
    """The leaves of trees, and the trees by target."""
    count = len(trees.ends)
    leaf = np.repeat(np.arange(count), np.diff(trees.ends, prepend=0))
    below = [leaves_below(tests, root) for root in tests.roots]
    used: list[set[int]] = [set() for _ in range(count)]
    for at, target in zip(leaf.tolist(), trees.targets.tolist(), strict=True):
        used[at].add(target)
    targets = [set().union(*(used[i] for i in found)) for found in below]
    single = n_targets == 1 or all(len(t) <= 1 for t in targets)
    columns = 1 if single else n_targets
    weights = np.full((count, columns), _NEUTRAL.get(aggregate, 0.0), trees.weights.dtype)
    join = {"MIN": np.minimum, "MAX": np.maximum}.get(aggregate, np.add)
    join.at(weights, (leaf, trees.targets * (not single)), trees.weights)
    sections: list[list[int]] = [[] for _ in range(n_targets if single else 1)]
    for tree, found in enumerate(targets):
        sections[min(found, default=0) if single else 0].append(tree)
    return Leaves(tuple(map(tuple, sections)), weights, single, aggregate, len(tests.roots))


def leaves_below(tests: Tests, root: int) -> list[int]:
    """Leaves that can be reached, each once, from the left to the right."""
    found: dict[int, None] = {}
    seen: set[int] = set()
    stack = [root]
    while stack:
        at = stack.pop()
        if at < 0:
            found.setdefault(~at)
        elif at not in seen:
            seen.add(at)
            stack += [tests.right[at], tests.left[at]]
    return list(found)


def depths_of(tests: Tests) -> list[int]:
    """The most tests on a way from each node down."""
    depths: list[int] = []

    def of(at: int) -> int:
        return depths[at] if at >= 0 else 0

    for left, right in zip(tests.left, tests.right, strict=True):
        depths.append(1 + max(of(left), of(right)))
    return depths


FLOATS = {DType.F32: DType.I32, DType.F64: DType.I64}
"""Integers as wide as an element."""
