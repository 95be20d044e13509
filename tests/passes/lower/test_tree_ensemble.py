"""c2c.TreeEnsemble by every way that kernels have through trees, against its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_graph
from c2c.compiler.onnx_import import import_model
from c2c.compiler.options import CompileOptions
from c2c.ir.graph import Graph
from c2c.ir.loops_interp import run_program
from c2c.ir.reference import evaluate
from c2c.ir.tree_ensemble import TreeEnsemble
from c2c.passes.lower import lower_graph, tree_ensemble, tree_tests
from c2c.passes.lower.schedule import Tuning
from c2c.passes.lower.tree_bits import bits_of

from ...emulation import Emulated, check_equal, needs_compiler
from ...forests import forest, regressor, rows
from .harness import program_of, run_graph

SEED = 3
FORESTS: dict[str, tuple[int, int, dict[str, Any], dict[str, Any]]] = {
    "few leaves": (11, 8, {"modes": ["BRANCH_LEQ"]}, {}),
    "many trees": (131, 4, {}, {}),
    "32 leaves": (5, 32, {"modes": ["BRANCH_LT", "BRANCH_GTE"]}, {}),
    "two words": (5, 47, {}, {}),
    "oblivious": (6, 64, {"balanced": True, "oblivious": True, "modes": ["BRANCH_GT"]}, {}),
    "deep": (5, 150, {}, {}),
    "leaves alone": (3, 1, {}, {}),
    "three targets": (7, 9, {"targets": 3}, {"aggregate_function": "AVERAGE"}),
    "all targets": (6, 20, {"targets": 3, "every_target": True}, {}),
    "largest of all targets": (6, 20, {"targets": 5, "every_target": True}, {"aggregate_function": "MAX"}),
    "least": (6, 100, {}, {"aggregate_function": "MIN"}),
    "no tree for a target": (6, 9, {"targets": 2}, {"aggregate_function": "MIN", "n_targets": 3}),
    "no leaf for a target": (6, 9, {"targets": 2, "every_target": True}, {"aggregate_function": "MAX", "n_targets": 3}),
}


def graph_of(name: str, count: int, dtype: type) -> tuple[Graph, np.ndarray]:
    trees, leaves, grown, attrs = FORESTS[name]
    x = rows(SEED, count, 6, dtype)
    targets = attrs.get("n_targets", grown.get("targets", 1))
    model = regressor({**forest(SEED, trees, leaves, 6, **grown), **attrs, "n_targets": targets}, x)
    return import_model(model), x


def agree(name: str, count: int, dtype: type, target: str, threads: int = 1) -> int:
    """Every schedule of a forest; returns how many there are."""
    graph, x = graph_of(name, count, dtype)
    expected = evaluate(graph, {"x": x})["y"]
    tolerance = FORESTS[name][0] * float(np.finfo(np.float32).eps)
    found: dict[tuple[str, str], Any] = {
        c.key: c for call in lower_graph(graph, Target.parse(target), threads) for c in call.choices
    }
    ((key, choice),) = found.items()
    for schedule, _ in choice.candidates:
        (got,) = run_graph(graph, [x], target=target, threads=threads, tuning=Tuning({key: schedule}))
        where = f"{schedule} on {target}, seed {SEED}"
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance, err_msg=where)
    return len(choice.candidates)


@pytest.mark.parametrize("count", [1, 77])
@pytest.mark.parametrize("name", FORESTS)
def test_every_way(name: str, count: int) -> None:
    found = agree(name, count, np.float32, "native")
    assert found >= (1 if count < 8 else 2) + (2 if name in ("few leaves", "32 leaves", "two words") else 0)


@pytest.mark.parametrize("name", ["few leaves", "two words", "all targets"])
def test_f64(name: str) -> None:
    agree(name, 21, np.float64, "native")


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3"])
def test_shorter_vectors(target: str) -> None:
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    agree("two words", 21, np.float32, target)
    agree("few leaves", 21, np.float64, target)


@pytest.mark.parametrize("name", ["many trees", "deep", "three targets", "all targets"])
def test_on_a_grid(name: str) -> None:
    agree(name, 5, np.float32, "opencl")


def test_threads_share_the_trees_of_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partial results of chunks of trees are joined in one order."""
    monkeypatch.setattr(tree_ensemble, "PARALLEL_CYCLES", 100)
    monkeypatch.setattr(tree_ensemble, "CHUNK_CYCLES", 50)
    monkeypatch.setattr(tree_ensemble, "WAYS", 2)
    for name in ("few leaves", "all targets", "least", "deep"):
        graph, x = graph_of(name, 1, np.float32)
        tolerance = FORESTS[name][0] * float(np.finfo(np.float32).eps)
        calls = lower_graph(graph, Target.parse("native"), 2)
        assert [c.kernel.name for c in calls][-2:] == ["tree_walk", "tree_join"]
        (found,) = run_graph(graph, [x], threads=2)
        np.testing.assert_allclose(found, evaluate(graph, {"x": x})["y"], rtol=tolerance, atol=tolerance)
    for name in ("few leaves", "deep", "largest of all targets"):
        agree(name, 130, np.float32, "native", threads=2)


def test_levels_that_ask_the_same_are_one_test() -> None:
    graph, _ = graph_of("oblivious", 1, np.float32)
    tests = tree_tests.tests_of(TreeEnsemble.of(graph.nodes[0]))
    for root in tests.roots:
        tree = bits_of(tests, root, 64)
        assert tree is not None and len(tree.tests) == 6 and len(tree.leaves) == 64
        assert bits_of(tests, root, 63) is None


def test_infinite_splits() -> None:
    """x <= inf holds for all but NaN; x < -inf for none."""
    for mode in ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"):
        attrs = forest(SEED, 8, 6, 3, modes=[mode])
        chance = np.random.default_rng(SEED)
        attrs["nodes_values"] = [float(v) for v in chance.choice([np.inf, -np.inf, 0.5, np.nan], 8 * 11)]
        x = chance.choice(np.asarray([np.inf, -np.inf, np.nan, 0.5, 1], np.float32), (60, 3))
        graph = import_model(regressor(attrs, x))
        (got,) = run_graph(graph, [x])
        np.testing.assert_allclose(got, evaluate(graph, {"x": x})["y"], atol=1e-5, err_msg=f"{mode}, seed {SEED}")


@needs_compiler
@pytest.mark.parametrize(
    ("target", "name", "count"),
    [("metal", "all targets", 2), pytest.param("cuda", "few leaves", 300, marks=pytest.mark.slow)],
)
def test_other_languages(target: str, name: str, count: int, tmp_path: Path) -> None:
    """Equal to the interpreter bit by bit, no access outside of a table."""
    graph, x = graph_of(name, count, np.float32)
    program = program_of(graph, target)
    device = Target.parse(target).device
    assert device is not None
    emulated = Emulated(program, device, tmp_path, watched=True)
    check_equal(program, emulated.run([x]), run_program(program, [x]), f"{target}, seed {SEED}")
    assert emulated.faults == []


def test_rows_that_are_left_read_the_same_tables() -> None:
    """A row's result does not depend on its place, and tables are stored once."""
    graph, x = graph_of("deep", 77, np.float32)
    repeated = np.repeat(x[:1], 77, axis=0)
    (found,) = run_graph(graph, [repeated])
    assert len(np.unique(found)) == 1
    program = compile_graph(graph, CompileOptions(Target.parse("native"), name="model")).program
    slots = 2 * 5 * 150 * 1.5
    assert len(program.weights) < slots * (2 + 4 + 4 + 4)
