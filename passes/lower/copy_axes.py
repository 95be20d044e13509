"""Boxes of elements with a stride in the destination and one in the source, and loops over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from ...ir.graph import Value
from ...ir.loops import Expr, as_expr
from .context import INDEX, KernelBuilder


@dataclass(frozen=True, slots=True)
class Dim:
    """`size` steps of `dst` elements in the destination and `src` in the source (0: the source is repeated)."""

    size: int
    dst: int
    src: int


@dataclass(frozen=True, slots=True)
class Region:
    """A box of elements: first offsets, known when it is compiled or when it runs, and axes, in any order.

    source None: filled instead of copied, or the kernel's own buffer.
    """

    dims: tuple[Dim, ...]
    dst: int | Expr = 0
    src: int | Expr = 0
    source: Value | None = None

    @property
    def size(self) -> int:
        return prod(d.size for d in self.dims)


def region(
    sizes: Sequence[int],
    dst: Sequence[int],
    src: Sequence[int],
    at: tuple[int, int] = (0, 0),
    source: Value | None = None,
) -> Region:
    """A Region from sizes, both strides, and the two first offsets."""
    return Region(tuple(Dim(*d) for d in zip(sizes, dst, src, strict=True)), at[0], at[1], source)


def merged(dims: Sequence[Dim]) -> list[Dim]:
    """Axes sorted by destination stride, outermost first; ones dropped, neighbours that stay together joined."""
    out: list[Dim] = []
    for d in sorted((d for d in dims if d.size > 1), key=lambda d: -abs(d.dst)):
        last = out[-1] if out else None
        if last is not None and last.dst == d.size * d.dst and last.src == d.size * d.src:
            out[-1] = Dim(last.size * d.size, d.dst, d.src)
        else:
            out.append(d)
    return out


def nest(
    k: KernelBuilder, sizes: Sequence[int], body: Callable[[Sequence[Expr]], None], *, parallel: bool = False
) -> None:
    """Loops over `sizes`; with `parallel` as many of the first ones as feed all threads make one parallel loop."""
    if parallel and sizes:
        taken = 1
        while taken < len(sizes) and prod(sizes[:taken]) < 4 * k.ctx.threads:
            taken += 1
        for i in k.parallel("i", prod(sizes[:taken])):
            head = unfolded(k, i, sizes[:taken])
            nest(k, sizes[taken:], lambda rest: body([*head, *rest]))
    elif sizes:
        for i in k.loop("i", sizes[0]):
            nest(k, sizes[1:], lambda rest: body([i, *rest]))
    else:
        body([])


def unfolded(k: KernelBuilder, index: Expr, sizes: Sequence[int]) -> list[Expr]:
    """Coordinates of a flat index into `sizes`."""
    out: list[Expr] = []
    below = total = prod(sizes)
    for size in sizes:
        below //= size
        at = index / below
        out.append(k.let(at if below * size == total else at % size, "at") if size > 1 else INDEX)
    return out


def offset_along(start: int | Expr, index: Sequence[Expr], steps: Sequence[int]) -> Expr:
    at = as_expr(start, INDEX)
    for i, step in zip(index, steps, strict=True):
        at = at + i * step
    return at
