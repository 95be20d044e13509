"""Normalisations by mean and variance, by norm, and over neighbouring channels."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

from ...ir.graph import Value
from ...ir.loops import Expr, broadcast, cast, const, maximum, minimum, select, unary
from ...ir.types import DType, TensorType
from . import math_functions as mathf
from .context import KernelBuilder, Lowering, Site, lowers, strides
from .elementwise import operand_types
from .elementwise_convert import convert
from .reduce import Total, accumulator, magnitude, square
from .reduction import Item
from .strided import StridedKernel, strided_loops, widest
from .strips import Element, Parts, Strips, lanes_of, strips

PART_BYTES = 16 << 10
"""Bytes of a part of a strip that stays in the nearest cache for two passes."""


@lowers("LayerNormalization")
def lower_layer_normalization(ctx: Lowering) -> None:
    """Over the axes from `axis` on; the optional outputs are the means and the inverse standard deviations."""
    x, scale, bias = ctx.node.input(0), ctx.node.input(1), ctx.node.input(2)
    assert x is not None and scale is not None
    axes = range(ctx.node.attrs.get("axis", -1) % x.type.rank, x.type.rank)
    over = _strips(ctx, x, axes, [v.type for v in (scale, bias) if v is not None])
    if over is None:
        return

    def work(sites: list[Site]) -> None:
        means, roots = _statistics(over, sites, ctx.node.attrs.get("epsilon", 1e-5))
        for value, states in zip(ctx.node.outputs[1:], (means, roots), strict=False):
            over.store_statistic(value, sites, states)
        over.write(sites, lambda e: _affine(over, e, _centred(over, e, means, roots), scale, bias))

    over.each(work, "layernormalization", overwrites=True)


@lowers("RMSNormalization")
def lower_rms_normalization(ctx: Lowering) -> None:
    """x / √(mean of x² + epsilon) · scale over the axes from `axis` on."""
    x, scale = ctx.node.input(0), ctx.node.input(1)
    assert x is not None and scale is not None
    axes = range(ctx.node.attrs.get("axis", -1) % x.type.rank, x.type.rank)
    over = _strips(ctx, x, axes, [scale.type])
    if over is None:
        return
    k, epsilon = over.k, ctx.node.attrs.get("epsilon", 1e-5)

    def work(sites: list[Site]) -> None:
        sums = over.reduce(Total("add", over.operand, 0.0, square), sites)
        roots = [k.let(1.0 / unary("sqrt", s[0] / float(over.length) + epsilon)) for s in sums]
        over.write(sites, lambda e: e.x * lanes_of(k, roots[e.vector], e) * over.read(scale, e))

    over.each(work, "rmsnormalization", together=1, overwrites=True)


@lowers("InstanceNormalization")
def lower_instance_normalization(ctx: Lowering) -> None:
    """Over the spatial axes of each image and channel, plain or blocked."""
    x, scale, bias = ctx.node.input(0), ctx.node.input(1), ctx.node.input(2)
    assert x is not None and scale is not None and bias is not None
    per_channel = scale.type.with_shape((x.type.dims[1], *[1] * (x.type.rank - 2)))
    over = _strips(ctx, x, range(2, x.type.rank), [per_channel])
    if over is None:
        return

    def work(sites: list[Site]) -> None:
        k = over.k
        means, roots = _statistics(over, sites, ctx.node.attrs.get("epsilon", 1e-5))
        factors, shifts = ([over.parameter(v, s, per_channel) for s in sites] for v in (scale, bias))

        def result(e: Element) -> Expr:
            y = _centred(over, e, means, roots) * lanes_of(k, factors[e.vector], e)
            return y + lanes_of(k, shifts[e.vector], e)

        over.write(sites, result)

    over.each(work, "instancenormalization", overwrites=True)


@lowers("MeanVarianceNormalization")
def lower_mean_variance(ctx: Lowering) -> None:
    """(x - mean) / (standard deviation + 1e-9)."""
    x = ctx.node.input(0)
    assert x is not None
    axes = [a % x.type.rank for a in ctx.node.attrs.get("axes", (0, 2, 3))]
    over = _strips(ctx, x, axes, [])
    if over is None:
        return
    k = over.k

    def work(sites: list[Site]) -> None:
        means, variances = _moments(over, sites)
        roots = [k.let(1.0 / (unary("sqrt", v) + 1e-9)) for v in variances]
        over.write(sites, lambda e: _centred(over, e, means, roots))

    over.each(work, "meanvariancenormalization", overwrites=True)


@lowers("LpNormalization")
def lower_lp_normalization(ctx: Lowering) -> None:
    """x / (Σ |x|ᵖ)^(1/p) along an axis, p 1 or 2; where the norm is 0 the result is 0."""
    x, p = ctx.node.input(0), ctx.node.attrs.get("p", 2)
    assert x is not None
    if p not in (1, 2):
        raise ctx.unsupported(f"LpNormalization with p = {p} is not supported", "p is 1 or 2")
    over = _strips(ctx, x, [ctx.node.attrs.get("axis", -1) % x.type.rank], [])
    if over is None:
        return
    k = over.k

    def work(sites: list[Site]) -> None:
        sums = over.reduce(Total("add", over.operand, 0.0, square if p == 2 else magnitude), sites)
        norms = [k.let(unary("sqrt", s[0]) if p == 2 else s[0]) for s in sums]
        safe = [k.let(select(n > 0.0, n, 1.0)) for n in norms]
        over.write(sites, lambda e: e.x / lanes_of(k, safe[e.vector], e))

    over.each(work, "lpnormalization", together=1, overwrites=True)


def _strips(ctx: Lowering, x: Value, axes: Sequence[int], parameters: list[TensorType]) -> Strips | None:
    """Strips in the type of computation; None where there is nothing to do."""
    return strips(ctx, x, axes, accumulator(x.type.dtype), parameters) if x.type.size else None


def _moments(over: Strips, sites: list[Site]) -> tuple[list[Expr], list[Expr]]:
    """Means and variances."""
    parts = over.parts(PART_BYTES)
    means, sums = _deviations(over, sites) if parts is None else _joined_deviations(over, sites, parts)
    return means, [over.k.let(s / float(over.length), "variance") for s in sums]


def _joined_deviations(over: Strips, sites: list[Site], parts: Parts) -> tuple[list[Expr], list[Expr]]:
    """Those of parts, each read from afar once, joined as Chan, Golub and LeVeque have it (1979)."""
    k, type_ = over.k, over.operand
    lanes = 1 if over.plan.along else sites[0].lanes
    means, sums = (k.registers(hint, type_, len(sites), lanes) for hint in ("means", "sums"))
    for i in range(len(sites)):
        k.store(means, i, const(0.0, type_, lanes))
        k.store(sums, i, const(0.0, type_, lanes))
    for number in k.loop("part", parts.count):
        before = k.let(cast(number, type_), "before")
        share = k.let(1.0 / (before + 1.0), "share")
        mass = k.let(before * share * float(over.length // parts.count), "mass")
        for i, (mean, total) in enumerate(zip(*_deviations(over.part(parts, number), sites), strict=True)):
            apart = k.let(mean - k.load(means, i), "apart")
            k.store(means, i, k.load(means, i) + apart * broadcast(share, lanes))
            k.store(sums, i, k.load(sums, i) + total + apart * apart * broadcast(mass, lanes))
    found = [[k.let(k.load(r, i)) for i in range(len(sites))] for r in (means, sums)]
    return found[0], found[1]


def _deviations(over: Strips, sites: list[Site]) -> tuple[list[Expr], list[Expr]]:
    """Means, and sums of squares about them, in two passes: the second has no cancellation."""
    k, count = over.k, float(over.length)
    means = [k.let(s[0] / count, "mean") for s in over.reduce(Total("add", over.operand, 0.0), sites)]

    def deviation(k: KernelBuilder, item: Item) -> Expr:
        d = k.let(item.x - broadcast(means[item.vector], item.x.lanes))
        return d * d

    return means, [s[0] for s in over.reduce(Total("add", over.operand, 0.0, deviation), sites)]


def _statistics(over: Strips, sites: list[Site], epsilon: float) -> tuple[list[Expr], list[Expr]]:
    """Means and inverse standard deviations."""
    means, variances = _moments(over, sites)
    return means, [over.k.let(1.0 / unary("sqrt", v + epsilon), "root") for v in variances]


def _centred(over: Strips, e: Element, means: list[Expr], roots: list[Expr]) -> Expr:
    return (e.x - lanes_of(over.k, means[e.vector], e)) * lanes_of(over.k, roots[e.vector], e)


def _affine(over: Strips, e: Element, x: Expr, scale: Value, bias: Value | None) -> Expr:
    y = x * over.read(scale, e)
    return y if bias is None else y + over.read(bias, e)


@lowers("LRN")
def lower_lrn(ctx: Lowering) -> None:
    """x / (bias + alpha/size · Σ x² over `size` neighbouring channels)^beta."""
    x, attrs = ctx.node.input(0), ctx.node.attrs
    assert x is not None
    if x.type.layout.block:
        raise ctx.unsupported("LRN in a blocked layout is not supported", "use a plain layout")
    if not x.type.size:
        return
    size, channels, own = attrs["size"], x.type.dims[1], strides(x.type)
    operand = accumulator(x.type.dtype)
    apart = tuple(0 if i == 1 else s for i, s in enumerate(own))
    k = StridedKernel(ctx, operand_types(ctx, ctx.tail), ctx.lanes(widest((operand, x.type.dtype))), [apart])
    group = next((i for i, g in enumerate(k.groups) if g == (1,)), None)
    for site in strided_loops(k, cost=8 * size):
        channel = const(0) if group is None else site.coords[group]
        first, last = maximum(channel - floor((size - 1) / 2), 0), minimum(channel + ceil((size - 1) / 2), channels - 1)
        at = k.let(k.offset_of(site, own), "at")
        total = k.registers("sum", operand, 1, site.lanes)
        k.store(total, 0, const(0.0, operand, site.lanes))
        for c in k.loop("c", k.let(last + 1, "end"), k.let(first, "begin")):
            near = _load(k, x, at + (c - channel) * own[1], site, own, operand)
            k.store(total, 0, k.load(total, 0) + near * near)
        base = k.let(k.load(total, 0) * (attrs.get("alpha", 1e-4) / size) + attrs.get("bias", 1.0), "base")
        value = _load(k, x, at, site, own, operand) / _powered(k, base, attrs.get("beta", 0.75))
        k.write(ctx.output, site, ctx.epilogue(k, site, convert(k, value, x.type.dtype)))
    k.done("lrn")


def _load(k: StridedKernel, x: Value, at: Expr, site: Site, own: tuple[int, ...], operand: DType) -> Expr:
    assert site.lanes == 1 or k.row_step(own) == 1, "lanes along the innermost axis"
    return k.let(cast(k.load(k.tensor(x, "x"), at, site.lanes), operand), "x")


def _powered(k: KernelBuilder, base: Expr, exponent: float) -> Expr:
    """base ** exponent for base > 0."""
    root = k.let(unary("sqrt", base), "root")
    if exponent == 0.75:
        return root * unary("sqrt", root)
    if exponent == 0.5:
        return root
    return base if exponent == 1.0 else mathf.power(k, base, const(exponent, base.dtype, base.lanes))
