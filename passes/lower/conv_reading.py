"""Reading an image beyond its border and through repetitions of its pixels (`passes/reading.py`)."""

from __future__ import annotations

from ...ir.graph import Value
from ...ir.loops import Expr, maximum, minimum, select
from ..reading import Line, Reading, reading_of
from .context import KernelBuilder, Lowering
from .window import Window


def read_directly(x: Value, view: Window) -> Reading:
    """The convolution's own input with zeros around it."""
    return Reading(x, Line(view.h.size, view.h.pad), Line(view.w.size, view.w.pad))


def read_through(ctx: Lowering) -> Reading:
    """What the convolution reads behind the nodes at the head of its group."""
    reading = reading_of(ctx.head, ctx.node.attrs["pads"])
    assert reading is not None, f"{ctx.node.op} cannot read through {[n.op for n in ctx.head]}"
    return reading


def pixel(k: KernelBuilder, line: Line, u: Expr) -> Expr:
    """The source pixel of `u` in the enlarged image; mirrored, wrapped or clamped beyond it, unless `mode` is zero."""
    if line.mode == "wrap":
        u = k.let(select(u < 0, u + line.size, u), "u")
        u = k.let(select(u >= line.size, u - line.size, u), "u")
    if line.mode == "reflect":
        u = k.let(maximum(u, -u), "u")
        u = k.let(minimum(u, 2 * (line.size - 1) - u), "u")
    if line.mode != "zero":
        u = maximum(minimum(u, line.size - 1), 0)
    return k.let(u / line.factor if line.factor > 1 else u, "pixel")


def inside(k: KernelBuilder, line: Line, u: Expr) -> Expr | None:
    """Whether `u` is a pixel of the enlarged image; None where pixels beyond it stand for others."""
    return k.let((u >= 0) & (u < line.size), "inside") if line.mode == "constant" else None
