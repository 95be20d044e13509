"""Strided convolutions with few output channels: the phases of the stride along a row as channels.

y[o] = Σ_t w[t] x[o·s + t] is Σ_p Σ_q w[q·s + p] x_p[o + q] over x_p[i] = x[i·s + p]: of stride 1, so that lanes along
the width load neighbours. The phases are written once, with zeros where the image is padded; filters for audio (one
channel, hundreds of taps) and their like pay for that many times over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ...ir.graph import Value
from ...ir.loops import const
from ..pattern import required
from .context import Lowering
from .conv_kernel import ConvKernel, Convolution
from .conv_plan import lines
from .conv_planar import PlanarConvolution, PlanarWriter, has_lanes, schedules
from .copies import RAW, copy_regions
from .copy_axes import Dim, Region
from .tile import tiles
from .window import Axis

MOVED = 2.0
"""Cycles for an element of the image: reading it at a stride, writing it."""


GAIN = 1.5
"""How much faster phases must be expected to be: estimates of two forms compare no better."""


@dataclass(frozen=True, slots=True)
class Phases:
    """A row of `axis` as phases: position i of phase p is pixel (i - `before`)·stride + p of the image.

    shift: taps by which the filter begins later, so that its first one is of phase 0.
    """

    axis: Axis

    @property
    def stride(self) -> int:
        return self.axis.stride

    @property
    def before(self) -> int:
        return -(-self.axis.pad // self.stride)

    @property
    def shift(self) -> int:
        return self.before * self.stride - self.axis.pad

    @property
    def taps(self) -> int:
        """Taps of each phase."""
        return -(-(self.axis.kernel + self.shift) // self.stride)

    @property
    def size(self) -> int:
        """Positions of each phase."""
        return max(self.before + -(-self.axis.size // self.stride), self.axis.out + self.taps - 1)

    @property
    def as_axis(self) -> Axis:
        return Axis(self.size, self.axis.out, self.taps)


def phased(ctx: Lowering, conv: Convolution) -> Phases | None:
    """How the row divides, where a plain convolution is expected to take less time so; None where it is not."""
    axis = conv.window.w
    plain = PlanarConvolution(conv.x, conv.y, required(ctx.node, 1), None, conv.groups, conv.window)
    if axis.stride == 1 or axis.dilation > 1 or axis.pad < 0 or axis.out < 2 * ctx.lanes() or not has_lanes(ctx, plain):
        return None
    phases = Phases(axis)
    wide = replace(plain, window=replace(conv.window, w=phases.as_axis))
    cycles = phases.stride * min(s.cycles for s in schedules(ctx.target, wide, wide.window, ctx.lanes()))
    moved = prod(conv.x.type.dims[:-1]) * phases.size * phases.stride
    depth = conv.channels_in * conv.window.taps
    found = tiles(
        ctx.target, conv.sums, axis.out, conv.channels_out, lined=lines(ctx.target, conv), depth=depth
    )[0][1]  # fmt: skip
    dense = found * conv.batch * conv.groups * conv.window.d.out * conv.window.h.out * depth
    return phases if GAIN * (cycles + MOVED * moved) < dense else None


def lower_phased(ctx: Lowering, conv: Convolution, phases: Phases) -> None:
    """Append a copy of the image as phases, and the kernel of the convolution over them."""
    x = _image(ctx, conv.x, phases)
    weights = ctx.pack("phases", _filters(conv.weights, phases))
    bias = None if conv.bias is None else ctx.pack("bias", conv.bias)
    window = replace(conv.window, w=phases.as_axis)
    planar = PlanarConvolution(x, conv.y, weights, bias, conv.groups, window)
    PlanarWriter(ctx, planar, ConvKernel(ctx)).write()


def _filters(weights: np.ndarray, phases: Phases) -> np.ndarray:
    """[K, C, …, taps] as [K, C·stride, …, taps of a phase], zeros beyond both ends."""
    end = phases.taps * phases.stride - phases.shift - weights.shape[-1]
    wide = np.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(phases.shift, end)])
    apart = wide.reshape(*wide.shape[:-1], phases.taps, phases.stride)
    outs, channels = wide.shape[:2]
    return np.moveaxis(apart, -1, 2).reshape(outs, channels * phases.stride, *wide.shape[2:-1], phases.taps)


def _image(ctx: Lowering, x: Value, phases: Phases) -> Value:
    """x [N, C, …, W] as [N, C·stride, …, positions]."""
    images, channels, *rows, width = x.type.dims
    stride, size, before = phases.stride, phases.size, phases.before
    height = prod(rows)
    out = ctx.scratch("phases", x.type.dtype, images, channels * stride, *rows, size)
    planes = Dim(images * channels, stride * height * size, height * width)

    def part(first: int, count: int, phase: int, wanted: int, filled: bool = False) -> Region:
        """Positions of phases from `phase` on, `wanted` of them."""
        dims = (planes, Dim(wanted, height * size, 1), Dim(height, size, width), Dim(count, 1, stride))
        source = None if filled else x
        return Region(dims, phase * height * size + first, (first - before) * stride + phase, source)

    whole, rest = divmod(width, stride)
    end = before + whole
    regions = [part(0, before, 0, stride, True), part(before, whole, 0, stride)]
    if rest:
        regions += [part(end, 1, 0, rest), part(end, 1, rest, stride - rest, True)]
        end += 1
    regions.append(part(end, size - end, 0, stride, True))
    copy_regions(ctx, out, regions, "phases", lambda k: const(0, RAW[x.type.dtype.bits]))
    return out
