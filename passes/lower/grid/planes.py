"""Images arranged for windows that read neighbouring elements: zeros around them, and a stride's phases apart.

Before: position o of a row reads x[o · stride + tap · dilation - pad], where that is inside.  After: each phase of the
stride is an image of its own, in which the same tap reads element o + (tap · dilation) / stride, always inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from ....ir.graph import Value
from ....ir.loops import Expr, const, maximum, minimum
from ....ir.types import DType
from ..context import KernelBuilder, Lowering
from ..product import unravel
from ..window import Axis, Window


@dataclass(frozen=True, slots=True)
class Phases:
    """One axis of the arranged image: `count` phases of `size` elements."""

    axis: Axis

    @property
    def count(self) -> int:
        return 1 + max(t * self.axis.dilation % self.axis.stride for t in range(self.axis.kernel))

    @property
    def size(self) -> int:
        return self.axis.out + self.axis.reach // self.axis.stride

    def of(self, tap: Expr) -> tuple[Expr, Expr]:
        """The phase that a tap reads, and how far from the output position."""
        at = tap * self.axis.dilation
        return at % self.axis.stride, at / self.axis.stride


@dataclass(frozen=True, slots=True)
class Planes:
    """[N · C, phases, depth, height, width] in `value`; `slack` elements behind it may be read."""

    value: Value
    axes: tuple[Phases, Phases, Phases]
    slack: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        d, h, w = (a.size for a in self.axes)
        return d, h, w

    @property
    def channel(self) -> int:
        """Elements from channel to channel."""
        return prod(self.sizes) * prod(a.count for a in self.axes)

    def place(self, d: Expr, h: Expr, w: Expr) -> Expr:
        """Where an output position lies in its plane."""
        _, height, width = self.sizes
        return (d * height + h) * width + w

    def tap(self, taps: tuple[Expr, Expr, Expr]) -> Expr:
        """How far from an output position's place its tap is read."""
        phase: Expr = const(0)
        far = []
        for axis, t in zip(self.axes, taps, strict=True):
            own, distance = axis.of(t)
            phase = phase * axis.count + own
            far.append(distance)
        return phase * prod(self.sizes) + self.place(*far)


Element = Callable[[KernelBuilder, Expr], Expr]
"""What an element of the image is arranged as."""


def planes_of(ctx: Lowering, x: Value, window: Window, slack: int) -> Planes:
    """The image of a convolution: x itself where every tap is a neighbour already, else arranged by a call."""
    if window.is_pointwise:
        d, h, w = (Phases(a) for a in window.axes)
        return Planes(x, (d, h, w), 0)
    return arranged(ctx, x, window, slack, x.type.dtype, lambda k, element: element)


def arranged(ctx: Lowering, x: Value, window: Window, slack: int, dtype: DType, element: Element) -> Planes:
    """The image arranged by a call, its elements made `dtype` on the way."""
    d, h, w = (Phases(a) for a in window.axes)
    size = x.type.dims[0] * x.type.dims[1] * prod(a.count * a.size for a in (d, h, w)) + slack
    made = Planes(ctx.scratch("planes", dtype, size), (d, h, w), slack)
    _arrange(ctx, x, made, element)
    return made


def _arrange(ctx: Lowering, x: Value, planes: Planes, element: Element) -> None:
    """A thread a row."""
    k = ctx.kernel()
    d, h, w = planes.axes
    counts = (d.count, h.count, w.count)
    for plane in k.loop("plane", x.type.dims[0] * x.type.dims[1] * prod(counts)):
        for i in k.loop("i", d.size):
            for j in k.loop("j", h.size):
                channel = k.let(plane / prod(counts), "channel")
                phase = unravel(k.let(plane % prod(counts), "phase"), counts)
                to = k.let(((plane * d.size + i) * h.size + j) * w.size, "to")
                rows = [(d.axis, i, phase[0]), (h.axis, j, phase[1])]
                places = [a.stride * at + own - a.pad for a, at, own in rows]
                base: Expr = channel
                inside: Expr | None = None
                for (a, _, _), place in zip(rows, places, strict=True):
                    base = base * a.size + minimum(maximum(place, 0), a.size - 1)
                    test = (place >= 0) & (place < a.size)
                    inside = test if inside is None else inside & test
                assert inside is not None
                base = k.let(base * w.axis.size, "row")
                for _ in k.when(inside):
                    _row(k, x, planes, base, to, phase[2], element)
                for _ in k.otherwise():
                    for at in k.loop("w", w.size):
                        k.store(k.tensor(planes.value), to + at, const(0, planes.value.type.dtype))
    k.done("planes")


def _row(k: KernelBuilder, x: Value, planes: Planes, base: Expr, to: Expr, phase: Expr, element: Element) -> None:
    """One row of one phase: zeros, what lies in the image, zeros."""
    w = planes.axes[2]
    axis = w.axis
    # Element i is x[i · stride + phase - pad].
    first = k.let(maximum((axis.pad - phase + (axis.stride - 1)) / axis.stride, 0), "first")
    first = k.let(minimum(first, w.size), "first")
    last = (axis.size - 1 + axis.pad + axis.stride - phase) / axis.stride
    last = k.let(maximum(minimum(last, w.size), first), "last")
    out, zero = k.tensor(planes.value), const(0, planes.value.type.dtype)
    for at in k.loop("w", first):
        k.store(out, to + at, zero)
    for at in k.loop("w", last, first):
        k.store(out, to + at, element(k, k.load(k.tensor(x), base + (at * axis.stride + phase - axis.pad))))
    for at in k.loop("w", w.size, last):
        k.store(out, to + at, zero)
