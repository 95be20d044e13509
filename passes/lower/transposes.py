"""Copies whose two sides are contiguous along different axes, through transposes in registers.

A block is `lanes` rows of the source by `piece` elements of each. The pieces of rows that are `piece` apart are loaded
side by side into one vector, so that the transpose stays within groups of `piece` lanes (16 bytes, the width within
which every processor shuffles fastest) and its results are whole vectors of the destination.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import gcd

from ...ir.loops import Buffer, Expr, const, minimum, shuffle
from ...ir.types import DType
from .context import INDEX, KernelBuilder, Lowering
from .copy_axes import Dim, Region, nest, offset_along
from .micro import LINE_BYTES, prefetches

PIECE_BYTES = 16
"""The width within which vectors are shuffled without crossing lanes."""

LEAST = 4
"""Elements of a piece, or all that 16 bytes hold, below which elements are copied one by one."""

SHORT_ROW = 4 * LINE_BYTES
"""Rows of the source that are read whole before the next ones: their lines follow each other in memory."""

L1_SETS = 64
"""Sets of a first-level cache: rows that lie a power of two apart share few of them."""

L1_WAYS = 8
"""Lines of one set that are safe until they are read again."""

LINES_AHEAD = 2
"""Lines of each row of the destination that are asked for before they are written."""

MANY_ROWS = 64
"""Rows of whole lines that come from the second cache sooner than they are asked for: bytes gain up to a fifth."""

FAR = 8
"""Second-level caches that a region fills before asking for its lines pays: from the third they come as fast."""

LINES_WIDE = 4
"""Lines of a row of the destination that are written in a row where rows share sets."""


@dataclass(frozen=True, slots=True)
class Block:
    """`axis`: that along which the source is contiguous; `lanes` of a stored vector, `piece` of them of one row.

    is_flat: rows of the destination are pieces that follow each other, so that a vector holds several of them.
    """

    axis: int
    piece: int
    lanes: int
    is_flat: bool = False


def register_block(ctx: Lowering, dtype: DType, dims: Sequence[Dim]) -> Block | None:
    """How to transpose; None where the two sides are contiguous along the same axis, or blocks would be too small."""
    last = dims[-1]
    found = [i for i, d in enumerate(dims[:-1]) if d.src == 1]
    if last.dst != 1 or abs(last.src) <= 1 or not found:
        return None
    rows = dims[found[0]]
    full = piece = min(PIECE_BYTES // dtype.nbytes, ctx.lanes(dtype))
    while piece > min(rows.size, last.size):
        piece //= 2
    is_flat = last.size == rows.dst == full == piece
    lanes = max(piece, min(ctx.lanes(dtype), 64))
    while lanes > (rows.size if is_flat else last.size):
        lanes //= 2
    if is_flat and lanes > piece:
        return Block(found[0], piece, lanes, is_flat=True)
    lanes = min(lanes, last.size)
    return Block(found[0], piece, lanes) if piece >= min(full, LEAST) and piece > 1 else None


def transpose(
    k: KernelBuilder,
    buffers: tuple[Buffer, Buffer],
    r: Region,
    dims: Sequence[Dim],
    block: Block,
    *,
    parallel: bool,
    near: bool = False,
) -> None:
    """All of a region; blocks at its edges overlap their neighbours. near: the destination is in the nearest cache."""
    if block.is_flat:
        _flat(k, buffers, r, dims, block, parallel=parallel)
        return
    plan = _Transpose(k, *buffers, r, dims, block, near)
    # Overlapping blocks write the same elements: they must stay with one thread.
    nest(k, plan.sizes, plan.strip, parallel=parallel and (len(dims) > 2 or not plan.is_ragged))


def _flat(
    k: KernelBuilder,
    buffers: tuple[Buffer, Buffer],
    r: Region,
    dims: Sequence[Dim],
    block: Block,
    *,
    parallel: bool,
) -> None:
    """Rows of the destination as groups of `piece` lanes: a vector of rows from each of as many columns at a time, and
    of the rows that are left the least vector that holds them, over rows before."""
    (y, x), rows, columns = buffers, dims[block.axis], dims[-1]
    order = [*(d for i, d in enumerate(dims[:-1]) if i != block.axis), rows]
    count, left = divmod(rows.size, block.lanes)
    tail = block.piece
    while tail < left:
        tail *= 2

    def one(at: Sequence[Expr], lanes: int) -> None:
        begin = k.let(offset_along(r.src, at, [d.src for d in order]), "begin")
        to = k.let(offset_along(r.dst, at, [d.dst for d in order]), "to")
        loaded = [k.let(k.load(x, begin + c * columns.src, lanes), "r") for c in range(block.piece)]
        for c, vector in enumerate(within_pieces(k, [_dealt(k, v, block.piece) for v in loaded])):
            k.store(y, to + c * lanes, vector)

    def body(head: Sequence[Expr]) -> None:
        for i in k.loop("i", count):
            one([*head, i * block.lanes], block.lanes)
        if left:
            one([*head, const(rows.size - tail)], tail)

    if left or len(order) > 1:
        nest(k, [d.size for d in order[:-1]], body, parallel=parallel)
    else:
        nest(k, [count], lambda index: one([index[0] * block.lanes], block.lanes), parallel=parallel)


def _dealt(k: KernelBuilder, row: Expr, piece: int) -> Expr:
    """Lanes dealt out to groups of `piece`, so that after the groups of as many rows are transposed those of a result
    follow each other."""
    groups = row.lanes // piece
    order = tuple(n * groups + g for g in range(groups) for n in range(piece))
    return row if groups == 1 else k.let(shuffle(row, None, order), "d")


class _Transpose:
    """A region as strips of blocks that use up the lines of the source that they touch and write whole ones.

    Where rows of the source share few sets of the first cache, a strip is copied side by side before its blocks read
    it; where those of the destination do as well, it is two lines long, since lines are fetched in pairs. Where only
    the destination does, blocks write several lines of one row before the next.
    """

    def __init__(
        self, k: KernelBuilder, y: Buffer, x: Buffer, r: Region, dims: Sequence[Dim], block: Block, near: bool
    ) -> None:
        self.k, self.y, self.x, self.r, self.block = k, y, x, r, block
        self.rows, self.columns = dims[block.axis], dims[-1]
        outer = [d for i, d in enumerate(dims[:-1]) if i != block.axis]
        self.order = [*outer, self.rows, self.columns]
        line = LINE_BYTES // y.dtype.nbytes
        is_short = self.rows.size * y.dtype.nbytes <= SHORT_ROW or self.rows.size < line
        self.strip_size = self.rows.size if is_short else max(line, block.piece)
        self.wide = block.lanes if self.columns.size < 2 * line else max(line, block.lanes)
        self._spare_sets(line, near)
        self.blocks = -(-self.strip_size // block.piece)
        counts = (-(-self.rows.size // self.strip_size), -(-self.columns.size // self.wide))
        self.sizes = [*(d.size for d in outer), *counts]
        self.is_ragged = bool(self.rows.size % self.strip_size or self.columns.size % self.wide)

    def _spare_sets(self, line: int, near: bool) -> None:
        """Decide what is copied, how long and wide strips are, and whether lines of the destination are asked for.

        A vector that is half a line or less is stored beside others of its line: only what hurts both ways is copied.
        """
        asks, fills = not near and prefetches(self.k.ctx.target), self.block.lanes >= line
        nbytes, second = self.r.size * self.y.dtype.nbytes, self.k.ctx.target.l2_bytes
        rows, long = min(line, self.strip_size), self.columns.size >= 2 * LINES_AHEAD * self.wide
        crowds = asks and self._share_sets(rows, self.rows.dst)
        whole = asks and self.strip_size % line == 0 and self.strip_size > self.block.piece
        self.is_copied = whole and self._share_sets(self.wide, self.columns.src) and (fills or (crowds and long))
        soon = rows >= MANY_ROWS and self.rows.dst % line == 0 and 4 * nbytes <= second
        self.asks = asks and long and not (fills and (soon or (crowds and not self.is_copied)))
        self.looks_ahead = not fills or nbytes > FAR * second
        if fills and crowds and self.is_copied and self.rows.size >= 2 * self.strip_size:
            self.strip_size *= 2
        elif fills and crowds and not self.is_copied and self.columns.size >= LINES_WIDE * line:
            self.wide = LINES_WIDE * line

    def _share_sets(self, count: int, step: int) -> bool:
        """Whether lines of `count` rows that are `step` elements apart drive each other from the first-level cache."""
        lines, ragged = divmod(abs(step) * self.y.dtype.nbytes, LINE_BYTES)
        return not ragged and count > L1_WAYS * (L1_SETS // gcd(L1_SETS, lines))

    def strip(self, index: Sequence[Expr]) -> None:
        """The blocks along the source's axis at one place of the destination's."""
        k = self.k
        *head, j, i = index
        at = [*head, _start(j, self.rows.size, self.strip_size), _start(i, self.columns.size, self.wide)]
        begin = k.let(offset_along(self.r.src, at, [d.src for d in self.order]), "begin")
        to = k.let(offset_along(self.r.dst, at, [d.dst for d in self.order]), "to")
        x, step = self.x, self.columns.src
        if self.is_copied:
            x, begin, step = self._near(begin), INDEX, self.strip_size
        for v in k.loop("v", self.blocks) if self.blocks > 1 else (INDEX,):
            first = k.let(_start(v, self.strip_size, self.block.piece), "first")
            self._write(k.let(to + first * self.rows.dst, "to"), x, k.let(begin + first, "begin"), step)

    def _write(self, to: Expr, x: Buffer, begin: Expr, row: int) -> None:
        k, piece, lanes = self.k, self.block.piece, self.block.lanes
        for c in range(piece) if self.asks else ():
            k.prefetch(self.y, to + (c * self.rows.dst + LINES_AHEAD * self.wide), near=True)
        for u in k.loop("u", self.wide, step=lanes) if self.wide > lanes else (INDEX,):
            at = k.let(begin + u * row, "at")
            loaded = [_side_by_side(k, x, at + c * row, piece, lanes, row) for c in range(piece)]
            for c, vector in enumerate(within_pieces(k, loaded)):
                k.store(self.y, to + (c * self.rows.dst + u), vector)

    def _near(self, begin: Expr) -> Buffer:
        """The strip's rows side by side; those of the next one are asked for where they come from memory."""
        k, size, step = self.k, self.strip_size, self.columns.src
        near = k.alloc("near", self.y.dtype, size * self.wide)
        width = min(k.ctx.lanes(self.y.dtype), LINE_BYTES // self.y.dtype.nbytes)
        for c in range(self.wide):
            if self.looks_ahead:
                k.prefetch(self.x, begin + (self.wide + c) * step)
            for i in range(0, size, width):
                k.store(near, c * size + i, k.load(self.x, begin + (c * step + i), width))
        return near


def _start(index: Expr, size: int, step: int) -> Expr:
    return index * step if size % step == 0 else minimum(index * step, size - step)


def _side_by_side(k: KernelBuilder, x: Buffer, begin: Expr, piece: int, lanes: int, row: int) -> Expr:
    """`piece` elements of each of lanes / piece rows that are `piece` rows apart."""
    parts = [k.let(k.load(x, begin + i * piece * row, piece), "r") for i in range(lanes // piece)]
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [k.let(shuffle(a, b, tuple(range(2 * a.lanes))), "r") for a, b in pairs]
    return parts[0]


def within_pieces(k: KernelBuilder, rows: Sequence[Expr]) -> list[Expr]:
    """Vectors whose groups of len(rows) lanes are transposed, each for itself: log2 rounds of interleaved halves."""
    size, lanes = len(rows), rows[0].lanes
    half = size // 2
    orders = [
        tuple(chain.from_iterable((n, lanes + n) for g in range(first, lanes, size) for n in range(g, g + half)))
        for first in (0, half)
    ]
    block = list(rows)
    for _ in range(size.bit_length() - 1):
        pairs = zip(block[:half], block[half:], strict=True)
        block = [k.let(shuffle(a, b, order), "s") for a, b in pairs for order in orders]
    return block


def transposed(k: KernelBuilder, rows: Sequence[Expr]) -> list[Expr]:
    """lanes vectors of lanes elements, transposed by log2(lanes) exchanges of halves (butterfly network)."""
    lanes, distance = len(rows), len(rows) // 2
    block = list(rows)
    while distance:
        low = tuple(i if not i & distance else lanes + i - distance for i in range(lanes))
        high = tuple(i + distance if not i & distance else lanes + i for i in range(lanes))
        for i in range(lanes):
            if not i & distance:
                a, b = block[i], block[i + distance]
                block[i] = k.let(shuffle(a, b, low), "s")
                block[i + distance] = k.let(shuffle(a, b, high), "s")
        distance //= 2
    return block
