"""c2c.ConvChain: convolutions and poolings computed strip by strip, so that what lies between stays in the cache.

What the first one reads through, pads and enlargements, is a stage before it (`remap`).

One kernel: for each task (some rows of the last stage), for each strip of a few rows, each stage in turn makes the rows
that are new (`conv_chain_plan`). The writers of single layers write the stages; between them lie rings of rows, one set
a worker. Sums have the order of the single layers', so results are equal to theirs to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from math import prod
from typing import Protocol

from ...codegen.target import Target
from ...ir.graph import Node, Value
from ...ir.loops import Buffer, Expr, binary, maximum, minimum, select
from ...ir.ops import READ_THROUGH, STAGES
from ...ir.types import DType, TensorType
from .context import INDEX, Lowering, Site, lowers, unfold
from .conv import dense_or_planar, read_convolution, reads_around
from .conv_chain_plan import ChainPlan, plan_rows
from .conv_direct import DirectWriter
from .conv_kernel import ConvKernel, Convolution, Image, pad_operands, unravel
from .conv_plan import row_plan
from .conv_planar import PlanarConvolution, PlanarWriter, has_lanes, without_border
from .depthwise import DepthwiseWriter, is_depthwise
from .micro import prefetches
from .pool import POOLS, BlockedPool, Pooling, read_pooling
from .remap import Remap, read_remap
from .remap_rows import RemapWriter, RowsAhead
from .sparse import likely_pays
from .tasks import tasks
from .window import Axis


class Writer(Protocol):
    """Writes rows [begin, end) of a stage's result of image `n` into the kernel."""

    def write_rows(self, n: Expr, begin: Expr, end: Expr) -> None: ...


@dataclass(eq=False, slots=True)
class Stage:
    """A convolution or a pooling with its tail, or a remapped image; its context is that of a node of its own."""

    ctx: Lowering
    layer: Convolution | PlanarConvolution | Pooling | Remap

    @property
    def goes_on(self) -> bool:
        """Whether the image that it reads goes on beyond its border: all of it has to be there."""
        return isinstance(self.layer, Convolution) and self.layer.around is not None


@dataclass(frozen=True, slots=True)
class Ring:
    """Rows of a stage's result: `data` holds `rows` rows of `whole` for each worker, this worker's from `base` on."""

    data: Value
    type: TensorType
    rows: int
    whole: int
    base: Expr


class ChainKernel(ConvKernel):
    """A kernel in which some values are rings."""

    def __init__(self, ctx: Lowering) -> None:
        super().__init__(ctx)
        self.rings: dict[Value, Ring] = {}
        self.ahead: RowsAhead | None = None
        self._slots: dict[tuple[Value, Expr], Expr] = {}

    def tensor(self, value: Value, hint: str = "") -> Buffer:
        ring = self.rings.get(value)
        return super().tensor(value, hint) if ring is None else super().tensor(ring.data, "ring")

    def image(self, value: Value, n: Expr, rows: int) -> Image:
        ring = self.rings.get(value)
        return super().image(value, n, rows) if ring is None else Image(ring.base, ring.rows, ring.rows < ring.whole)

    def enter_row(self, value: Value, h: Expr) -> None:
        ring = self.rings.get(value)
        if ring is not None and ring.rows < ring.whole:
            self._slots[value, h] = self.let(h % ring.rows, "slot")

    def meanwhile(self) -> None:
        if self.ahead is not None:
            self.ahead.ask()

    def place(self, value: Value, coords: Sequence[Expr]) -> Expr:
        ring = self.rings.get(value)
        if ring is None:
            return super().place(value, coords)
        h = self._slots.get((value, coords[2]), coords[2])
        return ring.base + self.blocked_offset(ring.type, (INDEX, coords[1], h, coords[3]))

    def write(self, value: Value, site: Site, result: Expr) -> None:
        if value in self.rings:
            self.store(self.tensor(value), self.place(value, site.coords), result)
        else:
            super().write(value, site, result)


@lowers("c2c.ConvChain")
def lower_chain(ctx: Lowering) -> None:
    """All stages in one kernel."""
    stages = read_stages(ctx)
    axes, batch = [s.layer.window.h for s in stages], stages[0].layer.batch
    plan = plan_rows(axes, ctx.threads, ctx.node.attrs["strip"])
    total = axes[-1].out
    k = ChainKernel(ctx)
    for t in tasks(k, sum(s.layer.macs for s in stages), batch * plan.tasks):
        n, task = unravel(k, t, (batch, plan.tasks))
        _add_rings(k, ctx, stages, plan)
        rows = [max(1, made * plan.strip // total) for made in plan.made]
        writers = [_writer(k, s, r) for s, r in zip(stages, rows, strict=True)]
        begin = k.let(task * plan.rows, "begin")
        end = begin + plan.rows if total % plan.rows == 0 else minimum(begin + plan.rows, total)
        even = total % plan.rows == 0 and plan.rows % plan.strip == 0
        for first in k.loop("strip", end, begin, plan.strip):
            last = first + plan.strip if even else minimum(first + plan.strip, end)
            ranges = _ranges(k, axes, begin, first, last)
            ahead = _rows_ahead(k, stages, writers, plan)
            for i, (stage, writer, (lo, hi)) in enumerate(zip(stages, writers, ranges, strict=True)):
                k.ctx = stage.ctx
                if ahead is not None and i == 1:
                    ahead.begin(n, ranges[0][1])
                    k.ahead = ahead
                writer.write_rows(n, lo, hi)
                k.ahead = None
    k.ctx = ctx
    k.done("conv_chain")


def _rows_ahead(
    k: ChainKernel, stages: Sequence[Stage], writers: Sequence[Writer], plan: ChainPlan
) -> RowsAhead | None:
    """What the reader of a remapped image asks for: the source of the next strip."""
    first, reader = writers[:2]
    if not isinstance(first, RemapWriter) or not isinstance(reader, DirectWriter | PlanarWriter):
        return None
    if plan.strip >= plan.rows or not prefetches(k.ctx.target):
        return None
    made = plan.strip * prod(s.layer.window.h.stride for s in stages[2:])
    return RowsAhead(k, first.largest, made * stages[1].layer.window.h.stride, made * reader.pauses)


def _add_rings(k: ChainKernel, ctx: Lowering, stages: Sequence[Stage], plan: ChainPlan) -> None:
    """A ring for every stage but the last, one for each worker."""
    several = ctx.threads > 1 and stages[0].layer.batch * plan.tasks > 1
    for stage, rows in zip(stages, plan.kept, strict=False):
        type_ = stage.layer.y
        kept = TensorType(DType.F32, (1, type_.dims[1], rows, type_.dims[3]), type_.layout)
        elements = kept.nbytes // DType.F32.nbytes
        data = ctx.scratch("rows", DType.F32, elements * (ctx.threads if several else 1))
        base = k.let(k.worker * elements, "base") if several else INDEX
        k.rings[stage.ctx.output] = Ring(data, kept, rows, type_.dims[2], base)


def read_stages(ctx: Lowering) -> list[Stage]:
    """The stages of a chain."""
    nodes = unfold(ctx.node)
    starts = [i for i, n in enumerate(nodes) if n.op in STAGES]
    stages = []
    through = tuple(nodes[: starts[0]])
    if through and not reads_around(Lowering(nodes[starts[0]], ctx.target, ctx.threads, head=through)):
        first = remap_stage(through, ctx.target, ctx.threads)
        assert first is not None, f"{nodes[0].where} is no remapped image"
        stages.append(first)
        through = ()
    for begin, end in zip(starts, [*starts[1:], len(nodes)], strict=True):
        result = nodes[end - 1].output if end < len(nodes) else ctx.node.output
        anchor, *tail = nodes[begin:end]
        stage = _stage(
            Lowering(anchor, ctx.target, ctx.threads, ctx.calls, tuple(tail), result, ctx.node, head=through)
        )
        through = ()
        assert stage is not None, f"{anchor.where} is no stage of a chain"
        stages.append(stage)
    return _without_borders(stages)


def _without_borders(stages: list[Stage]) -> list[Stage]:
    """The same, the zeros beside the rows of a convolution with lanes along them written where its image is."""
    first, reader = stages[0].layer, stages[1].layer if len(stages) > 1 else None
    if not isinstance(first, Remap) or not isinstance(reader, PlanarConvolution) or any(p.fill for p in first.parts):
        return stages
    wide, before = without_border(reader.window), max(0, reader.window.w.pad)
    image = first.between(before, wide.w.size - before - reader.window.w.size)
    return [replace(stages[0], layer=image), replace(stages[1], layer=replace(reader, window=wide)), *stages[2:]]


def read_stage(node: Node, target: Target, threads: int) -> Stage | None:
    """A node, or a fused group, as a stage of a chain; None where it cannot be one."""
    nodes = unfold(node) if node.op == "c2c.Fused" else [node]
    through = tuple(takewhile(lambda n: n.op in READ_THROUGH, nodes))
    if len(through) == len(nodes):
        return None
    anchor, *tail = nodes[len(through) :]
    if anchor.op not in STAGES or any(t.type.dtype is not DType.F32 for t in (anchor.output, node.output)):
        return None
    return _stage(Lowering(anchor, target, threads, tail=tuple(tail), result=node.output, group=node, head=through))


def remap_stage(nodes: Sequence[Node], target: Target, threads: int) -> Stage | None:
    """`nodes` in a row as what the first stage of a chain reads through; None where they cannot be."""
    remap = read_remap(nodes, target)
    if remap is None or {p.x.type.layout.block for p in remap.parts} | {remap.y.layout.block} > {0, target.lanes()}:
        return None
    return Stage(Lowering(nodes[-1], target, threads), remap)


def _stage(ctx: Lowering) -> Stage | None:
    if ctx.node.op in POOLS:
        pooling = read_pooling(ctx)
        blocked = pooling is not None and pooling.x.type.layout.block == pooling.y.layout.block == ctx.lanes()
        return Stage(ctx, pooling) if pooling is not None and blocked and pooling.window.rank == 2 else None
    conv = read_convolution(ctx)
    if conv is None or conv.window.rank != 2:
        return None
    if conv.groups == 1 and likely_pays(conv.weights):
        return None  # faster by lists, which want all pixels of a tile
    if is_depthwise(ctx, conv):
        return Stage(ctx, conv)
    dense = dense_or_planar(ctx, conv)
    return Stage(ctx, dense) if isinstance(dense, Convolution) or has_lanes(ctx, dense) else None


def _writer(k: ChainKernel, stage: Stage, rows: int) -> Writer:
    ctx, layer = stage.ctx, stage.layer
    k.ctx = ctx
    if isinstance(layer, Remap):
        return RemapWriter(ctx, layer, k)
    if isinstance(layer, PlanarConvolution):
        return PlanarWriter(ctx, layer, k)
    whole = pad_operands(ctx, ctx.lanes())
    if isinstance(layer, Pooling):
        return BlockedPool(ctx, layer, whole, k)
    if is_depthwise(ctx, layer):
        return DepthwiseWriter(ctx, layer, whole, k)
    whole = whole and (layer.groups == 1 or layer.channels_out % ctx.lanes() == 0)
    return DirectWriter(ctx, row_plan(ctx, layer, whole, rows), k)


def _ranges(k: ChainKernel, axes: Sequence[Axis], begin: Expr, first: Expr, last: Expr) -> list[tuple[Expr, Expr]]:
    """Rows [first, last) that each stage makes for a strip: `conv_chain_plan.strip_rows`, at run time."""
    starts = binary("eq", first, begin)
    made, first, last = k.let(first, "made"), k.let(first, "first"), k.let(last, "last")
    found = [(first, last)]
    for axis in reversed(axes[1:]):
        need = maximum(first * axis.stride - axis.pad, 0)
        made, last = (
            k.let(minimum((row - 1) * axis.stride - axis.pad + axis.reach + 1, axis.size), "last")
            for row in (made, last)
        )
        first = k.let(select(starts, need, maximum(made, need)), "first")
        found.append((first, last))
    return found[::-1]
