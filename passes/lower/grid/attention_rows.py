"""c2c.Attention by threads: eight of them share a row of q, blocks of keys and then of values pass through shared
memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, prod

from ....codegen.target import Target
from ....ir.loops import Buffer, Expr, cast, const, maximum, minimum, select
from ....ir.types import DType
from ...attention import Form
from ..attention import write_result
from ..context import KernelBuilder, Lowering
from ..product import Matrix, Product, multiply_add, offset_at, unravel
from ..schedule import Schedule
from ..tasks import guarded
from .online_softmax import BARRIER, FUNCTION, below, idle, power, scored, share_of
from .team import merge_across
from .tiles import FETCH

ACROSS = 8
"""Threads of a row."""
KEYS = 16
"""Of a block: two for each thread of a row."""
ROWS = (16, 8, 4)
"""Of a work-group, by preference."""


@dataclass(frozen=True, slots=True)
class RowTile:
    """Rows of a work-group, and elements of a row of q and of k or v in shared memory, one to spare; exchanges: threads
    of a row find its maximum and sum by exchanging values: drivers of old give each thread a word of shared memory for
    that."""

    rows: int
    query: int
    near: int
    exchanges: bool

    def __str__(self) -> str:
        return f"rows={self.rows} keys={KEYS}"

    @property
    def floats(self) -> int:
        scores = self.rows * (KEYS + 1)
        return self.rows * self.query + KEYS * self.near + scores + (self.rows * ACROSS if self.exchanges else scores)


def row_tiles(target: Target, size: int, wide: int) -> list[RowTile]:
    """The tiles that fit the device for heads of `size` elements and values of `wide`."""
    device = target.device
    if device is None or not device.shares:
        return []
    exchanges = device.exchange >= ACROSS
    fitting = [rows for rows in ROWS if rows * ACROSS <= device.work_group]
    tiles = [RowTile(rows, size + 1, max(size, wide) + 1, exchanges) for rows in fitting]
    return [t for t in tiles if t.floats * 4 <= device.local_bytes]


def row_schedules(target: Target, scores: Product, values: Product) -> list[Schedule[RowTile]]:
    """Those tiles with what they take."""
    tiles = row_tiles(target, scores.k, values.n)
    return [Schedule(str(t), _cost(scores, values, t), t) for t in tiles]


def _cost(scores: Product, values: Product, t: RowTile) -> float:
    """As of tiles of products, in multiply-adds."""
    groups = prod(scores.batch) * -(-scores.m // t.rows)
    size, columns, own = scores.k, -(-values.n // ACROSS), KEYS // ACROSS
    multiply = own * size + KEYS * columns
    accesses = 2 * own * size + KEYS * (1 + columns) + own
    if not t.exchanges:
        accesses += own + KEYS
    brought = KEYS * (size + values.n) / (t.rows * ACROSS)
    step = multiply + 0.5 * accesses + FETCH * brought + FUNCTION * (own + 1) + 4 * BARRIER
    return groups * t.rows * ACROSS * -(-scores.n // KEYS) * step * idle(groups)


def write_rows(ctx: Lowering, form: Form, products: tuple[Product, Product], tile: RowTile) -> None:
    """Append the kernel."""
    _Attention(ctx, form, *products, tile).write()


class _Attention:
    """Writes the kernel. The thread's running maximum, sum and results are registers."""

    def __init__(self, ctx: Lowering, form: Form, scores: Product, values: Product, tile: RowTile) -> None:
        self.ctx, self.form, self.scores, self.values, self.tile = ctx, form, scores, values, tile
        self.k: KernelBuilder = ctx.kernel()

    def write(self) -> None:
        k, tile, batch = self.k, self.tile, self.scores.batch
        for z in k.loop("head", prod(batch), kind="grid"):
            for block in k.loop("rows", -(-self.scores.m // tile.rows), kind="grid"):
                query = k.alloc("query", DType.F32, tile.rows * tile.query, "shared")
                near = k.alloc("near", DType.F32, KEYS * tile.near, "shared")
                powers = k.alloc("powers", DType.F32, tile.rows * (KEYS + 1), "shared")
                found = powers if tile.exchanges else k.alloc("scores", DType.F32, powers.size, "shared")
                for y in k.loop("ty", tile.rows, kind="thread"):
                    for x in k.loop("tx", ACROSS, kind="thread"):
                        self._thread(unravel(z, batch), k.let(block * tile.rows + y, "row"), (y, x),
                                     (query, near, found, powers))  # fmt: skip
        k.done("attention")

    def _thread(
        self, batch: tuple[Expr, ...], row: Expr, at: tuple[Expr, Expr], shared: tuple[Buffer, Buffer, Buffer, Buffer]
    ) -> None:
        k, (y, x), (query, near, found, powers) = self.k, at, shared
        self._bring_row(batch, row, at, query)
        state = k.alloc("state", DType.F32, 2, "register")
        sums = k.alloc("sums", DType.F32, -(-self.values.n // ACROSS), "register")
        k.store(state, 0, const(-inf, DType.F32))
        k.store(state, 1, const(0.0, DType.F32))
        for j in self._columns():
            k.store(sums, j, const(0.0, DType.F32))
        number, mine = k.let(y * ACROSS + x, "number"), k.let(y * (KEYS + 1), "mine")
        for step in k.loop("step", -(-self.scores.n // KEYS)):
            first = k.let(step * KEYS, "first")
            # The scores' second factor is the keys turned: its columns are their rows.
            self._bring(near, self.scores.b, batch, first, number, self.scores.k)
            k.barrier()
            keys = [k.let(x + i * ACROSS, "key") for i in range(KEYS // ACROSS)]
            scores = [
                k.let(self._score(batch, row, first + key, y * self.tile.query, key, shared), "score") for key in keys
            ]
            if not self.tile.exchanges:
                for key, score in zip(keys, scores, strict=True):
                    k.store(found, mine + key, score)
            k.barrier()
            old = k.let(k.load(state, 0), "old")
            largest = self._largest(found, mine, scores, x, old)
            k.store(state, 0, largest)
            correction = self._raise(powers, mine, keys, scores, largest, state, old)
            values = self.values.b
            turned = Matrix(values.value, values.batch, values.col, values.row)
            self._bring(near, turned, batch, first, number, self.values.n)
            k.barrier()
            self._accumulate(near, powers, mine, x, sums, state, correction)
            k.barrier()
        self._finish(batch, row, x, sums, state)

    def _columns(self) -> Iterator[Expr]:
        yield from self.k.loop("j", -(-self.values.n // ACROSS), kind="unroll")

    def _bring_row(self, batch: tuple[Expr, ...], row: Expr, at: tuple[Expr, Expr], query: Buffer) -> None:
        """The thread's part of its row of q."""
        k, (y, x), a = self.k, at, self.scores.a
        base = k.let(offset_at(a.batch, batch) + minimum(row, self.scores.m - 1) * a.row, "q_row")
        for d in k.loop("d", self.scores.k, x, ACROSS):
            k.store(query, y * self.tile.query + d, cast(k.load(k.tensor(a.value, "q"), base + d * a.col), DType.F32))

    def _bring(
        self, near: Buffer, source: Matrix, batch: tuple[Expr, ...], first: Expr, number: Expr, size: int
    ) -> None:
        """All threads together: a block of keys or values, row by row, zeros beyond the last; `source` has them as
        columns."""
        k, threads = self.k, self.tile.rows * ACROSS
        base = k.let(offset_at(source.batch, batch), "base")
        for e in k.loop("e", KEYS * size, number, threads):
            key, d = k.let(e / size, "key"), k.let(e % size, "d")
            at = base + minimum(first + key, self.scores.n - 1) * source.col + d * source.row
            value = cast(k.load(k.tensor(source.value), at), DType.F32)
            if self.scores.n % KEYS:
                value = select(first + key < self.scores.n, value, 0.0)
            k.store(near, key * self.tile.near + d, value)

    def _score(
        self, batch: tuple[Expr, ...], row: Expr, key: Expr, query_at: Expr, key_at: Expr,
        shared: tuple[Buffer, Buffer, Buffer, Buffer],
    ) -> Expr:  # fmt: skip
        k, (query, near, _, _) = self.k, shared
        total = k.alloc("total", DType.F32, 1, "register")
        k.store(total, 0, const(0.0, DType.F32))
        for d in k.loop("d", self.scores.k):
            a, b = k.load(query, query_at + d), k.load(near, key_at * self.tile.near + d)
            k.store(total, 0, multiply_add(a, b, k.load(total, 0)))
        return scored(k, self.form, self.scores, (batch, row, key), k.load(total, 0), KEYS)

    def _largest(self, found: Buffer, mine: Expr, scores: list[Expr], x: Expr, old: Expr) -> Expr:
        """The running maximum with the block's scores; `scores` are the thread's."""
        k = self.k
        if not self.tile.exchanges:
            most = k.alloc("most", DType.F32, 1, "register")
            k.store(most, 0, old)
            for c in k.loop("c", KEYS):
                k.store(most, 0, maximum(k.load(found, mine + c), k.load(most, 0)))
            return k.let(k.load(most, 0), "largest")
        own = scores[0]
        for score in scores[1:]:
            own = maximum(own, score)
        (block,) = merge_across(k, (own,), x, ACROSS, lambda low, high: (maximum(low[0], high[0]),))
        return k.let(maximum(block, old), "largest")

    def _raise(
        self, powers: Buffer, mine: Expr, keys: list[Expr], scores: list[Expr], largest: Expr, state: Buffer, old: Expr
    ) -> Expr:
        """The thread's scores as powers of what is below the running maximum; what older sums are to be multiplied
        by."""
        k, under = self.k, below(self.k, largest)
        correction = power(k, old, under)
        k.store(state, 1, k.load(state, 1) * correction)
        for key, score in zip(keys, scores, strict=True):
            own = power(k, score, under)
            k.store(powers, mine + key, own)
            if self.tile.exchanges:
                k.store(state, 1, k.load(state, 1) + own)
        return correction

    def _accumulate(
        self, near: Buffer, powers: Buffer, mine: Expr, x: Expr, sums: Buffer, state: Buffer, correction: Expr
    ) -> None:
        k = self.k
        for j in self._columns():
            k.store(sums, j, k.load(sums, j) * correction)
        for c in k.loop("c", KEYS):
            weight = k.let(k.load(powers, mine + c), "power")
            if not self.tile.exchanges:
                k.store(state, 1, k.load(state, 1) + weight)
            for j in self._columns():
                column = minimum(x + j * ACROSS, self.values.n - 1)
                value = k.load(near, c * self.tile.near + column)
                k.store(sums, j, multiply_add(weight, value, k.load(sums, j)))

    def _finish(self, batch: tuple[Expr, ...], row: Expr, x: Expr, sums: Buffer, state: Buffer) -> None:
        k, wide = self.k, self.values.n
        total = k.let(k.load(state, 1), "total")
        if self.tile.exchanges:
            (total,) = merge_across(k, (total,), x, ACROSS, lambda low, high: (low[0] + high[0],))
        share = share_of(k, k.load(state, 0), total)
        for j in self._columns():
            column = k.let(x + j * ACROSS, "column")
            partial = wide % ACROSS or self.scores.m % self.tile.rows
            for _ in guarded(k, (row < self.scores.m) & (column < wide), partial > 0):
                write_result(self.ctx, k, self.form, (*batch, row, column), 1, wide, k.load(sums, j) * share)
