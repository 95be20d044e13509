"""Static memory plan: every value of a list of kernel calls gets a place; values that live together never overlap.

Placing intervals of given size and lifetime is dynamic storage allocation (NP-hard: Garey & Johnson, SR2). First fit in
a good order is within a few percent; the order is improved by moving forward what ended on top.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from ..ir.errors import PassError
from ..ir.graph import Graph, Value
from ..ir.program import Bytes, Slot, Span
from .lower.context import Call
from .views import View, locate

ALIGN = 64
ROUNDS = 200
"""Improvement rounds at most, for small plans."""
PREFIX = 256
"""Bytes by which constants that may be equal are found, before they are compared."""
WORK = 400_000
"""Pairs of overlapping lifetimes looked at, at most, while improving."""


@dataclass(eq=False, slots=True)
class MemoryPlan:
    """Places of values. `lower_bound`: the largest sum of sizes alive during one call. `weights`: constants' bytes.

    prepared_bytes: what calls that run once write. spans: the constants in the weights, in order.
    """

    slots: dict[Value, Slot]
    arena_bytes: int
    lower_bound: int
    weights: Bytes
    prepared_bytes: int = 0
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Interval:
    """A root that needs `size` bytes (a multiple of ALIGN) from call `first` to call `last`, both included."""

    size: int
    first: int
    last: int


def plan(calls: Sequence[Call], graph: Graph, views: Mapping[Value, View], *, release: bool = False) -> MemoryPlan:
    """Places of every value that a call binds.

    Inputs and outputs of the graph lie with the caller, constants in the weights (equal bytes once), what calls that
    run once write in the prepared memory, the rest in the arena. Values that belong to no node (scratch) live during
    the calls that bind them. With `release` the arrays of constants that lowering made are dropped once copied, so that
    large models are not held twice.
    """
    lives = _lifetimes(calls, views)
    homes = _caller_slots(graph, views)
    prepared = _prepared_slots(calls, homes)
    arena = {v: i for v, i in lives.items() if v not in homes and not v.is_constant}
    intervals = list(arena.values())
    offsets = place(intervals)
    homes |= {v: Slot("arena", at) for v, at in zip(arena, offsets, strict=True)}
    weights, spans = _lay_weights([v for v in lives if v.is_constant], homes, set(graph.values()) if release else None)
    slots: dict[Value, Slot] = {}
    for call in calls:
        for value in call.args:
            if value not in slots:
                view = locate(views, value)
                home = homes[view.root]
                slots[value] = Slot(home.base, home.offset + view.byte_offset, home.index)
    top = max((at + i.size for at, i in zip(offsets, intervals, strict=True)), default=0)
    return MemoryPlan(slots, top, lower_bound(intervals), weights, prepared, spans)


def _lifetimes(calls: Sequence[Call], views: Mapping[Value, View]) -> dict[Value, Interval]:
    """Lifetimes of roots, in order of first appearance."""
    found: dict[Value, Interval] = {}
    for index, call in enumerate(calls):
        for value in call.args:
            root = locate(views, value).root
            known = found.get(root)
            size = known.size if known else -(-root.type.nbytes // ALIGN) * ALIGN
            found[root] = Interval(size, known.first if known else index, index)
    return found


def _caller_slots(graph: Graph, views: Mapping[Value, View]) -> dict[Value, Slot]:
    slots = {v: Slot("input", 0, i) for i, v in enumerate(graph.inputs)}
    for i, value in enumerate(graph.outputs):
        view = locate(views, value)
        if view.root in slots or view.root.is_constant or view.byte_offset:
            raise PassError(
                f"output '{graph.output_names[i]}' has no memory of its own", remedy="run the pass own-outputs"
            )
        slots[view.root] = Slot("output", 0, i)
    return slots


def _prepared_slots(calls: Sequence[Call], slots: dict[Value, Slot]) -> int:
    """Adds the slots of what calls that run once write, one after the other; the bytes of all."""
    top = 0
    for value in (v for call in calls if call.once for v in call.args):
        if not value.is_constant and value not in slots:
            slots[value] = Slot("prepared", top)
            top += -(-value.type.nbytes // ALIGN) * ALIGN
    return top


def _lay_weights(
    constants: Sequence[Value], slots: dict[Value, Slot], kept: Set[Value] | None
) -> tuple[Bytes, tuple[Span, ...]]:
    """Byte image of constants in order, and where they lie in it; adds their slots.

    Arrays of those not in `kept` are dropped once copied.
    """
    known: dict[tuple[int, bytes], list[tuple[int, Value]]] = {}
    offsets: list[int] = []
    spans: list[Span] = []
    top = 0
    for value in constants:
        data = _bytes(value)
        alike = known.setdefault((data.size, data[:PREFIX].tobytes()), [])
        at = next((at for at, other in alike if np.array_equal(_bytes(other), data)), None)
        if at is None:
            at = top
            alike.append((at, value))
            spans.append(Span(value.name, value.type.dtype, at, data.size))
            top += -(-data.size // ALIGN) * ALIGN
        offsets.append(at)
        slots[value] = Slot("weights", at)
    if kept is not None:
        _forget_pages(kept)
    image = _aligned(top)
    view = np.frombuffer(image, np.uint8)
    for at, value in zip(offsets, constants, strict=True):
        data = _bytes(value)
        view[at : at + data.size] = data
        if kept is not None and value not in kept:
            assert value.data is not None
            value.data = np.broadcast_to(np.zeros((), value.data.dtype), value.data.shape)
    return image, tuple(spans)


def _forget_pages(values: Set[Value]) -> None:
    """Let the system take back what was read of a mapped model file; it is read again where it is needed again."""
    for value in values:
        base: object = value.data
        while isinstance(base, np.ndarray):
            base = base.base
        mapped = base.obj if isinstance(base, memoryview) else base
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
            return


def _aligned(size: int) -> memoryview:
    """Zero bytes at a multiple of ALIGN, so that a model loaded in process runs on them without a copy."""
    room = np.zeros(size + ALIGN, np.uint8)
    skip = -room.ctypes.data % ALIGN
    return room.data[skip : skip + size]


def _bytes(value: Value) -> np.ndarray:
    """A constant's bytes as they lie in memory: its data is in logical order, whatever its layout."""
    data, block = value.data, value.type.layout.block
    assert data is not None
    if block:
        n, blocks, *spatial = value.type.physical[:-1]
        channels = np.zeros((n, blocks * block, *spatial), data.dtype)
        channels[:, : data.shape[1]] = data
        data = np.moveaxis(channels.reshape(n, blocks, block, *spatial), 2, -1)
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)


def lower_bound(intervals: Sequence[Interval]) -> int:
    """The largest sum of sizes alive at one step: no plan needs less."""
    change: dict[int, int] = {}
    for i in intervals:
        change[i.first] = change.get(i.first, 0) + i.size
        change[i.last + 1] = change.get(i.last + 1, 0) - i.size
    alive = best = 0
    for _, delta in sorted(change.items()):
        alive += delta
        best = max(best, alive)
    return best


_ORDERS: tuple[Callable[[Interval], tuple[int, ...]], ...] = (
    lambda i: (-i.size, i.first),
    lambda i: (-i.size * (i.last - i.first + 1), i.first),
    lambda i: (i.first - i.last, -i.size, i.first),
    lambda i: (i.first, -i.size),
    lambda i: (-i.last, -i.size),
)


def place(intervals: Sequence[Interval]) -> list[int]:
    """Offsets such that intervals alive together are disjoint, with a small largest end. Deterministic."""
    bound = lower_bound(intervals)
    rivals = _rivals(intervals)
    best_offsets, best = [0] * len(intervals), -1
    best_order: list[int] = []
    for key in _ORDERS:
        order = sorted(range(len(intervals)), key=lambda i: (key(intervals[i]), i))
        offsets, top = _first_fit(intervals, rivals, order)
        if best < 0 or top < best:
            best_offsets, best, best_order = offsets, top, order
        if best == bound:
            return best_offsets
    work = sum(len(r) for r in rivals) + len(intervals) + 1
    order, offsets = best_order, best_offsets
    for _ in range(min(ROUNDS, WORK // work)):
        order = _promote(intervals, offsets, order)
        offsets, top = _first_fit(intervals, rivals, order)
        if top < best:
            best_offsets, best = offsets, top
        if best == bound:
            break
    return best_offsets


def _promote(intervals: Sequence[Interval], offsets: Sequence[int], order: Sequence[int]) -> list[int]:
    """The order with those blocks first that end at the top."""
    top = max(offsets[i] + intervals[i].size for i in order)
    high = [i for i in order if offsets[i] + intervals[i].size == top]
    at = {i: k for k, i in enumerate(order)}
    target = max(0, min(at[i] for i in high) // 2)
    rest = [i for i in order if i not in high]
    return [*rest[:target], *high, *rest[target:]]


def _rivals(intervals: Sequence[Interval]) -> list[list[int]]:
    """For each interval the others alive at the same time."""
    rivals: list[list[int]] = [[] for _ in intervals]
    alive: list[tuple[int, int]] = []
    for i in sorted(range(len(intervals)), key=lambda i: (intervals[i].first, i)):
        del alive[: bisect_left(alive, (intervals[i].first, -1))]
        for _, other in alive:
            rivals[i].append(other)
            rivals[other].append(i)
        insort(alive, (intervals[i].last, i))
    return rivals


def _first_fit(
    intervals: Sequence[Interval], rivals: Sequence[Sequence[int]], order: Sequence[int]
) -> tuple[list[int], int]:
    """Offsets when blocks are placed in `order`, each in the tightest gap among its placed rivals; and the top."""
    offsets = [-1] * len(intervals)
    top = 0
    for i in order:
        size = intervals[i].size
        taken = sorted((offsets[j], offsets[j] + intervals[j].size) for j in rivals[i] if offsets[j] >= 0)
        end, at, slack = 0, -1, -1
        for begin, stop in taken:
            gap = begin - end - size
            if gap >= 0 and (slack < 0 or gap < slack):
                at, slack = end, gap
            end = max(end, stop)
        offsets[i] = at if at >= 0 else end
        top = max(top, offsets[i] + size)
    return offsets, top
