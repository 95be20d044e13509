"""Reading an image beyond its border and through repetitions of its pixels (`passes/reading.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...ir.graph import Value
from ...ir.loops import Expr, maximum, minimum, select
from ..reading import Line, Reading, readings_of
from .context import KernelBuilder, Lowering
from .tasks import pieces
from .window import Window


def read_directly(x: Value, view: Window) -> Reading:
    """The convolution's own input with zeros around it."""
    return Reading(x, Line(view.h.size, view.h.pad), Line(view.w.size, view.w.pad))


def read_through(ctx: Lowering) -> tuple[Reading, ...]:
    """What the convolution reads behind the nodes at the head of its group, by channels."""
    readings = readings_of(ctx.head, ctx.node.attrs["pads"])
    assert readings is not None, f"{ctx.node.op} cannot read through {[n.op for n in ctx.head]}"
    return tuple(r if ctx.node.attrs["m"] % r.rows.factor == 0 else _filled(r) for r in readings)


def _filled(reading: Reading) -> Reading:
    """The same where the zeros around the image are filled in pixel by pixel."""
    rows, columns = (
        replace(a, mode="constant" if a.mode == "zero" else a.mode) for a in (reading.rows, reading.columns)
    )
    return replace(reading, rows=rows, columns=columns)


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks [block, block + count) of a source, each of which goes to a block of the image's channels and the next.

    pieces: (first lane, lanes, how many blocks after the first, lane there).
    """

    reading: Reading
    block: int
    count: int
    pieces: tuple[tuple[int, int, int, int], ...]


def sections(reading: Reading, channels: int, lanes: int) -> Iterator[Section]:
    """The source's blocks, the whole ones and one with the rest of its channels, of an image of `channels`.

    What the last block of the image holds beyond its channels is no one's; so are other lanes not.
    """
    mine, shift = reading.source.type.dims[1], reading.first % lanes
    whole, rest = divmod(mine, lanes)
    if rest and not shift and reading.first + mine == channels:
        whole, rest = whole + 1, 0
    for block, count, valid in ((0, whole, lanes), (whole, min(rest, 1), rest)):
        room = min(lanes - shift, valid)
        found = [(at, width, 0, shift + at) for at, width in pieces(room)]
        found += [(room + at, width, 1, at) for at, width in pieces(valid - room)]
        if count:
            yield Section(reading, block, count, tuple(found))


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
