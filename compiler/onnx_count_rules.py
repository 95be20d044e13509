"""How the axis of counted results (`onnx_counts`) goes through operators, by operator.

A rule gives for every result of a node the axis that counts, and how many. What mixes the results along that axis sees
a neutral element in place of those that are not meant (`prepared`); what has no rule is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, TypeAlias

import numpy as np

from ..ir.errors import UnsupportedOpError
from ..ir.graph import Node, Value
from ..ir.ops import Kind
from ..ir.ops import op as row
from .onnx_counts import Along, Counts
from .onnx_sizes import Size, derived

Found: TypeAlias = list[Along | None]
Rule: TypeAlias = Callable[[Node, Counts, Mapping[int, Value]], Found | None]
"""None: this form of the operator has no meaning along the counted axis."""

BOUNDED_SIZES = {
    "Reshape": (1,), "Expand": (1,), "ConstantOfShape": (0,), "TopK": (1,), "Slice": (1, 2, 3, 4), "Range": (0, 1, 2),
    "Tile": (1,),
}  # fmt: skip
"""Inputs that must be constants, and are taken at their bounds where they are computed from counted results."""

_NEUTRAL: dict[str, float | None] = {
    "ReduceSum": 0, "ReduceL1": 0, "ReduceL2": 0, "ReduceSumSquare": 0, "ReduceProd": 1, "ReduceMax": None,
    "ReduceMin": np.inf, "ReduceLogSum": 0, "ReduceLogSumExp": None, "ArgMax": None, "ArgMin": np.inf,
    "Softmax": None, "LogSoftmax": None,
}  # fmt: skip
"""What operators along the counted axis find in place of what is not meant: None the lowest number of the type."""

_HIDDEN: dict[str, tuple[int, float | None]] = {"NonZero": (0, 0), "Compress": (1, 0), "NonMaxSuppression": (1, None)}
"""The input of operators on counted results that hides what is not meant."""


def prepared(op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any], counts: Counts) -> list[Value | None]:
    """Inputs of a node in the making: sizes at their bounds, what is not meant hidden from what would mix it."""
    made = list(inputs)
    for index in BOUNDED_SIZES.get(op, ()):
        value = made[index] if index < len(made) else None
        if value is not None:
            made[index] = counts.bounds_of(value)
    data = made[0] if made else None
    if data is None:
        return made
    along = counts.along.get(data)
    if op in _HIDDEN:
        index, fill = _HIDDEN[op]
        if (hidden := made[index]) is not None:
            made[index] = counts.hide(hidden, fill)
    elif along is not None and op in _NEUTRAL and along.axis in _axes(op, made, attrs):
        made[0] = counts.hide(data, _NEUTRAL[op])
    elif along is not None and op == "TopK" and attrs.get("axis", -1) % data.type.rank == along.axis:
        made[0] = counts.hide(data, None if attrs.get("largest", 1) else np.inf)
    return made


def _axes(op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any]) -> tuple[int, ...]:
    """Axes that a reduction or softmax runs along; none where they are not known."""
    data = inputs[0]
    assert data is not None
    rank = data.type.rank
    if not op.startswith("Reduce"):
        return (attrs.get("axis", 0 if op.startswith("Arg") else -1) % rank,)
    axes = inputs[1] if len(inputs) > 1 else None
    if axes is None or (axes.data is not None and axes.data.size == 0):
        return () if attrs.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return () if axes.data is None else tuple(int(a) % rank for a in axes.data.reshape(-1))


def follow(node: Node, counts: Counts, inputs: Sequence[Value | None]) -> None:
    """Note which axes of a node's results count; raises UnsupportedOpError where counted results would be mixed.
    inputs: the node's before sizes were taken at their bounds."""
    if not all(v.type.is_static for v in node.outputs):
        return
    sizes = {k: v for k, v in enumerate(inputs) if v is not None and v in counts.sizes and v is not node.inputs[k]}
    for value, along in zip(node.outputs, _results(node, counts, sizes), strict=True):
        if along is not None:
            counts.along[value] = along
    found = derived(node, counts.sizes, counts.emit) if len(node.outputs) == 1 else None
    if found is not None and any(isinstance(e, Size) for e in found.reshape(-1)):
        counts.sizes[node.output] = found


def _results(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found:
    counted = [v for v in node.inputs if v is not None and v in counts.along]
    if not counted and not sizes:
        return [None] * len(node.outputs)
    rule = _RULES.get(node.op)
    if rule is None and row(node.op).kind is Kind.ELEMENTWISE:
        rule = _elementwise
    found = None if rule is None else rule(node, counts, sizes)
    if found is None:
        which = counted[0].name if counted else next(iter(sizes.values())).name
        raise UnsupportedOpError(
            f"operator {node.op} mixes results of which the number is known at run time only ('{which}')",
            where=node.where,
            remedy="cut the model before this node, or make that number a constant",
        )
    return found


def _shared(alongs: Sequence[Along]) -> Along | None:
    """The one axis that all of them mean."""
    first = alongs[0]
    return first if all(a == first for a in alongs) else None


def _elementwise(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    dims, found = node.output.type.dims, []
    for value in node.inputs:
        if value is not None and value in counts.along:
            along = counts.along[value]
            found.append(replace(along, axis=along.axis + len(dims) - value.type.rank))
    shared = _shared(found) if found else None
    if shared is None:
        return None if found else [None] * len(node.outputs)
    bound = dims[shared.axis]
    for value in node.inputs:
        if value is None:
            continue
        axis = shared.axis - (len(dims) - value.type.rank)
        size = value.type.dims[axis] if axis >= 0 else 1
        if size != (bound if value in counts.along else 1) and value.type.rank:
            return None
    return [shared] * len(node.outputs)


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


def _first(node: Node, counts: Counts) -> tuple[Value, Along] | None:
    """The first input and its axis, where no other input counts."""
    value = node.inputs[0]
    others = [v for v in node.inputs[1:] if v is not None and v in counts.along]
    if value is None or others or value not in counts.along:
        return None
    return value, counts.along[value]


def _transpose(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    if (first := _first(node, counts)) is None:
        return None
    value, along = first
    perm = node.attrs.get("perm") or tuple(reversed(range(value.type.rank)))
    return [replace(along, axis=list(perm).index(along.axis))]


def _moved(node: Node, counts: Counts, axes: Sequence[int], added: bool) -> Found | None:
    """Axes of one taken out of the shape, or put into it."""
    if (first := _first(node, counts)) is None:
        return None
    value, along = first
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


def _reduce(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    """Along other axes the counted one stays; along the counted one what is not meant has been hidden."""
    if (first := _first(node, counts)) is None:
        return None
    value, along = first
    axes = _axes(node.op, node.inputs, node.attrs)
    if along.axis in axes:
        return [None] if node.op in _NEUTRAL else None
    if node.attrs.get("keepdims", 1):
        return [along]
    return [replace(along, axis=sum(a not in axes for a in range(along.axis)))]


def _softmax(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    return None if (first := _first(node, counts)) is None else [first[1]]


def _slice(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    """Along the counted axis only from a number on and up to another."""
    starts, ends, axes, steps = (node.constant(i) for i in range(1, 5))
    value = node.inputs[0]
    if value is None or starts is None or ends is None:
        return None
    along = counts.along.get(value)
    over = np.arange(len(starts)) if axes is None else axes
    at = [k for k, a in enumerate(over) if along is not None and int(a) % value.type.rank == along.axis]
    if along is None or not at:
        return [along] if along is not None else None
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
    shared = _shared([a for a in alongs if a is not None])
    axis = node.attrs["axis"] % node.output.type.rank
    return None if None in alongs or shared is None or shared.axis == axis else [shared]


def _split(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    if (first := _first(node, counts)) is None:
        return None
    value, along = first
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
    if sizes or (first := _first(node, counts)) is None:
        return None
    repeats = node.constant(1)
    return [first[1]] if repeats is not None and int(repeats[first[1].axis]) == 1 else None


def _top_k(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    """As many as are wanted, or as there are."""
    value = node.inputs[0]
    assert value is not None
    along = counts.along.get(value)
    axis = node.attrs.get("axis", -1) % value.type.rank
    if along is not None and along.axis != axis:
        return None if 1 in sizes else [along, along]
    wanted = counts.scalar(sizes[1]) if 1 in sizes else int(np.asarray(node.constant(1)).reshape(-1)[0])
    if along is None:
        assert isinstance(wanted, Value)
        return [Along(axis, wanted)] * 2
    kept = Along(axis, along.count if wanted is along.count else counts.least(along.count, wanted))
    return [kept, kept]


def _matmul(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    """Rows of the left factor, or columns of the right one."""
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    of, by = counts.along.get(a), counts.along.get(b)
    if of is not None and by is None and a.type.rank >= max(b.type.rank, 2) and of.axis == a.type.rank - 2:
        return [of]
    if by is not None and of is None and b.type.rank >= max(a.type.rank, 2) and by.axis == b.type.rank - 1:
        return [replace(by, axis=node.output.type.rank - 1)]
    plain = of is not None and by is None and b.type.rank == 2 and of.axis < a.type.rank - 1
    return [of] if plain else None


def _gemm(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    if (first := _first(node, counts)) is None:
        return None
    rows = first[1].axis == (1 if node.attrs.get("transA", 0) else 0)
    bias = node.input(2)
    one = bias is None or bias.type.rank < 2 or bias.type.dims[0] == 1
    return [replace(first[1], axis=0)] if rows and one else None


def _batch(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    """Images that are computed each for itself."""
    first = _first(node, counts)
    return [first[1]] * len(node.outputs) if first is not None and first[1].axis == 0 else None


def _normalized(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    if (first := _first(node, counts)) is None:
        return None
    axis = node.attrs.get("axis", -1) % first[0].type.rank
    return [first[1]] + [None] * (len(node.outputs) - 1) if first[1].axis < axis else None


def _regions(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    """RoiAlign: regions and the numbers of their images."""
    x, rois, images = node.inputs[:3]
    found = [counts.along.get(v) for v in (rois, images) if v is not None]
    fits = x is not None and x not in counts.along and all(a is not None and a.axis == 0 for a in found)
    return [_shared([a for a in found if a is not None])] if fits and len({a.count for a in found if a}) == 1 else None


def _hidden(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    """Operators whose own count leaves out what is not meant."""
    first = node.attrs["body"].nodes[0]
    alongs = [None if v is None else counts.along.get(v) for v in node.inputs[:2]]
    if first.op == "NonZero":
        fits = True
    elif first.op == "Compress":
        of, by = alongs
        axis, data = first.attrs.get("axis"), node.inputs[0]
        assert data is not None
        along = 0 if axis is None else axis % data.type.rank
        fits = of is None or (axis is not None or data.type.rank == 1) and of.axis == along and by == Along(0, of.count)
    else:
        boxes, scores = alongs
        fits = (scores is None or scores.axis == 2) and boxes in (None, scores and replace(scores, axis=1))
    return [None, None] if fits else None


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Reshape", "Flatten"), _reshape),
    **dict.fromkeys(("Identity", "Dropout"), lambda n, c, s: [c.along[n.inputs[0]]] * len(n.outputs)),  # type: ignore[index]
    **dict.fromkeys((n for n in _NEUTRAL if n.startswith(("Reduce", "Arg"))), _reduce),
    **dict.fromkeys(("ReduceMean",), _reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "LpNormalization"), _normalized),
    **dict.fromkeys(
        "Conv ConvTranspose MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool InstanceNormalization "
        "GroupNormalization Resize LRN DepthToSpace SpaceToDepth GridSample".split(), _batch,
    ),
    "Transpose": _transpose, "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Slice": _slice, "Gather": _gather,
    "GatherElements": _gather_elements, "GatherND": _gather_nd, "Concat": _concat, "Split": _split, "Expand": _shaped,
    "ConstantOfShape": _shaped, "Range": _range, "Tile": _tile, "TopK": _top_k, "MatMul": _matmul, "Gemm": _gemm,
    "RoiAlign": _regions, "c2c.Bounded": _hidden,
}  # fmt: skip
