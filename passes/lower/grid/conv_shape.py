"""What all kernels of a convolution on a grid share: shapes, the bias, and where results go."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod

from ....ir.graph import Value
from ....ir.loops import Expr, cast, const, maximum, minimum
from ....ir.types import DType
from ..context import KernelBuilder, Lowering, Site, strides
from ..elementwise import operand_type
from ..window import Axis, Window, window
from .planes import Planes, planes_of


class ConvShape:
    """One convolution: x [N, C, …], w [K, C / groups, …], result [N, K, …], all in plain layouts."""

    def __init__(self, ctx: Lowering, x: Value, w: Value) -> None:
        self.ctx, self.x, self.w, self.bias = ctx, x, w, ctx.node.input(2)
        self.dtype = ctx.node.output.type.dtype
        self.acc = DType.F32 if self.dtype in (DType.F16, DType.BF16) else self.dtype
        self.groups = ctx.node.attrs.get("group", 1)
        self.batch, channels = x.type.dims[:2]
        self.channels_in, self.channels_out = channels // self.groups, w.type.dims[0] // self.groups
        self.window: Window = window(ctx.node, x.type, ctx.node.output.type, w.type.dims[2:])

    @property
    def depth(self) -> int:
        """Products in a sum."""
        return int(self.channels_in * self.window.taps)

    @property
    def taps(self) -> tuple[int, int, int]:
        d, h, w = (a.kernel for a in self.window.axes)
        return d, h, w

    @property
    def outs(self) -> tuple[int, int, int]:
        d, h, w = (a.out for a in self.window.axes)
        return d, h, w

    @property
    def problem(self) -> str:
        """What decides the schedule."""
        return f"{self.batch} x {self.groups} x {self.channels_in}->{self.channels_out} {self.window} {self.acc}"

    @property
    def together(self) -> int:
        """Input channels whose products a sum holds; with fewer than all, sums go to i32 on the way."""
        return int(self.channels_in)

    @property
    def note(self) -> str:
        """What reports say beside the schedule."""
        return ""

    @cached_property
    def merges(self) -> bool:
        """Whether vectors may run from row to row: reads are of neighbours there, too, and no operand of the tail
        differs from row to row otherwise than the result does."""
        if not self.window.is_pointwise:
            return False
        inside = {n.output for n in (self.ctx.node, *self.ctx.tail)}
        rank, outs = self.window.rank, self.outs[3 - self.window.rank :]
        for node in self.ctx.tail:
            for index, value in enumerate(node.inputs):
                if value is None or value in inside:
                    continue
                dims = operand_type(node, index).dims[-rank:]
                if prod(dims) > 1 and (dims != outs or outs[-1] == 1):
                    return False
        return True

    def position(
        self, k: KernelBuilder, image: Expr, channel: Expr, at: Sequence[Expr], taps: Sequence[Expr]
    ) -> tuple[Expr, Expr | None]:
        """Where a tap of an output position reads x, moved inside, and whether it is inside; None where it always
        is."""
        inside: Expr | None = None
        places: list[Expr] = []
        for axis, o, t in zip(self.window.axes, at, taps, strict=True):
            place, test = _place(k, axis, o, t)
            places.append(place)
            if test is not None:
                inside = test if inside is None else inside & test
        steps = strides(self.x.type)
        offset = image * steps[0] + channel * steps[1]
        for place, step in zip(self.window.spatial(*places), steps[2:], strict=True):
            offset = offset + place * step
        return offset, inside

    def rows(self) -> tuple[int, int]:
        """Rows of results in a plane, and their width."""
        d, h, w = self.outs
        return (1, d * h * w) if self.merges else (d * h, w)

    def planes(self, slack: int) -> Planes:
        """x as kernels without shared memory read it; `slack` elements behind it may be read."""
        return planes_of(self.ctx, self.x, self.window, slack)

    def start(self, k: KernelBuilder, channel: Expr) -> Expr:
        """What the sum of an output channel begins from."""
        if self.bias is None:
            return const(0, self.acc)
        return cast(k.load(k.tensor(self.bias, "bias"), channel), self.acc)

    def store(self, k: KernelBuilder, image: Expr, channel: Expr, at: Sequence[Expr], value: Expr) -> None:
        """Neighbouring results from position `at` on, with the tail applied."""
        ctx = self.ctx
        site = Site((image, channel, *self.window.spatial(at[0], at[1], at[2])), -1, value.lanes)
        k.write(ctx.output, site, ctx.epilogue(k, site, cast(value, self.dtype)))


def _place(k: KernelBuilder, axis: Axis, out: Expr, tap: Expr) -> tuple[Expr, Expr | None]:
    """Where a tap reads along an axis, moved inside, and whether it is inside; None where it always is."""
    place = out * axis.stride + tap * axis.dilation - axis.pad
    if axis.is_inside:
        return place, None
    place = k.let(place, "place")
    return maximum(minimum(place, axis.size - 1), 0), (place >= 0) & (place < axis.size)
