"""c2c.TreeEnsemble: which way rows go through trees, by counted cycles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ...ir.tree_ensemble import TREES, TreeEnsemble
from .context import Lowering, lowers
from .movement import operand
from .schedule import Schedule, choose
from .tree_bits import MOST_WORDS, Bits, TreeBits, bits_of
from .tree_columns import are_features, lanes_of_columns, rows_of_columns
from .tree_leaves import Leaves, depths_of, leaves_of
from .tree_tests import Tests, tests_of
from .tree_walk import Walk, Ways, nodes_of

WAYS = 8
"""Ways down at once, whose loads hide each other."""
STEP, LATENCY = 2.2, 16.0
"""Cycles of a step of one way among several, and of one that is alone."""
BLOCK = 64
"""Rows that go through a tree while it is near."""
VECTORS = 2
GATHER = 1.1
"""Cycles of an element of a gather."""
PARALLEL_CYCLES = 50_000
"""Less work stays on one thread."""
CHUNK_CYCLES = 20_000
"""Of the trees that a row's task takes."""


@dataclass(frozen=True, eq=False, slots=True)
class _Problem:
    tests: Tests
    leaves: Leaves
    rows: int


@lowers(TREES)
def lower_tree_ensemble(ctx: Lowering) -> None:
    """y [N, targets] of x [N, features]: see `ir.tree_ensemble`."""
    x, trees = operand(ctx, 0), TreeEnsemble.of(ctx.node)
    rows, targets = ctx.output.type.dims
    if not rows * targets:
        return
    tests = tests_of(trees)
    problem = _Problem(tests, leaves_of(trees, tests, targets, ctx.node.attrs["aggregate"]), rows)
    nodes, most = len(tests.column), max(depths_of(tests), default=0)
    text = (
        f"{rows}x{x.type.dims[1]} {x.type.dtype} {len(tests.roots)} trees of {nodes} tests {len(trees.ends)} leaves "
        f"depth {most} targets {targets} threads {ctx.threads}"
    )
    choose(ctx, "trees", text, [*_walks(ctx, problem), *_bits(ctx, problem)])()


def _walks(ctx: Lowering, problem: _Problem) -> list[Schedule[Callable[[], None]]]:
    depths = depths_of(problem.tests)
    steps = sum(depths[r] for r in problem.tests.roots if r >= 0)
    trees, rows, columns = len(problem.tests.roots), problem.rows, problem.leaves.columns
    give = trees * (3.0 if columns == 1 else 2 + columns / ctx.lanes(ctx.output.type.dtype))
    if ctx.target.device is not None:
        ways = [Ways(1, 1, 1, 0 if rows >= 256 else max(1, trees // 64))]
    else:
        ways = [Ways(1, WAYS, 1, _chunk(ctx, rows, trees, STEP * steps + give))]
        ways += [Ways(WAYS, 1, min(BLOCK, rows // WAYS * WAYS))] if rows >= WAYS else []
    found: list[Schedule[Callable[[], None]]] = []
    for way in ways:
        groups = sum(-(-len(s) // way.trees) for s in problem.leaves.sections)
        idle = groups * way.trees / max(trees, 1)
        pace = STEP if way.rows * way.trees > 1 else LATENCY
        cycles = rows * (pace * steps * idle + give)

        def emit(way: Ways = way, cycles: float = cycles) -> None:
            _walk(ctx, problem, way, ctx.threads > 1 and cycles > PARALLEL_CYCLES)

        found.append(Schedule(way.name, cycles, emit))
    return found


def _chunk(ctx: Lowering, rows: int, trees: int, cycles: float) -> int:
    """Groups of trees of a task, where rows alone are no tasks for all threads."""
    if ctx.threads == 1 or rows >= 2 * ctx.threads or cycles * rows < PARALLEL_CYCLES:
        return 0
    return max(1, round(trees / WAYS * CHUNK_CYCLES / cycles))


def _walk(ctx: Lowering, problem: _Problem, ways: Ways, parallel: bool) -> None:
    """Whole blocks of rows, then a block of those that are left, which may have some of the rows before it again."""
    x = operand(ctx, 0)
    columns = problem.tests.columns
    if not are_features(columns, x.type.dims[1]) and columns:
        x = rows_of_columns(ctx, x, columns)
    whole = problem.rows // ways.block * ways.block
    walk = Walk(ctx, x, nodes_of(problem.tests, problem.leaves, ways.trees), problem.leaves, ways, parallel)
    walk.emit(0, whole)
    if whole < problem.rows:
        left = -(-(problem.rows - whole) // ways.rows) * ways.rows
        replace(walk, ways=replace(ways, block=left)).emit(problem.rows - left, left)


def _bits(ctx: Lowering, problem: _Problem) -> list[Schedule[Callable[[], None]]]:
    """All tests on vectors of rows, where every tree has few leaves."""
    dtype = ctx.output.type.dtype
    lanes, rows, columns = ctx.lanes(dtype), problem.rows, len(problem.tests.columns)
    if ctx.target.device is not None or lanes == 1 or not columns or problem.leaves.columns > 16:
        return []
    trees: list[TreeBits] = []
    for root in problem.tests.roots:
        tree = bits_of(problem.tests, root, MOST_WORDS * dtype.bits)
        if tree is None:
            return []
        trees.append(tree)
    words = -(-max(len(t.leaves) for t in trees) // dtype.bits)
    found: list[Schedule[Callable[[], None]]] = []
    for vectors in (1, VECTORS) if words * VECTORS <= MOST_WORDS else (1,):
        width = vectors * lanes
        blocks = -(-rows // width)
        test = 2 + vectors * (1 + words * (1 if lanes * dtype.bits == 512 else 1.5))
        each = vectors * (5.0 * words + problem.leaves.columns * lanes * GATHER)
        cycles = blocks * (sum(len(t.tests) for t in trees) * test / 2 + len(trees) * each + columns * width * 1.5)

        def emit(vectors: int = vectors, width: int = width, cycles: float = cycles) -> None:
            x = lanes_of_columns(ctx, operand(ctx, 0), problem.tests.columns, width)
            parallel = ctx.threads > 1 and cycles > PARALLEL_CYCLES
            Bits(ctx, x, tuple(trees), problem.leaves, words, vectors, parallel).emit()

        found.append(Schedule(f"bits={vectors}x{lanes}", cycles, emit))
    return found
