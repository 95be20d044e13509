"""Canonical forms of operators that take parts of tensors and put parts together."""

from __future__ import annotations

import numpy as np

from ..ir.graph import Node, Value
from .base import GraphRewriter, Rule
from .pattern import made_by, required
from .rules_movement import permutation
from .views import part_start


def _amounts(pad: Node) -> np.ndarray | None:
    """What a Pad of constants adds, [2, rank]; None where that is computed, or the mode is another one."""
    amounts, rank = pad.constant(1), required(pad).type.rank
    if amounts is None or pad.attrs.get("mode", "constant") != "constant":
        return None
    if pad.input(3) is not None and pad.constant(3) is None:
        return None
    axes = pad.constant(3)
    full = np.zeros((2, rank), np.int64)
    full[:, range(rank) if axes is None else axes.reshape(-1) % rank] = amounts.reshape(2, -1)
    return full


def _cut(node: Node) -> tuple[int, int, int] | None:
    """Axis, first index and end of the part that a Slice takes; None where it is no part along one axis."""
    x, y = required(node).type, node.output.type
    if not x.is_static or not y.is_static or not y.size:
        return None
    found = part_start(node, node.output)
    return None if found is None else (found[0], found[1], found[1] + y.dims[found[0]])


def _slice(rw: GraphRewriter, node: Node, x: Value, cut: tuple[int, int, int]) -> Value:
    """x[begin:end] along an axis, for `node`."""
    axis, begin, end = cut
    if (begin, end) == (0, x.type.dims[axis]):
        return x
    dims = tuple(end - begin if i == axis else n for i, n in enumerate(x.type.dims))
    bounds = [
        rw.constant(hint, np.asarray([n], np.int64))
        for hint, n in zip(("from", "to", "axis"), (begin, end, axis), strict=True)
    ]
    return rw.emit("Slice", [x, *bounds], [x.type.with_shape(dims)], origin=node.origin, hint=node.output.name).output


def _slice_of_slice(rw: GraphRewriter, node: Node) -> Value | None:
    part = made_by(required(node), "Slice")
    outer, inner = _cut(node), _cut(part) if part is not None and rw.has_one_reader(part.output) else None
    if part is None or outer is None or inner is None or outer[0] != inner[0]:
        return None
    return _slice(rw, node, required(part), (outer[0], inner[1] + outer[1], inner[1] + outer[2]))


def _slice_of_pad(rw: GraphRewriter, node: Node) -> Value | None:
    """What is left of the image, padded by what is left of the padding."""
    pad = made_by(required(node), "Pad")
    if pad is None or not rw.has_one_reader(pad.output) or not required(pad).type.is_static:
        return None
    cut, amounts, x = _cut(node), _amounts(pad), required(pad)
    if cut is None or amounts is None:
        return None
    axis, size = cut[0], x.type.dims[cut[0]]
    begin, end = (at - int(amounts[0, axis]) for at in cut[1:])
    if amounts[:, axis].min() < 0 or begin >= size or end <= 0:
        return None
    amounts[:, axis] = max(0, -begin), max(0, end - size)
    kept = _slice(rw, node, x, (axis, max(0, begin), min(size, end)))
    return rw.emit_like(node, "Pad", [kept, rw.constant("pads", amounts.reshape(-1)), *pad.inputs[2:3]], **pad.attrs)


def _slice_of_concat(rw: GraphRewriter, node: Node) -> Value | None:
    """Where most of what is concatenated is padded, and so is cut when it is made."""
    concat = made_by(required(node), "Concat")
    if concat is None or not rw.has_one_reader(concat.output):
        return None
    cut, along = _cut(node), concat.attrs["axis"] % concat.output.type.rank
    pads = [made_by(v, "Pad") for v in concat.inputs]
    if cut is None or cut[0] == along or 2 * sum(p is not None for p in pads) < len(pads):
        return None
    parts = []
    for value in concat.inputs:
        assert value is not None
        dims = [
            m if i == along else n for i, (n, m) in enumerate(zip(node.output.type.dims, value.type.dims, strict=True))
        ]
        type_ = value.type.with_shape(tuple(dims))
        part = rw.emit("Slice", [value, *node.inputs[1:]], [type_], node.attrs, origin=node.origin, hint=value.name)
        parts.append(part.output)
    return rw.emit_like(node, "Concat", parts, axis=along)


def _transpose_of_concat(rw: GraphRewriter, node: Node) -> Value | None:
    """Where the parts are of one element along the axis, and their other axes stay in order: their bytes do."""
    concat, perm = made_by(required(node), "Concat"), permutation(node)
    if concat is None or not rw.has_one_reader(concat.output) or not concat.output.type.is_static:
        return None
    axis = concat.attrs["axis"] % len(perm)
    parts = [v for v in concat.inputs if v is not None]
    others = [p for p in perm if p != axis and concat.output.type.dims[p] != 1]
    if others != sorted(others) or any(v.type.dims[axis] != 1 for v in parts) or len(set(parts)) < len(parts):
        return None
    moved = []
    for value in parts:
        type_ = value.type.with_shape(tuple(value.type.dims[p] for p in perm))
        part = rw.emit("Transpose", [value], [type_], node.attrs, origin=node.origin, hint=value.name)
        moved.append(part.output)
    return rw.emit_like(node, "Concat", moved, axis=perm.index(axis))


PART_RULES = (
    Rule("slice-of-slice", "x[a:][b:] = x[a + b:]", ("Slice",), _slice_of_slice),
    Rule("slice-of-pad", "pad(x, m, n)[a:] = pad(x[a - m:], 0, n)", ("Slice",), _slice_of_pad),
    Rule("slice-of-concat", "concat(x, y)[a:b] = concat(x[a:b], y[a:b])", ("Slice",), _slice_of_concat),
    Rule("transpose-of-concat", "concat(x, y)^p = concat(x^p, y^p) of ones", ("Transpose",), _transpose_of_concat),
)
