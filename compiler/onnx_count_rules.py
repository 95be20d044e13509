"""How the axis of counted results (`onnx_counts`) goes through operators: those that compute, and `onnx_count_moves`.

What mixes the results along that axis sees a neutral element in place of those that are not meant (`prepared`); what
has no rule is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..ir.errors import UnsupportedOpError
from ..ir.graph import Node, Value
from ..ir.ops import Kind
from ..ir.ops import op as row
from .onnx_count_moves import MOVES, Found, Rule, common, sole
from .onnx_counts import Along, Counts
from .onnx_sizes import Size, derived

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


def _elementwise(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    dims, found = node.output.type.dims, []
    for value in node.inputs:
        if value is not None and value in counts.along:
            along = counts.along[value]
            found.append(replace(along, axis=along.axis + len(dims) - value.type.rank))
    shared = common(found) if found else None
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


def _reduce(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    """Along other axes the counted one stays; along the counted one what is not meant has been hidden."""
    if (only := sole(node, counts)) is None:
        return None
    value, along = only
    axes = _axes(node.op, node.inputs, node.attrs)
    if along.axis in axes:
        return [None] if node.op in _NEUTRAL else None
    if node.attrs.get("keepdims", 1):
        return [along]
    return [replace(along, axis=sum(a not in axes for a in range(along.axis)))]


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
    if (only := sole(node, counts)) is None:
        return None
    rows = only[1].axis == (1 if node.attrs.get("transA", 0) else 0)
    bias = node.input(2)
    one = bias is None or bias.type.rank < 2 or bias.type.dims[0] == 1
    return [replace(only[1], axis=0)] if rows and one else None


def _batch(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    """Images that are computed each for itself."""
    only = sole(node, counts)
    return [only[1]] * len(node.outputs) if only is not None and only[1].axis == 0 else None


def _normalized(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    if (only := sole(node, counts)) is None:
        return None
    axis = node.attrs.get("axis", -1) % only[0].type.rank
    return [only[1]] * len(node.outputs) if only[1].axis < axis else None


def _regions(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    """RoiAlign: regions and the numbers of their images."""
    x, rois, images = node.inputs[:3]
    found = [counts.along.get(v) for v in (rois, images) if v is not None]
    fits = x is not None and x not in counts.along and all(a is not None and a.axis == 0 for a in found)
    return [common([a for a in found if a is not None])] if fits and len({a.count for a in found if a}) == 1 else None


def _hidden(node: Node, counts: Counts, sizes: Mapping[int, Value]) -> Found | None:
    """Operators whose own count leaves out what is not meant."""
    inner = node.attrs["body"].nodes[0]
    alongs = [None if v is None else counts.along.get(v) for v in node.inputs[:2]]
    if inner.op == "NonZero":
        fits = True
    elif inner.op == "Compress":
        of, by = alongs
        axis, data = inner.attrs.get("axis"), node.inputs[0]
        assert data is not None
        along = 0 if axis is None else axis % data.type.rank
        fits = of is None or (axis is not None or data.type.rank == 1) and of.axis == along and by == Along(0, of.count)
    else:
        boxes, scores = alongs
        fits = (scores is None or scores.axis == 2) and boxes in (None, scores and replace(scores, axis=1))
    return [None, None] if fits else None


_RULES: dict[str, Rule] = {
    **MOVES,
    **dict.fromkeys((n for n in _NEUTRAL if n.startswith(("Reduce", "Arg"))), _reduce),
    "ReduceMean": _reduce,
    **dict.fromkeys(("Softmax", "LogSoftmax"), MOVES["Identity"]),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "LpNormalization"), _normalized),
    **dict.fromkeys(
        "Conv ConvTranspose MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool InstanceNormalization "
        "GroupNormalization Resize LRN DepthToSpace SpaceToDepth GridSample".split(), _batch,
    ),
    "TopK": _top_k, "MatMul": _matmul, "Gemm": _gemm, "RoiAlign": _regions, "c2c.Bounded": _hidden,
}  # fmt: skip
