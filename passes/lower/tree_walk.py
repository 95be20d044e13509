"""Trees node by node: several ways down at once, so that the loads of one hide in those of the others.

A step loads a node's column, threshold and left child, compares, and adds the outcome to the left child's number, for
children stand side by side. Leaves lead to themselves, so that trees of unequal depth go down together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, Operand, cast, const, maximum, minimum
from ...ir.types import DType
from .context import KernelBuilder, Lowering
from .packing import spans
from .tree_leaves import Leaves, depths_of
from .tree_tests import Tests


@dataclass(frozen=True, slots=True)
class Ways:
    """rows · trees ways go down at once: of so many rows, in so many trees. block: rows that a task takes through one
    tree after the other, a multiple of `rows`. chunk: groups of trees of one task, where rows are too few to be tasks;
    0: all."""

    rows: int
    trees: int
    block: int
    chunk: int = 0

    @property
    def name(self) -> str:
        return f"walk={self.rows}x{self.trees} block={self.block}" + (f" chunk={self.chunk}" if self.chunk else "")


@dataclass(frozen=True, eq=False, slots=True)
class Nodes:
    """Nodes and leaves by slot: slot 0 is a leaf that gives nothing. leaf: a leaf's number, of slot 0 `len(weights)`.

    roots [groups, trees] and depths [groups]: trees that go down together; ends: of each section's groups.
    """

    column: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    leaf: np.ndarray
    roots: np.ndarray
    depths: np.ndarray
    ends: tuple[int, ...]


def nodes_of(tests: Tests, leaves: Leaves, together: int) -> Nodes:
    """Slots of all trees, those of a section in the order of their depths, in groups of `together`."""
    slots = _Slots(tests, len(leaves.weights))
    depths = depths_of(tests)
    roots: list[list[int]] = []
    deep: list[int] = []
    ends: list[int] = []
    for section in leaves.sections:
        depth = {t: depths[tests.roots[t]] if tests.roots[t] >= 0 else 0 for t in section}
        order = sorted(section, key=lambda t: depth[t])
        for i in range(0, len(order), together):
            group = order[i : i + together]
            roots.append([slots.tree(tests.roots[t]) for t in group] + [0] * (together - len(group)))
            deep.append(depth[group[-1]])
        ends.append(len(deep))
    return Nodes(
        *slots.arrays(), np.asarray(roots, np.uint32).reshape(-1, together), np.asarray(deep, np.uint32), tuple(ends)
    )


class _Slots:
    """Places of nodes; a node that several lead to stands in several slots, with one pair of children."""

    def __init__(self, tests: Tests, nothing: int) -> None:
        self.tests = tests
        self.record: list[int] = [~nothing]
        self.left: list[int] = [0]

    def tree(self, root: int) -> int:
        """The root's slot; pairs of children in the order of their depth."""
        first = self._add(root)
        pairs: dict[int, int] = {}
        at = first
        while at < len(self.record):
            node = self.record[at]
            if node >= 0:
                if node not in pairs:
                    pairs[node] = self._add(self.tests.left[node])
                    self._add(self.tests.right[node])
                self.left[at] = pairs[node]
            at += 1
        return first

    def _add(self, node: int) -> int:
        self.record.append(node)
        self.left.append(len(self.left))
        return len(self.left) - 1

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Columns, thresholds (f64), left children and leaves."""
        record = np.asarray(self.record, np.int64)
        leaf, at = record < 0, np.maximum(record, 0)
        column, threshold = (np.append(np.asarray(a, np.float64), 0) for a in (self.tests.column, self.tests.threshold))
        return (
            np.where(leaf, 0, column[at]).astype(np.uint32), np.where(leaf, np.nan, threshold[at]),
            np.asarray(self.left, np.uint32), np.where(leaf, ~record, 0).astype(np.uint32),
        )  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class Walk:
    """x [rows, columns] through all trees by one kernel, or one for all partial results and one that joins them."""

    ctx: Lowering
    x: Value
    nodes: Nodes
    leaves: Leaves
    ways: Ways
    parallel: bool
    packed: dict[str, Value] = field(default_factory=dict)
    """Tables, which kernels of other blocks share."""

    def table(self, name: str, data: np.ndarray) -> Value:
        """A table by its name."""
        if name not in self.packed:
            self.packed[name] = self.ctx.pack(name, data)
        return self.packed[name]

    def emit(self, first: int, rows: int) -> None:
        """Results of `rows` rows from `first` on, a multiple of the plan's block."""
        ctx, groups = self.ctx, len(self.nodes.depths)
        chunk = self.ways.chunk or max(groups, 1)
        chunks = max(1, -(-groups // chunk)) if len(self.leaves.sections) == 1 else 1
        columns = ctx.output.type.dims[1]
        total = ctx.output if chunks == 1 else ctx.scratch("partial", self.x.type.dtype, chunks, rows, columns)
        k = ctx.kernel()
        tables = _Tables(k, self)
        tasks = rows // self.ways.block * chunks
        for task in k.parallel("t", tasks) if self.parallel and tasks > 1 else k.loop("t", tasks):
            row = k.let(task / chunks * self.ways.block + first, "row")
            part = k.let(task % chunks, "part") if chunks > 1 else None
            to = _Results(k, k.tensor(total), row, columns, None if part is None else (part, rows, first))
            for target, (begin, end) in enumerate(_sections(self.nodes.ends)):
                lo: Expr = const(begin) if part is None else k.let(part * chunk, "lo")
                hi: Expr = const(end) if part is None else tables.until(lo, chunk, groups)
                tables.section(to, target, row, lo, hi, finish=part is None)
        k.done("tree_walk")
        if chunks > 1:
            self._join(total, first, rows, chunks)

    def _join(self, partial: Value, first: int, rows: int, chunks: int) -> None:
        ctx, leaves, columns = self.ctx, self.leaves, self.ctx.output.type.dims[1]
        k = ctx.kernel()
        of, to = k.tensor(partial), k.tensor(ctx.output)
        for i in k.loop("i", rows * columns):
            sums = k.registers("sum", of.dtype, 1, 1)
            k.store(sums, 0, const(leaves.neutral, of.dtype))
            for c in k.loop("c", chunks):
                k.store(sums, 0, leaves.join(k.load(sums, 0), k.load(of, c * (rows * columns) + i)))
            k.store(to, i + first * columns, leaves.finish(k.load(sums, 0)))
        k.done("tree_join")


@dataclass(frozen=True, eq=False, slots=True)
class _Results:
    """Where the results of some rows go: into y, or into the part (part, rows, first row) of partial results."""

    k: KernelBuilder
    buffer: Buffer
    row: Expr
    columns: int
    part: tuple[Expr, int, int] | None

    def at(self, row: Operand) -> Expr:
        """The first result of the task's row `row`."""
        if self.part is None:
            return (self.row + row) * self.columns
        part, rows, first = self.part
        return (part * rows + self.row + row - first) * self.columns


class _Tables:
    """The trees' tables in one kernel."""

    def __init__(self, k: KernelBuilder, walk: Walk) -> None:
        nodes, x = walk.nodes, walk.x
        self.k, self.ways, self.leaves, self.dtype = k, walk.ways, walk.leaves, x.type.dtype
        self.columns = x.type.dims[1]
        self.x = k.tensor(x)
        narrow = np.uint16 if self.columns <= 1 << 16 else np.uint32
        self.column = k.tensor(walk.table("column", nodes.column.astype(narrow)))
        self.threshold = k.tensor(walk.table("threshold", nodes.threshold.astype(x.type.dtype.numpy)))
        self.left = k.tensor(walk.table("left", nodes.left))
        self.limits = (min(nodes.depths, default=0), max(nodes.depths, default=0))
        self.roots = k.tensor(walk.table("root", nodes.roots))
        self.depths = k.tensor(walk.table("depth", nodes.depths))
        nothing = np.full((1, self.leaves.columns), self.leaves.neutral, x.type.dtype.numpy)
        weights = np.concatenate([self.leaves.weights, nothing])
        if self.leaves.single:
            self.weights = k.tensor(walk.table("weight", weights[nodes.leaf, 0]))
        else:
            self.leaf = k.tensor(walk.table("leaf", nodes.leaf))
            self.weights = k.tensor(walk.table("weight", weights))

    def until(self, lo: Expr, chunk: int, groups: int) -> Expr:
        return self.k.let(lo + chunk if groups % chunk == 0 else minimum(lo + chunk, groups), "hi")

    def section(self, to: _Results, target: int, row: Expr, lo: Expr, hi: Expr, *, finish: bool) -> None:
        """Groups lo to hi of a section for the task's rows."""
        if self.leaves.single:
            self._scalars(to, target, row, lo, hi, finish=finish)
        else:
            self._vectors(to, row, lo, hi, finish=finish)

    def _scalars(self, to: _Results, target: int, row: Expr, lo: Expr, hi: Expr, *, finish: bool) -> None:
        k, ways, leaves = self.k, self.ways, self.leaves
        sums = k.alloc("sums", self.dtype, ways.block * ways.trees)
        for i in k.loop("i", ways.block * ways.trees):
            k.store(sums, i, const(leaves.neutral, self.dtype))
        for g in k.loop("g", hi, lo):
            for r in k.loop("r", ways.block, step=ways.rows):
                for way, slot in enumerate(self._down(k.let(row + r, "at"), g)):
                    place = r * ways.trees + way
                    k.store(sums, place, leaves.join(k.load(sums, place), k.load(self.weights, slot)))
        for r in k.loop("r", ways.block):
            parts = [k.let(k.load(sums, r * ways.trees + t)) for t in range(ways.trees)]
            while len(parts) > 1:
                pairs = zip(parts[::2], parts[1::2], strict=False)
                parts = [k.let(leaves.join(a, b)) for a, b in pairs] + parts[len(parts) // 2 * 2 :]
            k.store(to.buffer, to.at(r) + target, leaves.finish(parts[0]) if finish else parts[0])

    def _vectors(self, to: _Results, row: Expr, lo: Expr, hi: Expr, *, finish: bool) -> None:
        """Rows of weights, added up in the results."""
        k, leaves, lanes, ways = self.k, self.leaves, self.k.ctx.lanes(self.dtype), self.ways
        count = leaves.columns
        for r in k.loop("r", ways.block):
            for i, some in spans(k, count, lanes):
                k.store(to.buffer, to.at(r) + i, const(leaves.neutral, self.dtype, some))
        for g in k.loop("g", hi, lo):
            for r in k.loop("r", ways.block, step=ways.rows):
                slots = self._down(k.let(row + r, "at"), g)
                begins = [k.let(cast(k.load(self.leaf, s), DType.I64) * count, "from") for s in slots]
                for j in range(ways.rows):
                    place = k.let(to.at(r + j), "to")
                    for i, some in spans(k, count, lanes):
                        total = k.load(to.buffer, place + i, some)
                        for begin in begins[j * ways.trees : (j + 1) * ways.trees]:
                            total = k.let(leaves.join(total, k.load(self.weights, begin + i, some)))
                        k.store(to.buffer, place + i, total)
        for r in k.loop("r", ways.block) if finish and leaves.aggregate != "SUM" else ():
            for i, some in spans(k, count, lanes):
                k.store(to.buffer, to.at(r) + i, leaves.finish(k.let(k.load(to.buffer, to.at(r) + i, some))))

    def _down(self, row: Expr, group: Expr) -> Sequence[Expr]:
        """Slots of the leaves that rows reach in the trees of a group, row by row."""
        k, ways = self.k, self.ways
        at = k.registers("at", DType.U32, ways.rows * ways.trees, 1)
        begins = [k.let((row + r) * self.columns, "begin") for r in range(ways.rows)]
        roots = [k.let(k.load(self.roots, group * ways.trees + t), "root") for t in range(ways.trees)]
        for r in range(ways.rows):
            for t in range(ways.trees):
                k.store(at, r * ways.trees + t, roots[t])
        for _ in k.loop("d", k.let(self._depth(group), "depth")):
            for i in range(ways.rows * ways.trees):
                slot = k.let(cast(k.load(at, i), DType.I64), "slot")
                column = cast(k.load(self.column, slot), DType.I64)
                above = k.load(self.x, begins[i // ways.trees] + column) > k.load(self.threshold, slot)
                k.store(at, i, k.load(self.left, slot) + cast(above, DType.U32))
        return [k.let(cast(k.load(at, i), DType.I64), "slot") for i in range(ways.rows * ways.trees)]

    def _depth(self, group: Expr) -> Expr:
        """Tests of the longest way in a group; for grids with its limits, by which their work is counted."""
        depth = cast(self.k.load(self.depths, group), DType.I64)
        if self.k.ctx.target.device is None:
            return depth
        return minimum(maximum(depth, int(self.limits[0])), int(self.limits[1]))


def _sections(ends: Sequence[int]) -> Iterator[tuple[int, int]]:
    yield from zip((0, *ends), ends, strict=False)
