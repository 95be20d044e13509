"""c2c.Attention straight from memory, for devices whose work-groups share none that is nearer than the caches: a thread
takes some rows of q through blocks of keys, with its results in registers and a block of scores in memory of its own.

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
from .online_softmax import below, power, share_of
from .registers import IN_FLIGHT, Columns, RegisterTile, Sums, busy

ROWS = (8, 6, 4)
"""Of a thread: fewer read keys and values too often."""


@dataclass(frozen=True, slots=True)
class MemoryTile:
    """scores: rows and vectors of keys that come together; results: rows and vectors of columns of v."""

    scores: RegisterTile
    results: RegisterTile

    def __str__(self) -> str:
        return f"rows={self.scores.rows} keys={self.scores.width}"

    @property
    def registers(self) -> int:
        """Of 32 bits, for results, and a row's scores or one step's factors beside them."""
        return self.results.registers + self.results.rows * self.results.lanes


def memory_tiles(target: Target, rows: int, count: int, wide: int) -> list[MemoryTile]:
    """What fits the registers for so many rows and keys, and values of `wide`."""
    device = target.device
    if device is None or device.shares:
        return []
    lanes, across = (1 << (min(device.lanes, n).bit_length() - 1) for n in (count, wide))
    made = []
    for r in ROWS:
        vectors = max(1, min(IN_FLIGHT // r, count // lanes))
        tile = MemoryTile(RegisterTile(r, vectors, lanes), RegisterTile(r, -(-wide // across), across))
        if r <= rows and tile.registers <= device.registers:
            made.append(tile)
    return made


def memory_schedules(target: Target, scores: Product, values: Product) -> list[Schedule[MemoryTile]]:
    """Those tiles with what they take, as products from memory."""
    return [Schedule(str(t), _cost(scores, t), t) for t in memory_tiles(target, scores.m, scores.n, values.n)]


def _cost(scores: Product, t: MemoryTile) -> float:
    threads = prod(scores.batch) * -(-scores.m // t.scores.rows)
    block = scores.k * t.scores.step + t.scores.width * t.results.step
    return threads * -(-scores.n // t.scores.width) * block * busy(threads)


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
        results, width = Sums(k, tile.results, DType.F32), tile.scores.width
        for step in k.loop("step", -(-self.scores.n // width)):
            begin = k.let(step * width, "begin")
            first = begin if not self.scores.n % width else k.let(minimum(begin, self.scores.n - width), "first")
            powers = self._scores(batch, first_row, first)
            for r in k.loop("r", rows):
                row = k.let(first_row + r, "row")
                self._raise((batch, row, first, begin), r, powers, (largest, totals, corrections))
            self._correct(results, corrections)
            self._weigh(batch, first, begin, powers, results)
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

    def _correct(self, results: Sums, corrections: Buffer) -> None:
        k, tile = self.k, self.tile.results
        for r in range(tile.rows):
            correction = k.let(broadcast(k.load(corrections, r), tile.lanes), "correction")
            for j in range(tile.vectors):
                at = r * tile.vectors + j
                k.store(results.buffer, at, k.load(results.buffer, at) * correction)

    def _weigh(self, batch: tuple[Expr, ...], first: Expr, begin: Expr, powers: Buffer, results: Sums) -> None:
        """The block's powers times its values, beginning with the first key that counts."""
        k, tile, v = self.k, self.tile, self.values.b
        base = k.let(offset_at(v.batch, batch) + first * v.row, "values")
        places = [
            self.columns.read_from(const(j * tile.results.lanes), tile.results.vectors)
            for j in range(tile.results.vectors)
        ]
        for c in k.loop("c", tile.scores.width, k.let(begin - first, "from")):
            near = [self._load(v, base + c * v.row + place, tile.results.lanes) for place in places]
            results.add((k.load(powers, r * tile.scores.width + c) for r in range(tile.results.rows)), near)

    def _finish(self, batch: tuple[Expr, ...], first_row: Expr, results: Sums, state: tuple[Buffer, Buffer]) -> None:
        k, tile, (largest, totals) = self.k, self.tile.results, state
        for r, j, value in results.results():
            row, column = k.let(first_row + r, "row"), k.let(j * tile.lanes, "column")
            share = share_of(k, k.load(largest, r), k.load(totals, r))
            weighed = k.let(value * broadcast(share, tile.lanes), "result")

            def write(at: Expr, lanes: int, part: Expr, row: Expr = row) -> None:
                write_result(self.ctx, k, self.form, (*batch, row, at), lanes, self.values.n, part)

            for _ in guarded(k, row < self.scores.m, self.scores.m % tile.rows > 0):
                self.columns.store(k, column, tile.vectors, weighed, write)
