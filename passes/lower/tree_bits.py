"""Trees of few leaves without branches: every test of a tree, on vectors of rows, clears the leaves that it rules out.

A bit stands for a leaf, from the left to the right. A test that leads to the right clears all leaves on its left; the
first leaf that no test cleared is the one that is reached: Lucchese et al., QuickScorer (SIGIR 2015), here with all
tests of a tree in turn, for rows in lanes, so that nothing depends on data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, binary, bitcast, broadcast, cast, const, minimum, select
from ...ir.types import DType
from .context import KernelBuilder, Lowering
from .tree_leaves import FLOATS, Leaves
from .tree_tests import Tests

UNROLLED = 4
"""Tests of an iteration; trees are filled up with tests that never hold."""
MOST_WORDS = 8
"""Words of bits, in as many registers; of oblivious trees that is a depth of 8."""


@dataclass(frozen=True, slots=True)
class TreeBits:
    """A tree's tests (column, threshold, leaves that it clears) and its leaves from the left to the right."""

    tests: tuple[tuple[int, float, int], ...]
    leaves: tuple[int, ...]


def bits_of(tests: Tests, root: int, most: int) -> TreeBits | None:
    """A tree in this form; None where it has more than `most` leaves, those counted twice to which several ways lead.

    Tests in a row that lead to the same place on the right, as those of x == a do, share it. Nodes that ask the same
    are one test: a level of an oblivious tree (CatBoost's), for instance.
    """
    found: dict[tuple[int, float], int] = {}
    leaves: list[int] = []
    stack: list[tuple[int, int, list[int]]] = [(0, root, [])]
    while stack:
        what, node, chain = stack.pop()
        if what == 1:
            mask = (1 << len(leaves)) - (1 << node)
            for at in chain:
                key = tests.column[at], tests.threshold[at]
                found[key] = found.get(key, 0) | mask
            continue
        if len(leaves) >= most:
            return None
        if node < 0:
            leaves.append(~node)
            continue
        chain = [node]
        left, right = tests.left[node], tests.right[node]
        while left >= 0 and tests.right[left] == right:
            chain.append(left)
            left = tests.left[left]
        stack += [(0, right, []), (1, len(leaves), chain), (0, left, [])]
    return TreeBits(tuple((*key, mask) for key, mask in found.items()), tuple(leaves))


@dataclass(frozen=True, eq=False, slots=True)
class Bits:
    """x [blocks, columns, vectors · lanes] through all trees by one kernel. words: of bits a tree."""

    ctx: Lowering
    x: Value
    trees: tuple[TreeBits, ...]
    leaves: Leaves
    words: int
    vectors: int
    parallel: bool

    def emit(self) -> None:
        k = self.ctx.kernel()
        kernel = _Kernel(k, self)
        blocks = self.x.type.dims[0]
        for block in k.parallel("t", blocks) if self.parallel and blocks > 1 else k.loop("t", blocks):
            kernel.block(block)
        k.done("tree_bits")


class _Kernel:
    """The tables of trees in the kernel's order, and what it does for a block of rows."""

    def __init__(self, k: KernelBuilder, plan: Bits) -> None:
        self.k, self.plan, self.leaves, self.words = k, plan, plan.leaves, plan.words
        self.dtype = plan.x.type.dtype
        self.integer = FLOATS[self.dtype]
        self.lanes = plan.x.type.dims[2] // plan.vectors
        order = [t for section in plan.leaves.sections for t in section]
        self._tests([plan.trees[t] for t in order])
        self._weights([plan.trees[t] for t in order])
        self.x, self.y = k.tensor(plan.x), k.tensor(k.ctx.output, "y")

    def _tests(self, trees: Sequence[TreeBits]) -> None:
        ctx, k, bits = self.k.ctx, self.k, self.dtype.bits
        column: list[int] = []
        threshold: list[float] = []
        masks: list[int] = []
        ends = [0]
        for tree in trees:
            for at, split, mask in tree.tests:
                column.append(at * self.plan.x.type.dims[2])
                threshold.append(split)
                masks += [(mask >> (bits * w)) & ((1 << bits) - 1) for w in range(self.words)]
            fill = -len(tree.tests) % UNROLLED
            column += [0] * fill
            threshold += [np.nan] * fill
            masks += [0] * (fill * self.words)
            ends.append(len(column))
        wide = np.asarray(masks, np.uint64).astype(f"u{bits // 8}").view(self.integer.numpy)
        self.column = k.tensor(ctx.pack("column", np.asarray(column, np.uint32)))
        self.threshold = k.tensor(ctx.pack("threshold", np.asarray(threshold, self.dtype.numpy)))
        self.mask = k.tensor(ctx.pack("mask", wide))
        self.ends = k.tensor(ctx.pack("end", np.asarray(ends, np.uint32)))

    def _weights(self, trees: Sequence[TreeBits]) -> None:
        """[trees, columns, leaves]."""
        self.most = max(len(t.leaves) for t in trees)
        table = np.zeros((len(trees), self.leaves.columns, self.most), self.dtype.numpy)
        for i, tree in enumerate(trees):
            table[i, :, : len(tree.leaves)] = self.leaves.weights[list(tree.leaves)].T
        self.weights = self.k.tensor(self.k.ctx.pack("weight", table))

    def block(self, block: Expr) -> None:
        k, leaves, width = self.k, self.leaves, self.plan.x.type.dims[2]
        base = k.let(block * (self.plan.x.type.dims[1] * width), "base")
        sums = k.alloc("sums", self.dtype, leaves.columns * width)
        begin = 0
        for target, section in enumerate(leaves.sections):
            for i in k.loop("i", leaves.columns * self.plan.vectors):
                k.store(sums, i * self.lanes, const(leaves.neutral, self.dtype, self.lanes))
            for tree in k.loop("tree", begin + len(section), begin):
                self._tree(base, tree, sums)
            begin += len(section)
            self._store(block, sums, target)

    def _tree(self, base: Expr, tree: Expr, sums: Buffer) -> None:
        k, plan, words = self.k, self.plan, self.words
        cleared = k.registers("cleared", self.integer, plan.vectors * words, self.lanes)
        for i in range(plan.vectors * words):
            k.store(cleared, i, const(0, self.integer, self.lanes))
        first, last = (k.let(cast(k.load(self.ends, tree + i), DType.I64), "end") for i in (0, 1))
        for e in k.loop("e", last, first, step=UNROLLED):
            for u in range(UNROLLED):
                self._test(base, e + u, cleared)
        for v in range(plan.vectors):
            leaf = self._first([k.load(cleared, v * words + w) for w in range(words)])
            for c in range(self.leaves.columns):
                at = k.let((tree * self.leaves.columns + c) * self.most, "at")
                place = (c * plan.vectors + v) * self.lanes
                weight = k.load(self.weights, broadcast(at, self.lanes) + leaf, self.lanes)
                k.store(sums, place, self.leaves.join(k.load(sums, place, self.lanes), weight))

    def _test(self, base: Expr, e: Expr, cleared: Buffer) -> None:
        k, plan, lanes = self.k, self.plan, self.lanes
        at = k.let(base + cast(k.load(self.column, e), DType.I64), "at")
        split = k.let(broadcast(k.load(self.threshold, e), lanes), "split")
        masks = [k.let(broadcast(k.load(self.mask, e * self.words + w), lanes), "mask") for w in range(self.words)]
        for v in range(plan.vectors):
            above = k.let(k.load(self.x, at + v * lanes, lanes) > split, "above")
            for w, mask in enumerate(masks):
                i = v * self.words + w
                k.store(cleared, i, k.load(cleared, i) | select(above, mask, const(0, self.integer, lanes)))

    def _first(self, words: Sequence[Expr]) -> Expr:
        """The number of the first bit that is not set, i64."""
        found: Expr | None = None
        for w in reversed(range(len(words))):
            left = self.k.let(~words[w], "left")
            here = cast(self._place(left), DType.I64) + w * self.dtype.bits
            found = here if found is None else select(binary("ne", left, 0), here, found)
        assert found is not None
        return self.k.let(found, "leaf")

    def _place(self, bits: Expr) -> Expr:
        """Of the lowest set bit, by the exponent of it as a float."""
        mantissa, exponent, bias = {DType.F32: (23, 255, 127), DType.F64: (52, 2047, 1023)}[self.dtype]
        lowest = self.k.let(cast(bits & -bits, self.dtype), "lowest")
        return (binary("shr", bitcast(lowest, self.integer), mantissa) & exponent) - bias

    def _store(self, block: Expr, sums: Buffer, target: int) -> None:
        """The block's results, but for rows that do not exist."""
        k, leaves, width = self.k, self.leaves, self.plan.x.type.dims[2]
        rows, columns = k.ctx.output.type.dims
        first = k.let(block * width, "first")
        for c in range(leaves.columns):
            for v in range(self.plan.vectors):
                at = (c * self.plan.vectors + v) * self.lanes
                k.store(sums, at, leaves.finish(k.let(k.load(sums, at, self.lanes))))
        for i in k.loop("i", k.let(minimum(const(rows) - first, width), "count")):
            for c in range(leaves.columns):
                k.store(self.y, (first + i) * columns + (c + target), k.load(sums, c * width + i))
