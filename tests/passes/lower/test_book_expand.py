"""Weights of few levels that kernels read as floats: what lies in memory are indices, and results are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.driver import Compiled, compile_graph
from c2c.compiler.options import CompileOptions
from c2c.compiler.verify import run_compiled
from c2c.ir.graph import Graph
from c2c.passes.lower import lower_graph
from c2c.passes.lower.schedule import Tuning
from c2c.tests.passes.build import Array, Net, feeds_for


def coded(*shape: int, levels: int = 16) -> Array:
    rng = np.random.default_rng(5)
    book = (np.arange(levels) - levels // 2) / np.float32(2 * levels)
    return np.take(book.astype(np.float32), rng.integers(0, levels, shape))


def pointwise(levels: int) -> Graph:
    net = Net(1)
    return net.done(net.op("Conv", net.input(1, 64, 10, 9), coded(70, 64, 1, 1, levels=levels), net.random(70)))


def spatial(levels: int) -> Graph:
    net = Net(2)
    w = coded(40, 24, 3, 3, levels=levels)
    return net.done(net.op("Conv", net.input(1, 24, 11, 11), w, strides=[2, 2], pads=[1, 1, 1, 1]))


def recurrent(op: str, levels: int) -> Graph:
    net, hidden, gates = Net(3), 56, {"LSTM": 4, "GRU": 3}[op]
    w, r = coded(1, gates * hidden, 30, levels=levels), coded(1, gates * hidden, hidden, levels=levels)
    bias = net.random(1, 2 * gates * hidden)
    return net.done(net.ops(op, net.input(6, 1, 30), w, r, bias, outputs=2, hidden_size=hidden)[0])


GRAPHS: dict[str, Callable[[int], Graph]] = {
    "pointwise": pointwise,
    "3x3": spatial,
    "LSTM": lambda levels: recurrent("LSTM", levels),
    "GRU": lambda levels: recurrent("GRU", levels),
}


def compiled(graph: Graph, target: str, form: str, threads: int = 1) -> Compiled:
    """With the weights dense or expanded, whatever the cost model says."""
    options = CompileOptions(Target.parse(target), name="model", threads=threads, keep_constants=True)
    choices = [c for c in compile_graph(graph, options).schedules if c.family in ("weights", "book")]
    assert any(c.family == "weights" for c in choices), "no weights were offered as indices"
    wanted = ("dense",) if form == "dense" else ("expanded", "panels")
    names = {c.key: next(n for n, _ in c.candidates if n.endswith(wanted)) for c in choices}
    return compile_graph(graph, replace(options, tuning=Tuning(names)))


@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
@pytest.mark.parametrize("levels", [5, 16, 40])
@pytest.mark.parametrize("name", GRAPHS)
def test_results_are_those_of_dense_weights(name: str, levels: int, target: str) -> None:
    graph = GRAPHS[name](levels)
    feeds = feeds_for(graph, 4)
    dense = compiled(graph, target, "dense")
    for threads in (1, 3):
        made = compiled(graph, target, "expanded", threads)
        assert len(made.program.weights) < len(dense.program.weights) / (2 if levels > 16 else 3)
        np.testing.assert_array_equal(run_compiled(made, feeds)["out0"], run_compiled(dense, feeds)["out0"])


@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
@pytest.mark.parametrize("name", ["3x3", "LSTM"])
def test_results_on_arm(name: str) -> None:
    graph = GRAPHS[name](16)
    feeds = feeds_for(graph, 4)
    made, dense = (compiled(graph, "arm64-neon", form) for form in ("expanded", "dense"))
    np.testing.assert_array_equal(run_compiled(made, feeds)["out0"], run_compiled(dense, feeds)["out0"])


def choices(graph: Graph, *, for_memory: bool = False) -> list[str]:
    calls = lower_graph(graph, Target.parse("x86-64-v4"), 1, for_memory=for_memory)
    return [c.name for call in calls for c in call.choices if c.family == "weights"]


def test_recurrences_follow_the_footprint() -> None:
    """The same layer in a small network, and in one whose weights come from farther away."""
    for extra, expected in ((1, "dense"), (20, "book=16 expanded")):
        graph, net = recurrent("LSTM", 16), Net(6)
        far = net.op("MatMul", net.input(1, 1024 * extra), net.random(1024 * extra, 64))
        graph.inputs, graph.nodes = [*graph.inputs, *net.graph.inputs], [*graph.nodes, *net.graph.nodes]
        graph.outputs, graph.output_names = [*graph.outputs, far], ["y", "far"]
        assert expected in choices(graph)


def test_convolutions_only_where_memory_is_worth_time() -> None:
    assert set(choices(pointwise(16))) == {"dense"}
    assert set(choices(pointwise(16), for_memory=True)) == {"book=16 expanded"}
    options = CompileOptions(Target.parse("native"), optimize_for="memory")
    assert len(compile_graph(pointwise(16), options).program.weights) < 70 * 64 * 4 / 3
