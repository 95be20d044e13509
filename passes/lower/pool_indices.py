"""MaxPool with the indices of the maxima."""

from __future__ import annotations

from math import prod

from ...ir.loops import Expr, const, select
from ...ir.types import DType
from .context import Lowering, Site, offset
from .conv_kernel import unravel
from .pool_reduction import reduction_of
from .tasks import tasks
from .window import Window, window


def lower_pool_with_indices(ctx: Lowering) -> None:
    """Append the kernel of a MaxPool whose second output, the index of the maximum in the flat input, is wanted."""
    k, x, node = ctx.kernel(), ctx.node.inputs[0], ctx.node
    assert x is not None
    view = window(node, x.type, node.output.type, tuple(node.attrs["kernel_shape"]))
    source, dtype = k.tensor(x, "x"), x.type.dtype
    lowest = reduction_of("MaxPool", dtype, 0).begin
    dims = (*x.type.dims[:2], view.d.out, view.h.out)
    for t in tasks(k, prod(dims) * view.w.out * view.taps, prod(dims)):
        n, c, d, h = unravel(k, t, dims)
        for w in k.loop("w", view.w.out):
            best = k.alloc("best", dtype, 1)
            where = k.alloc("where", DType.I64, 1)
            k.store(best, 0, const(lowest, dtype))
            k.store(where, 0, const(0))
            spans = [a.tap_range(o) for a, o in zip(view.axes, (d, h, w), strict=True)]
            for q in k.loop("q", spans[0][1], spans[0][0]):
                for r in k.loop("r", spans[1][1], spans[1][0]):
                    for s in k.loop("s", spans[2][1], spans[2][0]):
                        at = [
                            k.let(o * a.stride - a.pad + tap * a.dilation, "at")
                            for a, o, tap in zip(view.axes, (d, h, w), (q, r, s), strict=True)
                        ]
                        spatial = view.spatial(at[0], at[1], at[2])
                        value = k.let(k.load(source, offset(x.type, (n, c, *spatial))), "v")
                        index = k.let(_flat_index(ctx, view, n, c, at), "index")
                        better = k.let(value > k.load(best, 0), "better")
                        k.store(where, 0, select(better, index, k.load(where, 0)))
                        k.store(best, 0, select(better, value, k.load(best, 0)))
            coords = (n, c, *view.spatial(d, h, w))
            for output, result in zip(node.outputs, (best, where), strict=True):
                k.write(output, Site(coords), k.load(result, 0))
    k.done("pool_indices", shaped=False)


def _flat_index(ctx: Lowering, view: Window, n: Expr, c: Expr, at: list[Expr]) -> Expr:
    """Index in the flat input; storage_order 1 counts the spatial axes column by column."""
    x = ctx.node.inputs[0]
    assert x is not None
    total = (n * x.type.dims[1] + c) * view.pixels_in
    order = list(zip(view.axes, at, strict=True))
    step = 1
    for axis, position in order if ctx.node.attrs.get("storage_order", 0) else order[::-1]:
        total = total + position * step
        step *= axis.size
    return total
