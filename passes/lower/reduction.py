"""Reductions over any axes: how accumulators run over an input, whatever they accumulate.

Lanes run along the innermost kept axis, or, where the innermost axis is reduced and long enough, along that one with
one horizontal step at the end. A result is never split between workers and the order of its operations is fixed, so it
is the same for every number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol, TypeAlias

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, binary, broadcast, cast, const, ramp, select
from ...ir.types import DType, TensorType
from .context import KernelBuilder, Lowering, Site, strides
from .elementwise import operand_types
from .grid.team import Team, team_for
from .strided import StridedKernel, merged_axes, outer_loops, rest_spans, widest

ACCUMULATORS = 4
State: TypeAlias = tuple[Expr, ...]
"""Accumulated vectors, one a component (a maximum and its index, for instance)."""


@dataclass(frozen=True, slots=True)
class Item:
    """Operands that join: `x`, at `position` along the innermost reduced axis (i64) and at element `at` of the input.

    `vector` counts the vectors of results that are made together.
    """

    x: Expr
    position: Expr
    at: Expr
    vector: int


class Reducer(Protocol):
    """What is accumulated. `types`: element types of the components; operands come widened to `operand`."""

    @property
    def operand(self) -> DType: ...

    @property
    def types(self) -> tuple[DType, ...]: ...

    def start(self, lanes: int) -> State:
        """The neutral state."""

    def step(self, k: KernelBuilder, state: State, item: Item) -> State: ...

    def merge(self, k: KernelBuilder, a: State, b: State) -> State: ...

    def across(self, k: KernelBuilder, state: State) -> State:
        """The lanes of a state as scalars."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A merged reduced axis of the input."""

    size: int
    stride: int


@dataclass(eq=False, slots=True)
class Reduction:
    """A reduction of `value` over `axes` into the result of `ctx`, in one kernel."""

    ctx: Lowering
    value: Value
    reduced: tuple[Axis, ...]
    kept: tuple[int, ...]
    """Strides of the input along the axes of the result's bytes."""
    k: StridedKernel
    along: bool
    """Lanes run along the innermost reduced axis."""
    overlap: bool = True
    """Neighbouring vectors of results may overlap."""
    team: Team | None = None
    """Threads that make one result together, on a graphics processor."""
    start: Expr = field(default_factory=lambda: const(0))
    """Elements of the input before the first one that is reduced."""

    @property
    def lanes(self) -> int:
        if not self.along:
            return self.k.lanes
        return min(self.k.lanes, 1 << (self.reduced[-1].size.bit_length() - 1))


def reduction(ctx: Lowering, value: Value, axes: Sequence[int], operand: DType) -> Reduction:
    """Plan the reduction of a node's input over logical `axes`.

    Raises UnsupportedOpError for channels of a blocked layout, or a result in another layout than the input.
    """
    type_, out = value.type, ctx.output.type
    if type_.layout != out.layout or (type_.layout.block and 1 in axes):
        raise ctx.unsupported(f"{ctx.node.op} over axes {list(axes)} of {type_} is not supported", "use a plain layout")
    kept, reduced = _split_axes(type_, out, axes)
    lanes = min(64, ctx.lanes(widest((operand, out.dtype))))
    k = StridedKernel(ctx, operand_types(ctx, ctx.tail), lanes, [kept])
    contiguous = bool(reduced) and reduced[-1].stride == 1
    along = contiguous and reduced[-1].size > 1 and (reduced[-1].size >= lanes or k.sizes[-1] < lanes)
    team = team_for(ctx.target, reduced[-1].size) if along else None
    return Reduction(ctx, value, reduced, kept, k, along, team=team)


def _split_axes(type_: TensorType, out: TensorType, axes: Sequence[int]) -> tuple[tuple[int, ...], tuple[Axis, ...]]:
    """Input strides along the result's physical axes, and the merged reduced axes, outermost first.

    Logical axes other than 1 have their own number in the physical shape, whatever the layout.
    """
    own, physical, gone = strides(type_), type_.physical, sorted(axes)
    keep = out.rank == type_.rank
    kept = tuple(0 if i in gone else s for i, s in enumerate(own) if keep or i not in gone)
    sizes, steps = [physical[i] for i in gone], [own[i] for i in gone]
    groups = [g for g in merged_axes(sizes, [steps]) if g]
    return kept, tuple(Axis(prod(sizes[i] for i in g), steps[g[-1]]) for g in groups)


Finish: TypeAlias = Callable[[KernelBuilder, Site, State], Expr]
"""The result in the node's element type, from the states of one vector of results."""
Second: TypeAlias = Callable[[KernelBuilder, list[State]], Reducer]
"""The reducer of a second pass, from the states of the first; a result is made of both, the second pass' first."""


def reduce_into(plan: Reduction, reducer: Reducer, finish: Finish, family: str, second: Second | None = None) -> None:
    """Write the kernel."""
    k, ctx = plan.k, plan.ctx
    size = plan.value.type.size

    def results(sites: list[Site]) -> None:
        states = accumulate(plan, reducer, sites)
        if second is not None:
            later = accumulate(plan, second(k, states), sites)
            states = [b + a for a, b in zip(states, later, strict=True)]
        for site, state in zip(sites, states, strict=True):
            k.write(ctx.output, site, ctx.epilogue(k, site, finish(k, site, state)))

    each_site(plan, k.sizes, size, results)
    k.done(family)


def each_site(
    plan: Reduction, sizes: Sequence[int], work: int, results: Callable[[list[Site]], None], together: int = 1
) -> None:
    """Loops over the kept axes (`sizes` is 1 for others): `together` neighbouring sites, or vectors, at a time."""
    if plan.team is not None:
        for at in plan.team.enter(plan.k, sizes):
            results([Site(at)])
        return
    if plan.along:
        _each_row(plan, sizes, work, results, together)
        return
    k, lanes = plan.k, plan.k.lanes
    *outer, row = sizes
    width = lanes * ACCUMULATORS
    whole = row // width
    rest = list(rest_spans(whole * width, row, lanes, plan.overlap))
    for *coords, t in outer_loops(k, [*outer, whole + bool(rest)], work):
        begin = k.let(t * width, "begin")
        for _ in k.when(t < whole) if rest and whole else range(min(whole, 1)):
            results([Site((*coords, begin + u * lanes), -1, lanes) for u in range(ACCUMULATORS)])
        for _ in k.when(t >= whole) if rest and whole else range(bool(rest)):
            for n in sorted({n for _, n in rest}, reverse=True):
                results([Site((*coords, const(first)), -1, n) for first, m in rest if m == n])


def _each_row(
    plan: Reduction, sizes: Sequence[int], work: int, results: Callable[[list[Site]], None], together: int
) -> None:
    """Sites along the innermost kept axis, `together` at a time, those that are left at once."""
    k = plan.k
    axis = max((i for i, size in enumerate(sizes) if size > 1), default=0)
    whole, rest = divmod(sizes[axis], together)
    for at in outer_loops(k, [*sizes[:axis], whole + bool(rest), *sizes[axis + 1 :]], work):

        def sites(count: int, at: tuple[Expr, ...] = at) -> list[Site]:
            begin = k.let(at[axis] * together, "row") if together > 1 else at[axis]
            return [Site((*at[:axis], begin + i, *at[axis + 1 :])) for i in range(count)]

        for _ in k.when(at[axis] < whole) if rest and whole else range(min(whole, 1)):
            results(sites(together))
        for _ in k.when(at[axis] >= whole) if rest and whole else range(bool(rest)):
            results(sites(rest))


def accumulate(plan: Reduction, reducer: Reducer, sites: list[Site]) -> list[State]:
    """The states of some sites after one pass over the reduced axes."""
    k = plan.k
    bases = [k.let(k.offset_of(site, plan.kept) + plan.start, "base") for site in sites]
    lanes = plan.lanes if plan.along else sites[0].lanes
    inner = plan.reduced[-1] if plan.reduced else Axis(1, 0)
    unit = lanes if plan.along else 1
    splits = 1 if plan.team else max(1, min(ACCUMULATORS // len(sites), inner.size // unit))
    if plan.along and len(sites) > 1:
        splits = min(2, inner.size // unit)
    tiles = [k.registers("acc", t, len(sites) * splits, lanes) for t in reducer.types]
    for i in range(len(sites) * splits):
        _keep(k, tiles, i, reducer.start(lanes))
    stride = 1 if plan.along else k.row_step(plan.kept)

    def join(at: Expr, position: Expr, split: int, mask: Expr | None = None) -> None:
        for v, base in enumerate(bases):
            i = v * splits + split
            index = k.let(base + at, "at")
            x = k.load(k.tensor(plan.value, "x"), index if stride == 1 else ramp(index, stride, lanes), lanes)
            item = Item(k.let(cast(x, reducer.operand), "x"), position, index, v)
            state = tuple(k.let(k.load(t, i)) for t in tiles)
            new = reducer.step(k, state, item)
            if mask is not None:
                new = tuple(select(mask, a, b) for a, b in zip(new, state, strict=True))
            _keep(k, tiles, i, new)

    if all(axis.size for axis in plan.reduced):
        for at in _offsets(k, plan.reduced[:-1]):
            if plan.team is not None:
                for j in plan.team.along(k, inner.size):
                    join(at + j, j, 0)
            elif plan.along:
                _along(k, inner.size, lanes, splits, lambda j, s, mask: join(at + j, ramp(j, 1, lanes), s, mask))
            else:
                _step_by_step(k, inner.size, splits, lambda r, s: join(at + r * inner.stride, broadcast(r, lanes), s))
    return [_merged(plan, reducer, tiles, v * splits, splits) for v in range(len(sites))]


def _offsets(k: KernelBuilder, axes: Sequence[Axis]) -> Iterator[Expr]:
    """Offsets of every position of the outer reduced axes."""
    if not axes:
        yield const(0)
        return
    for i in k.loop("r", axes[0].size):
        for at in _offsets(k, axes[1:]):
            yield i * axes[0].stride + at


def _along(
    k: KernelBuilder, size: int, lanes: int, splits: int, join: Callable[[Expr, int, Expr | None], None]
) -> None:
    """Vectors over a row; the last overlaps the one before, with the lanes seen already left out."""
    width = lanes * splits
    whole = size // width * width
    for j in k.loop("j", whole, step=width) if whole else ():
        for s in range(splits):
            join(j + s * lanes, s, None)
    for s, (first, _) in enumerate(rest_spans(whole, size, lanes)):
        seen = whole + s * lanes - first
        mask = binary("ge", ramp(0, 1, lanes), const(seen, DType.I64, lanes)) if seen else None
        join(const(first), s % splits, mask)


def _step_by_step(k: KernelBuilder, size: int, splits: int, join: Callable[[Expr, int], None]) -> None:
    """Positions of a reduced axis, in turn into each of the accumulators."""
    whole = size // splits * splits
    for r in k.loop("r", whole, step=splits) if whole else ():
        for s in range(splits):
            join(r + s, s)
    for last in range(whole, size):
        join(const(last), last - whole)


def _keep(k: KernelBuilder, tiles: Sequence[Buffer], index: int, state: State) -> None:
    values = [k.let(x) for x in state]
    for tile, value in zip(tiles, values, strict=True):
        k.store(tile, index, value)


def _merged(plan: Reduction, reducer: Reducer, tiles: Sequence[Buffer], first: int, count: int) -> State:
    """The accumulators of one site as one, neighbours first."""
    k = plan.k
    states = [tuple(k.let(k.load(t, first + i)) for t in tiles) for i in range(count)]
    while len(states) > 1:
        pairs = [reducer.merge(k, a, b) for a, b in zip(states[::2], states[1::2], strict=False)]
        states = [tuple(k.let(x) for x in s) for s in pairs] + states[len(pairs) * 2 :]
    if plan.team is not None:
        return plan.team.together(k, states[0], lambda a, b: reducer.merge(k, a, b))
    if not plan.along:
        return states[0]
    return tuple(k.let(x) for x in reducer.across(k, states[0]))
