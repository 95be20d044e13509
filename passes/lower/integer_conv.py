"""c2c.IntegerConv: convolutions of integers with exact 32-bit sums, given as float32.

Direct, by register tiles of pairs of products where the target has them, of blocked levels in i16; pointwise ones by
bytes where their levels mostly allow it (`conv_pairs`); depthwise ones as floats, which hold their sums exactly; others
(plain tensors, large groups) by the planar kernel of ConvInteger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from ...codegen.target import Target
from ...ir.loops import Expr, broadcast, cast
from ...ir.types import DType
from .context import KernelBuilder, Lowering, Site, lowers
from .conv import whole_blocks
from .conv_direct import lower_direct
from .conv_kernel import Convolution
from .conv_pairs import fits_pairs, lower_pairs, pair_cycles
from .conv_schedules import problem
from .depthwise import is_depthwise, is_exact, lower_depthwise
from .depthwise_bytes import fits_bytes, lower_depthwise_bytes
from .micro import products_together, splats_lanes
from .quantized import integer_convolution
from .schedule import Schedule, choose
from .window import window
from .winograd import is_winograd
from .winograd_integer import fits, lower_winograd_integer

EFFICIENCY = 0.7
"""Part of the rate of multiply-adds that products reach where sums take as many instructions again."""

WIDE_EFFICIENCY = 0.48
"""The same where both share the two units that there are for 512 bits."""

DOT_EFFICIENCY = 0.9
"""The same of dot products that add to their sums."""

CONVERTED = 1.4
"""What converting levels costs where x is read as vectors, whose lanes are the factors: MobileNet v2 in floats takes a
tenth more instructions on ARM than in i16, so that only runs on a device (`c2c tune`) can say otherwise."""

NOTED = 1.1
"""How many times as fast floats are thought where a report says so."""

TRANSFORM = 3.3
"""Cycles of both transforms for one vector of V or M of 32 bytes; wider ones come from farther caches."""

FAR = 8
"""Bytes of weights that come from the third cache in a cycle."""


@lowers("c2c.IntegerConv")
def lower_integer_conv(ctx: Lowering) -> None:
    """Inputs x, w, bias, zero; all but x constant. `largest`: the largest magnitude in x - zero."""
    conv = _read(ctx)
    if conv is not None:
        if is_depthwise(ctx, conv):
            if fits_bytes(conv):
                return lower_depthwise_bytes(ctx, conv)
            if is_exact(conv, ctx.node.attrs.get("largest", 1 << 15)) and not conv.zero:
                return lower_depthwise(ctx, conv)
        merged = whole_blocks(ctx, conv)
        if merged is not None:
            even = _even(ctx, merged)
            found = _schedules(ctx, even)
            lowering = choose(ctx, "integer-conv", problem(ctx, even, True), found, note=_note(ctx, even, found))
            return lowering(ctx, even)
    return _planar(ctx)


def _read(ctx: Lowering) -> Convolution | None:
    """The node as a convolution of blocked levels in i16; None where it is another one."""
    node, out = ctx.node, ctx.output.type
    x, w, bias = node.input(0), node.input(1), node.input(2)
    assert x is not None and w is not None
    block = ctx.lanes(DType.I32)
    if (
        x.type.dtype not in (DType.I16, ctx.target.byte_levels)
        or x.type.layout.block != block
        or out.layout.block not in (0, block)
    ):
        return None
    if w.data is None or bias is not None and bias.data is None:
        return None
    view = window(node, x.type, node.output.type, w.type.dims[2:])
    zero = node.constant(3)
    if zero is not None and not view.d.is_inside or x.type.dtype is not DType.I16 and w.data.dtype != np.int8:
        return None
    weights = w.data.astype(np.int16 if x.type.dtype is DType.I16 else np.int8)
    weights = weights.reshape(*w.data.shape[:2], *(a.kernel for a in view.axes))
    bias_data, offset = None if bias is None else bias.data, 0 if zero is None else int(zero)
    return Convolution(x, out, weights, bias_data, node.attrs.get("group", 1), view, offset)


Lower: TypeAlias = Callable[[Lowering, Convolution], None]


def _schedules(ctx: Lowering, conv: Convolution) -> list[Schedule[Lower]]:
    """The direct form; as floats, by bytes and by F(4×4, 3×3) where that is exact."""
    target, vector = ctx.target, ctx.lanes(conv.sums)
    cycles = conv.macs / _rate(target, conv.dtype) + conv.weights.nbytes / FAR
    found: list[Schedule[Lower]] = [Schedule("direct", cycles, lower_direct)]
    largest = ctx.node.attrs.get("largest", 1 << 15)
    of_levels = conv.dtype is DType.I16 and not conv.zero
    if splats_lanes(target) and of_levels and is_exact(conv, largest, biased=True):
        floats = conv.macs * CONVERTED / _float_rate(target) + 4 * conv.weights.size / FAR
        found.append(Schedule("floats", floats, _lower_floats))
    if fits_pairs(ctx, conv):
        found.append(Schedule("pairs", pair_cycles(ctx, conv, cycles), lower_pairs))
    if fits(ctx, conv, largest):
        tiles = conv.batch * -(-conv.window.h.out // 4) * -(-conv.window.w.out // 4)
        vectors = 36 * tiles * (-(-conv.channels_in // vector) + -(-conv.channels_out // vector))
        products = 36 * tiles * conv.channels_in * conv.channels_out
        weights = 72 * conv.channels_in * conv.channels_out
        cycles = products / _rate(target, DType.I16) + weights / FAR + TRANSFORM * target.vector_bits / 256 * vectors
        found.append(Schedule("F4", cycles, lower_winograd_integer))
    return found


def _lower_floats(ctx: Lowering, conv: Convolution) -> None:
    """Append the kernel of sums that f32 holds exactly."""
    bias = None if conv.bias is None else conv.bias.astype(np.float32)
    lower_direct(ctx, replace(conv, weights=conv.weights.astype(np.float32), bias=bias, in_floats=True))


def _rate(target: Target, dtype: DType) -> float:
    """Products of elements in a cycle."""
    together = target.lanes(DType.I32) * products_together(target, dtype)
    if target.has_dot_prod and together > target.lanes(DType.I32):
        return DOT_EFFICIENCY * target.dots_per_cycle * together
    shared = target.vector_bits == 512 and target.fma_per_cycle == 2
    return (WIDE_EFFICIENCY if shared else EFFICIENCY) * target.fma_per_cycle * together


def _note(ctx: Lowering, conv: Convolution, found: list[Schedule[Lower]]) -> str:
    """What floats would take where that is less: the layer stays in integers, since others would give other bits."""
    best = min(found, key=lambda s: s.cycles)
    if best.name == "floats":
        return "integers in floats, which hold their sums"
    faster = best.cycles / _float_cycles(ctx, conv)
    return f"floats are thought {faster:.1f}x as fast, with other bits" if faster > NOTED else ""


def _float_rate(target: Target) -> float:
    return DOT_EFFICIENCY * target.fma_per_cycle * target.lanes(DType.F32)


def _float_cycles(ctx: Lowering, conv: Convolution) -> float:
    """Estimated cycles of the same layer in f32, direct or by F(4×4, 3×3)."""
    vector, rate = ctx.lanes(DType.F32), _float_rate(ctx.target)
    if not is_winograd(conv):
        return conv.macs / rate
    tiles = conv.batch * -(-conv.window.h.out // 4) * -(-conv.window.w.out // 4)
    moved = 36 * tiles * (-(-conv.channels_in // vector) + -(-conv.channels_out // vector))
    products = 36 * tiles * conv.channels_in * conv.channels_out
    return min(conv.macs / rate, products / rate + TRANSFORM * ctx.target.vector_bits / 256 * moved)


def _even(ctx: Lowering, conv: Convolution) -> Convolution:
    """With channels of zeros up to a whole number of products that are added together."""
    missing = -conv.channels_in % products_together(ctx.target, conv.dtype)
    if not missing:
        return conv
    return replace(conv, weights=np.pad(conv.weights, [(0, 0), (0, missing), *[(0, 0)] * 3]))


def _planar(ctx: Lowering) -> None:
    x, w = ctx.node.inputs[:2]
    bias = ctx.node.input(2)
    assert x is not None and w is not None

    def finish(k: KernelBuilder, site: Site, value: Expr) -> None:
        if bias is not None:
            value = value + broadcast(k.load(k.tensor(bias), site.coords[1]), site.lanes)
        k.write(ctx.output, site, ctx.epilogue(k, site, cast(value, DType.F32)))

    integer_convolution(ctx, (x, ctx.node.input(3)), (w, None), finish)
