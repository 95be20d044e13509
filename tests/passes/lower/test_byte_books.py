"""Integer products by weights of few levels: the layout of their indices, and kernels on them, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_graph
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_as_program
from c2c.ir import reference
from c2c.ir.graph import Graph
from c2c.ir.types import DType
from c2c.passes.lower import lower_graph
from c2c.passes.lower.byte_books import byte_book
from c2c.passes.lower.schedule import Tuning
from c2c.tests.passes.build import Net
from c2c.tests.passes.lower.harness import Array, Case, run_graph

HERE = ("native", "x86-64-v3", "x86-64-v4", "x86-64-v4+avx512vnni")
ARM = ("arm64-neon", "arm64-dotprod", "arm64-neon+i8mm")


def coded(shape: tuple[int, ...], levels: int, seed: int = 0) -> Array:
    """Bytes of so many levels, the outermost ones among them."""
    rng = np.random.default_rng(seed)
    book = np.linspace(-128, 127, levels).round().astype(np.int8)
    indices = np.concatenate([np.arange(levels), rng.integers(0, levels, np.prod(shape) - levels)])
    return np.take(book, indices).reshape(shape)


def rows(*shape: int, dtype: type | np.dtype = np.uint8) -> Array:
    """Bytes, many of them the outermost ones, whose products come near to what sums of i16 do not hold."""
    rng, limits = np.random.default_rng(1), np.iinfo(dtype)
    values = rng.integers(limits.min, limits.max, shape, endpoint=True)
    return np.where(rng.random(shape) < 0.3, limits.max, values).astype(dtype)


@pytest.mark.parametrize("levels", [2, 4, 5, 16])
def test_bytes_hold_the_indices(levels: int) -> None:
    matrix = coded((48, 40), levels)
    book = byte_book(matrix)
    assert book is not None and book.entries.size >= levels
    packed = book.panels(48, 32, 16)
    assert packed.size == 48 * 48 // book.in_byte
    first = packed[: 48 * 32 // book.in_byte].reshape(-1, 32, 4)
    fields = [first >> (book.field * i) & (1 << book.field) - 1 for i in range(book.in_byte)]
    unpacked = np.stack(fields, axis=1).transpose(0, 1, 3, 2).reshape(48, 32)
    np.testing.assert_array_equal(book.entries[unpacked], matrix[:, :32])


def test_many_levels_have_no_book() -> None:
    assert byte_book(coded((45, 31), 17)) is None
    assert byte_book(np.array([[200, 0]], np.int16)) is None and byte_book(np.zeros((0, 3), np.int8)) is None


CASES = [
    Case("MatMulInteger", [rows(1, 70), coded((70, 150), 16)], {}, frozenset((1,))),
    Case("MatMulInteger", [rows(1, 65), coded((65, 50), 3), np.array(128, np.uint8)], {}, frozenset((1, 2))),
    Case(
        "MatMulInteger",
        [rows(3, 40, dtype=np.int8), coded((40, 37), 8), np.array(-128, np.int8)],
        {},
        frozenset((1, 2)),
    ),
    Case("MatMulInteger", [rows(2, 3, 128), coded((128, 300), 16), np.array(7, np.uint8)], {}, frozenset((1,))),
    Case("MatMulInteger", [rows(19, 33), coded((33, 70), 4)], {}, frozenset((1,))),
]  # fmt: skip


def forced(graph: Graph, target: str, threads: int = 1) -> Tuning:
    """The tuning that takes the books."""
    choices = [c for call in lower_graph(graph, Target.parse(target), threads) for c in call.choices]
    found = {c.key: next(n for n, _ in c.candidates if n != "dense") for c in choices if c.family == "book"}
    assert found, "no book was offered"
    return Tuning(found)


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("number", range(len(CASES)))
def test_products_are_exact(number: int, target: str) -> None:
    if not Target.parse(target).runs_here:
        pytest.skip(f"{target} does not run on this machine")
    case = CASES[number]
    node = case.node()
    graph = Graph("g", [v for v in node.inputs if v is not None and not v.is_constant], [node.output], [node], ["y"])
    inputs = [a for i, a in enumerate(case.inputs) if a is not None and i not in case.constants]
    for threads in (1, 3):
        (got,) = run_graph(graph, inputs, target=target, threads=threads, tuning=forced(graph, target, threads))
        np.testing.assert_array_equal(got, case.expected()[0])


@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
@pytest.mark.parametrize("target", ARM)
def test_products_on_arm(target: str) -> None:
    net = Net(3)
    feeds, results = {}, []
    for i, (count, levels, shape) in enumerate(((1, 16, (300, 200)), (3, 4, (61, 50)), (1, 9, (40, 33)))):
        kind = (DType.I8, DType.U8)[i % 2]
        x = net.input(count, shape[0], dtype=kind)
        feeds[x.name] = rows(count, shape[0], dtype=kind.numpy)
        results.append(net.op("MatMulInteger", x, coded(shape, levels)))
    graph = net.done(*results)
    compiled = compile_graph(graph, CompileOptions(Target.parse(target), name="model", tuning=forced(graph, target)))
    expected = reference.evaluate(graph, feeds)
    for name, array in run_as_program(compiled, feeds).items():
        np.testing.assert_array_equal(array, expected[name])
