"""Lists of weights that are not zero, and the convolutions that run through them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from c2c.codegen.target import Target, native
from c2c.compiler.driver import compile_graph
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_as_program
from c2c.ir import reference
from c2c.ir.graph import Graph
from c2c.ir.types import DType
from c2c.passes.lower import lower_graph, lower_node
from c2c.passes.lower.schedule import Tuning
from c2c.passes.lower.sparse import make_lists, place_lists
from c2c.passes.pattern import required
from c2c.tests.passes.build import Net, feeds_for
from c2c.tests.passes.lower.harness import Case, in_blocks, run_graph, with_tail

LANES = native().lanes(DType.F32)


def pruned(shape: tuple[int, ...], zeros: float, height: int = 1, seed: int = 0) -> np.ndarray:
    """Random weights of which blocks of `height` rows are zero."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape).astype(np.float32)
    kept = rng.uniform(size=(-(-shape[0] // height), *shape[1:])) >= zeros
    return w * np.repeat(kept, height, axis=0)[: shape[0]]


def unpacked(lists: Any, rows: int, columns: int) -> np.ndarray:
    """The matrix that lists stand for."""
    found = np.zeros((len(lists.first) - 1, lists.height, columns), lists.values.dtype)
    for block in range(len(lists.first) - 1):
        at = 0
        for j in range(lists.first[block], lists.first[block + 1]):
            at += int(lists.gaps[j])
            found[block, :, at] += lists.values[j]
    return found.reshape(-1, columns)[:rows]


def matrices() -> Iterator[np.ndarray]:
    yield pruned((9, 40), 0.7)
    yield pruned((8, 1200), 0.999)
    yield pruned((7, 30), 0.0)
    yield np.zeros((6, 300), np.float32)
    far = np.zeros((3, 1100), np.float32)
    far[0, [0, 255, 511]] = 1, 2, 3
    far[1, [256, 1099]] = 4, 5
    yield far
    empty_between = pruned((12, 50), 0.5)
    empty_between[3:9] = 0
    yield empty_between


@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("height", [1, 2, 4])
@pytest.mark.parametrize("number", range(6))
def test_lists_hold_the_matrix(number: int, height: int, step: int) -> None:
    matrix = list(matrices())[number]
    lists = make_lists(matrix, height)
    assert lists.gaps.dtype == np.uint8 and lists.values.shape == (lists.entries, height)
    np.testing.assert_array_equal(unpacked(lists, *matrix.shape), matrix)
    parts = make_lists(matrix, height, 1, 17)
    count = len(lists.first) - 1
    for i, c in enumerate(range(0, matrix.shape[1], 17)):
        mine = replace(parts, first=parts.first[i * count : (i + 1) * count + 1])
        part = matrix[:, c : c + 17]
        np.testing.assert_array_equal(unpacked(mine, *part.shape), part)
    even = make_lists(matrix, height, step)
    lengths = np.diff(even.first)
    assert even.step == step and not (lengths % step).any() or (matrix != 0).any(0).all()
    np.testing.assert_array_equal(unpacked(even, *matrix.shape), matrix)
    fill = np.nonzero((even.values == 0).all(1))[0]
    blocks = np.searchsorted(even.first, fill, "right") - 1
    for j, block in zip(fill, blocks, strict=True):
        column = int(even.gaps[even.first[block] : j + 1].astype(int).sum())
        assert not matrix[block * height : (block + 1) * height, column].any(), "a filler on a column that counts"


def case(x: tuple[int, ...], w: np.ndarray, bias: bool = True) -> Case:
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal(x).astype(np.float32), w.reshape(*w.shape, *(1 for _ in x[2:]))]
    inputs += [rng.standard_normal((w.shape[0],)).astype(np.float32)] if bias else []
    return Case("Conv", inputs, {"kernel_shape": [1] * (len(x) - 2)}, frozenset((1, 2)))


CASES = [
    case((1, 40, 9, 11), pruned((24, 40), 0.8)),
    case((2, 37, 7, 7), pruned((21, 37), 0.9, 4), bias=False),
    case((1, 600, 5, 3), pruned((9, 600), 0.995)),
    case((1, 16, 61), np.zeros((16, 16), np.float32)),
    case((1, 16, 4, 5, 6), pruned((35, 16), 0.5, 2)),
    case((1, 64, 16, 16), pruned((64, 64), 0.85, 4)),
    case((3, 8, 1, 2), pruned((8, 8), 0.6)),
    case((2, 300, 8, 9), pruned((19, 300), 0.8)),
    case((1, 700, 9, 9), pruned((6, 700), 0.9, 2), bias=False),
]


def schedules(graph: Graph, target: Target, threads: int) -> dict[tuple[str, str], list[str]]:
    """Sparse schedules that the graph's convolution could take."""
    choices = [c for call in lower_graph(graph, target, threads) for c in call.choices if c.family == "conv-sparse"]
    return {c.key: [name for name, _ in c.candidates if name != "dense"] for c in choices}


def _form(name: str) -> tuple[bool, bool]:
    return "chunks" in name, "in place" in name


def forced(graph: Graph, target: str, threads: int, part: str = "") -> Iterator[Tuning]:
    """Tunings that make the convolution sparse, for each height and form: copied and in place, in one chunk of input
    channels and in several."""
    found = schedules(graph, Target.parse(target), threads)
    assert found, "no choice was offered"
    for key, names in found.items():
        for height in (1, 2, 4):
            mine = sorted((n for n in names if n.startswith(f"sparse={height}x1") and part in n), key=_form)
            for _, group in itertools.groupby(mine, _form):
                yield Tuning({key: list(group)[0 if height == 2 else -1]})


def check(graph: Graph, inputs: list[np.ndarray], expected: np.ndarray, threads: int, target: str = "native") -> None:
    for tuning in forced(graph, target, threads):
        (got,) = run_graph(graph, inputs, threads=threads, target=target, tuning=tuning)
        scale = 1e-5 * float(np.abs(expected).max(initial=1e-30))
        np.testing.assert_allclose(got, expected, rtol=0, atol=scale, err_msg=str(tuning.names))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_plain_tensors(number: int, threads: int) -> None:
    c = CASES[number]
    node = c.node()
    graph = Graph("g", [required(node)], [node.output], [node], ["y"])
    check(graph, [np.asarray(c.inputs[0])], c.expected()[0], threads)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_blocked_tensors(number: int, threads: int) -> None:
    c = CASES[number]
    check(in_blocks(c, LANES), [np.asarray(c.inputs[0])], c.expected()[0], threads)


def windowed(x: tuple[int, ...], w: np.ndarray, pads: list[int], strides: list[int], dilations: list[int]) -> Case:
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal(x).astype(np.float32), w, rng.standard_normal((w.shape[0],)).astype(np.float32)]
    attrs = {"kernel_shape": list(w.shape[2:]), "pads": pads, "strides": strides, "dilations": dilations}
    return Case("Conv", inputs, attrs, frozenset((1, 2)))


WINDOWS = [
    windowed((1, 20, 14, 14), pruned((24, 20, 3, 3), 0.8), [1, 1, 1, 1], [1, 1], [1, 1]),
    windowed((2, 17, 9, 37), pruned((21, 17, 3, 3), 0.8, 4), [0, 1, 2, 0], [1, 1], [1, 1]),
    windowed((1, 16, 15, 13), pruned((16, 16, 3, 3), 0.9), [1, 1, 1, 1], [2, 2], [1, 1]),
    windowed((1, 16, 20, 41), pruned((19, 16, 1, 1), 0.7), [0, 0, 0, 0], [2, 2], [1, 1]),
    windowed((1, 8, 12, 50), pruned((16, 8, 5, 2), 0.7, 2), [3, 1, 2, 4], [1, 3], [2, 1]),
    windowed((1, 300, 40, 40), pruned((4, 300, 3, 3), 0.999), [1, 1, 1, 1], [1, 1], [1, 1]),
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("number", range(len(WINDOWS)))
def test_windows(number: int, blocked: bool, threads: int) -> None:
    c = WINDOWS[number]
    node = c.node()
    graph = in_blocks(c, LANES) if blocked else Graph("g", [required(node)], [node.output], [node], ["y"])
    check(graph, [np.asarray(c.inputs[0])], c.expected()[0], threads)


def test_places_are_distances() -> None:
    """Lists of columns that lie anywhere name them by their places; far ones take wider distances."""
    matrix = pruned((8, 12), 0.5)
    for scale, dtype in ((900, np.uint16), (90000, np.uint32)):
        places = np.random.default_rng(3).permutation(12) * scale
        lists = place_lists(matrix, 2, 1, places)
        assert lists.gaps.dtype == dtype
        np.testing.assert_array_equal(unpacked(lists, 8, 11 * scale + 1)[:, places], matrix)


@pytest.mark.parametrize("factor", [(21, 1, 1), (1, 7, 7), (2, 21, 7, 7)])
def test_tail(factor: tuple[int, ...]) -> None:
    c = CASES[1]
    other = np.random.default_rng(2).standard_normal(factor).astype(np.float32)
    expected = np.abs(c.expected()[0]) * other
    check(with_tail(c, other), [np.asarray(c.inputs[0]), other], expected, 1)


def test_forms_are_offered() -> None:
    """Chunks where a tile exceeds the first cache, x in place where it is plain."""
    node = CASES[8].node()
    plain = Graph("g", [required(node)], [node.output], [node], ["y"])
    for graph, places in ((plain, {False, True}), (in_blocks(CASES[8], LANES), {False})):
        (names,) = schedules(graph, Target.parse("native"), 1).values()
        assert {_form(n) for n in names if "sparse=1x1" in n} == {(c, p) for p in places for c in (False, True)}


def test_results_do_not_depend_on_threads() -> None:
    c = CASES[5]
    graph = in_blocks(c, LANES)
    results = []
    for threads in (1, 2, 4):
        tuning = next(forced(graph, "native", threads))
        results.append(run_graph(graph, [np.asarray(c.inputs[0])], threads=threads, tuning=tuning)[0])
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "arm64-neon"])
def test_choice(target: str) -> None:
    """Dense weights are no question; those with many zeros are listed, in blocks where zeros stand in blocks."""
    shape = (1, 256, 14, 14)
    for w, expected in (
        (pruned((256, 256), 0.0), None),
        (pruned((256, 256), 0.22), "dense"),
        (pruned((256, 256), 0.9), "sparse=1x1"),
        (pruned((256, 256), 0.8, 4), "sparse=4x1"),
    ):
        calls = lower_node(case(shape, w).node(), Target.parse(target))
        names = [c.name for call in calls for c in call.choices if c.family == "conv-sparse"]
        assert (names[0].split()[0] if names else None) == expected


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "arm64-neon"])
@pytest.mark.parametrize("stride", [1, 2])
def test_choice_of_windows(target: str, stride: int) -> None:
    """Many zeros are left out, beside Winograd's form too; a few are not."""
    for zeros, listed in ((0.95, True), (0.3, False)):
        net = Net()
        attrs = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "strides": (stride, stride)}
        graph = net.done(net.op("Conv", net.input(1, 64, 28, 28), pruned((64, 64, 3, 3), zeros, 4), **attrs))
        compiled = compile_graph(graph, CompileOptions(Target.parse(target), name="model"))
        assert any("conv_sparse" in name for name in compiled.program.kernels) == listed


@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
def test_lists_on_arm() -> None:
    net = Net(3)
    results = []
    matrices = pruned((24, 40), 0.8), pruned((21, 37), 0.9, 4), pruned((9, 600), 0.99)
    for size, w in zip(((9, 11), (7, 7), (3, 5)), matrices, strict=True):
        x = net.input(1, w.shape[1], *size)
        results.append(net.op("Relu", net.op("Conv", x, w.reshape(*w.shape, 1, 1), net.random(w.shape[0]))))
    x, w = net.input(1, 16, 9, 14), pruned((16, 16, 3, 3), 0.95, 4)
    results.append(net.op("Conv", x, w, kernel_shape=(3, 3), pads=(1, 1, 1, 1), strides=(2, 1)))
    graph = net.done(*results)
    feeds = feeds_for(graph, 3)
    expected = reference.evaluate(graph, feeds)
    compiled = compile_graph(graph, CompileOptions(Target.parse("arm64-neon"), name="model"))
    assert any("conv_sparse" in name for name in compiled.program.kernels)
    for name, array in run_as_program(compiled, feeds).items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5 * float(np.abs(expected[name]).max()))
