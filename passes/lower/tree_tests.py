"""Tests of trees in one form: a node leads to the right where its column is greater than its threshold, else left.

Columns are features of a row, as they are or changed (`Kind`), so that one comparison says all that a node may ask:
x < t is -x > -t; where a NaN has to go right it is changed to +inf, while as NaN it goes left.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ...ir.tree_ensemble import EQ, GT, GTE, LEQ, LT, MEMBER, NEQ, TreeEnsemble


class Kind(enum.IntEnum):
    """What a column holds of its feature x; in the first and third a NaN stays one, in the others it is +inf."""

    SAME = 0
    SAME_OR_INF = 1
    NEGATED = 2
    NEGATED_OR_INF = 3
    IS_NAN = 4
    """1 where x is a NaN, else 0."""


Column = tuple[Kind, int]
"""Kind and feature."""


@dataclass(eq=False, slots=True)
class Tests:
    """Nodes that may be shared by several above them: each stands after those below it, a number below 0 is leaf
    ~number. columns are sorted."""

    columns: list[Column] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)


def tests_of(trees: TreeEnsemble) -> Tests:
    """The trees in this form; leaves keep their numbers."""
    return _Maker(trees).run()


class _Maker:
    """Nodes in the making; `hi` and `lo` are the numbers of nodes or leaves to which a test leads."""

    def __init__(self, trees: TreeEnsemble) -> None:
        self.trees = trees
        self.sets = trees.sets
        self.made = Tests()
        self.of: dict[Column, int] = {}

    def run(self) -> Tests:
        trees, place = self.trees, [0] * len(self.trees.features)
        splits, features, missing = trees.splits.tolist(), trees.features.tolist(), trees.missing.tolist()
        modes, children = trees.modes.tolist(), trees.children.tolist()
        for n in range(len(place) - 1, -1, -1):
            true, false = (c if c < 0 else place[c] for c in children[n])
            place[n] = self.node(n, modes[n], features[n], splits[n], missing[n], true, false)
        self.made.roots = [r if r < 0 else place[r] for r in trees.roots.tolist()]
        self._sort_columns()
        return self.made

    def node(self, n: int, mode: int, f: int, split: float, missing: bool, true: int, false: int) -> int:
        """One node of the trees."""
        if mode == MEMBER:
            values = self.sets[n].tolist()
            return self.member(f, values, missing, true, false)
        if split != split:
            equal_to_none = mode == NEQ
            return true if equal_to_none else self.of_nan(f, true if missing else false, false)
        make: dict[int, Callable[[], int]] = {
            LEQ: lambda: self.greater(f, split, not missing, false, true),
            LT: lambda: self.less(f, split, missing, true, false),
            GTE: lambda: self.less(f, split, not missing, false, true),
            GT: lambda: self.greater(f, split, missing, true, false),
            EQ: lambda: self.equal(f, split, missing, true, false),
            NEQ: lambda: self.equal(f, split, False, false, true),
        }
        return make[mode]()

    def greater(self, f: int, split: float, nan: bool, hi: int, lo: int) -> int:
        """x > split leads to hi; `nan`: a NaN does, too."""
        if split == np.inf:
            return self.of_nan(f, hi, lo) if nan else lo
        return self.test((Kind.SAME_OR_INF if nan else Kind.SAME, f), split, lo, hi)

    def less(self, f: int, split: float, nan: bool, hi: int, lo: int) -> int:
        """x < split leads to hi; `nan`: a NaN does, too."""
        if split == -np.inf:
            return self.of_nan(f, hi, lo) if nan else lo
        return self.test((Kind.NEGATED_OR_INF if nan else Kind.NEGATED, f), -split, lo, hi)

    def equal(self, f: int, split: float, nan: bool, same: int, other: int) -> int:
        """x == split leads to same; `nan`: a NaN does, too."""
        return self.greater(f, split, not nan, other, self.less(f, split, False, other, same))

    def member(self, f: int, values: list[float], nan: bool, true: int, false: int) -> int:
        """By halving; a NaN goes left throughout, to the least value."""
        if not values:
            return self.of_nan(f, true if nan else false, false)
        if len(values) == 1:
            return self.equal(f, values[0], nan, true, false)
        half = len(values) // 2
        below, above = (self.member(f, part, nan, true, false) for part in (values[:half], values[half:]))
        return self.greater(f, values[half - 1], False, above, below)

    def of_nan(self, f: int, nan: int, other: int) -> int:
        return other if nan == other else self.test((Kind.IS_NAN, f), 0.5, other, nan)

    def test(self, column: Column, threshold: float, left: int, right: int) -> int:
        if left == right:
            return left
        made = self.made
        made.column.append(self.of.setdefault(column, len(self.of)))
        made.threshold.append(threshold)
        made.left.append(left)
        made.right.append(right)
        return len(made.column) - 1

    def _sort_columns(self) -> None:
        columns = list(self.of)
        order = sorted(range(len(columns)), key=lambda i: columns[i])
        place = {old: new for new, old in enumerate(order)}
        self.made.columns = [columns[i] for i in order]
        self.made.column = [place[c] for c in self.made.column]
