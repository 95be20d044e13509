"""Results that depend on shapes more than on data: constants, Range, EyeLike, Trilu, BitCast."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ...ir.loops import Expr, binary, broadcast, cast, const, ramp, select
from ...ir.types import DType
from .context import Lowering, lowers
from .copies import RAW, copy_regions, raw, vectors
from .copy_axes import nest, region
from .gather import is_large
from .movement import constant_input, copy_whole, fill, operand, required_constant


def write_constant(ctx: Lowering, data: np.ndarray) -> None:
    """The result is known: its bytes are copied from the weights."""
    copy_whole(ctx, ctx.pack("value", data.astype(ctx.output.type.dtype.numpy)), ctx.output)


@lowers("ConstantOfShape")
def lower_constant_of_shape(ctx: Lowering) -> None:
    """One value everywhere (zero without attribute `value`)."""
    fill(ctx, ctx.output, _bits(ctx, ctx.node.attrs.get("value", 0)))


@lowers("Shape")
def lower_shape(ctx: Lowering) -> None:
    """The dimensions from `start` to `end`."""
    dims = operand(ctx, 0).type.dims
    end = ctx.node.attrs.get("end")
    write_constant(ctx, np.array(dims[ctx.node.attrs.get("start", 0) : end], np.int64))


@lowers("Size")
def lower_size(ctx: Lowering) -> None:
    """The number of elements."""
    write_constant(ctx, np.array(operand(ctx, 0).type.size, np.int64))


@lowers("Range")
def lower_range(ctx: Lowering) -> None:
    """start, start + delta, …; the three are constants, since they make the shape."""
    start, _, delta = (required_constant(ctx, i).reshape(()) for i in range(3))
    write_constant(ctx, start + np.arange(ctx.output.type.size).astype(start.dtype) * delta)


@lowers("EyeLike")
def lower_eye_like(ctx: Lowering) -> None:
    """Ones on the diagonal `k`, zeros elsewhere."""
    rows, columns = ctx.output.type.dims
    shift = ctx.node.attrs.get("k", 0)
    fill(ctx, ctx.output, 0)
    first_row, first_column = max(-shift, 0), max(shift, 0)
    n = min(rows - first_row, columns - first_column)
    if n > 0:
        at = first_row * columns + first_column
        bits = _bits(ctx, 1)
        width = RAW[ctx.output.type.dtype.bits]
        diagonal = region((n,), (columns + 1,), (0,), (at, 0))
        copy_regions(ctx, ctx.output, [diagonal], "diagonal", lambda k: const(bits, width))


@lowers("Trilu")
def lower_trilu(ctx: Lowering) -> None:
    """The upper or lower triangle of matrices, zeros elsewhere; the diagonal may be a run-time scalar."""
    x, y, diagonal = operand(ctx, 0), ctx.output, ctx.node.input(1)
    upper = ctx.node.attrs.get("upper", 1)
    *batch, rows, columns = x.type.dims
    if x.type.size == 0:
        return
    k = ctx.kernel()
    data, out = raw(k, x), raw(k, y)
    known = 0 if diagonal is None else None if diagonal.data is None else int(diagonal.data.reshape(-1)[0])
    shift = k.tensor(diagonal) if known is None and diagonal is not None else None

    def body(index: Sequence[Expr]) -> None:
        b, i = index
        edge = i + known if known is not None else i + cast(k.load(shift, 0), DType.I64) if shift else i
        edge = k.let(edge, "edge")
        for j, lanes in vectors(k, columns, min(ctx.lanes(data.dtype), 16)):
            at = (b * rows + i) * columns + j
            keep = binary("ge" if upper else "le", ramp(j, 1, lanes), broadcast(edge, lanes))
            k.store(out, at, select(keep, k.load(data, at, lanes), 0))

    nest(k, (prod(batch), rows), body, parallel=is_large(ctx, x.type.size))
    k.done("trilu")


@lowers("BitCast")
def lower_bit_cast(ctx: Lowering) -> None:
    """The same bytes as another element type."""
    x, y = operand(ctx, 0), ctx.output
    n = prod(y.type.physical)
    if x.type.dtype.bits != y.type.dtype.bits:
        raise ctx.unsupported("BitCast between element types of different width is not supported")
    copy_regions(ctx, y, [region((n,), (1,), (1,), source=x)], "copy")


@lowers("Compress")
def lower_compress(ctx: Lowering) -> None:
    """The slices of `axis` (or elements of the flattened data) where a constant condition holds."""
    x, y = operand(ctx, 0), ctx.output
    axis = ctx.node.attrs.get("axis")
    condition = constant_input(ctx, 1)
    assert condition is not None
    outer, size, inner = 1, x.type.size, 1
    if axis is not None:
        axis %= x.type.rank
        outer, size, inner = prod(x.type.dims[:axis]), x.type.dims[axis], prod(x.type.dims[axis + 1 :])
    picks = np.flatnonzero(condition[:size])
    regions = [
        region((outer, inner), (len(picks) * inner, 1), (size * inner, 1), (i * inner, int(p) * inner), x)
        for i, p in enumerate(picks)
    ]
    copy_regions(ctx, y, regions, "compress")


def _bits(ctx: Lowering, value: object) -> int:
    """A value of the result's type as the raw integer of its bytes."""
    dtype = ctx.output.type.dtype
    data = np.asarray(value).reshape(-1)[:1].astype(dtype.numpy)
    return int(data.view(RAW[dtype.bits].numpy)[0])
