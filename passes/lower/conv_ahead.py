"""What a direct convolution asks for ahead, where that pays: weights of the next pass, pixels of the next tile and the
lines of results that are read before. Where few products lie between two requests of many lines, these are spread over
the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...ir.loops import Buffer, Expr
from .context import KernelBuilder
from .conv_plan import Outputs, Plan
from .micro import AT_ONCE, LINE_BYTES, prefetches

FEW_BLOCKS = 16
"""Blocks of channels whose products take no longer than a burst of lines."""

FEW_TILES = 4
"""With fewer tiles to a pass, the weights of the next are too many to be fetched meanwhile."""


@dataclass(frozen=True, slots=True)
class Soon:
    """What the taps of a tile fetch of the weights of the next pass: each the next `lines` cache lines from `first` on,
    in the order of memory, so that the processor's own prefetching runs along."""

    first: Expr
    lines: int


class Ahead:
    """Writes the requests of a plan's kernel; `x` and `w` are its input and its weights, results lie `step` pixels
    apart."""

    def __init__(self, k: KernelBuilder, plan: Plan, x: Buffer, w: Buffer, step: int) -> None:
        self.k, self.plan, self.x, self.w, self.step = k, plan, x, w, step
        self.line = LINE_BYTES // plan.conv.dtype.nbytes
        self.asks = prefetches(k.ctx.target)

    def weights(self, out: Outputs, weights: Expr, chunk: Expr, tile: Expr) -> Soon | None:
        """A tile's share of the weights that the pass after this one will read, since they come from afar: at once
        where it is small, else what `taps` are to fetch. `weights`: where those of the block of outputs begin."""
        k, plan, inputs = self.k, self.plan, self.plan.inputs[0]
        count = plan.rows * (plan.tiles if plan.tile_tasks > 1 else plan.tiles_of_row)
        if count < FEW_TILES or not self.asks:
            return None
        tap = inputs.size * out.vectors * plan.lanes
        block = tap * plan.conv.window.taps
        panel = block * (plan.chunk if plan.chunks > 1 else inputs.count)
        following = panel if plan.blocks == 1 else block * inputs.count
        share = -(-panel // (self.line * count))
        begin = weights + chunk * panel + following
        if share > AT_ONCE and inputs.size > 1:
            lines = -(-tap // (self.line * count))
            return Soon(k.let(begin + tile * (panel // tap * lines * self.line), "soon"), lines)
        first = k.let(begin + tile * (share * self.line), "next")
        for i in k.loop("line", share):
            k.prefetch(self.w, first + i * self.line)
        return None

    def taps(self, soon: Soon, number: Expr) -> None:
        """The share of a tile's tap `number`."""
        first = self.k.let(soon.first + number * (soon.lines * self.line), "soon")
        for i in range(soon.lines):
            self.k.prefetch(self.w, first + i * self.line)

    def pixels(self, x: Expr, count: int) -> None:
        """The `count` pixels after those at `x`."""
        block = self.plan.conv.x.type.layout.block or 1
        size = count * self.plan.conv.window.w.stride * block
        for at in range(size, 2 * size, self.line):
            self.k.prefetch(self.x, x + at)

    def waits_for_results(self) -> bool:
        """Whether the lines of results come from afar and are waited for, since the tail reads as many of an operand.
        Stores alone wait in buffers meanwhile: asking for their lines as well slowed such layers by up to 2 %."""
        ctx = self.k.ctx
        made = {v for n in ctx.tail for v in n.outputs} | {ctx.node.output}
        given = (v for n in ctx.tail for v in n.inputs if v is not None and v not in made)
        y = ctx.output.type
        return self.asks and y.nbytes > ctx.target.l2_bytes // 2 and any(v.type == y for v in given)

    def results(self, y: Buffer, starts: Sequence[Expr], pixels: int) -> bool:
        """The lines that a tile's results go to, `pixels` from each of `starts` on, so that its stores do not wait for
        them; whether they are left to the blocks of channels (`share`), being too many for few products."""
        plan, line = self.plan, LINE_BYTES // y.dtype.nbytes
        size = pixels * self.step * plan.lanes
        is_short = plan.conv.window.taps == 1 and plan.inputs[0].size > 1 and plan.chunk <= FEW_BLOCKS
        if is_short and len(starts) * size > AT_ONCE * line:
            return True
        for first in starts:
            for at in range(0, size, line):
                self.k.prefetch(y, first + at)
        return False

    def share(self, y: Buffer, starts: Sequence[Expr], number: Expr, blocks: int, pixels: int) -> None:
        """The share of block `number` of `blocks` in a tile's `results`."""
        line = LINE_BYTES // y.dtype.nbytes
        lines = -(-pixels * self.step * self.plan.lanes // (line * blocks))
        for first in starts:
            for i in range(lines):
                self.k.prefetch(y, first + (number * lines + i) * line)
