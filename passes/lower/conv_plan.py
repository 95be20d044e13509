"""Schedules of the direct convolution: tiles, blocks of channels, tasks, and weights packed to match."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...codegen.target import Target
from ...ir.types import DType
from .context import Lowering
from .conv_kernel import Convolution
from .micro import products_together, splats_lanes
from .tile import Lined, Segment, Tile, choose_tile, segments

MAX_TAPS = 8
"""Longest row of taps that is unrolled whole where x is read as vectors along it."""

MAX_BLOCKED_TAPS = 3
"""The same where x is blocked, and a tap has a block of channels: longer ones would fill the instruction cache."""

NEAR_POINTWISE = 0.5
"""Weights of a chunk as a part of the first cache, where every pixel is read once."""

NEAR_WINDOW = 0.5
"""Weights of a chunk as a part of the first cache, where pixels are read by several taps."""


LIGHT = 0.5
"""Part of what the second cache gives that weights and pixels of a tile may both take from it all the time."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """`count` blocks of `vectors` output vectors from block `first` on; `valid` lanes of the last vector are stored."""

    first: int
    count: int
    vectors: int
    valid: int


@dataclass(frozen=True, slots=True)
class Inputs:
    """`count` blocks of `size` input channels from block `first` on; `skip`: input channels before them."""

    first: int
    count: int
    size: int
    skip: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Schedule of one convolution. A task is `rows` rows (or `tiles` tiles of one row) by `blocks` blocks of outputs.

    A task passes over its outputs once for each of `chunks` chunks of `chunk` blocks of input channels; sums over fewer
    channels wait in the result.
    """

    conv: Convolution
    tile: Tile
    lanes: int
    outputs: tuple[Outputs, ...]
    inputs: tuple[Inputs, ...]
    segments: tuple[Segment, ...]
    rows: int
    row_tasks: int
    tiles: int
    tile_tasks: int
    chunk: int
    chunks: int
    blocks: int = 1

    def __str__(self) -> str:
        tiles = f" tiles={self.tiles}" if self.tile_tasks > 1 else ""
        blocks = f" blocks={self.blocks}" if self.blocks > 1 else ""
        chunks = f" chunks={self.chunks}" if self.chunks > 1 else ""
        return f"tile={self.tile.pixels}x{self.tile.vectors} rows={self.rows}{tiles}{chunks}{blocks}"

    @property
    def blocks_out(self) -> int:
        return sum(o.count for o in self.outputs)

    @property
    def tiles_of_row(self) -> int:
        return sum(s.count for s in self.segments)

    @property
    def block_tasks(self) -> int:
        return -(-self.blocks_out // self.blocks)

    @property
    def dims(self) -> tuple[int, ...]:
        """Tasks: image, rows, tiles, group, blocks of outputs."""
        return self.conv.batch, self.row_tasks, self.tile_tasks, self.conv.groups, self.block_tasks


def make_plan(ctx: Lowering, conv: Convolution, whole_vectors: bool, tile: Tile | None = None) -> Plan:
    """The plan by the rules for a tile (by default the one of least estimated time).

    `whole_vectors`: lanes beyond the last channel may be stored.
    """
    plan = row_plan(ctx, conv, whole_vectors, 1, tile)
    if _may_wait(plan, whole_vectors) and (streamed := _streamed(ctx, plan)) is not None:
        return streamed
    return _divided(ctx, plan)


def row_plan(ctx: Lowering, conv: Convolution, whole_vectors: bool, rows: int, tile: Tile | None = None) -> Plan:
    """Tiles along a row and chunks, for about `rows` rows at once."""
    lanes, axis = ctx.lanes(conv.sums), conv.window.w
    lined, depth = lines(ctx.target, conv), conv.channels_in * conv.window.taps
    tile = tile or choose_tile(ctx.target, conv.sums, axis.out, conv.channels_out, lined=lined, depth=depth)
    row = segments(axis, tile.pixels)
    outputs = _outputs(conv.channels_out, tile.vectors, lanes, whole_vectors)
    inputs = _inputs(conv, lanes)
    plan = Plan(conv, tile, lanes, outputs, inputs, row, rows, 1, 1, 1, inputs[0].count, 1)
    return chunked(plan, _near_chunks(ctx, plan)) if _may_wait(plan, whole_vectors) else plan


def _may_wait(plan: Plan, whole_vectors: bool) -> bool:
    """Whether sums may wait in the result."""
    conv = plan.conv
    fits = whole_vectors and conv.dtype is conv.sums
    return fits and conv.y.layout.block == conv.x.type.layout.block == plan.lanes


def products_of(target: Target, conv: Convolution) -> int:
    """Products that are added together (`products_together`); of bf16 one where channels are plain or odd, since what
    lies beyond them may be NaN."""
    paired = conv.x.type.layout.block and conv.channels_in % 2 == 0
    return 1 if conv.dtype is DType.BF16 and not paired else products_together(target, conv.dtype)


def lines(target: Target, conv: Convolution) -> Lined | None:
    """How x is read as vectors: along channels where it is blocked, along the taps of a row where it is plain."""
    if not splats_lanes(target) or products_of(target, conv) > 1:
        return None
    block, axis, lanes = conv.x.type.layout.block, conv.window.w, target.lanes(conv.sums)
    if block:
        return Lined(block * axis.kernel if reads_row_of_taps(target, conv) else block, axis.stride * block, lanes)
    if axis.dilation > 1:
        return Lined(1, axis.stride, lanes)
    return Lined(axis.kernel if axis.kernel <= MAX_TAPS else lanes, axis.stride, lanes)


def reads_row_of_taps(target: Target, conv: Convolution) -> bool:
    """Whether the inputs of all taps of a row, which pixels share, are read at once where x is read as vectors."""
    axis, block = conv.window.w, conv.x.type.layout.block
    return splats_lanes(target) and axis.dilation == 1 and (not block or 1 < axis.kernel <= MAX_BLOCKED_TAPS)


def chunked(plan: Plan, count: int) -> Plan:
    """The plan with about `count` chunks."""
    blocks = plan.inputs[0].count
    chunk = -(-blocks // min(count, blocks))
    return replace(plan, chunk=chunk, chunks=-(-blocks // chunk))


def _near_chunks(ctx: Lowering, plan: Plan) -> int:
    """Chunks so that their weights, for one block of outputs, stay near while all pixels pass; one chunk where they
    come from the second cache as fast as they are needed, since then no sums need wait."""
    whole, window = plan.inputs[0], plan.conv.window
    if window.pixels < 2 * plan.tile.pixels or _stays_in_second_cache(ctx, plan) or _reads_from_second_cache(ctx, plan):
        return 1
    block = whole.count * whole.size * window.taps * plan.tile.vectors * plan.lanes * plan.conv.dtype.nbytes
    near = (NEAR_POINTWISE if window.is_pointwise else NEAR_WINDOW) * ctx.target.l1_bytes
    return min(whole.count, max(1, -(-block // int(near))))


def _streamed(ctx: Lowering, plan: Plan) -> Plan | None:
    """A task over all rows, chunk by chunk, where tasks of fewer rows would read large weights again and again."""
    conv, room = plan.conv, ctx.target.l2_bytes // 2
    image = conv.x.type.nbytes // conv.batch
    result = conv.window.pixels * conv.channels_out * 4
    weights = conv.weights.nbytes // conv.groups
    count = max(-(-image // (conv.groups * room)), _near_chunks(ctx, plan))
    again = weights * -(-image // (conv.groups * room))
    if weights <= room or image <= conv.groups * room or weights + 2 * count * result >= again * 3 // 4:
        return None
    others = conv.batch * conv.groups
    tasks = min(plan.blocks_out, -(-4 * ctx.threads // others) if ctx.threads > 1 else 1)
    tiles = plan.tiles_of_row
    rows = conv.window.d.out * conv.window.h.out
    blocks = -(-plan.blocks_out // tasks)
    return replace(chunked(plan, count), rows=rows, tiles=tiles, blocks=blocks)


def _outputs(channels: int, vectors: int, lanes: int, whole_vectors: bool) -> tuple[Outputs, ...]:
    total = -(-channels // lanes)
    last = lanes if whole_vectors else channels - (total - 1) * lanes
    count, rest = divmod(total, vectors)
    found = [Outputs(0, count, vectors, lanes)] if count else []
    if rest:
        return (*found, Outputs(count, 1, rest, last))
    if last == lanes:
        return tuple(found)
    whole = [Outputs(0, count - 1, vectors, lanes)] if count > 1 else []
    return (*whole, Outputs(count - 1, 1, vectors, last))


def _inputs(conv: Convolution, lanes: int) -> tuple[Inputs, ...]:
    channels = conv.channels_in
    if not conv.x.type.layout.block:
        return (Inputs(0, channels, 1, 0),)
    count, rest = divmod(channels, lanes)
    whole = (Inputs(0, count, lanes, 0),) if count else ()
    return (*whole, Inputs(count, 1, rest, count * lanes)) if rest else whole


def _divided(ctx: Lowering, plan: Plan) -> Plan:
    """Rows of a task so that their input stays in half of the second cache, and all threads have work.

    In nearly all of it where the weights do not: 3x3/2 of 512 channels, 14x14 -> 7x7, gains a fifth.
    """
    conv, w = plan.conv, plan.conv.window
    room = max(1, _room(ctx, plan))
    size = conv.dtype.nbytes
    rows = w.d.out * w.h.out
    others = conv.batch * conv.groups * plan.blocks_out
    wanted = -(-4 * ctx.threads // others) if ctx.threads > 1 else 1
    if rows == 1 and len(plan.segments) <= 2 and not any(s.taps is not None or s.dynamic for s in plan.segments):
        tiles = plan.tiles_of_row
        tile_bytes = plan.tile.pixels * w.w.stride * conv.channels_in * size
        step = max(1, min(tiles, room // tile_bytes, -(-tiles // wanted)))
        return replace(plan, tiles=step, tile_tasks=-(-tiles // step))
    if conv.weights.nbytes > ctx.target.l2_bytes:  # another task would read them from afar again
        room = max(room, ctx.target.l2_bytes * 7 // 8)
    row_bytes = w.w.size * conv.channels_in * size * w.h.stride
    halo = (w.h.reach + 1 - w.h.stride) * w.w.size * conv.channels_in * size
    step = max(1, min(rows, (room - halo) // max(1, row_bytes), -(-rows // wanted)))
    step = -(-rows // -(-rows // step))
    return replace(plan, rows=step, row_tasks=-(-rows // step))


def _room(ctx: Lowering, plan: Plan) -> int:
    """Bytes that a task's input may take."""
    return ctx.target.l1_bytes // 2 if _reads_from_second_cache(ctx, plan) else ctx.target.l2_bytes // 2


def _stays_in_second_cache(ctx: Lowering, plan: Plan) -> bool:
    """Whether all weights stay in the second cache beside a task's pixels, and come from there as fast as they are
    needed.

    Of 28x28, 512 -> 256 channels, they do; of 14x14, 1024 -> 256, pixels would come from afar for every block.
    """
    conv, target = plan.conv, ctx.target
    if not conv.window.is_pointwise or splats_lanes(target) or pull(target, plan) > LIGHT:
        return False
    weights = conv.weights.nbytes // conv.groups
    pixels = min(conv.x.type.nbytes // (conv.batch * conv.groups), target.l2_bytes // 2)
    return weights + pixels <= target.l2_bytes * 4 // 5


def _reads_from_second_cache(ctx: Lowering, plan: Plan) -> bool:
    """Whether all weights stay in the second cache, but those of a block of outputs do not stay in the first.

    Then a task's input should stay in the first, so that only weights are read from the second, unless that gives
    enough for both: 1x1 of 1024 channels, 14x14, gains an eighth where it gives 48 bytes a cycle.
    """
    conv, target = plan.conv, ctx.target
    all_blocks = conv.channels_out * conv.channels_in * conv.window.taps * conv.dtype.nbytes
    near = all_blocks <= target.l2_bytes * 5 // 8 and conv.x.type.nbytes <= target.l2_bytes
    far = conv.window.is_pointwise and block_bytes(plan) > target.l1_bytes // 2
    return near and far and pull(target, plan) > LIGHT


def block_bytes(plan: Plan) -> int:
    """Bytes of the weights of a block of outputs."""
    conv = plan.conv
    return plan.tile.vectors * plan.lanes * conv.channels_in * conv.window.taps * conv.dtype.nbytes


def pull(target: Target, plan: Plan) -> float:
    """Part of what the second cache gives that both weights and pixels of a tile take while they are multiplied."""
    step = 4 * (plan.tile.vectors * plan.lanes + plan.tile.pixels)
    cycles = plan.tile.pixels * plan.tile.vectors / target.fma_per_cycle
    return step / cycles / target.l2_bytes_per_cycle


def pack_weights(plan: Plan, target: Target) -> np.ndarray:
    """Weights in the order in which the kernel reads them, zero beyond the last output channel."""
    together = products_of(target, plan.conv)
    packed = packed_together(plan, together)
    return packed.astype(np.float32) if plan.conv.dtype is DType.BF16 and together == 1 else packed


def packed_together(plan: Plan, together: int) -> np.ndarray:
    """The same with `together` channels side by side for each output channel."""
    conv, lanes = plan.conv, plan.lanes
    taps, cin, cout = conv.window.taps, conv.channels_in, conv.channels_out
    total = -(-cout // lanes) * lanes
    w = np.zeros((conv.groups, total, cin, taps), conv.weights.dtype)
    w[:, :cout] = conv.weights.reshape(conv.groups, cout, cin, taps)
    parts = []
    for group in w:
        for out in plan.outputs:
            width = out.vectors * lanes
            for block in range(out.count):
                first = out.first * plan.tile.vectors * lanes + block * width
                mine = group[first : first + width]
                for i in plan.inputs:
                    part = mine[:, i.skip : i.skip + i.count * i.size]
                    steps = part.reshape(width, i.count, i.size // together, together, taps)
                    parts.append(steps.transpose(1, 4, 2, 0, 3).reshape(-1))
    return np.concatenate(parts)
