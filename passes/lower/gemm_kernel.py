"""Matrix products with lanes along n, as register tiles.

A tile of rows × vectors accumulators stays in registers over the whole of k; elements of `a` are broadcast, rows of `b`
are read as vectors, from panels packed `[n / (V·lanes)][k][V·lanes]` or, where `b` is row-major and not constant, in
place. One row is the matrix-vector form of it: many vectors, one linear stream of weights.

The tile obeys rows·V + V + 1 <= registers (+ rows where lanes are splatted) and has accumulators enough to hide the
latency of a multiply-add (Goto, van de Geijn: Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34(3), 2008).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ...codegen.target import Target
from ...ir.loops import Expr, const, minimum
from ...ir.structure import exact_half
from ...ir.types import DType
from .book_panels import CodedPanels
from .books import Book
from .context import KernelBuilder, Lowering
from .micro import LINE_BYTES, Ahead, Weights, ahead, multiply, prefetches, rows_of, splats_lanes
from .panels import Panels, pack_at_run_time, pack_panels, tail_vectors
from .product import (
    Matrix,
    Product,
    begin_sums,
    constant_matrix,
    finish_lanes,
    is_index,
    offset_at,
    stacked,
    tree_sum,
    unravel,
)
from .schedule import Schedule, choose
from .tasks import PARALLEL_MACS, guarded, pieces, tasks
from .tile import LATENCY, Tile, bound

UNROLL_AHEAD = 8
"""Steps of k in an iteration that asks for weights."""
ENOUGH_ROWS = 128
"""Rows that pay for reading a panel from far."""
FEW_ROWS = 4
"""Rows up to which a product takes the time of reading its panels."""
MIN_TILES = 2
"""Row tiles that must share a panel before asking for the next one pays."""


@dataclass(frozen=True, slots=True)
class Strip:
    """Columns n0 .. n0 + valid of `b`, read at base + k·step + vector·lanes."""

    n0: Expr
    base: Expr
    step: int
    vectors: int
    lanes: int
    valid: int


def tiles(target: Target, acc: DType, m: int, n: int, k: int) -> list[Schedule[Tile]]:
    """Tiles that fit the registers, of equally fast ones the largest first."""
    lanes, registers = target.lanes(acc), target.registers
    vectors = -(-n // lanes)
    if m == 1:
        widest = Tile(1, min(vectors, 8 if registers >= 16 else 4))
        return [Schedule(f"tile={widest}", _cycles(target, widest, m, vectors, k) * k, widest)]
    spare = (lambda r: r + 1) if splats_lanes(target) else (lambda r: 1)
    fits = [
        Tile(r, v)
        for v in range(1, min(vectors, 6) + 1)
        for r in range(1, min(m, registers) + 1)
        if r * v + v + spare(r) <= registers
    ]
    fits.sort(key=lambda t: (-t.rows * t.vectors, t.vectors))
    return [Schedule(f"tile={t}", _cycles(target, t, m, vectors, k) * k, t) for t in fits]


def _cycles(target: Target, tile: Tile, m: int, vectors: int, k: int) -> float:
    """Estimated cycles of one step of k of the product: bound by multiply-adds, loads or latency."""
    overhead = 12 / max(k, 1)

    def step(rows: int, width: int) -> float:
        return bound(target, rows, width) + overhead * (1 + rows * width / 4)

    total = 0.0
    for width, panels in ((tile.vectors, vectors // tile.vectors), (vectors % tile.vectors, 1)):
        if width and panels:
            rest = m % tile.rows
            total += panels * (m // tile.rows * step(tile.rows, width) + (step(rest, width) if rest else 0))
    return total


def panels_of(ctx: Lowering, p: Product, rows: int, vectors: int) -> Panels:
    """Panels of so many vectors, all row tiles in one task."""
    width = vectors * ctx.lanes(p.acc)
    row_tiles = max(p.m // rows, 1)
    return Panels(Tile(rows, vectors), ctx.lanes(p.acc), p.n // width, -(-p.n // width), row_tiles, row_tiles, 1)


def block_product(
    k: KernelBuilder, p: Product, plan: Panels, batch: tuple[Expr, ...], mb: Expr, source: Expr | None = None
) -> None:
    """All columns of one task's rows, `b` in panels; `source`: where row 0 of `a` begins."""
    at = k.let(offset_at(p.b.batch, batch), "b")
    for nb in k.loop("panel", plan.whole) if plan.whole else ():
        _rows(k, p, plan, _whole_strip(p, plan, True, at, nb), batch, mb, source)
    if plan.whole < plan.panels:
        for strip in _rest_strips(p, plan, True, at):
            _rows(k, p, plan, strip, batch, mb, source)


def _plan(ctx: Lowering, p: Product, tile: Tile) -> Panels:
    lanes = ctx.lanes(p.acc)
    width = tile.vectors * lanes
    whole, panels = p.n // width, -(-p.n // width)
    row_tiles = max(p.m // tile.rows, 1)
    most = _rows_at_once(ctx.target, tile.rows * p.k * p.acc.nbytes, tile.rows)
    if ctx.threads > 1 and p.macs >= PARALLEL_MACS:
        wanted = -(-4 * ctx.threads // (prod(p.batch) * panels))
        most = min(most, max(1, row_tiles // wanted))
    return Panels(tile, lanes, whole, panels, row_tiles, most, -(-row_tiles // most))


def _rows_at_once(target: Target, tile_bytes: int, rows: int) -> int:
    """Row tiles that go over all panels: as many as stay in the second-level cache or, where those are so few that
    panels would be read again too often, in the third."""
    near = target.l2_bytes // 2 // max(1, tile_bytes)
    return max(1, near if near * rows >= ENOUGH_ROWS else target.l3_bytes // 2 // max(1, tile_bytes))


def multiply_by_panels(ctx: Lowering, p: Product, family: str, book: Book | None = None) -> None:
    """With a book the constant factor lies as indices, and a task expands a panel before its rows pass over it."""
    problem = f"{prod(p.batch)} of {p.m}x{p.n}x{p.k} {p.acc} threads {ctx.threads}"
    candidates = tiles(ctx.target, p.acc, p.m, p.n, p.k)
    tile = choose(ctx, "gemm", problem, [replace(s, cycles=s.cycles * prod(p.batch)) for s in candidates])
    plan = _plan(ctx, p, tile)
    coded = None if book is None else CodedPanels(ctx, p, plan, book)
    if coded is None:
        p, packed = _packed(ctx, p, plan)
    else:
        p, packed = replace(p, b=Matrix(coded.panel, (0,) * len(p.batch), 0, 0)), True
    k = ctx.kernel()
    count = prod(p.batch) * plan.row_tasks * plan.panels
    for t in tasks(k, p.macs, count):
        nb = k.let(t % plan.panels, "panel")
        rest = k.let(t / plan.panels, "rest")
        mb, batch = k.let(rest % plan.row_tasks, "block"), unravel(rest / plan.row_tasks, p.batch)
        batch = tuple(k.let(b, "batch") for b in batch)
        at = offset_at(p.b.batch, batch)
        if plan.whole:
            for _ in guarded(k, nb < plan.whole, plan.whole < plan.panels):
                _rows(k, p, plan, _filled(k, _whole_strip(p, plan, packed, at, nb), coded, nb), batch, mb)
        if plan.whole < plan.panels:
            for _ in guarded(k, nb >= plan.whole, plan.whole > 0):
                for strip in _rest_strips(p, plan, packed, at):
                    _rows(k, p, plan, _filled(k, strip, coded, nb), batch, mb)
    k.done(family)


def _filled(k: KernelBuilder, strip: Strip, coded: CodedPanels | None, nb: Expr) -> Strip:
    return strip if coded is None else replace(strip, base=coded.fill(k, nb, strip.vectors))


def _packed(ctx: Lowering, p: Product, plan: Panels) -> tuple[Product, bool]:
    """The product with `b` in panels, at compile time where it is constant; row-major `b` stays as it is."""
    width = plan.tile.vectors * plan.lanes
    data = p.b.value.data
    if data is not None:
        value = ctx.pack("panels", _stored(ctx, p, pack_panels(constant_matrix(p), width, plan.lanes)))
        size = plan.whole * p.k * width + p.k * tail_vectors(p, plan) * plan.lanes
        return replace(p, b=stacked(p, value, size, [1 if s else 0 for s in p.b.batch])), True
    if p.b.col == 1:
        return p, False
    return pack_at_run_time(ctx, p, plan), True


def _stored(ctx: Lowering, p: Product, panels: np.ndarray) -> np.ndarray:
    """Panels in half the bytes where that keeps every bit and few rows make it their bytes that take the time: the
    elements are widened in registers."""
    half = exact_half(panels) if p.acc is DType.F32 and p.m <= FEW_ROWS else None
    fast = half is DType.BF16 or half is DType.F16 and ctx.target.converts_f16
    return panels.astype(half.numpy) if half is not None and fast else panels


def _whole_strip(p: Product, plan: Panels, packed: bool, at: Expr, nb: Expr) -> Strip:
    width = plan.tile.vectors * plan.lanes
    base = at + nb * (p.k * width if packed else width)
    return Strip(nb * width, base, width if packed else p.b.row, plan.tile.vectors, plan.lanes, width)


def _rest_strips(p: Product, plan: Panels, packed: bool, at: Expr) -> Iterator[Strip]:
    """The columns after the whole panels: packed with padding; in place with ever narrower vectors."""
    n0 = plan.whole * plan.tile.vectors * plan.lanes
    if packed:
        vectors = tail_vectors(p, plan)
        yield Strip(const(n0), at + n0 * p.k, vectors * plan.lanes, vectors, plan.lanes, p.n - n0)
        return
    if vectors := (p.n - n0) // plan.lanes:
        yield Strip(const(n0), at + n0, p.b.row, vectors, plan.lanes, vectors * plan.lanes)
        n0 += vectors * plan.lanes
    for first, lanes in pieces(p.n - n0):
        yield Strip(const(n0 + first), at + (n0 + first), p.b.row, 1, lanes, lanes)


def _rows(
    k: KernelBuilder,
    p: Product,
    plan: Panels,
    strip: Strip,
    batch: tuple[Expr, ...],
    mb: Expr,
    source: Expr | None = None,
) -> None:
    """All row tiles of one task over a strip of columns."""
    strip = replace(strip, base=k.let(strip.base, "b"), n0=k.let(strip.n0, "n"))
    source = k.let(offset_at(p.a.batch, batch), "a") if source is None else source
    tiles = p.m // plan.tile.rows
    if tiles:
        begin = mb * plan.tiles_a_task
        end = begin + plan.tiles_a_task
        if tiles % plan.tiles_a_task:
            end = minimum(end, const(tiles))
        for i in k.loop("i", end, begin):
            m = k.let(i * plan.tile.rows, "m")
            soon = (*_next_panel(k, p, plan, strip, i - begin), *_next_rows(k, p, plan, source, m))
            _tile(k, p, strip, batch, source, m, plan.tile.rows, soon)
    if rest := p.m - tiles * plan.tile.rows:
        for _ in guarded(k, is_index(mb, plan.row_tasks - 1), plan.row_tasks > 1):
            _tile(k, p, strip, batch, source, const(tiles * plan.tile.rows), rest)


def _next_panel(k: KernelBuilder, p: Product, plan: Panels, strip: Strip, i: Expr) -> tuple[Ahead, ...]:
    """The share of row tile i in bringing the panel that follows closer, where weights come from far away."""
    tiles = min(plan.tiles_a_task, plan.row_tiles)
    if p.b.value.data is None or not prefetches(k.ctx.target) or tiles < MIN_TILES or p.k < UNROLL_AHEAD:
        return ()
    size = p.k * strip.step
    lines = -(-size * p.b.value.type.dtype.nbytes // (LINE_BYTES * tiles))
    soon = ahead(k.tensor(p.b.value), strip.base + size, p.k, lines, UNROLL_AHEAD)
    return (replace(soon, at=k.let(soon.at + minimum(i * soon.span, const(size)), "soon")),)


def _next_rows(k: KernelBuilder, p: Product, plan: Panels, source: Expr, m: Expr) -> tuple[Ahead, ...]:
    """The rows of the tile that follows, where a block of them is brought into the second-level cache.

    Long rows, which come from the third one for every panel, are better left to the processor: measured.
    """
    row_bytes, near = p.k * p.a.value.type.dtype.nbytes, k.ctx.target.l2_bytes // 2
    if not near // ENOUGH_ROWS >= row_bytes > near // p.m:
        return ()
    if not prefetches(k.ctx.target) or p.a.col != 1 or p.k < UNROLL_AHEAD:
        return ()
    buffer, rows = k.tensor(p.a.value), plan.tile.rows
    following = k.let(source + (m + rows) * p.a.row, "following")
    return tuple(Ahead(buffer, following + r * p.a.row, 1, 1, p.k) for r in range(rows))


def _tile(
    k: KernelBuilder,
    p: Product,
    strip: Strip,
    batch: tuple[Expr, ...],
    source: Expr,
    m: Expr,
    rows: int,
    soon: tuple[Ahead, ...] = (),
) -> None:
    """rows × strip.vectors accumulators over the whole of k, then their results."""
    vectors, lanes, target = strip.vectors, strip.lanes, k.ctx.target
    needed = LATENCY * target.fma_per_cycle
    sets = 1 if rows * vectors >= needed or rows > 1 else min(needed // (rows * vectors), p.k, 8)
    along_k = splats_lanes(target) and p.a.col == 1 and p.k >= 4
    unroll = UNROLL_AHEAD if soon else max(sets, 4 if along_k or rows > 1 else 2)
    tile = rows * vectors
    acc = k.registers("acc", p.acc, tile * sets, lanes)
    for s in range(sets):
        for r in range(rows):
            for v in range(vectors):
                k.store(
                    acc,
                    s * tile + r * vectors + v,
                    begin_sums(k, p, strip.n0 + v * lanes, lanes) if s == 0 else const(0, p.acc, lanes),
                )
    row = k.let(source + m * p.a.row, "row")
    x = rows_of(k.tensor(p.a.value), row, p.a.row, rows, step=p.a.col)
    weights = Weights(k.tensor(p.b.value), strip.base, strip.step, vectors, lanes)
    multiply(k, x, weights, p.k, acc, sets=sets, unroll=unroll, soon=soon)
    for r in range(rows):
        for v in range(vectors):
            i = r * vectors + v
            value = tree_sum([k.load(acc, s * tile + i) for s in range(sets)])
            finish_lanes(k, p, (*batch, m + r, strip.n0 + v * lanes), min(lanes, strip.valid - v * lanes), value)
