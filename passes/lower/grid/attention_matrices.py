"""c2c.Attention by matrices of 8×8 that subgroups multiply (Dao et al., FlashAttention, NeurIPS 2022).

Scores go through shared memory to the threads that share their row, since only there single elements have a place that
is known, and come back as powers; products with values go to those threads, too, which correct and add up.
A diagonal matrix of corrections would do without that, but carries a NaN into the other rows of its matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf, prod

from ....ir.loops import MATRIX, MATRIX_THREADS, Buffer, Expr, cast, const, maximum, minimum
from ....ir.types import DType
from ...attention import Form
from ..attention import write_result
from ..context import KernelBuilder, Lowering
from ..product import Product, multiply_add, unravel
from ..tasks import guarded
from .attention_tile import AttentionTile
from .online_softmax import below, power, scored, share_of
from .product import on_grid
from .team import merge_across
from .tiles import Extent, bring


def write_matrices(ctx: Lowering, form: Form, products: tuple[Product, Product], tile: AttentionTile) -> None:
    """Append the kernel."""
    _Attention(ctx, form, products, tile).write()


class _Attention:
    """Writes the kernel. The running maximum and sum of a row are registers of each of its threads; a thread has every
    `across`-th column of its row's results."""

    def __init__(self, ctx: Lowering, form: Form, products: tuple[Product, Product], tile: AttentionTile) -> None:
        self.ctx, self.form, self.tile = ctx, form, tile
        self.scores, self.values = products
        self.near_scores, self.near_values = (replace(on_grid(p), element=tile.near) for p in products)
        self.k: KernelBuilder = ctx.kernel()
        self.near: dict[str, Buffer] = {}

    def write(self) -> None:
        k, tile = self.k, self.tile
        for z in k.loop("head", prod(self.scores.batch), kind="grid"):
            for block in k.loop("rows", -(-self.scores.m // tile.rows), kind="grid"):
                self.near = {n: k.alloc(n, dtype, size, "shared") for n, (dtype, size) in tile.shared.items()}
                self.near["back"] = self.near[tile.back]
                self.near.setdefault("powers", self.near["scores"])
                for sy in k.loop("sy", tile.subgroups[0], kind="thread"):
                    for sx in k.loop("sx", tile.subgroups[1], kind="thread"):
                        for lane in k.loop("lane", MATRIX_THREADS, kind="thread"):
                            self._thread(z, k.let(block * tile.rows, "first_row"), (sy, sx), lane)
        k.done("attention")

    def _thread(self, z: Expr, first_row: Expr, subgroup: tuple[Expr, Expr], lane: Expr) -> None:
        """z: the head; subgroup: its row and column among those of the work-group."""
        k, tile, batch = self.k, self.tile, unravel(z, self.scores.batch)
        (sy, sx), (rows, keys, columns) = subgroup, tile.own
        number = k.let((sy * tile.subgroups[1] + sx) * MATRIX_THREADS + lane, "number")
        at = k.let(number / tile.across, "line"), k.let(number % tile.across, "x")
        own_row = k.let(sy * (rows * MATRIX), "own_row")
        own_key, own_column = k.let(sx * (keys * MATRIX), "own_key"), k.let(sx * (columns * MATRIX), "own_column")
        self._bring("query", z, const(0), first_row, number)
        held = self._held(own_row) if tile.held else None
        state, results = self._beginning()
        for step in k.loop("step", -(-self.scores.n // tile.keys)):
            first = k.let(step * tile.keys, "first")
            self._bring("keys", z, const(0), first, number)
            k.barrier()
            self._multiply_keys(held, own_row, own_key)
            k.barrier()
            correction = self._raise((batch, first_row, first), at, state)
            self._bring("values", z, first, const(0), number)
            k.barrier()
            self._multiply_values(own_row, own_column)
            k.barrier()
            self._accumulate(at, results, correction)
            if tile.back == "near":
                k.barrier()
        self._finish(batch, first_row, at, (state, results))

    def _beginning(self) -> tuple[Buffer, Buffer]:
        """Maximum and sum of the thread's row, and its results."""
        k, tile = self.k, self.tile
        state = k.alloc("state", DType.F32, 2, "register")
        results = k.alloc("results", DType.F32, tile.results, "register")
        k.store(state, 0, const(-inf, DType.F32))
        k.store(state, 1, const(0.0, DType.F32))
        for j in k.loop("j", tile.results, kind="unroll"):
            k.store(results, j, const(0.0, DType.F32))
        return state, results

    def _bring(self, what: str, z: Expr, depth: Expr, place: Expr, number: Expr) -> None:
        """All threads together: rows of q, keys, or values of keys from `depth` on, zeros beyond the last element of a
        row and beyond the last key."""
        tile, (query, keys, values) = self.tile, self.tile.lies
        scores, weighed = self.near_scores, self.near_values
        size, wide = tile.depth * MATRIX, tile.columns * MATRIX
        p, factor, buffer, length, most, deep, lies = {
            "query": (scores, scores.a, "query", tile.rows, scores.m, size, query),
            "keys": (scores, scores.b, "near", tile.keys, scores.n, size, keys),
            "values": (weighed, weighed.b, "near", wide, weighed.n, tile.keys, values),
        }[what]
        extent = Extent(length, most, deep, tile.threads, lies.at)
        bring(self.k, p, replace(factor, along_depth=lies.along_depth), self.near[buffer], (z, depth, place), extent,
              number)  # fmt: skip

    def _held(self, own_row: Expr) -> Buffer:
        """Matrices of the subgroup's rows of q."""
        k, tile = self.k, self.tile
        k.barrier()
        held = k.matrices("held", tile.near, tile.own[0] * tile.depth)
        for d in k.loop("d", tile.depth, kind="unroll"):
            self._load_query(held, own_row, d, d * tile.own[0])
        return held

    def _load_query(self, into: Buffer, own_row: Expr, d: Expr, first: Expr) -> None:
        """Matrices of the subgroup's rows at depth d, from place `first` on."""
        k, lies = self.k, self.tile.lies[0]
        for i in k.loop("i", self.tile.own[0], kind="unroll"):
            k.matrix_load(into, first + i, (self.near["query"], lies.at(d * MATRIX, own_row + i * MATRIX), lies.step))

    def _multiply_keys(self, held: Buffer | None, own_row: Expr, own_key: Expr) -> None:
        """A subgroup's scores."""
        k, tile, lies, (rows, keys, _) = self.k, self.tile, self.tile.lies[1], self.tile.own
        sums = self._zeros("sums", rows * keys)
        for d in k.loop("d", tile.depth, kind="serial" if held is None else "unroll"):
            query = held
            if query is None:
                query = k.matrices("query", tile.near, rows)
                self._load_query(query, own_row, d, const(0))
            turned = k.matrices("turned", tile.near, keys)
            for j in k.loop("j", keys, kind="unroll"):
                place = lies.at(d * MATRIX, own_key + j * MATRIX)
                k.matrix_load(turned, j, (self.near["near"], place, lies.step), transposed=True)
            first = const(0) if held is None else d * rows
            self._multiply(sums, (query, first), (turned, rows, keys))
        self._back(sums, "scores", tile.pitches["scores"], (own_row, own_key), (rows, keys))

    def _multiply_values(self, own_row: Expr, own_column: Expr) -> None:
        """A subgroup's part of the block's weights times its values."""
        k, tile, lies, (rows, _, columns) = self.k, self.tile, self.tile.lies[2], self.tile.own
        sums, step = self._zeros("sums", rows * columns), tile.pitches["powers"]
        for c in k.loop("c", tile.keys // MATRIX):
            weights, values = k.matrices("weights", tile.near, rows), k.matrices("values", tile.near, columns)
            for i in k.loop("i", rows, kind="unroll"):
                place = (own_row + i * MATRIX) * step + c * MATRIX
                k.matrix_load(weights, i, (self.near["powers"], place, step))
            for j in k.loop("j", columns, kind="unroll"):
                k.matrix_load(values, j, (self.near["near"], lies.at(c * MATRIX, own_column + j * MATRIX), lies.step))
            self._multiply(sums, (weights, const(0)), (values, rows, columns))
        if tile.back == "near":
            k.barrier()
        self._back(sums, "back", tile.pitches["back"], (own_row, own_column), (rows, columns))

    def _zeros(self, name: str, count: int) -> Buffer:
        k = self.k
        sums = k.matrices(name, DType.F32, count)
        for i in k.loop("i", count, kind="unroll"):
            k.store(sums, i, const(0.0, DType.F32, MATRIX * MATRIX))
        return sums

    def _multiply(self, sums: Buffer, a: tuple[Buffer, Expr], b: tuple[Buffer, int, int]) -> None:
        """a: matrices and the first one's place; b: matrices, and how many there are of a and b."""
        k, (other, rows, columns) = self.k, b
        for i in k.loop("i", rows, kind="unroll"):
            for j in k.loop("j", columns, kind="unroll"):
                k.matrix_multiply((sums, i * columns + j), (a[0], a[1] + i), (other, j))

    def _back(self, sums: Buffer, to: str, step: int, place: tuple[Expr, Expr], count: tuple[int, int]) -> None:
        """Matrices to shared memory, from row and column `place` on."""
        k = self.k
        for i in k.loop("i", count[0], kind="unroll"):
            for j in k.loop("j", count[1], kind="unroll"):
                where = (place[0] + i * MATRIX) * step + place[1] + j * MATRIX
                k.matrix_store((self.near[to], where, step), sums, i * count[1] + j)

    def _raise(self, place: tuple[tuple[Expr, ...], Expr, Expr], at: tuple[Expr, Expr], state: Buffer) -> Expr:
        """The thread's scores become powers of what is below the running maximum; what older sums are to be multiplied
        by. place: head, first row and first key of the block; at: the thread's line, and its place there."""
        k, tile, (batch, first_row, first), (line, x) = self.k, self.tile, place, at
        keys = [k.let(x + i * tile.across, "key") for i in range(tile.keys // tile.across)]
        found = [k.load(self.near["scores"], line * tile.pitches["scores"] + key) for key in keys]
        scores = [
            k.let(scored(k, self.form, self.scores, (batch, first_row + line, first + key), value, tile.keys), "score")
            for key, value in zip(keys, found, strict=True)
        ]
        most = scores[0]
        for score in scores[1:]:
            most = maximum(most, score)
        (most,) = merge_across(k, (most,), x, tile.across, lambda low, high: (maximum(low[0], high[0]),))
        old = k.let(k.load(state, 0), "old")
        largest = k.let(maximum(most, old), "largest")
        under = below(k, largest)
        correction = power(k, old, under)
        k.store(state, 0, largest)
        k.store(state, 1, k.load(state, 1) * correction)
        for key, score in zip(keys, scores, strict=True):
            own = power(k, score, under)
            k.store(state, 1, k.load(state, 1) + own)
            k.store(self.near["powers"], line * tile.pitches["powers"] + key, cast(own, tile.near))
        return correction

    def _columns(self, x: Expr) -> Iterator[tuple[Expr, Expr]]:
        """The thread's results: number and column, which may lie beyond the last one."""
        for j in self.k.loop("j", self.tile.results, kind="unroll"):
            yield j, x + j * self.tile.across

    def _accumulate(self, at: tuple[Expr, Expr], results: Buffer, correction: Expr) -> None:
        k, tile, (line, x) = self.k, self.tile, at
        for j, column in self._columns(x):
            if tile.wide % tile.across:
                column = minimum(column, tile.wide - 1)
            new = k.load(self.near["back"], line * tile.pitches["back"] + column)
            k.store(results, j, multiply_add(k.load(results, j), correction, new))

    def _finish(
        self, batch: tuple[Expr, ...], first_row: Expr, at: tuple[Expr, Expr], sums: tuple[Buffer, Buffer]
    ) -> None:
        k, tile, (line, x), (state, results) = self.k, self.tile, at, sums
        row, partial = k.let(first_row + line, "row"), tile.wide % tile.across or self.scores.m % tile.rows
        total = k.let(k.load(state, 1), "total")
        (total,) = merge_across(k, (total,), x, tile.across, lambda low, high: (low[0] + high[0],))
        share = share_of(k, k.load(state, 0), total)
        for j, column in self._columns(x):
            of = k.let(column, "column")
            for _ in guarded(k, (row < self.scores.m) & (of < tile.wide), partial > 0):
                write_result(self.ctx, k, self.form, (*batch, row, of), 1, tile.wide, k.load(results, j) * share)
