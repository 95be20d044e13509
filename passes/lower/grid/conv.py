"""Convolutions on a grid: as products whose second factor is read through the window, or a thread a result.

The product form never writes the patches to memory (implicit GEMM: Chetlur et al., cuDNN: Efficient Primitives for Deep
Learning, 2014).
"""

from __future__ import annotations

from math import prod

from ....ir.loops import Expr, cast, const, select
from ....ir.types import DType
from ..context import KernelBuilder, Lowering, lowers_on_grid
from ..product import multiply_add
from ..strided import coordinates
from .conv_memory import convolve_from_memory
from .conv_shape import ConvShape
from .halves import BLOCK, in_halves, sums_in_halves
from .multiply import multiply_on_grid
from .tiles import Factor, GridProduct

FEW_CHANNELS = 4
"""Groups with fewer output channels have no tile of them."""


@lowers_on_grid("Conv")
def lower_conv(ctx: Lowering) -> None:
    """Conv in 1, 2 or 3 spatial dimensions."""
    x, w = ctx.node.inputs[:2]
    assert x is not None and w is not None
    if not ctx.output.type.size:
        return
    conv = _Conv(ctx, x, w)
    device = ctx.target.device
    assert device is not None
    if not device.shares:
        convolve_from_memory(ctx, conv)
    elif conv.channels_out < FEW_CHANNELS or conv.depth < FEW_CHANNELS:
        conv.by_results()
    else:
        conv.by_product()


class _Conv(ConvShape):
    """Convolutions in tiles of shared memory, or a thread a result."""

    def by_product(self) -> None:
        """For each group [K, C · taps] · [C · taps, N · pixels]."""
        size = self.depth

        def weight(k: KernelBuilder, group: Expr, depth: Expr, channel: Expr) -> Expr:
            return k.load(k.tensor(self.w, "w"), (group * self.channels_out + channel) * size + depth)

        def pixel(k: KernelBuilder, group: Expr, depth: Expr, place: Expr) -> Expr:
            channel, *taps = coordinates(k, depth, (self.channels_in, *self.taps))
            image, *at = coordinates(k, place, (self.batch, *self.outs))
            return self.read(k, image, group * self.channels_in + channel, at, taps)

        def finish(k: KernelBuilder, group: Expr, channel: Expr, place: Expr, value: Expr) -> None:
            image, *at = coordinates(k, place, (self.batch, *self.outs))
            self.store(k, image, group * self.channels_out + channel, at, value)

        def start(k: KernelBuilder, group: Expr, channel: Expr, place: Expr) -> Expr:
            return self.start(k, group * self.channels_out + channel)

        places = self.batch * prod(self.outs)
        product = GridProduct(
            self.groups, self.channels_out, places, size, Factor(weight, True), Factor(pixel, False), self.acc,
            None if self.bias is None else start, finish,
        )  # fmt: skip
        multiply_on_grid(self.ctx, in_halves(self.ctx, product, self.x.type.dtype, self.w.type.dtype), "conv")

    def by_results(self) -> None:
        """A thread a result: depthwise layers and others with few channels in a group."""
        k = self.ctx.kernel()
        for image in k.loop("n", self.batch):
            for group in k.loop("group", self.groups):
                for channel in k.loop("channel", self.channels_out):
                    for d in k.loop("z", self.outs[0]):
                        for h in k.loop("y", self.outs[1]):
                            for w in k.loop("x", self.outs[2]):
                                self._result(k, image, group, channel, [d, h, w])
        k.done("conv_direct")

    def _result(self, k: KernelBuilder, image: Expr, group: Expr, channel: Expr, at: list[Expr]) -> None:
        total = k.alloc("total", self.acc, 1, "register")
        output = k.let(group * self.channels_out + channel, "output")
        k.store(total, 0, self.start(k, output))
        apart = sums_in_halves(self.ctx) and self.window.taps <= BLOCK
        for c in k.loop("c", self.channels_in):
            part = k.alloc("part", DType.F16, 1, "register") if apart else total
            if apart:
                k.store(part, 0, const(0, DType.F16))
            for t in k.loop("q", self.taps[0]):
                for r in k.loop("r", self.taps[1]):
                    for s in k.loop("s", self.taps[2]):
                        value = self.read(k, image, group * self.channels_in + c, at, [t, r, s])
                        tap = ((t * self.taps[1]) + r) * self.taps[2] + s
                        place = (output * self.channels_in + c) * self.window.taps + tap
                        weight = cast(k.load(k.tensor(self.w, "w"), place), part.dtype)
                        k.store(part, 0, multiply_add(cast(value, part.dtype), weight, k.load(part, 0)))
            if apart:
                k.store(total, 0, k.load(total, 0) + cast(k.load(part, 0), self.acc))
        self.store(k, image, output, at, k.load(total, 0))

    def read(self, k: KernelBuilder, image: Expr, channel: Expr, at: list[Expr], taps: list[Expr]) -> Expr:
        """An element of x as a tap of an output position sees it: 0 beyond the image."""
        offset, inside = self.position(k, image, channel, at, taps)
        value = k.load(k.tensor(self.x, "x"), offset)
        return value if inside is None else select(inside, value, const(0, value.dtype))
