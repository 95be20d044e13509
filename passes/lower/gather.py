"""Reads at run-time positions: Gather and its relatives, OneHot, ReverseSequence.

ONNX leaves an index outside of the axis undefined; here it is clamped, so that no input makes a model read elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ...ir.loops import Buffer, Expr, Operand, binary, cast, const, maximum, minimum, select
from ...ir.types import DType
from .context import KernelBuilder, Lowering, lowers, strides
from .copies import PARALLEL_BYTES, copy_regions, copy_row, raw
from .copy_axes import nest, region
from .movement import operand
from .pad import affine_pieces

_MAX_PIECES = 8
"""Constant indices in at most so many runs are copied as boxes."""
_REPEATED = 4
"""Rows that pay for bringing the places of their elements into the axis first."""
_UNROLLED = 8
"""Elements of an iteration that has nothing but loads and stores."""


def index_at(k: KernelBuilder, indices: Buffer, at: Operand, size: int, lanes: int = 1) -> Expr:
    """Indices into an axis of `size`: negative ones count from the end, others are clamped."""
    i = k.let(cast(k.load(indices, at, lanes), DType.I64), "index")
    wrapped = select(i < 0, i + size, i)
    return k.let(maximum(minimum(wrapped, size - 1), 0), "index")


def is_large(ctx: Lowering, count: int) -> bool:
    """Whether writing `count` elements of the result is worth several threads."""
    return ctx.threads > 1 and count * ctx.output.type.dtype.nbytes >= PARALLEL_BYTES


@lowers("Gather")
def lower_gather(ctx: Lowering) -> None:
    """data [outer, size, inner], indices → [outer, indices, inner]: rows of `inner` as vector copies."""
    x, indices, y = operand(ctx, 0), operand(ctx, 1), ctx.output
    axis = ctx.node.attrs.get("axis", 0) % x.type.rank
    dims = x.type.dims
    outer, size, inner, count = prod(dims[:axis]), dims[axis], prod(dims[axis + 1 :]), indices.type.size
    if y.type.size == 0:
        return
    if indices.data is not None:
        flat = indices.data.reshape(-1).astype(np.int64)
        pieces = affine_pieces(np.where(flat < 0, flat + size, flat).clip(0, size - 1))
        if len(pieces) <= _MAX_PIECES:
            at, regions = 0, []
            for first, step, n in pieces:
                steps = (size * inner, step * inner, 1)
                origin = at * inner, first * inner
                regions.append(region((outer, n, inner), (count * inner, inner, 1), steps, origin, x))
                at += n
            copy_regions(ctx, y, regions, "gather")
            return
    if inner == 1 and outer >= _REPEATED and size < 1 << 31:
        _gather_columns(ctx, outer, size)
        return
    k = ctx.kernel()
    data, table, out = raw(k, x), k.tensor(indices), raw(k, y)

    def body(index: Sequence[Expr]) -> None:
        o, i = index
        row = index_at(k, table, i, size)
        copy_row(k, (out, (o * count + i) * inner, 1), (data, (o * size + row) * inner, 1), inner)

    nest(k, (outer, count), body, parallel=is_large(ctx, y.type.size))
    k.done("gather")


def _gather_columns(ctx: Lowering, outer: int, size: int) -> None:
    """Elements of rows that all take the same places: the places are brought into the axis once."""
    x, indices, y = operand(ctx, 0), operand(ctx, 1), ctx.output
    count = indices.type.size
    if indices.data is not None:
        flat = indices.data.reshape(-1).astype(np.int64)
        places = ctx.pack("places", np.where(flat < 0, flat + size, flat).clip(0, size - 1).astype(np.int32))
    else:
        places = ctx.scratch("places", DType.I32, count)
        k = ctx.kernel()
        table = k.tensor(indices)
        for i in k.loop("i", count):
            k.store(k.tensor(places), i, cast(index_at(k, table, i, size), DType.I32))
        k.done("places", shaped=False)
    k = ctx.kernel()
    data, table, out = raw(k, x), k.tensor(places), raw(k, y)

    def body(index: Sequence[Expr]) -> None:
        to, of = k.let(index[0] * count, "to"), k.let(index[0] * size, "of")
        copies = ctx.copies(_UNROLLED)
        whole = count // copies * copies
        for first, end, step in ((0, whole, copies), (whole, count, 1)):
            for i in k.loop("i", end, first, step=step) if first < end else ():
                for u in range(step):
                    k.store(out, to + i + u, k.load(data, of + cast(k.load(table, i + u), DType.I64)))

    nest(k, (outer,), body, parallel=is_large(ctx, y.type.size))
    k.done("gather_columns")


@lowers("GatherElements")
def lower_gather_elements(ctx: Lowering) -> None:
    """out[i…] = data[i… with the axis' coordinate replaced by indices[i…]]."""
    x, indices, y = operand(ctx, 0), operand(ctx, 1), ctx.output
    axis = ctx.node.attrs.get("axis", 0) % x.type.rank
    if y.type.size == 0:
        return
    k = ctx.kernel()
    data, table, out = raw(k, x), k.tensor(indices), raw(k, y)
    of, to = strides(x.type), strides(y.type)

    *outer, n = y.type.dims or (1,)
    last = axis == x.type.rank - 1
    steps = [0 if a == axis else step for a, step in enumerate(of or (1,))]

    def body(index: Sequence[Expr]) -> None:
        begin, source = k.let(dot(index, to[:-1]), "begin"), k.let(dot(index, tuple(steps[:-1])), "source")
        copies = ctx.copies(_UNROLLED)
        whole = n // copies * copies
        for first, end, width in ((0, whole, copies), (whole, n, 1)):
            for j in k.loop("j", end, first, step=width) if first < end else ():
                rows = k.alloc("rows", DType.I64, width)
                k.store(rows, 0, index_at(k, table, begin + j, x.type.dims[axis], width))
                for u in range(width):
                    row = k.load(rows, u)
                    k.store(out, begin + j + u, k.load(data, source + (row if last else row * of[axis] + (j + u))))

    nest(k, outer, body, parallel=is_large(ctx, y.type.size))
    k.done("gather_elements")


@lowers("GatherND")
def lower_gather_nd(ctx: Lowering) -> None:
    """indices [batch…, outer…, depth] pick slices data[batch…, index] (numpy basic indexing)."""
    x, indices, y = operand(ctx, 0), operand(ctx, 1), ctx.output
    if y.type.size == 0:
        return
    batch = ctx.node.attrs.get("batch_dims", 0)
    depth = indices.type.dims[-1]
    outer = prod(indices.type.dims[batch:-1])
    of = strides(x.type)
    inner = prod(x.type.dims[batch + depth :])
    k = ctx.kernel()
    data, table, out = raw(k, x), k.tensor(indices), raw(k, y)

    def body(index: Sequence[Expr]) -> None:
        b, i = index
        row = k.let(b * outer + i, "row")
        begin = b * prod(x.type.dims[batch:])
        for d in range(depth):
            begin = begin + index_at(k, table, row * depth + d, x.type.dims[batch + d]) * of[batch + d]
        copy_row(k, (out, row * inner, 1), (data, k.let(begin, "begin"), 1), inner)

    nest(k, (prod(x.type.dims[:batch]), outer), body, parallel=is_large(ctx, y.type.size))
    k.done("gather_nd")


@lowers("OneHot")
def lower_one_hot(ctx: Lowering) -> None:
    """[outer, inner] indices → [outer, depth, inner]: values[1] where the index says so, values[0] elsewhere."""
    indices, values, y = operand(ctx, 0), operand(ctx, 2), ctx.output
    axis = ctx.node.attrs.get("axis", -1) % y.type.rank
    outer, depth, inner = prod(y.type.dims[:axis]), y.type.dims[axis], prod(y.type.dims[axis + 1 :])
    if y.type.size == 0:
        return
    k = ctx.kernel()
    table, pair, out = k.tensor(indices), raw(k, values), raw(k, y)

    def body(index: Sequence[Expr]) -> None:
        o, d = index
        off, on = k.let(k.load(pair, 0), "off"), k.let(k.load(pair, 1), "on")
        for i in k.loop("i", inner):
            at = k.let(cast(k.load(table, o * inner + i), DType.I64), "index")
            hot = binary("eq", select(at < 0, at + depth, at), d)
            k.store(out, (o * depth + d) * inner + i, select(hot, on, off))

    nest(k, (outer, depth), body, parallel=is_large(ctx, y.type.size))
    k.done("one_hot", shaped=False)


@lowers("ReverseSequence")
def lower_reverse_sequence(ctx: Lowering) -> None:
    """The first sequence_lens[b] steps of every batch entry in reverse; time and batch are axes 0 and 1."""
    x, lengths, y = operand(ctx, 0), operand(ctx, 1), ctx.output
    time = ctx.node.attrs.get("time_axis", 0) % x.type.rank
    sizes, inner = x.type.dims[:2], prod(x.type.dims[2:])
    if y.type.size == 0:
        return
    k = ctx.kernel()
    data, table, out = raw(k, x), k.tensor(lengths), raw(k, y)

    def body(index: Sequence[Expr]) -> None:
        t, b = index[time], index[1 - time]
        length = k.let(minimum(cast(k.load(table, b), DType.I64), sizes[time]), "length")
        source = k.let(select(binary("lt", t, length), length - 1 - t, t), "t")
        row = [source, b] if time == 0 else [b, source]
        copy_row(
            k,
            (out, (index[0] * sizes[1] + index[1]) * inner, 1),
            (data, (row[0] * sizes[1] + row[1]) * inner, 1),
            inner,
        )

    nest(k, sizes, body, parallel=is_large(ctx, y.type.size))
    k.done("reverse_sequence")


def dot(index: Sequence[Expr], steps: tuple[int, ...]) -> Expr:
    at: Expr = const(0)
    for i, step in zip(index, steps, strict=True):
        at = at + i * step
    return at
