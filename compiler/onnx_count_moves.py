"""Where the axis of counted results (`onnx_counts`) goes in operators that only move data, or make it of sizes.

A rule gives for every result of a node the axis that counts, and how many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TypeAlias

import numpy as np

from ..ir.graph import Node, Value
from .onnx_counts import Along, Counts

Found: TypeAlias = list[Along | None]
Rule: TypeAlias = Callable[[Node, Counts, Mapping[int, Value]], Found | None]
"""Of a node, what is known, and the node's inputs that were taken at their bounds, by place. None: this form of the
operator has no meaning along the counted axis."""


def common(alongs: Sequence[Along]) -> Along | None:
    """The one axis that all of them mean."""
    first = alongs[0]
    return first if all(a == first for a in alongs) else None


def sole(node: Node, counts: Counts) -> tuple[Value, Along] | None:
    """The first input and its axis, where no other input counts."""
    value = node.inputs[0]
    others = [v for v in node.inputs[1:] if v is not None and v in counts.along]
    if value is None or others or value not in counts.along:
        return None
    return value, counts.along[value]


def _same(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    return None if (only := sole(node, counts)) is None else [only[1]] * len(node.outputs)


def _reshape(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    """The counted axis must stay one: as many elements before it, as many along it."""
    value, dims = node.inputs[0], node.output.type.dims
    along = None if value is None else counts.along.get(value)
    if value is None or along is None:
        return None
    before, size = prod(value.type.dims[: along.axis]), value.type.dims[along.axis]
    places = [a for a, d in enumerate(dims) if d == size and prod(dims[:a]) == before]
    if not places:
        return None
    nearest = min(places, key=lambda a: abs(a - along.axis))
    return [replace(along, axis=nearest)]


def _transpose(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    if (only := sole(node, counts)) is None:
        return None
    value, along = only
    perm = node.attrs.get("perm") or tuple(reversed(range(value.type.rank)))
    return [replace(along, axis=list(perm).index(along.axis))]


def _moved(node: Node, counts: Counts, axes: Sequence[int], added: bool) -> Found | None:
    """Axes of one taken out of the shape, or put into it."""
    if (only := sole(node, counts)) is None:
        return None
    value, along = only
    if added:
        rank = node.output.type.rank
        kept = [a for a in range(rank) if a not in {x % rank for x in axes}]
        return [replace(along, axis=kept[along.axis])]
    gone = {a % value.type.rank for a in axes}
    if along.axis in gone:
        return None
    return [replace(along, axis=sum(a not in gone for a in range(along.axis)))]


def _unsqueeze(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    axes = node.constant(1)
    return None if axes is None else _moved(node, counts, [int(a) for a in axes], True)


def _squeeze(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    axes, value = node.constant(1), node.inputs[0]
    assert value is not None
    if axes is None:
        axes = np.asarray([a for a, d in enumerate(value.type.dims) if d == 1])
    return _moved(node, counts, [int(a) for a in axes], False)


def _slice(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    """Along the counted axis only from a number on and up to another, which alone may be a size."""
    starts, ends, axes, steps = (node.constant(i) for i in range(1, 5))
    value = node.inputs[0]
    if value is None or starts is None or ends is None or set(sizes) - {2}:
        return None
    along = counts.along.get(value)
    over = np.arange(len(starts)) if axes is None else axes
    at = [k for k, a in enumerate(over) if along is not None and int(a) % value.type.rank == along.axis]
    if along is None or not at:
        return None if along is None or sizes else [along]
    begin, end, bound = int(starts[at[0]]), int(ends[at[0]]), value.type.dims[along.axis]
    if begin < 0 or end < 0 or (steps is not None and int(steps[at[0]]) != 1) or (2 in sizes and len(starts) > 1):
        return None
    count = along.count
    if 2 in sizes or end < bound:
        count = counts.least(count, sizes.get(2, end))
    if begin:
        less = counts.emit.emit("Sub", [count, counts.emit.constant(np.asarray(begin, np.int64))], {})[0]
        (count,) = counts.emit.emit("Max", [less, counts.emit.constant(np.asarray(0, np.int64))], {})
    return [replace(along, count=count)]


def _gather(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    data, indices = node.inputs[:2]
    assert data is not None and indices is not None
    axis = node.attrs.get("axis", 0) % data.type.rank
    of, by = counts.along.get(data), counts.along.get(indices)
    if by is not None and (of is None or of.axis == axis):
        return [replace(by, axis=by.axis + axis)]
    if of is None or by is not None or of.axis == axis:
        return None
    return [replace(of, axis=of.axis + (indices.type.rank - 1 if of.axis > axis else 0))]


def _gather_elements(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    data, indices = node.inputs[:2]
    assert data is not None and indices is not None
    axis = node.attrs.get("axis", 0) % data.type.rank
    of, by = counts.along.get(data), counts.along.get(indices)
    fits = by is not None and (of is None or of == by or of.axis == axis)
    return [by] if fits else None


def _gather_nd(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    data, indices = node.inputs[:2]
    assert data is not None and indices is not None
    of, by = counts.along.get(data), counts.along.get(indices)
    rows = indices.type.rank - 1
    if by is None or by.axis >= rows or node.attrs.get("batch_dims", 0):
        return None
    return [by] if of is None or of.axis < indices.type.dims[-1] else None


def _concat(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    alongs = [counts.along.get(v) for v in node.inputs if v is not None]
    shared = common([a for a in alongs if a is not None])
    axis = node.attrs["axis"] % node.output.type.rank
    return None if None in alongs or shared is None or shared.axis == axis else [shared]


def _split(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    if (only := sole(node, counts)) is None:
        return None
    value, along = only
    axis = node.attrs.get("axis", 0) % value.type.rank
    return None if axis == along.axis else [along] * len(node.outputs)


def _shaped(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    """Expand and ConstantOfShape by sizes: the one size that data tell counts."""
    index = 1 if node.op == "Expand" else 0
    value = node.inputs[0]
    assert value is not None
    along = counts.along.get(value) if node.op == "Expand" else None
    rank = node.output.type.rank
    if along is not None:
        along = replace(along, axis=along.axis + rank - value.type.rank)
        size = value.type.dims[along.axis - (rank - value.type.rank)]
        if size != node.output.type.dims[along.axis]:
            return None
    if index not in sizes:
        return [along]
    found = counts.sizes[sizes[index]].reshape(-1)
    open_ = [(a + rank - len(found), e) for a, e in enumerate(found) if not isinstance(e, int)]
    if len(open_) != 1 or (along is not None and (along.axis, along.count) != (open_[0][0], open_[0][1].value)):
        return None
    return [Along(open_[0][0], open_[0][1].value)]


def _range(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    start, delta = node.constant(0), node.constant(2)
    if set(sizes) != {1} or start is None or delta is None or start.item() != 0 or delta.item() != 1:
        return None
    return [Along(0, counts.scalar(sizes[1]))]


def _tile(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    if sizes or (only := sole(node, counts)) is None:
        return None
    repeats = node.constant(1)
    return [only[1]] if repeats is not None and int(repeats[only[1].axis]) == 1 else None


MOVES: dict[str, Rule] = {
    **dict.fromkeys(("Reshape", "Flatten"), _reshape),
    **dict.fromkeys(("Identity", "Dropout"), _same),
    "Transpose": _transpose, "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Slice": _slice, "Gather": _gather,
    "GatherElements": _gather_elements, "GatherND": _gather_nd, "Concat": _concat, "Split": _split, "Expand": _shaped,
    "ConstantOfShape": _shaped, "Range": _range, "Tile": _tile,
}  # fmt: skip
