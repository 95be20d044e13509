"""Memory plans: nothing alive overlaps, little is wasted, constants are laid once."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from c2c.ir.errors import PassError
from c2c.ir.graph import Graph, Node, Value, constant
from c2c.ir.loops import Block, Kernel
from c2c.ir.program import Slot
from c2c.ir.types import DType, TensorType
from c2c.passes.lower.context import Call
from c2c.passes.plan_memory import ALIGN, Interval, lower_bound, place, plan
from c2c.passes.views import View, find_views
from c2c.tests.passes.build import Net, i64

KERNEL = Kernel("k", (), Block())


def _random_intervals(seed: int, count: int) -> list[Interval]:
    """Mostly short lives, some long ones, as in networks with skip connections."""
    rng = np.random.default_rng(seed)
    found = []
    for first in range(count):
        life = rng.integers(1, 4) if rng.random() < 0.8 else rng.integers(1, 60)
        found.append(Interval(ALIGN * int(rng.integers(1, 2000)), first, min(count, first + int(life))))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_intervals_alive_together_are_disjoint(seed: int) -> None:
    intervals = _random_intervals(seed, [5, 40, 120][seed % 3])
    offsets = place(intervals)
    for i, a in enumerate(intervals):
        for j, b in enumerate(intervals[:i]):
            if a.first <= b.last and b.first <= a.last:
                apart = offsets[i] + a.size <= offsets[j] or offsets[j] + b.size <= offsets[i]
                assert apart, f"seed {seed}: {a} at {offsets[i]}, {b} at {offsets[j]}"
    top = max(at + i.size for at, i in zip(offsets, intervals, strict=True))
    assert top <= 1.15 * lower_bound(intervals), f"seed {seed}"
    assert all(at % ALIGN == 0 for at in offsets)


def test_a_chain_needs_its_two_largest_neighbours() -> None:
    sizes = [ALIGN * n for n in (3, 8, 5, 9, 2, 7, 7, 1)]
    intervals = [Interval(s, i, i + 1) for i, s in enumerate(sizes)]
    offsets = place(intervals)
    best = max(a + b for a, b in pairwise(sizes))
    assert lower_bound(intervals) == best == max(at + s for at, s in zip(offsets, sizes, strict=True))


def test_a_thousand_values_take_less_than_a_second() -> None:
    intervals = _random_intervals(1, 1000)
    start = time.perf_counter()
    assert place(intervals) == place(intervals)
    assert time.perf_counter() - start < 4, "two plans, with room for a busy machine"


def _program(seed: int) -> tuple[list[Call], Graph, dict[Value, View]]:
    """Random calls over values, views of them, scratch and constants; one input, one output."""
    rng = np.random.default_rng(seed)
    source = Value("in", TensorType(DType.F32, (50,)))
    node = Node("Relu", (source,), (Value("n", TensorType(DType.F32, (1,))),))
    made: list[Value] = [source]
    views: dict[Value, View] = {}
    calls: list[Call] = []
    for i in range(30):
        result = Value(f"v{i}", TensorType(DType.F32, (int(rng.integers(1, 400)),)))
        reads = [made[int(k)] for k in rng.integers(max(0, len(made) - 6), len(made), 2)]
        scratch = Value(f"s{i}", TensorType(DType.U8, (int(rng.integers(0, 300)),)))
        table = constant(f"c{i}", rng.integers(0, 3, 4).astype(np.int8))
        calls.append(Call(KERNEL, (*reads, scratch, table, result), node))
        calls.append(Call(KERNEL, (scratch, result), node))
        made.append(result)
        if rng.random() < 0.3 and result.type.size > 8:
            view = Value(f"w{i}", TensorType(DType.F32, (result.type.size - 8,)))
            views[view] = View(result, 32)
            made.append(view)
    final = Value("out", TensorType(DType.F32, (9,)))
    calls.append(Call(KERNEL, (made[-1], final), node))
    return calls, Graph("g", [source], [final], [node], ["out"]), views


@pytest.mark.parametrize("seed", range(8))
def test_a_run_of_a_plan_never_overwrites_what_is_read_later(seed: int) -> None:
    """Each call writes its results' bytes; before a read the bytes must still be those of the value's last writer."""
    calls, graph, views = _program(seed)
    memory = plan(calls, graph, views)
    arena = np.full(memory.arena_bytes, -1, np.int64)
    written: dict[Value, int] = {}
    for number, call in enumerate(calls):
        for value in call.args:
            slot = memory.slots[value]
            if slot.base != "arena":
                continue
            root = views[value].root if value in views else value
            piece = arena[slot.offset : slot.offset + value.type.nbytes]
            assert len(piece) == value.type.nbytes, "beyond the arena"
            if root in written:
                assert (piece == written[root]).all(), f"seed {seed}, call {number}: {value.name} was overwritten"
            else:
                piece[:] = number * 100 + call.args.index(value)
                written[root] = number * 100 + call.args.index(value)
    assert memory.arena_bytes <= 1.15 * memory.lower_bound


def test_equal_constants_lie_once() -> None:
    calls, graph, views = _program(0)
    memory = plan(calls, graph, views)
    for call in calls:
        for value in call.args:
            if value.data is not None:
                at = memory.slots[value].offset
                assert at % ALIGN == 0
                assert bytes(memory.weights[at : at + value.data.nbytes]) == value.data.tobytes()
    distinct = {v.data.tobytes() for c in calls for v in c.args if v.data is not None}
    assert len(memory.weights) == ALIGN * len(distinct)


def test_release_drops_the_arrays() -> None:
    calls, graph, views = _program(0)
    kept = plan(calls, graph, views).weights
    assert plan(calls, graph, views, release=True).weights == kept
    made = [v.data for c in calls for v in c.args if v.data is not None]
    assert made and all(not any(data.strides) for data in made)


def test_outputs_are_written_in_place() -> None:
    net = Net()
    y = net.op("Relu", net.input(1, 4, 6))
    graph = net.done(net.op("Reshape", y, i64(4, 6)))
    memory = plan([Call(KERNEL, (graph.inputs[0], y), graph.nodes[0])], graph, find_views(graph))
    assert memory.slots == {graph.inputs[0]: Slot("input"), y: Slot("output")}
    assert memory.arena_bytes == memory.lower_bound == 0


def test_an_output_without_memory_is_an_error() -> None:
    net = Net()
    x = net.input(4)
    graph = net.done(net.op("Relu", x), x)
    with pytest.raises(PassError, match="has no memory of its own"):
        plan([], graph, find_views(graph))
