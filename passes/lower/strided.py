"""One pass over a result whose operands broadcast to it, with as few and as long loops as their strides allow.

The axes of the result's bytes are merged where every operand steps through them evenly: equal shapes and layouts end in
one flat loop, a value a channel of a blocked layout in three loops with vectors along the block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod

from ...ir.graph import Value
from ...ir.loops import Expr, broadcast, const, minimum, ramp
from ...ir.types import DType, TensorType
from .channels import whole_blocks
from .context import KernelBuilder, Lowering, Site, strides

PARALLEL_WORK = 16 << 10
"""Element operations below which a loop stays serial."""
CHUNK = 4 << 10
"""Elements of a worker's share of one row, at least."""


class StridedKernel(KernelBuilder):
    """A kernel whose sites have merged coordinates (`sizes`), lanes along the last; it knows the strides of values.

    `operands` are the types by which the values that will be read broadcast to the result; `steps` are the strides of
    further buffers along the axes of the result's bytes, which the caller indexes by `offset_of`.
    """

    def __init__(
        self, ctx: Lowering, operands: Iterable[TensorType], lanes: int, steps: Sequence[Sequence[int]] = ()
    ) -> None:
        super().__init__(ctx)
        self.result = ctx.output.type
        self.lanes = lanes
        physical = self.result.physical
        every = [strides(self.result), *(operand_strides(t, self.result) for t in operands), *steps]
        self.groups = merged_axes(physical, every)
        self.sizes = tuple(prod(physical[i] for i in group) for group in self.groups)

    def read(self, value: Value, site: Site, type_: TensorType | None = None) -> Expr:
        value, type_ = whole_blocks(self.ctx, value, type_ or value.type)
        steps = operand_strides(type_, self.result)
        at = self.offset_of(site, steps)
        step = self.row_step(steps)
        buffer = self.tensor(value)
        if site.lanes == 1 or step == 0:
            return broadcast(self.load(buffer, at), site.lanes)
        return self.load(buffer, at if step == 1 else ramp(at, step, site.lanes), site.lanes)

    def write(self, value: Value, site: Site, result: Expr) -> None:
        self.store(self.tensor(value, "y"), self.offset_of(site, strides(self.result)), result)

    def offset_of(self, site: Site, steps: Sequence[int]) -> Expr:
        """Element offset of a site in a buffer with strides `steps` along the axes of the result's bytes."""
        at: Expr = const(0)
        for coord, group in zip(site.coords, self.groups, strict=True):
            at = at + coord * (steps[group[-1]] if group else 0)
        return at

    def row_step(self, steps: Sequence[int]) -> int:
        """Stride from lane to lane of such a buffer."""
        return steps[self.groups[-1][-1]] if self.groups[-1] else 0


def operand_strides(type_: TensorType, result: TensorType) -> tuple[int, ...]:
    """Element strides of an operand along the axes of the result's bytes, 0 where it is broadcast."""
    block = result.layout.block
    skip = result.rank - type_.rank
    dims = (1,) * skip + type_.dims
    if type_.layout.block:
        assert type_.layout == result.layout and not skip, f"operand {type_} of a result {result}"
        own = strides(type_)
        channel = dims[1] > 1
        spatial = (s if d > 1 else 0 for s, d in zip(own[2:-1], dims[2:], strict=True))
        return (own[0] if dims[0] > 1 else 0, own[1] * channel, *spatial, int(channel or result.dims[1] == 1))
    steps = tuple(s if d > 1 else 0 for s, d in zip((0,) * skip + strides(type_), dims, strict=True))
    if not block:
        return steps
    return (steps[0], steps[1] * block, *steps[2:], steps[1])


def merged_axes(sizes: Sequence[int], operands: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Groups of neighbouring axes that every operand steps through evenly; axes of size 1 belong to none.

    There is at least one group, which may be empty.
    """
    groups: list[list[int]] = []
    for axis, size in enumerate(sizes):
        if size == 1:
            continue
        if groups and all(s[groups[-1][-1]] == s[axis] * size for s in operands):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return tuple(map(tuple, groups)) or ((),)


def strided_loops(k: StridedKernel, cost: int = 1) -> Iterator[Site]:
    """Every site of the result once (the last vector of a row may overlap the one before).

    `cost`: operations an element, which decides about unrolling and about a parallel loop.
    """
    *outer, row = k.sizes
    unroll = k.ctx.copies(4) if cost <= 4 else 1
    spread = k.ctx.threads > 1 and prod(k.sizes) * cost >= PARALLEL_WORK
    if not spread:
        yield from _nest(k, (), outer, row, unroll)
        return
    many = 4 * k.ctx.threads
    lead = leading(outer, many)
    count = prod(outer[:lead])
    parts = max(1, min(-(-many // count), row // CHUNK)) if lead == len(outer) else 1
    share = -(-row // (parts * k.lanes * unroll)) * k.lanes * unroll
    parts = -(-row // share)
    for i in k.parallel("i", count * parts):
        coords = coordinates(k, i if parts == 1 else k.let(i / parts, "row"), outer[:lead])
        if parts == 1:
            yield from _nest(k, coords, outer[lead:], row, unroll)
        else:
            yield from _part(k, coords, k.let(i % parts, "part"), (parts, share, row), unroll)


def leading(sizes: Sequence[int], many: int) -> int:
    """How many leading axes make at least `many` iterations (all of them where that is not enough)."""
    return next((i for i in range(len(sizes) + 1) if prod(sizes[:i]) >= many), len(sizes))


def outer_loops(k: KernelBuilder, sizes: Sequence[int], work: int) -> Iterator[tuple[Expr, ...]]:
    """Coordinates over `sizes`, in parallel along leading axes where all iterations together do enough `work`."""
    lead = leading(sizes, 4 * k.ctx.threads) if k.ctx.threads > 1 and work >= PARALLEL_WORK else 0
    count = prod(sizes[:lead])
    for i in k.parallel("i", count) if count > 1 else k.loop("i", 1):
        yield from _serial(k, coordinates(k, i, sizes[:lead]), sizes[lead:])


def _serial(k: KernelBuilder, coords: tuple[Expr, ...], sizes: Sequence[int]) -> Iterator[tuple[Expr, ...]]:
    if not sizes:
        yield coords
        return
    for i in k.loop("i", sizes[0]):
        yield from _serial(k, (*coords, i), sizes[1:])


def coordinates(k: KernelBuilder, index: Expr, sizes: Sequence[int]) -> tuple[Expr, ...]:
    """Row-major coordinates of a flat index."""
    found: list[Expr] = []
    below = prod(sizes)
    for axis, size in enumerate(sizes):
        below //= size
        at = index / below
        found.append(k.let(at % size if axis else at, "c"))
    return tuple(found)


def _nest(k: StridedKernel, coords: tuple[Expr, ...], outer: Sequence[int], row: int, unroll: int) -> Iterator[Site]:
    """Loops over `outer`, then a whole row; rows of one vector are unrolled together."""
    if not outer:
        for at, lanes in spans(k, row, k.lanes, unroll):
            yield Site((*coords, at), -1, lanes)
        return
    size, *rest = outer
    together = unroll if not rest and row <= k.lanes and size >= unroll else 1
    whole = size // together * together
    for i in k.loop("i", whole, step=together):
        for u in range(together):
            yield from _nest(k, (*coords, i + u), rest, row, unroll)
    if whole < size:
        for i in k.loop("i", size, whole):
            yield from _nest(k, (*coords, i), rest, row, unroll)


def _part(
    k: StridedKernel, coords: tuple[Expr, ...], part: Expr, plan: tuple[int, int, int], unroll: int
) -> Iterator[Site]:
    """One of several shares of a row; the last one has the remainder."""
    parts, share, row = plan
    step = k.lanes * unroll
    whole = row // step * step
    begin = k.let(part * share, "begin")
    for j in k.loop("j", k.let(minimum(begin + share, const(whole)), "end"), begin, step):
        for u in range(unroll):
            yield Site((*coords, j + u * k.lanes), -1, k.lanes)
    if whole < row:
        for _ in k.when(part >= parts - 1):
            for at, lanes in rest_spans(whole, row, k.lanes):
                yield Site((*coords, const(at)), -1, lanes)


def spans(k: KernelBuilder, size: int, lanes: int, unroll: int = 1, overlap: bool = True) -> Iterator[tuple[Expr, int]]:
    """(first index, lanes) covering [0, size) by vectors; with `overlap` the last may overlap the one before it."""
    step = lanes * unroll
    whole = size // step * step
    if whole:
        for j in k.loop("j", whole, step=step):
            for u in range(unroll):
                yield j + u * lanes, lanes
    for at, n in rest_spans(whole, size, lanes, overlap):
        yield const(at), n


def rest_spans(begin: int, size: int, lanes: int, overlap: bool = True) -> Iterator[tuple[int, int]]:
    """Vectors over [begin, size), `begin` being a multiple of the lanes; with `overlap` the last may begin earlier."""
    while begin + lanes <= size:
        yield begin, lanes
        begin += lanes
    if begin < size and size >= lanes and overlap:
        yield size - lanes, lanes
        return
    while begin < size:
        n = 1 << ((size - begin).bit_length() - 1)
        yield begin, n
        begin += n


def widest(dtypes: Iterable[DType]) -> DType:
    """The type whose lanes a mixed computation takes: the widest, f32 for 16-bit floats."""
    wide = [DType.F32 if t in (DType.F16, DType.BF16) else t for t in dtypes]
    return max(wide, key=lambda t: t.bits)
