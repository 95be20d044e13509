"""c2c.Attention straight from memory, for devices whose work-groups share none that is nearer than the caches: a thread
takes some rows of q through blocks of keys, with scores and results in memory of its own and tiles of their sums in
registers.

Keys are turned first, so that a vector of scores is of neighbouring keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod

from ....codegen.target import Target
from ....ir.loops import Buffer, Expr, broadcast, cast, const, maximum, minimum, ramp, reduce, select
from ....ir.types import DType
from ...attention import Form
from ..attention import applied, heads_of, write_result
from ..context import KernelBuilder, Lowering, Site
from ..math_functions import exp_nonpositive
from ..product import Matrix, Product, offset_at, unravel
from ..schedule import Schedule
from ..tasks import guarded
from .memory_product import turned
from .online_softmax import FUNCTION, below, power, share_of
from .registers import IN_FLIGHT, Columns, RegisterTile, Sums, busy

ROWS = (4, 6, 8)
"""Of a thread, of equal cost the first: fewer read keys and values too often."""
VECTORS = (4, 3, 2, 1)
CAN_WIN = 1.5
"""Tiles that take so many times the best one's cost are no candidates."""


@dataclass(frozen=True, slots=True)
class MemoryTile:
    """scores: rows and vectors of keys that come together; results: rows and vectors of columns of v in registers, of
    which a row has `groups`."""

    scores: RegisterTile
    results: RegisterTile
    groups: int

    def __str__(self) -> str:
        return f"rows={self.scores.rows} keys={self.scores.width} columns={self.results.width}"

    @property
    def sums(self) -> int:
        """Vectors of them that are in registers at a time."""
        return max(t.rows * t.vectors for t in (self.scores, self.results))

    @property
    def registers(self) -> int:
        return max(self.scores.registers, self.results.registers)

    @property
    def width(self) -> int:
        """Elements of a row of results."""
        return self.groups * self.results.width


def memory_tiles(target: Target, rows: int, count: int, wide: int) -> list[MemoryTile]:
    """What fits the registers for so many rows and keys, and values of `wide`."""
    device = target.device
    if device is None or device.shares or rows < min(ROWS):
        return []
    lanes, across = (1 << (min(device.lanes, n).bit_length() - 1) for n in (count, wide))
    columns = -(-wide // across)
    tiles = [
        MemoryTile(RegisterTile(r, v, lanes), RegisterTile(r, w, across), -(-columns // w))
        for r in ROWS for v in VECTORS for w in VECTORS if r <= rows and v * lanes <= count and w <= columns
    ]  # fmt: skip
    return [t for t in tiles if t.sums <= IN_FLIGHT and t.registers <= device.registers]


def memory_schedules(target: Target, scores: Product, values: Product) -> list[Schedule[MemoryTile]]:
    """Those tiles with what they take, as products from memory."""
    tiles = memory_tiles(target, scores.m, scores.n, values.n)
    made = [Schedule(str(t), _cost(scores, t), t) for t in tiles]
    least = min((s.cycles for s in made), default=0.0)
    return [s for s in made if s.cycles <= CAN_WIN * least]


def _cost(scores: Product, t: MemoryTile) -> float:
    """Steps of both products, results' way from memory and back, and powers."""
    threads = prod(scores.batch) * -(-scores.m // t.scores.rows)
    back = 2 * t.results.rows * t.results.vectors
    block = scores.k * t.scores.step + t.groups * (t.scores.width * t.results.step + back)
    powers = FUNCTION * t.scores.rows * t.scores.vectors
    return threads * -(-scores.n // t.scores.width) * (block + powers) * busy(threads)


def write_from_memory(ctx: Lowering, form: Form, products: tuple[Product, Product], tile: MemoryTile) -> None:
    """Append the kernels: keys are turned, and what reads them."""
    _Attention(ctx, form, products, tile).write()


class _Attention:
    """Writes the kernel. A last block that is not full begins where it ends with the last key; keys that were there
    before count for nothing."""

    def __init__(self, ctx: Lowering, form: Form, products: tuple[Product, Product], tile: MemoryTile) -> None:
        self.ctx, self.form, self.tile = ctx, form, tile
        self.scores, self.values = products
        self.keys = turned(ctx, self.scores)
        self.columns = Columns(self.values.n, tile.results.lanes, beyond=False)
        self.k: KernelBuilder = ctx.kernel()

    def write(self) -> None:
        k, scores, rows = self.k, self.scores, self.tile.scores.rows
        for z in k.loop("head", prod(scores.batch), kind="grid"):
            for block in k.loop("rows", -(-scores.m // rows), kind="grid"):
                for _ in k.loop("thread", 1, kind="thread"):
                    self._thread(unravel(z, scores.batch), k.let(block * rows, "first_row"))
        k.done("attention")

    def _thread(self, batch: tuple[Expr, ...], first_row: Expr) -> None:
        k, tile, rows = self.k, self.tile, self.tile.scores.rows
        largest, totals, corrections = (k.alloc(name, DType.F32, rows) for name in ("largest", "totals", "corrections"))
        for r in k.loop("r", rows):
            k.store(largest, r, const(-inf, DType.F32))
            k.store(totals, r, const(0.0, DType.F32))
        results, width = k.alloc("results", DType.F32, rows * tile.width), tile.scores.width
        for at in k.loop("at", rows * tile.width, step=tile.results.lanes):
            k.store(results, at, const(0.0, DType.F32, tile.results.lanes))
        for step in k.loop("step", -(-self.scores.n // width)):
            begin = k.let(step * width, "begin")
            first = begin if not self.scores.n % width else k.let(minimum(begin, self.scores.n - width), "first")
            powers = self._scores(batch, first_row, first)
            for r in k.loop("r", rows):
                row = k.let(first_row + r, "row")
                self._raise((batch, row, first, begin), r, powers, (largest, totals, corrections))
            for group in k.loop("group", tile.groups):
                self._weigh((batch, first, begin), group, (powers, corrections), results)
        self._finish(batch, first_row, results, (largest, totals))

    def _load(self, of: Matrix, at: Expr, lanes: int = 1) -> Expr:
        return cast(self.k.load(self.k.tensor(of.value), at, lanes), DType.F32)

    def _row(self, row: Expr) -> Expr:
        return row if not self.scores.m % self.tile.scores.rows else minimum(row, self.scores.m - 1)

    def _scores(self, batch: tuple[Expr, ...], first_row: Expr, first: Expr) -> Buffer:
        """Products of the rows and keys from `first` on, row by row."""
        k, tile, a, keys = self.k, self.tile.scores, self.scores.a, self.keys
        base = offset_at(a.batch, batch)
        rows = [k.let(base + self._row(first_row + r) * a.row, "q_row") for r in range(tile.rows)]
        at = k.let(offset_at(keys.batch, batch) + first, "keys")
        sums = Sums(k, tile, DType.F32)
        for d in k.loop("d", self.scores.k):
            near = [self._load(keys, at + d * keys.row + v * tile.lanes, tile.lanes) for v in range(tile.vectors)]
            sums.add((self._load(a, row + d * a.col) for row in rows), near)
        return sums.in_memory()

    def _raise(
        self, place: tuple[tuple[Expr, ...], Expr, Expr, Expr], r: Expr, powers: Buffer, state: tuple[Buffer, ...]
    ) -> None:
        """Scores of a row become powers of what is below its running maximum. place: head, row, the block's first key
        and the first that counts; state: maxima, sums, and what older sums are to be multiplied by."""
        k, tile, (largest, totals, corrections) = self.k, self.tile.scores, state
        lanes, at = tile.lanes, k.let(r * tile.width, "at")
        most, total = (k.registers(name, DType.F32, 1, lanes) for name in ("most", "total"))
        k.store(most, 0, const(-inf, DType.F32, lanes))
        k.store(total, 0, const(0.0, DType.F32, lanes))
        for v in k.loop("v", tile.width, step=lanes):
            score = k.let(self._score(place, v, k.load(powers, at + v, lanes)), "score")
            k.store(powers, at + v, score)
            k.store(most, 0, maximum(score, k.load(most, 0)))
        old = k.let(k.load(largest, r), "old")
        new = k.let(maximum(reduce("max", k.load(most, 0)), old), "new")
        under = below(k, new)
        correction = power(k, old, under)
        for v in k.loop("v", tile.width, step=lanes):
            own = exp_nonpositive(k, k.let(k.load(powers, at + v, lanes) - broadcast(under, lanes)))
            own = k.let(own, "power")
            k.store(powers, at + v, own)
            k.store(total, 0, k.load(total, 0) + own)
        k.store(largest, r, new)
        k.store(totals, r, k.load(totals, r) * correction + reduce("add", k.load(total, 0)))
        k.store(corrections, r, correction)

    def _score(self, place: tuple[tuple[Expr, ...], Expr, Expr, Expr], v: Expr, value: Expr) -> Expr:
        """A vector of scores, -inf of keys that do not count."""
        k, form, (batch, row, first, begin), lanes = self.k, self.form, place, self.tile.scores.lanes
        value = value * form.scale if form.scale != 1.0 else value
        key = k.let(first + v, "key")
        if form.scores.nodes:
            at = k.let(self._row(row), "of")
            site, given = Site((*heads_of(form, batch), at, key), -1, lanes), cast(value, form.scores.source.type.dtype)
            value = cast(applied(k, form.scores, site, given), DType.F32)
        if not self.scores.n % self.tile.scores.width:
            return value
        return select(ramp(key, 1, lanes) < broadcast(begin, lanes), const(-inf, DType.F32, lanes), value)

    def _weigh(
        self,
        place: tuple[tuple[Expr, ...], Expr, Expr],
        group: Expr,
        factors: tuple[Buffer, Buffer],
        results: Buffer,
    ) -> None:
        """Results of a group of columns are corrected, and get the block's powers times its values. place: head, the
        block's first key and the first that counts; factors: powers, and what older sums are multiplied by."""
        k, tile, v, (batch, first, begin), (powers, corrections) = (
            self.k,
            self.tile.results,
            self.values.b,
            place,
            factors,
        )
        sums = Sums(k, tile, DType.F32)
        for r in range(tile.rows):
            correction = k.let(broadcast(k.load(corrections, r), tile.lanes), "correction")
            for j in range(tile.vectors):
                old = k.load(results, self._place(const(r), group, const(j)), tile.lanes)
                k.store(sums.buffer, r * tile.vectors + j, old * correction)
        base = k.let(offset_at(v.batch, batch) + first * v.row, "values")
        columns = [k.let(group * tile.width + j * tile.lanes, "column") for j in range(tile.vectors)]
        places = [k.let(self.columns.read_from(column, tile.vectors), "place") for column in columns]
        for c in k.loop("c", self.tile.scores.width, k.let(begin - first, "from")):
            near = [self._load(v, base + c * v.row + place, tile.lanes) for place in places]
            sums.add((k.load(powers, r * self.tile.scores.width + c) for r in range(tile.rows)), near)
        for r in range(tile.rows):
            for j in range(tile.vectors):
                value = k.load(sums.buffer, r * tile.vectors + j)
                k.store(results, self._place(const(r), group, const(j)), value)

    def _place(self, r: Expr, group: Expr, vector: Expr) -> Expr:
        """Of a vector of results."""
        tile = self.tile
        return r * tile.width + group * tile.results.width + vector * tile.results.lanes

    def _finish(self, batch: tuple[Expr, ...], first_row: Expr, results: Buffer, state: tuple[Buffer, Buffer]) -> None:
        k, tile, (largest, totals) = self.k, self.tile.results, state
        for r in k.loop("r", tile.rows):
            row = k.let(first_row + r, "row")
            share = k.let(broadcast(share_of(k, k.load(largest, r), k.load(totals, r)), tile.lanes), "shares")

            def write(at: Expr, lanes: int, part: Expr, row: Expr = row) -> None:
                write_result(self.ctx, k, self.form, (*batch, row, at), lanes, self.values.n, part)

            for _ in guarded(k, row < self.scores.m, self.scores.m % tile.rows > 0):
                for vector in k.loop("vector", self.tile.groups * tile.vectors):
                    value = k.let(k.load(results, self._place(r, const(0), vector), tile.lanes) * share, "result")
                    column = k.let(vector * tile.lanes, "column")
                    self.columns.store(k, column, self.tile.groups * tile.vectors, value, write)
