"""Writes at run-time positions: the data copied, then the updates one after the other (a later one wins).

An index outside of its axis is clamped (see `gather`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, Operand, cast, const, maximum, minimum, select
from ...ir.types import DType
from .context import KernelBuilder, Lowering, lowers, strides
from .copies import copy_row, raw
from .copy_axes import nest
from .gather import dot, index_at
from .movement import copy_whole, fill, operand

_WIDE = {DType.F16: DType.F32, DType.BF16: DType.F32}


@lowers("ScatterElements", "Scatter")
def lower_scatter_elements(ctx: Lowering) -> None:
    """out = data; out[i… with the axis' coordinate from indices[i…]] = or ⊕= updates[i…]."""
    x, indices, updates, y = operand(ctx, 0), operand(ctx, 1), operand(ctx, 2), ctx.output
    axis = ctx.node.attrs.get("axis", 0) % x.type.rank
    reduction = ctx.node.attrs.get("reduction", "none")
    copy_whole(ctx, x, y)
    if indices.type.size == 0:
        return
    k = ctx.kernel()
    table = k.tensor(indices)
    source, out = _operands(k, updates, y, reduction)
    of, to = strides(indices.type), strides(y.type)

    def body(index: Sequence[Expr]) -> None:
        at = k.let(dot(index, of), "at")
        row = index_at(k, table, at, y.type.dims[axis])
        place = k.let(dot([row if a == axis else i for a, i in enumerate(index)], to), "place")
        _update(k, out, place, k.load(source, at), reduction)

    nest(k, indices.type.dims, body)
    k.done("scatter_elements")


@lowers("ScatterND")
def lower_scatter_nd(ctx: Lowering) -> None:
    """out = data; out[index] = or ⊕= updates[i] for every row of indices [outer…, depth]."""
    x, indices, updates, y = operand(ctx, 0), operand(ctx, 1), operand(ctx, 2), ctx.output
    reduction = ctx.node.attrs.get("reduction", "none")
    copy_whole(ctx, x, y)
    depth = indices.type.dims[-1]
    outer, inner = prod(indices.type.dims[:-1]), prod(x.type.dims[depth:])
    if outer * inner == 0:
        return
    steps = strides(y.type)
    k = ctx.kernel()
    table = k.tensor(indices)
    source, out = _operands(k, updates, y, reduction)
    for i in k.loop("i", outer):
        place: Expr = const(0)
        for d in range(depth):
            place = place + index_at(k, table, i * depth + d, x.type.dims[d]) * steps[d]
        place = k.let(place, "place")
        if reduction == "none":
            copy_row(k, (out, place, 1), (source, i * inner, 1), inner)
        else:
            for j in k.loop("j", inner):
                _update(k, out, place + j, k.load(source, i * inner + j), reduction)
    k.done("scatter_nd", shaped=reduction == "none")


@lowers("TensorScatter")
def lower_tensor_scatter(ctx: Lowering) -> None:
    """past_cache [batch, …, length, …] with update [batch, …, n, …] written at write_indices[batch] along `axis`."""
    x, updates, places, y = operand(ctx, 0), operand(ctx, 1), ctx.node.input(2), ctx.output
    axis = ctx.node.attrs.get("axis", -2) % x.type.rank
    circular = ctx.node.attrs.get("mode", "linear") == "circular"
    dims = x.type.dims
    batch, outer, inner = dims[0], prod(dims[1:axis]), prod(dims[axis + 1 :])
    length, n = dims[axis], updates.type.dims[axis]
    copy_whole(ctx, x, y)
    if updates.type.size == 0:
        return
    k = ctx.kernel()
    table = None if places is None else k.tensor(places)
    source, out = raw(k, updates), raw(k, y)

    def body(index: Sequence[Expr]) -> None:
        b, o, i = index
        start: Expr = const(0) if table is None else cast(k.load(table, b), DType.I64)
        place = (start + i) % length if circular else minimum(start + i, length - 1)
        place = k.let(maximum(place, 0), "place")
        row = b * outer + o
        copy_row(k, (out, (row * length + place) * inner, 1), (source, (row * n + i) * inner, 1), inner)

    nest(k, (batch, outer, n), body)
    k.done("tensor_scatter")


@lowers("MaxUnpool")
def lower_max_unpool(ctx: Lowering) -> None:
    """Zeros, with every element of X at its flat index I."""
    x, indices, y = operand(ctx, 0), operand(ctx, 1), ctx.output
    fill(ctx, y, 0)
    source_shape = x.type.dims
    spatial = len(source_shape) - 2
    kernel = ctx.node.attrs["kernel_shape"]
    steps = ctx.node.attrs.get("strides") or (1,) * spatial
    pads = ctx.node.attrs.get("pads") or (0,) * (2 * spatial)
    natural = [(source_shape[2 + i] - 1) * steps[i] + kernel[i] - pads[i] - pads[spatial + i] for i in range(spatial)]
    k = ctx.kernel()
    source, table, out = raw(k, x), k.tensor(indices), raw(k, y)
    for i in k.loop("i", x.type.size):
        at = k.let(cast(k.load(table, i), DType.I64), "index")
        place = k.let(_moved(k, at, [*source_shape[:2], *natural], y.type.dims), "place")
        k.store(out, maximum(minimum(place, y.type.size - 1), 0), k.load(source, i))
    k.done("max_unpool")


def _moved(k: KernelBuilder, flat: Expr, of: list[int], to: tuple[int, ...]) -> Expr:
    """A flat index into shape `of` as a flat index into shape `to` (the same where the shapes are)."""
    if tuple(of) == to:
        return flat
    place: Expr = const(0)
    below, below_to = prod(of), prod(to)
    for n, m in zip(of, to, strict=True):
        below //= n
        below_to //= m
        place = place + flat / below % n * below_to
    return place


def _operands(k: KernelBuilder, updates: Value, y: Value, reduction: str) -> tuple[Buffer, Buffer]:
    if reduction == "none":
        return raw(k, updates), raw(k, y)
    return k.tensor(updates), k.tensor(y)


def _update(k: KernelBuilder, out: Buffer, at: Operand, value: Expr, reduction: str) -> None:
    if reduction == "none":
        k.store(out, at, value)
        return
    dtype = out.dtype
    wide = _WIDE.get(dtype, dtype)
    old, new = k.let(cast(k.load(out, at), wide), "old"), k.let(cast(value, wide), "new")
    k.store(out, at, cast(_reduced(reduction, old, new), dtype))


def _reduced(reduction: str, old: Expr, new: Expr) -> Expr:
    if old.dtype is DType.BOOL:
        return old | new if reduction in ("add", "max") else old & new
    if reduction == "add":
        return old + new
    if reduction == "mul":
        return old * new
    return select(new < old, new, old) if reduction == "min" else select(new > old, new, old)
