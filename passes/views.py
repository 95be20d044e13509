"""Which values are bytes inside another value: reshapes, contiguous slices, and inputs of a concatenation.

A view needs no kernel. `find_views` decides it for a graph; `placed_values` names the results without a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.ops import op
from ..ir.types import TensorType


@dataclass(frozen=True, slots=True)
class View:
    """The value's bytes begin `byte_offset` bytes into `root`, which lies in memory of its own."""

    root: Value
    byte_offset: int


def find_views(graph: Graph) -> dict[Value, View]:
    """Values that lie inside another value (the root), with their place. Roots themselves are not listed.

    A result of a view operator lies in its input. The inputs of a Concat lie in its output where that is contiguous and
    every input can: each is a whole root that a node produces, stands there once, and is no output of the graph.
    An output of the graph is a root, or the whole of a root that no other output has.
    """
    parents: dict[Value, View] = {}
    for node in graph.nodes:
        for value in node.outputs:
            if node.op != "Concat" and (start := view_offset(node, value)) is not None:
                source = node.inputs[0]
                assert source is not None
                parents[value] = View(source, start)
    owned = {v for v in graph.outputs if v not in parents}
    for value in graph.outputs:
        if value in parents:
            root = placeable_root(value, parents)
            if root is None or root in owned:
                root = value
                del parents[value]
            owned.add(root)
    for node in graph.nodes:
        if node.op == "Concat" and (offsets := concat_offsets(node)) is not None:
            _place_inputs(node, offsets, parents, owned)
    return {v: locate(parents, v) for v in parents}


def locate(views: Mapping[Value, View], value: Value) -> View:
    """Root and byte offset of any value, through chains of views."""
    offset = 0
    while (view := views.get(value)) is not None:
        offset += view.byte_offset
        value = view.root
    return View(value, offset)


def placed_values(graph: Graph, views: dict[Value, View]) -> frozenset[Value]:
    """Results that need no kernel call: views of an input of their node, and concatenations made in place."""
    found: set[Value] = set()
    for node in graph.nodes:
        if node.op == "Concat":
            if is_in_place(node, views):
                found.add(node.output)
            continue
        for value in node.outputs:
            start, source = view_offset(node, value), node.input(0)
            if start is not None and source is not None:
                home, place = locate(views, source), locate(views, value)
                if place == View(home.root, home.byte_offset + start):
                    found.add(value)
    return frozenset(found)


def is_in_place(concat: Node, views: dict[Value, View]) -> bool:
    """Whether every input of a Concat lies at its place in the output."""
    offsets = concat_offsets(concat)
    if offsets is None:
        return False
    home = locate(views, concat.output)
    inputs = [locate(views, v) for v in concat.inputs if v is not None]
    return all(
        v.root is home.root and v.byte_offset == home.byte_offset + at for v, at in zip(inputs, offsets, strict=True)
    )


def concat_offsets(node: Node) -> tuple[int, ...] | None:
    """Byte offsets of a Concat's inputs in its output; None where they are not contiguous there."""
    axis = node.attrs["axis"] % node.output.type.rank
    inputs = [v for v in node.inputs if v is not None]
    block = node.output.type.layout.block
    if not _is_outermost(node.output.type, axis) or (block and axis > 1):
        return None
    if any(v.type.layout != node.output.type.layout for v in inputs):
        return None
    if block and axis == 1 and any(v.type.dims[1] % block for v in inputs[:-1]):
        return None
    sizes = [v.type.nbytes for v in inputs]
    return tuple(sum(sizes[:i]) for i in range(len(sizes)))


def placeable_root(value: Value, views: dict[Value, View]) -> Value | None:
    """The root that may move into a Concat's output when `value` is its input: the whole of it, made by a node."""
    view = locate(views, value)
    root = view.root
    if view.byte_offset or root.producer is None or root.is_constant or root.type.nbytes != value.type.nbytes:
        return None
    return root


def view_offset(node: Node, value: Value) -> int | None:
    """Byte offset of a result of `node` inside its first input, or None where it needs memory of its own."""
    source = node.inputs[0] if node.inputs else None
    if source is None or not source.type.is_static or not value.type.is_static:
        return None
    if node.op == "c2c.Reorder":
        return 0 if _same_bytes(source.type, value.type) else None
    if source.type.layout != value.type.layout:
        return None
    if op(node.op).view:
        return _whole_offset(node, source, value)
    start = _PARTS[node.op](node, value) if node.op in _PARTS else None
    if start is None:
        return None
    axis, index = start
    if not _is_outermost(source.type, axis):
        return None
    block = source.type.layout.block
    if block and (axis > 1 or (axis == 1 and index % block)):
        return None
    return index * _row_bytes(source.type, axis)


def _whole_offset(node: Node, source: Value, value: Value) -> int | None:
    if value is not node.output:
        return None  # the mask of Dropout
    if source.type.layout.block and source.type.physical != value.type.physical:
        return None
    return 0


def _place_inputs(node: Node, offsets: tuple[int, ...], parents: dict[Value, View], outputs: set[Value]) -> None:
    roots: list[Value] = []
    for value in node.inputs:
        assert value is not None
        root = placeable_root(value, parents)
        if root is None or root in outputs or root in roots:
            return
        roots.append(root)
    for root, at in zip(roots, offsets, strict=True):
        parents[root] = View(node.output, at)


def _is_outermost(type_: TensorType, axis: int) -> bool:
    """Whether a range along `axis` is contiguous: every dimension outside it is 1."""
    return prod(type_.dims[:axis]) == 1


def _row_bytes(type_: TensorType, axis: int) -> int:
    """Bytes of one index along `axis` when every dimension before it is 1 (of blocked channels: on average)."""
    inner = type_.physical[1:] if axis == 0 else type_.dims[axis + 1 :]
    return prod(inner) * type_.dtype.nbytes


def _same_bytes(a: TensorType, b: TensorType) -> bool:
    """Whether a conversion of layouts moves nothing: one pixel, and either one image or whole blocks."""
    blocks = {t.layout.block for t in (a, b)} - {0}
    if len(blocks) != 1 or a.shape != b.shape:
        return a.layout == b.layout
    n, c, *spatial = a.dims
    return prod(spatial) == 1 and c % blocks.pop() == 0


def _slice_start(node: Node, value: Value) -> tuple[int, int] | None:
    """Axis and first index of a Slice that cuts one axis with step 1, by constant bounds."""
    source = node.inputs[0]
    assert source is not None
    starts, axes, steps = node.constant(1), node.constant(3), node.constant(4)
    if starts is None or (node.input(4) is not None and steps is None) or (node.input(3) is not None and axes is None):
        return None
    order = np.arange(starts.size) if axes is None else axes.reshape(-1)
    cut = [i for i, axis in enumerate(order) if source.type.dims[axis] != value.type.dims[axis]]
    if steps is not None and any(int(s) != 1 for s in steps.reshape(-1)):
        return None
    if len(cut) > 1:
        return None
    if not cut:
        return (0, 0)
    axis = int(order[cut[0]]) % source.type.rank
    size = source.type.dims[axis]
    start = int(starts.reshape(-1)[cut[0]])
    return axis, min(max(start + size if start < 0 else start, 0), size)


def _split_start(node: Node, value: Value) -> tuple[int, int] | None:
    axis = node.attrs.get("axis", 0) % value.type.rank
    return axis, sum(v.type.dims[axis] for v in node.outputs[: node.outputs.index(value)])


def _gather_start(node: Node, value: Value) -> tuple[int, int] | None:
    """A Gather of one index, or of consecutive ones."""
    source, indices = node.inputs[0], node.constant(1)
    assert source is not None
    if indices is None or indices.size == 0:
        return None
    axis = node.attrs.get("axis", 0) % source.type.rank
    flat = indices.reshape(-1) % source.type.dims[axis]
    if np.any(np.diff(flat) != 1):
        return None
    return axis, int(flat[0])


def part_start(node: Node, value: Value) -> tuple[int, int] | None:
    """Axis and first index, where a result of `node` is consecutive indices of its input along one axis."""
    return _PARTS[node.op](node, value) if node.op in _PARTS else None


_PARTS = {"Slice": _slice_start, "Split": _split_start, "Gather": _gather_start}
