"""Convolutions of floats on a grid, as products whose second factor is read through the window.

The product form never writes the patches to memory (implicit GEMM: Chetlur et al., cuDNN: Efficient Primitives for Deep
Learning, 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ....ir.loops import Expr, const, select
from ..context import KernelBuilder, Lowering, lowers_on_grid
from ..strided import coordinates
from .convolve import GridConv, convolve
from .halves import in_halves
from .multiply import multiply_on_grid
from .tiles import Factor, GridProduct


@lowers_on_grid("Conv")
def lower_conv(ctx: Lowering) -> None:
    """Conv in 1, 2 or 3 spatial dimensions."""
    x, w = ctx.node.inputs[:2]
    assert x is not None and w is not None
    if not ctx.output.type.size:
        return
    convolve(ctx, _Conv(ctx, x, w))


class _Conv(GridConv):
    """A convolution of floats."""

    direct = "conv_direct"

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

    def read(self, k: KernelBuilder, image: Expr, channel: Expr, at: Sequence[Expr], taps: Sequence[Expr]) -> Expr:
        offset, inside = self.position(k, image, channel, at, taps)
        value = k.load(k.tensor(self.x, "x"), offset)
        return value if inside is None else select(inside, value, const(0, value.dtype))
