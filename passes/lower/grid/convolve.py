"""Which form a convolution takes on a grid, and the one of a thread a result, whatever its numbers are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ....ir.loops import Expr, cast, const
from ....ir.types import DType
from ..context import KernelBuilder, Lowering
from ..product import multiply_add
from .conv_memory import convolve_from_memory
from .conv_shape import ConvShape
from .halves import BLOCK, sums_in_halves

FEW_CHANNELS = 4
"""Groups with fewer output channels have no tile of them."""


class GridConv(ConvShape):
    """A convolution of one kind of numbers: how they are read, and the form by products. direct: the family of kernels
    of a thread a result."""

    direct: ClassVar[str]

    def by_product(self) -> None:
        """Append the kernel of the form in tiles of shared memory."""
        raise NotImplementedError

    def read(self, k: KernelBuilder, image: Expr, channel: Expr, at: Sequence[Expr], taps: Sequence[Expr]) -> Expr:
        """An element of x as a tap of an output position sees it: 0 beyond the image."""
        raise NotImplementedError

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
        k.done(self.direct)

    def _result(self, k: KernelBuilder, image: Expr, group: Expr, channel: Expr, at: list[Expr]) -> None:
        total = k.alloc("total", self.acc, 1, "register")
        output = k.let(group * self.channels_out + channel, "output")
        k.store(total, 0, self.start(k, output))
        factors = self.x.type.dtype, self.w.type.dtype
        apart = sums_in_halves(self.ctx, *factors) and self.window.taps <= BLOCK
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


def convolve(ctx: Lowering, conv: GridConv) -> None:
    """Append the kernels of a convolution to the node's calls."""
    device = ctx.target.device
    assert device is not None
    if not device.shares:
        convolve_from_memory(ctx, conv)
    elif conv.channels_out < FEW_CHANNELS or conv.depth < FEW_CHANNELS:
        conv.by_results()
    else:
        conv.by_product()
