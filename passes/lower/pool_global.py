"""Pooling over all positions: GlobalAveragePool, GlobalMaxPool, GlobalLpPool.

Sums are made in groups: the error of one long float32 sum grows with its length, that of sums of sums does not.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ...ir.loops import Expr, binary, cast, const, minimum, reduce
from ...ir.types import DType
from .context import INDEX, KernelBuilder, Lowering, Site, lowers
from .conv_kernel import ConvKernel, finish, pad_operands, unravel
from .pool_reduction import ACCUMULATORS, Reduction, reduction_of
from .tasks import guarded, tasks

WAYS = 4
"""Accumulators that hide the latency of one."""

GROUP = 32 * WAYS
"""Vectors of a group."""


@lowers("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def lower_global_pool(ctx: Lowering) -> None:
    """Pooling over all spatial positions: [N, C, *spatial] -> [N, C, 1, …]."""
    x = ctx.node.inputs[0]
    assert x is not None
    if x.type.layout.block:
        _blocked(ctx)
    else:
        _plain(ctx)


def _blocked(ctx: Lowering) -> None:
    """Lanes are channels."""
    x = ctx.node.inputs[0]
    assert x is not None
    k, lanes, dtype = ConvKernel(ctx), x.type.layout.block, x.type.dtype
    acc = ACCUMULATORS.get(dtype, dtype)
    reduction = reduction_of(ctx.node.op, dtype, ctx.node.attrs.get("p", 2))
    batch, channels = x.type.dims[:2]
    blocks, pixels = -(-channels // lanes), prod(x.type.dims[2:])
    last = lanes if pad_operands(ctx, lanes) else channels - (blocks - 1) * lanes
    source = k.tensor(x, "x")
    for t in tasks(k, batch * blocks * pixels * lanes, batch * blocks):
        n, block = unravel(k, t, (batch, blocks))
        origin = k.let(t * (pixels * lanes), "x")
        total = _sum(k, reduction, acc, lanes, pixels, lambda p: k.load(source, origin + p * lanes, lanes))
        value = k.let(_end(reduction, total, pixels, dtype), "y")
        coords = (n, block * lanes, *(INDEX,) * (x.type.rank - 2))
        several = last < lanes
        for valid in (lanes, last) if several else (lanes,):
            cond = block >= blocks - 1 if valid == last else block < blocks - 1
            for _ in guarded(k, cond, several):
                finish(k, coords, valid, value)
    k.done("pool_global")


def _plain(ctx: Lowering) -> None:
    """Lanes along the positions of one channel, and one element at a time for the rest."""
    x = ctx.node.inputs[0]
    assert x is not None
    k, dtype = ctx.kernel(), x.type.dtype
    acc = ACCUMULATORS.get(dtype, dtype)
    reduction = reduction_of(ctx.node.op, dtype, ctx.node.attrs.get("p", 2))
    batch, channels, pixels = *x.type.dims[:2], prod(x.type.dims[2:])
    lanes = min(ctx.lanes(acc), 1 << (pixels.bit_length() - 1))
    source = k.tensor(x, "x")
    for t in tasks(k, batch * channels * pixels, batch * channels):
        n, c = unravel(k, t, (batch, channels))
        origin = k.let(t * pixels, "x")
        vectors = pixels // lanes
        total = _sum(k, reduction, acc, lanes, vectors, lambda p: k.load(source, origin + p * lanes, lanes))
        one = k.registers("sum", acc, 1, 1)
        k.store(one, 0, reduce(reduction.combine, total))
        for p in k.loop("p", pixels, vectors * lanes) if vectors * lanes < pixels else ():
            k.store(one, 0, reduction.step(k.load(one, 0), k.let(cast(k.load(source, origin + p), acc), "v")))
        site = Site((n, c, *(INDEX,) * (x.type.rank - 2)))
        k.write(ctx.output, site, ctx.epilogue(k, site, _end(reduction, k.load(one, 0), pixels, dtype)))
    k.done("pool_global_planar")


def _sum(
    k: KernelBuilder, reduction: Reduction, dtype: DType, lanes: int, count: int, load: Callable[[Expr], Expr]
) -> Expr:
    """`count` vectors as one, in groups, each of them by several accumulators."""
    total = k.registers("total", dtype, WAYS, lanes)
    acc = k.registers("acc", dtype, WAYS, lanes)
    for i in range(WAYS):
        k.store(total, i, const(reduction.begin, dtype, lanes))
    main = count // WAYS * WAYS
    for group in k.loop("group", main, step=GROUP) if main else ():
        for i in range(WAYS):
            k.store(acc, i, const(reduction.begin, dtype, lanes))
        end = main if main <= GROUP else group + GROUP if main % GROUP == 0 else minimum(group + GROUP, main)
        for p in k.loop("p", end, group, WAYS):
            for i in range(WAYS):
                value = k.let(cast(load(p + i), dtype), "v")
                k.store(acc, i, reduction.step(k.load(acc, i), value))
        for i in range(WAYS):
            k.store(total, i, binary(reduction.combine, k.load(total, i), k.load(acc, i)))
    for i in range(count - main):
        value = k.let(cast(load(const(main + i)), dtype), "v")
        k.store(total, i, reduction.step(k.load(total, i), value))
    a, b, c, d = (k.load(total, i) for i in range(WAYS))
    return binary(reduction.combine, binary(reduction.combine, a, b), binary(reduction.combine, c, d))


def _end(reduction: Reduction, total: Expr, pixels: int, dtype: DType) -> Expr:
    if reduction.average:
        total = total / float(pixels)
    return cast(reduction.end(total), dtype)
