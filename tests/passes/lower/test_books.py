"""Products by weights of few levels: the layout of their indices, and kernels on them, exact where sums are."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_graph
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_as_program
from c2c.ir import reference
from c2c.ir.graph import Graph
from c2c.passes.lower import lower_graph, lower_node
from c2c.passes.lower.books import book_of
from c2c.passes.lower.schedule import Tuning
from c2c.tests.passes.build import Net, feeds_for
from c2c.tests.passes.lower.harness import Array, Case, run_graph, with_tail

TARGETS = ("native", "x86-64-v3", "x86-64-v4")


def coded(shape: tuple[int, ...], levels: int, seed: int = 0) -> Array:
    """Weights of so many levels, eighths, so that sums of their products by small integers are exact."""
    rng = np.random.default_rng(seed)
    book = ((np.arange(levels) - levels // 2) / 8).astype(np.float32)
    indices = np.concatenate([np.arange(levels), rng.integers(0, levels, np.prod(shape) - levels)])
    return np.take(book, indices).reshape(shape)


def whole(*shape: int) -> Array:
    return np.asarray(np.random.default_rng(1).integers(-8, 8, shape), np.float32)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 16, 17, 64])
def test_words_hold_the_indices(levels: int) -> None:
    matrix = coded((45, 31), levels)
    book = book_of(matrix)
    assert book is not None and book.entries.size >= levels and 1 << book.field >= levels
    words = book.words(book.indices)
    mask = np.uint32((1 << book.field) - 1)
    fields = [words >> np.uint32(book.field * j) & mask for j in range(book.in_word)]
    unpacked = np.stack(fields, axis=1).reshape(-1, 31)[:45]
    np.testing.assert_array_equal(book.entries[unpacked], matrix)


def test_many_levels_have_no_book() -> None:
    assert book_of(coded((45, 31), 65)) is None and book_of(None) is None
    assert book_of(coded((45, 31), 16).astype(np.float64)) is None


CASES = [
    Case("MatMul", [whole(1, 70), coded((70, 150), 16)], {}, frozenset((1,))),
    Case("MatMul", [whole(1, 65), coded((65, 50), 3)], {}, frozenset((1,))),
    Case("MatMul", [whole(2, 3, 40), coded((40, 37), 8)], {}, frozenset((1,))),
    Case("MatMul", [whole(19, 33), coded((33, 300), 16)], {}, frozenset((1,))),
    Case("MatMul", [whole(5, 50), coded((50, 33), 40)], {}, frozenset((1,))),
    Case("MatMul", [whole(4, 1, 50), coded((50, 33), 20)], {}, frozenset((1,))),
    Case("MatMul", [whole(70, 300), coded((300, 200), 16)], {}, frozenset((1,))),
    Case("Gemm", [whole(1, 70), coded((150, 70), 16), whole(150)], {"transB": 1}, frozenset((1, 2))),
    Case("Gemm", [whole(70, 9), coded((70, 61), 7), whole(9, 61)], {"transA": 1, "alpha": 0.5}, frozenset((1,))),
]


def forced(graph: Graph, target: str, threads: int, form: str = "tile") -> Tuning | None:
    """The tuning that makes the product one by a book, of the form tile or panels; None where that is not offered."""
    for call in lower_graph(graph, Target.parse(target), threads):
        for choice in call.choices:
            if choice.family == "book":
                names = [n for n, _ in choice.candidates if form in n]
                return Tuning({choice.key: names[0]}) if names else None
    raise AssertionError("no book was offered")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("number", range(len(CASES)))
def test_products_are_exact(number: int, target: str) -> None:
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    case = CASES[number]
    node = case.node()
    graph = Graph("g", [v for v in node.inputs if v is not None and not v.is_constant], [node.output], [node], ["y"])
    inputs = [a for i, a in enumerate(case.inputs) if a is not None and i not in case.constants]
    rows = np.prod(case.expected()[0].shape[:-1])
    for threads, form in ((1, "tile"), (3, "tile"), (1, "panels"), (3, "panels")):
        tuning = forced(graph, target, threads, form)
        assert (tuning is None) == (form == "panels" and rows < 4)
        if tuning is not None:
            (got,) = run_graph(graph, inputs, target=target, threads=threads, tuning=tuning)
            np.testing.assert_array_equal(got, case.expected()[0])


def test_tail() -> None:
    case, factor = CASES[0], whole(150)
    graph = with_tail(case, factor)
    (got,) = run_graph(graph, [np.asarray(case.inputs[0]), factor], tuning=forced(graph, "native", 1))
    np.testing.assert_array_equal(got, np.abs(case.expected()[0]) * factor)


@pytest.mark.parametrize(
    ("target", "levels", "rows", "expected"),
    [("x86-64-v4", 16, 1, "book=16"), ("x86-64-v4", 16, 64, "dense"), ("x86-64-v4", 64, 1, "book=64"),
     ("x86-64-v3", 8, 1, "book=8"), ("x86-64-v3", 64, 1, "dense"), ("x86-64", 4, 1, None)],
)  # fmt: skip
def test_choice(target: str, levels: int, rows: int, expected: str | None) -> None:
    case = Case("MatMul", [whole(rows, 1024), coded((1024, 1024), levels)], {}, frozenset((1,)))
    calls = lower_node(case.node(), Target.parse(target))
    names = [c.name for call in calls for c in call.choices if c.family == "book"]
    assert (names[0].partition(" tile")[0] if names else None) == expected
    if expected and expected != "dense":
        held = sum(v.type.nbytes for call in calls for v in call.args if v.is_constant)
        assert held < 4 * 1024 * 1024 / 3, "indices, not floats"


def test_panels_where_memory_is_worth_time() -> None:
    case = Case("MatMul", [whole(64, 1024), coded((1024, 1024), 16)], {}, frozenset((1,)))
    calls = lower_node(case.node(), Target.parse("x86-64-v4"), for_memory=True)
    assert "book=16 panels" in [c.name for call in calls for c in call.choices]


@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
def test_products_on_arm() -> None:
    net = Net(3)
    results = []
    for rows, levels, shape in ((1, 16, (300, 200)), (3, 4, (61, 50)), (1, 32, (40, 33))):
        results.append(net.op("MatMul", net.input(rows, shape[0]), coded(shape, levels)))
    graph = net.done(*results)
    target = Target.parse("arm64-neon")
    feeds = {n: np.rint(a * 4) for n, a in feeds_for(graph, 3).items()}
    choices = [c for call in lower_graph(graph, target, 1) for c in call.choices if c.family == "book"]
    tuning = Tuning({c.key: next(n for n, _ in c.candidates if n != "dense") for c in choices})
    compiled = compile_graph(graph, CompileOptions(target, name="model", tuning=tuning))
    assert len(choices) == len(results)
    expected = reference.evaluate(graph, feeds)
    for name, array in run_as_program(compiled, feeds).items():
        np.testing.assert_array_equal(array, expected[name])
