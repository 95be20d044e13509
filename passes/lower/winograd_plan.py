"""Schedules of Winograd convolutions: tiles of a task, register tiles, phases, what is fetched ahead."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from .context import Lowering
from .conv_kernel import Convolution
from .micro import prefetches, splats_lanes
from .row_schedules import DOUBT
from .schedule import Schedule, choose
from .tasks import is_even
from .tile import Lined, Tile, choose_tile, split, step_cycles

LINE = 16
"""Elements of a cache line."""

MAX_SCRATCH = 4 << 20
"""Bytes of V and M of one block of tiles at most, or four second caches where these are larger: F(4x4) of 512 channels,
28x28, gains a fifth by one pass over its weights instead of two."""

SMALL = 384 << 10
"""Bytes of V and M that stay in the second cache beside weights and images: F(4x4) of 64 channels, 224x224, loses 16 %
with four times as many where that has 2 MB."""

FAR = 512 << 10
"""Bytes beyond which weights, larger or not than the second cache, are fetched ahead: what ran before has pushed them
out. F(4x4) of 64 channels, 56x56, gains 7 % in a network where that cache has 2 MB."""


SCALES = (0.5, 0.7, 1.4, 2.0)
"""Tiles of blocks that are listed beside the usual one, over its."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Schedule of a layer.

    block: tiles of a task. tile: register tile of the products. phased: each phase is a kernel. valid: lanes of the
    last block of output channels that are stored. ahead: whether the weights are fetched ahead.
    """

    conv: Convolution
    m: int
    lanes: int
    tile: Tile
    block: int
    phased: bool
    valid: int
    ahead: bool = False

    def __str__(self) -> str:
        return f"block={self.block} tile={self.tile}"

    @property
    def n(self) -> int:
        return self.m + 2

    @property
    def grid(self) -> tuple[int, int, int]:
        """Images, rows and columns of tiles."""
        w = self.conv.window
        return self.conv.batch, -(-w.h.out // self.m), -(-w.w.out // self.m)

    @property
    def tiles(self) -> int:
        return prod(self.grid)

    @property
    def blocks_in(self) -> int:
        return -(-self.conv.channels_in // self.lanes)

    @property
    def blocks_out(self) -> int:
        return -(-self.conv.channels_out // self.lanes)

    @property
    def groups(self) -> list[tuple[int, int, int]]:
        """Output vectors as (first group, groups, vectors of each)."""
        count, rest = divmod(self.blocks_out, self.tile.vectors)
        found = [(0, count, self.tile.vectors)] if count else []
        return [*found, (count, 1, rest)] if rest else found

    @property
    def stride_u(self) -> int:
        return self.blocks_out * self.lanes * self.conv.channels_in + LINE

    @property
    def stride_v(self) -> int:
        return self.blocks_in * self.block * self.lanes + LINE

    @property
    def stride_m(self) -> int:
        return self.blocks_out * self.block * self.lanes + LINE


def make_plan(ctx: Lowering, conv: Convolution, m: int) -> Plan:
    """Tiles of a task so that weights are read seldom and V and M stay small."""
    return schedules(ctx, conv, m)[0].plan


def choose_plan(ctx: Lowering, conv: Convolution, m: int) -> Plan:
    """The plan that is thought, or known, to be the fastest."""
    channels = f"{conv.batch} of {conv.channels_in}->{conv.channels_out} {conv.dtype}"
    problem = f"F{m} {conv.window} {channels} threads {ctx.threads}"
    return choose(ctx, "winograd-block", problem, schedules(ctx, conv, m))


def schedules(ctx: Lowering, conv: Convolution, m: int) -> list[Schedule[Plan]]:
    """The plan of the block by the rules first, then blocks of about so many times its tiles as SCALES says."""
    lanes, n, size = ctx.lanes(conv.sums), m + 2, max(conv.dtype.nbytes, 2)
    plan = Plan(conv, m, lanes, Tile(1, 1), 1, False, lanes)
    per_tile = n * n * (plan.blocks_in + plan.blocks_out) * lanes * size
    weights = n * n * plan.blocks_in * plan.blocks_out * lanes * lanes * size
    near, most_bytes = ctx.target.l2_bytes * 3 // 4, max(MAX_SCRATCH, 4 * ctx.target.l2_bytes)
    ahead = prefetches(ctx.target) and weights > min(FAR, ctx.target.l2_bytes)

    def traffic(block: int) -> float:
        size = block * per_tile
        buffers = 2 * plan.tiles * per_tile * (1 if size > near else 1 / 2 if size > SMALL else 1 / 4)
        reads = -(-plan.tiles // block) * weights
        return buffers + (reads if weights > near else reads / 4)

    def planned(block: int, phased: bool) -> Schedule[Plan]:
        made = replace(plan, block=block, tile=_tile(ctx, conv, block), phased=phased, ahead=ahead)
        cycles = _product_cycles(ctx, made) + traffic(block) / ctx.target.l2_bytes_per_cycle
        return Schedule(str(made), cycles, made)

    if ctx.threads > 1 and plan.tiles < 8 * ctx.threads and plan.tiles * per_tile <= most_bytes:
        return [planned(plan.tiles, True)]
    most = max(1, min(-(-plan.tiles // ctx.threads), most_bytes // per_tile))
    sizes = {-(-plan.tiles // count) for count in range(-(-plan.tiles // most), plan.tiles + 1)}
    even = {b: is_even(-(-plan.tiles // b), ctx.threads) for b in sizes}
    usual = min((b for b in sizes if b >= min(12, most)), key=lambda b: (not even[b], traffic(b), b))
    others = [min(sizes, key=lambda b: (abs(b - usual * scale), b)) for scale in SCALES]
    found = [planned(b, False) for b in dict.fromkeys((usual, *others))]
    least = found[0].cycles
    return [found[0], *(replace(s, cycles=max(s.cycles, least * (1 + DOUBT))) for s in found[1:])]


def _tile(ctx: Lowering, conv: Convolution, block: int) -> Tile:
    lanes = ctx.lanes(conv.sums)
    lined = Lined(lanes, lanes, lanes) if splats_lanes(ctx.target) else None
    return choose_tile(ctx.target, conv.sums, block, conv.channels_out, lined=lined, depth=conv.channels_in)


def _product_cycles(ctx: Lowering, plan: Plan) -> float:
    """Cycles of the products of all blocks."""
    steps = plan.n**2 * plan.blocks_in * plan.lanes * -(-plan.tiles // plan.block)
    parts = split(plan.block, plan.tile.pixels)
    each = sum(count * groups * step_cycles(ctx.target, pixels, vectors)
               for count, pixels in parts for _, groups, vectors in plan.groups)  # fmt: skip
    return steps * each


@dataclass(frozen=True, slots=True)
class Run:
    """`count` register tiles of `pixels` tiles each, from tile `begin` on.

    Each fetches `lines` lines of the next part of U for each block of channels, in order: the first one begins after
    `line` lines for each block.
    """

    begin: int
    count: int
    pixels: int
    line: int
    lines: int


def runs(plan: Plan, vectors: int) -> list[Run]:
    """A block of tiles, which reads one part of U again and again while it fetches the next.

    Without that memory would rest in all passes but the first.
    """
    found: list[Run] = []
    parts = split(plan.block, plan.tile.pixels)
    lines = vectors * plan.lanes**2 // LINE if plan.ahead else 0
    each = -(-lines // sum(count for count, _ in parts))
    begin = line = 0
    for count, pixels in parts:
        fetching = min(count, -(-(lines - line) // each)) if line < lines else 0
        for number, mine in ((fetching, each), (count - fetching, 0)):
            if number:
                found.append(Run(begin, number, pixels, line, mine))
                begin, line = begin + number * pixels, line + number * mine
    return found
