"""Canonical forms of operators that only move data."""

from __future__ import annotations

import numpy as np

from ..ir.graph import Node, Value
from ..ir.ops import OPS, Kind
from ..ir.types import TensorType
from .base import GraphRewriter, Rule
from .pattern import int_list, made_by, reduced_axes, required


def _pass_through(rw: GraphRewriter, node: Node) -> Value | None:
    """Identity, and Dropout whose mask nobody reads: inference only."""
    mask = node.outputs[1] if len(node.outputs) > 1 else None
    if mask is not None and (rw.readers(mask) or rw.is_output(mask)):
        return None
    if node.op == "Dropout" and node.input(2) is not None and (node.constant(2) is None or bool(node.constant(2))):
        return None
    return required(node)


def _same_type(rw: GraphRewriter, node: Node) -> Value | None:
    """Operators that do nothing when the result has the type of the operand."""
    x = required(node)
    return x if x.type == node.output.type else None


def reshape(rw: GraphRewriter, node: Node, x: Value, type_: TensorType) -> Value:
    """`x` with another shape, in place of `node`."""
    if x.type.shape == type_.shape:
        return x
    shape = rw.constant("shape", np.asarray(type_.dims, np.int64))
    attrs = {"allowzero": 1} if 0 in type_.dims else {}
    return rw.emit("Reshape", [x, shape], [type_], attrs, origin=node.origin, hint=node.output.name).output


def _to_reshape(rw: GraphRewriter, node: Node) -> Value | None:
    """Flatten, Squeeze, Unsqueeze, Reshape of a Reshape, Reshape by a computed or relative shape."""
    x = required(node)
    if not node.output.type.is_static or not x.type.is_static or node.output.type.layout.block or x.type.layout.block:
        return None
    if x.type.shape == node.output.type.shape:
        return x
    inner = made_by(x, "Reshape")
    if inner is not None:
        return reshape(rw, node, required(inner), node.output.type)
    shape = node.constant(1) if node.op == "Reshape" else None
    if shape is not None and tuple(shape.reshape(-1)) == node.output.type.dims:
        return None
    return reshape(rw, node, x, node.output.type)


_REDUCTIONS = (
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
)


def _kept_dimensions(rw: GraphRewriter, node: Node) -> Value | None:
    """Reduced dimensions dropped, then put back as 1."""
    inner = made_by(required(node), *_REDUCTIONS)
    if inner is None or inner.attrs.get("keepdims", 1) or not rw.has_one_reader(inner.output):
        return None
    x, axes = required(inner), reduced_axes(inner)
    if axes is None or not x.type.is_static:
        return None
    kept = tuple(1 if i in axes else d for i, d in enumerate(x.type.dims))
    if node.output.type.shape != kept:
        return None
    origin = (*inner.origin, *node.origin)
    attrs = {**inner.attrs, "keepdims": 1}
    return rw.emit(inner.op, inner.inputs, [node.output.type], attrs, origin=origin, hint=node.output.name).output


def permutation(node: Node) -> tuple[int, ...]:
    """The permutation of a Transpose: result axis i is operand axis perm[i]."""
    rank = required(node).type.rank
    perm = node.attrs.get("perm")
    return tuple(reversed(range(rank))) if perm is None else tuple(p % rank for p in int_list(perm))


def transpose(rw: GraphRewriter, node: Node, x: Value, perm: tuple[int, ...]) -> Value:
    """`x` with permuted axes, in place of `node`; `x` itself where nothing moves."""
    if perm == tuple(range(len(perm))):
        return x
    type_ = x.type.with_shape(tuple(x.type.shape[p] for p in perm))
    hint = node.output.name
    return rw.emit("Transpose", [x], [type_], {"perm": perm}, origin=node.origin, hint=hint).output


def _merge_transposes(rw: GraphRewriter, node: Node) -> Value | None:
    perm = permutation(node)
    inner = made_by(required(node), "Transpose")
    if perm == tuple(range(len(perm))):
        return required(node)
    if inner is None:
        return None
    first = permutation(inner)
    return transpose(rw, node, required(inner), tuple(first[p] for p in perm))


def _transpose_of_ones(rw: GraphRewriter, node: Node) -> Value | None:
    """No dimension larger than 1 passes another one: the bytes stay in order."""
    x = required(node)
    if not x.type.is_static:
        return None
    moved = [p for p in permutation(node) if x.type.dims[p] != 1]
    return reshape(rw, node, x, node.output.type) if moved == sorted(moved) else None


def _broadcast_operand(rw: GraphRewriter, node: Node) -> Value | None:
    """Elementwise operators broadcast by themselves."""
    if len(node.inputs) < 2 or node.op in ("QuantizeLinear", "DequantizeLinear", "PRelu", "Clip", "CastLike"):
        return None
    for i, value in enumerate(node.inputs):
        expand = made_by(value, "Expand")
        if expand is None:
            continue
        source = required(expand)
        if not all(v is None or v.type.is_static for v in (*node.inputs, source)):
            continue
        others = [v.type.dims for k, v in enumerate(node.inputs) if v is not None and k != i]
        if np.broadcast_shapes(source.type.dims, *others) == node.output.type.shape:
            changed = [*node.inputs]
            changed[i] = source
            return rw.emit_like(node, node.op, changed, **node.attrs)
    return None


def _single_concat(rw: GraphRewriter, node: Node) -> Value | None:
    return required(node) if len(node.inputs) == 1 else None


def _empty_concat_parts(rw: GraphRewriter, node: Node) -> Value | None:
    """Operands without elements add nothing."""
    kept = [v for v in node.inputs if v is not None and not (v.type.is_static and v.type.size == 0)]
    if len(kept) == len(node.inputs) or not kept:
        return None
    return rw.emit_like(node, "Concat", kept, **node.attrs)


def _nested_concat(rw: GraphRewriter, node: Node) -> Value | None:
    """Concat of Concats along the same axis with no other reader."""
    rank = node.output.type.rank
    axis = node.attrs["axis"] % rank
    parts: list[Value] = []
    for value in node.inputs:
        inner = made_by(value, "Concat")
        if inner is not None and inner.attrs["axis"] % rank == axis and rw.has_one_reader(inner.output):
            parts += [v for v in inner.inputs if v is not None]
        elif value is not None:
            parts.append(value)
    if len(parts) == len(node.inputs):
        return None
    return rw.emit_like(node, "Concat", parts, axis=axis)


def _no_pads(rw: GraphRewriter, node: Node) -> Value | None:
    pads = node.constant(1)
    return required(node) if pads is not None and not pads.any() else None


def _cast_of_cast(rw: GraphRewriter, node: Node) -> Value | None:
    """A widening cast in between changes nothing: float16 -> float32 -> float16, bool -> int64 -> float32."""
    inner = made_by(required(node), "Cast")
    if inner is None:
        return None
    source, middle, result = required(inner).type.dtype, inner.output.type.dtype, node.output.type.dtype
    exact = np.can_cast(source.numpy, middle.numpy, "safe") and source.numpy.kind != "O"
    if not exact or middle.numpy.kind == "b" or (source.is_float and not middle.is_float):
        return None
    if source is result:
        return required(inner)
    return rw.emit_like(node, "Cast", [required(inner)], **node.attrs)


def _slice_of_everything(rw: GraphRewriter, node: Node) -> Value | None:
    x, steps = required(node), node.constant(4)
    forward = node.input(4) is None or (steps is not None and bool((steps > 0).all()))
    return x if forward and x.type == node.output.type else None


def _resize_by_one(rw: GraphRewriter, node: Node) -> Value | None:
    """Same size; the coordinate modes that keep every pixel where it is."""
    x, mode = required(node), node.attrs.get("coordinate_transformation_mode", "half_pixel")
    keeps = mode in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
    return x if keeps and x.type == node.output.type and node.attrs.get("antialias", 0) == 0 else None


ELEMENTWISE = tuple(name for name, definition in OPS.items() if definition.kind is Kind.ELEMENTWISE)

MOVEMENT_RULES = (
    Rule("pass-through", "identity(x) = x", ("Identity", "Dropout"), _pass_through),
    Rule("same-type", "cast(x, type of x) = x", ("Cast", "CastLike", "Expand", "Tile"), _same_type),
    Rule("cast-of-cast", "cast(cast(x, wide), t) = cast(x, t)", ("Cast",), _cast_of_cast),
    Rule(
        "reshape",
        "flatten, squeeze, unsqueeze, reshape(reshape(x)) = reshape(x, constant shape)",
        ("Reshape", "Flatten", "Squeeze", "Unsqueeze"),
        _to_reshape,
    ),
    Rule("kept-dimensions", "reshape(sum(x, keepdims=0)) = sum(x, keepdims=1)", ("Reshape",), _kept_dimensions),
    Rule("merge-transposes", "(x^p)^q = x^(p q)", ("Transpose",), _merge_transposes),
    Rule("transpose-of-ones", "x^p = reshape(x) when only 1-dims move", ("Transpose",), _transpose_of_ones),
    Rule("broadcast-operand", "f(expand(x), y) = f(x, y) of the same shape", ELEMENTWISE, _broadcast_operand),
    Rule("single-concat", "concat(x) = x", ("Concat",), _single_concat),
    Rule("empty-concat-parts", "concat(x, empty) = concat(x)", ("Concat",), _empty_concat_parts),
    Rule("nested-concat", "concat(concat(a, b), c) = concat(a, b, c)", ("Concat",), _nested_concat),
    Rule("no-pads", "pad(x, 0) = x", ("Pad",), _no_pads),
    Rule("slice-of-everything", "x[:] = x", ("Slice",), _slice_of_everything),
    Rule("resize-by-one", "resize(x, size of x) = x", ("Resize",), _resize_by_one),
)
