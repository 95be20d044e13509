"""Normalisations: a few passes over the elements along some axes (a strip), then one that writes them.

The coordinates of kept and of normalised axes are never merged with each other, so that a strip's statistics are
computed once and its elements are written right after, while they are in cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TypeAlias

from ...ir.graph import Value
from ...ir.loops import Expr, broadcast, cast, const, ramp
from ...ir.types import DType, TensorType
from .context import KernelBuilder, Lowering, Site, strides
from .elementwise import operand_types
from .elementwise_convert import convert
from .grid.team import team_for
from .reduction import Axis, Reducer, Reduction, State, accumulate, each_site
from .strided import StridedKernel, spans, widest

TOGETHER = 4
"""Short strips that are worked on at a time, since what is done once a strip waits for itself."""

SHORT_BYTES = 2048
"""Bytes of a strip up to which that pays."""

LEAST_PART = 8
"""How much smaller than wanted parts of a strip may be."""


@dataclass(frozen=True, slots=True)
class Element:
    """A vector of a strip: `site` of the result, `x` widened, its `position` along the innermost normalised axis.

    `vector` counts the strips that are worked on together.
    """

    site: Site
    x: Expr
    position: Expr
    vector: int


Write: TypeAlias = Callable[[Element], Expr]
"""A vector of results in the computation's type."""


@dataclass(frozen=True, slots=True)
class Parts:
    """`count` parts of `size` indices along a strip's outermost axis, whose indices are `stride` elements apart."""

    count: int
    size: int
    stride: int


@dataclass(eq=False, slots=True)
class Strips:
    """The strips of `plan.value` (of the result's shape and layout); `groups` are the normalised axes of `plan.k`."""

    plan: Reduction
    groups: tuple[int, ...]
    operand: DType

    @property
    def k(self) -> StridedKernel:
        return self.plan.k

    @property
    def length(self) -> int:
        """Elements of a strip."""
        total = 1
        for axis in self.plan.reduced:
            total *= axis.size
        return total

    def each(
        self,
        work: Callable[[list[Site]], None],
        family: str,
        cost: int = 4,
        together: int = TOGETHER,
        overwrites: bool = False,
    ) -> None:
        """Write the kernel: `work` gets the sites of strips that are done together, at the strips' beginnings.

        `together`: short strips along lanes at a time; long ones keep the core busy, and stay nearer one by one.
        overwrites: whether the result may take an operand's memory, as far as `work` is concerned.
        """
        sizes = [1 if i in self.groups else n for i, n in enumerate(self.k.sizes)]
        together = self.k.ctx.copies(together) if self._is_short() else 1
        each_site(self.plan, sizes, self.plan.value.type.size * cost, work, together)
        self.k.done(family, over=self._overwritable() if overwrites else ())

    def _overwritable(self) -> tuple[Value, ...]:
        """Operands that lie as the result does, unless the last vectors of rows are computed twice."""
        y, lanes = self.plan.ctx.output, self.plan.lanes
        if self.k.sizes[-1] % lanes or self.plan.team is not None:
            return ()
        return tuple(v for v in self.k.bound if v is not y and not v.is_constant and v.type == y.type)

    def parts(self, nbytes: int) -> Parts | None:
        """Equal parts of at most `nbytes` of strips that are too large for the second cache; None where they are not,
        or where there are no such parts."""
        if not self.plan.reduced or self.plan.team is not None:
            return None
        outer, *inner = self.plan.reduced
        width = self.plan.value.type.dtype.nbytes * (1 if self.plan.along else self.plan.lanes)
        width *= prod(a.size for a in inner)
        if outer.size * width <= self.plan.ctx.target.l2_bytes // 2:
            return None
        size = max(n for n in range(1, outer.size + 1) if outer.size % n == 0 and (n == 1 or n * width <= nbytes))
        return Parts(outer.size // size, size, outer.stride) if size * width >= nbytes // LEAST_PART else None

    def part(self, parts: Parts, number: Expr) -> Strips:
        """One of the parts, to reduce only."""
        outer = Axis(parts.size, parts.stride)
        start = number * (parts.size * parts.stride)
        return replace(self, plan=replace(self.plan, reduced=(outer, *self.plan.reduced[1:]), start=start))

    def parameter(self, value: Value, site: Site, type_: TensorType) -> Expr:
        """A parameter that is the same in a whole strip, widened."""
        return self.k.let(cast(self.k.read(value, site, type_), self.operand), "parameter")

    def _is_short(self) -> bool:
        return self.length * self.plan.value.type.dtype.nbytes <= SHORT_BYTES

    def reduce(self, reducer: Reducer, sites: list[Site]) -> list[State]:
        """One pass over the strips."""
        return accumulate(self.plan, reducer, sites)

    def write(self, sites: list[Site], result: Write, source: Value | None = None) -> None:
        """One pass that computes every element, applies the fused tail and stores. `source`: what is read instead."""
        ctx, k = self.plan.ctx, self.k
        for element in self._elements(sites, source or self.plan.value):
            value = convert(k, result(element), ctx.node.output.type.dtype)
            k.write(ctx.output, element.site, ctx.epilogue(k, element.site, value))

    def _elements(self, sites: list[Site], source: Value) -> Iterator[Element]:
        k = self.k
        along = self.plan.along
        for at in self._positions(self.groups[:-1] if along else self.groups):
            inner = self.groups[-1] if self.groups else None
            for j, n in self._row() if along else iter([(const(0), 0)]):
                for v, site in enumerate(sites):
                    lanes = n or site.lanes
                    coords = [at.get(i, c) for i, c in enumerate(site.coords)]
                    if along:
                        coords[-1] = j
                    here = replace(site, coords=tuple(coords), lanes=lanes)
                    x = k.load(k.tensor(source, "x"), k.offset_of(here, self.plan.kept), lanes)
                    position = (
                        ramp(j, 1, lanes) if along else broadcast(coords[inner] if inner is not None else j, lanes)
                    )
                    yield Element(here, k.let(cast(x, self.operand), "x"), position, v)

    def _row(self) -> Iterator[tuple[Expr, int]]:
        """First index and lanes of vectors along a strip."""
        k, plan = self.k, self.plan
        if plan.team is None:
            yield from spans(k, k.sizes[-1], plan.lanes, 2, plan.overlap)
            return
        for j in plan.team.along(k, k.sizes[-1]):
            yield j, 1

    def _positions(self, groups: Sequence[int]) -> Iterator[dict[int, Expr]]:
        if not groups:
            yield {}
            return
        for i in self.k.loop("r", self.k.sizes[groups[0]]):
            for rest in self._positions(groups[1:]):
                yield {groups[0]: i, **rest}

    def read(self, value: Value, element: Element, type_: TensorType | None = None) -> Expr:
        """A parameter at an element, widened; it must have been listed when the strips were made."""
        return cast(self.k.read(value, element.site, type_), self.operand)

    def store_statistic(self, value: Value, sites: list[Site], states: Sequence[Expr]) -> None:
        """One number a strip, into a tensor of the result's rank with 1 along normalised axes."""
        k = self.k
        own = strides(value.type)
        steps = tuple(s if d > 1 else 0 for s, d in zip(own, value.type.physical, strict=True))
        for site, state in zip(sites, states, strict=True):
            k.store(k.tensor(value, "statistic"), k.offset_of(site, steps), convert(k, state, value.type.dtype))


def strips(
    ctx: Lowering,
    value: Value,
    axes: Sequence[int],
    operand: DType,
    parameters: Sequence[TensorType] = (),
    overlap: bool = True,
) -> Strips:
    """Strips along logical `axes` of a node's input, which has the shape and layout of its result.

    `parameters` are the types by which further operands broadcast to the result; without `overlap` every element is
    written once, as a result that is read again demands. Raises UnsupportedOpError for
    channels of a blocked layout.
    """
    type_, out = value.type, ctx.output.type
    if type_.layout != out.layout or (type_.layout.block and 1 in axes):
        raise ctx.unsupported(f"{ctx.node.op} over axes {list(axes)} of {type_} is not supported", "use a plain layout")
    own = strides(type_)
    kept = tuple(0 if i in axes else s for i, s in enumerate(own))
    lanes = min(64, ctx.lanes(widest((operand, out.dtype))))
    k = StridedKernel(ctx, [*operand_types(ctx, ctx.tail), *parameters], lanes, [kept])
    groups = tuple(i for i, g in enumerate(k.groups) if g and not kept[g[-1]])
    reduced = tuple(Axis(k.sizes[i], own[k.groups[i][-1]]) for i in groups)
    along = bool(groups) and groups[-1] == len(k.groups) - 1
    team = team_for(ctx.target, k.sizes[-1]) if along else None
    return Strips(Reduction(ctx, value, reduced, own, k, along, overlap, team), groups, operand)


def lanes_of(k: KernelBuilder, state: Expr, element: Element) -> Expr:
    """A strip's number in the lanes of an element."""
    return broadcast(state, element.x.lanes)
