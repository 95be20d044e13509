"""c2c.Attention: softmax(f(q·kᵀ·scale))·v over blocks of rows, whose scores stay in cache.

A block's scores are one product with the keys, f applied as they are written; each of its rows is raised to powers and
summed while near; the second product reads the powers, and its results are divided by the sums as they are written.
Where something is done to the weights, they are made before the second product instead. Keys and values are packed into
panels once: rows of a head lie far apart and would share few sets of the first-level cache. In operands heads may
lie side by side in a row, or serve several heads of q: they are strides (Dao et al.: FlashAttention, NeurIPS 2022,
keeps scores on chip likewise; whole rows of them fit a processor's caches, so that no sum needs to be corrected).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, cast, const, maximum, minimum, reduce, select
from ...ir.types import DType
from ..attention import Chain, Form, read_form
from .context import KernelBuilder, Lowering, Site, lowers, strides
from .elementwise import evaluate
from .gemm_kernel import block_product, panels_of, tiles
from .math_functions import exp_nonpositive
from .panels import Panels, pack_at_run_time
from .product import Matrix, Product, offset_at, unravel
from .schedule import Schedule, choose
from .tasks import pieces, tasks

TOGETHER = 4
"""Rows whose maxima are found before any of them is raised to powers, which would wait for its own maximum."""
WIDE = 4
"""Vectors of scores that one operation works on: functions wait for themselves, several of them do not."""


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Register tiles of both products, of as many rows each, and how many of them are a block."""

    scores: int
    values: int
    rows: int
    count: int


@lowers("c2c.Attention")
def lower_attention(ctx: Lowering) -> None:
    """q, k, v and what its body reads beside them (`passes/attention.py`)."""
    form = read_form(ctx.node)
    scores, values = products(ctx, form)
    plan = choose(ctx, "attention", _problem(ctx, scores, values), _candidates(ctx, scores, values))
    _Attention(ctx, form, plan, scores, values).write()


def products(ctx: Lowering, form: Form) -> tuple[Product, Product]:
    """q·kᵀ and weights·v over [*outer, heads of k, heads of q for each]; what the first and second give is not said."""
    q, keys, v = (ctx.node.input(i) for i in range(3))
    assert q is not None and keys is not None and v is not None
    *outer, heads = form.batch
    where = (*outer, form.kv_heads, heads // form.kv_heads)
    rows, count = q.type.dims[-2], keys.type.dims[-2]
    size, wide = _size(q, heads), _size(v, form.kv_heads)
    turned = _matrix(keys, form, form.kv_heads)
    turned = replace(turned, row=turned.col, col=turned.row)
    scores = Product(where, rows, count, size, _matrix(q, form, heads), turned, DType.F32, _unset)
    near = _matrix(v, form, form.kv_heads)
    return scores, Product(where, rows, wide, count, near, near, DType.F32, _unset)


def _size(x: Value, heads: int) -> int:
    return x.type.dims[-1] // heads if x.type.rank == 3 else x.type.dims[-1]


def _matrix(x: Value, form: Form, heads: int) -> Matrix:
    """Rows of a head by [*outer, heads of k, heads of q for each]."""
    shared = form.heads // form.kv_heads if heads == form.heads else 1
    steps = strides(x.type)
    if x.type.rank == 3:
        head, outer = x.type.dims[-1] // heads, strides_of(form.batch[:-1], steps[0])
    else:
        head, outer = steps[-3], steps[:-3]
    own = head if shared > 1 else 0
    return Matrix(x, (*outer, head * shared, own), steps[-2], 1)


def _unset(k: KernelBuilder, coords: tuple[Expr, ...], lanes: int, value: Expr) -> None:
    raise AssertionError("a block gives its own")


def _problem(ctx: Lowering, scores: Product, values: Product) -> str:
    return f"{prod(scores.batch)} of {scores.m}x{scores.n}x{scores.k}x{values.n} threads {ctx.threads}"


def _candidates(ctx: Lowering, scores: Product, values: Product) -> list[Schedule[_Blocks]]:
    """Blocks of ever more row tiles: keys and values are read once a block, scores should stay near."""
    best: dict[int, list[tuple[float, int]]] = {}
    for p in (scores, values):
        ranked = sorted(tiles(ctx.target, p.acc, p.m, p.n, p.k), key=lambda s: s.cycles)
        for rows in {s.plan.rows for s in ranked}:
            first = next(s for s in ranked if s.plan.rows == rows)
            # Small tiles wait for their sums, if only in between.
            cycles = first.cycles * (1 + 1 / (rows * first.plan.vectors))
            best.setdefault(rows, []).append((cycles, first.plan.vectors))
    found: list[Schedule[_Blocks]] = []
    for rows, pair in sorted(best.items()):
        if len(pair) < 2:
            continue
        (a, v), (b, w) = pair
        for count in (1, 2, 4, 8, 16, 32):
            held = rows * count * scores.n * 4
            blocks = -(-scores.m // (rows * count))
            if count > 1 and (blocks * 2 * rows * count > 3 * scores.m or held > ctx.target.l2_bytes // 4):
                break
            again = blocks * (scores.k + values.n) * scores.n * 4 / ctx.target.l2_bytes_per_cycle
            far = blocks * held * (4 if held > ctx.target.l1_bytes // 2 else 0) / ctx.target.l2_bytes_per_cycle
            cycles = prod(scores.batch) * (a + b + again + far)
            found.append(
                Schedule(f"rows={rows * count} tiles={rows}x{v},{rows}x{w}", cycles, _Blocks(v, w, rows, count))
            )
    return found


@dataclass(eq=False, slots=True)
class _Attention:
    ctx: Lowering
    form: Form
    plan: _Blocks
    scores: Product
    values: Product

    @property
    def lanes(self) -> int:
        return self.ctx.lanes(DType.F32)

    @property
    def width(self) -> int:
        """Elements from row to row of the scores."""
        return -(-self.scores.n // self.lanes) * self.lanes

    def write(self) -> None:
        ctx, plan, scores, values = self.ctx, self.plan, self.scores, self.values
        first = self._panels(scores, plan.scores)
        second = self._panels(values, plan.values)
        scores = pack_at_run_time(ctx, scores, first)
        values = pack_at_run_time(ctx, values, second)
        size = (first.tiles_a_task + 1) * plan.rows * self.width
        near = ctx.scratch("scores", DType.F32, size * ctx.threads)
        k = ctx.kernel()
        for t in tasks(k, scores.macs + values.macs, prod(scores.batch) * first.row_tasks):
            mb = k.let(t % first.row_tasks, "block")
            batch = tuple(k.let(b, "batch") for b in unravel(k.let(t / first.row_tasks, "head"), scores.batch))
            begin = k.let(mb * (first.tiles_a_task * plan.rows), "begin")
            # Row m of the scores lies at base + m·width; the block's first one where the worker's share begins.
            base = k.let(k.worker * size - begin * self.width, "base")
            block_product(k, replace(scores, finish=self._to_scores(near, base)), first, batch, mb)
            sums = k.alloc("sums", DType.F32, (first.tiles_a_task + 1) * plan.rows)
            end = begin + first.tiles_a_task * plan.rows
            if first.row_tasks == 1:
                end = const(scores.m)
            else:
                end = k.let(select(mb < first.row_tasks - 1, end, scores.m), "end")
            for row in k.loop("rows", end, begin, step=TOGETHER):
                last = k.let(minimum(row + TOGETHER, end), "last")
                self._softmax(k, k.tensor(near), base, sums, (*heads_of(self.form, batch), begin), row, last)
            weights = Matrix(near, (0,) * len(batch), self.width, 1)
            second_part = replace(values, a=weights, finish=self._to_result(sums, begin))
            block_product(k, second_part, second, batch, mb, base)
        k.done("attention")

    def _panels(self, p: Product, vectors: int) -> Panels:
        panels = panels_of(self.ctx, p, self.plan.rows, vectors)
        return replace(panels, tiles_a_task=self.plan.count, row_tasks=-(-panels.row_tiles // self.plan.count))

    def _to_scores(self, near: Value, base: Expr) -> Callable[[KernelBuilder, tuple[Expr, ...], int, Expr], None]:
        scale, chain = self.form.scale, self.form.scores

        def finish(k: KernelBuilder, coords: tuple[Expr, ...], lanes: int, value: Expr) -> None:
            value = value * scale if scale != 1.0 else value
            if chain.nodes:
                value = applied(k, chain, Site((*heads_of(self.form, coords[:-2]), *coords[-2:]), -1, lanes), value)
            k.store(k.tensor(near), base + coords[-2] * self.width + coords[-1], value)

        return finish

    def _to_result(self, sums: Buffer, begin: Expr) -> Callable[[KernelBuilder, tuple[Expr, ...], int, Expr], None]:
        def finish(k: KernelBuilder, coords: tuple[Expr, ...], lanes: int, value: Expr) -> None:
            value = value if self.form.weights.nodes else value * k.load(sums, coords[-2] - begin)
            write_result(self.ctx, k, self.form, coords, lanes, self.values.n, value)

        return finish

    def _weights(self, k: KernelBuilder, x: Buffer, row: Expr, share: Expr, coords: tuple[Expr, ...]) -> None:
        """Powers of one row divided by their sum, and what is done to them then."""
        count, wide = self.scores.n, self.lanes * WIDE
        main = count // wide * wide

        def apply(at: Expr, lanes: int) -> None:
            value = k.load(x, row + at, lanes) * share
            site = Site((*coords, at), -1, lanes)
            k.store(x, row + at, applied(k, self.form.weights, site, value))

        for at in k.loop("at", main, step=wide) if main else ():
            apply(at, wide)
        for first, lanes in pieces(count - main):
            apply(const(main + first), lanes)

    def _softmax(
        self, k: KernelBuilder, x: Buffer, base: Expr, sums: Buffer, site: tuple[Expr, ...], first: Expr, last: Expr
    ) -> None:
        """Weights of rows first to last, or their powers and in `sums` what those are to be multiplied by; `site`: the
        heads and the row that `sums` begins with."""
        largest = k.alloc("largest", DType.F32, TOGETHER)
        for m in k.loop("m", last, first):
            k.store(largest, m - first, self._largest(k, x, k.let(base + m * self.width, "row")))
        for m in k.loop("m", last, first):
            row = k.let(base + m * self.width, "row")
            share = k.let(self._powers(k, x, row, k.let(k.load(largest, m - first), "largest")), "share")
            if self.form.weights.nodes:
                self._weights(k, x, row, share, (*site[:-1], m))
            else:
                k.store(sums, m - site[-1], share)

    def _largest(self, k: KernelBuilder, x: Buffer, row: Expr) -> Expr:
        for first, lanes in pieces(self.width - self.scores.n):
            k.store(x, row + (self.scores.n + first), const(float("-inf"), DType.F32, lanes))
        return self._over(k, "max", lambda at, lanes: k.load(x, row + at, lanes))

    def _powers(self, k: KernelBuilder, x: Buffer, row: Expr, largest: Expr) -> Expr:
        """Scores of one row raised to powers in place; the reciprocal of their sum."""

        def power(at: Expr, lanes: int) -> Expr:
            value = k.let(exp_nonpositive(k, k.let(k.load(x, row + at, lanes) - largest)), "power")
            k.store(x, row + at, value)
            return value

        return 1.0 / self._over(k, "add", power)

    def _over(self, k: KernelBuilder, op: str, item: Callable[[Expr, int], Expr]) -> Expr:
        """The maximum or sum of the items of a row, several vectors at a time."""
        lanes, wide = self.lanes, self.lanes * WIDE
        main = self.width // wide * wide
        found: list[Expr] = []
        for first, end, step in ((0, main, wide), (main, self.width, lanes)):
            if first == end:
                continue
            total = k.registers(op, DType.F32, 1, step)
            k.store(total, 0, const(0.0 if op == "add" else float("-inf"), DType.F32, step))
            for at in k.loop("at", end, first, step=step):
                value = item(at, step)
                old = k.load(total, 0)
                k.store(total, 0, value + old if op == "add" else maximum(value, old))
            found.append(k.let(reduce(op, k.load(total, 0)), op))
        if len(found) == 1:
            return found[0]
        return k.let(found[0] + found[1] if op == "add" else maximum(found[0], found[1]), op)


def heads_of(form: Form, batch: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Coordinates in the form's batch of those in the products'."""
    *outer, shared, own = batch
    return (*outer, shared * (form.heads // form.kv_heads) + own)


def write_result(
    ctx: Lowering, k: KernelBuilder, form: Form, coords: tuple[Expr, ...], lanes: int, wide: int, value: Expr
) -> None:
    """Store results at the second product's coordinates, `wide` of them a head, with the tail applied to them in their
    type."""
    *outer, head = heads_of(form, coords[:-2])
    m, n = coords[-2:]
    at = (*outer, head, m, n)
    if ctx.node.output.type.rank == 3:
        at = (offset_at(strides_of(form.batch[:-1], 1), tuple(outer)), m, head * wide + n)
    site = Site(at, -1, lanes)
    k.write(ctx.output, site, ctx.epilogue(k, site, cast(value, ctx.node.output.type.dtype)))


def applied(k: KernelBuilder, chain: Chain, site: Site, value: Expr) -> Expr:
    """The chain on a vector of scores."""
    known = {chain.source: k.let(value)}
    for node in chain.nodes:
        known[node.output] = k.let(evaluate(k, node, site, known))
    return known[chain.result]


def strides_of(dims: tuple[int, ...], step: int) -> tuple[int, ...]:
    """Row-major strides of dimensions whose innermost one has stride `step`."""
    out: list[int] = []
    for d in reversed(dims):
        out.append(step)
        step *= d
    return tuple(reversed(out))
