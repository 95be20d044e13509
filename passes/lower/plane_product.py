"""Matrix products of few rows whose constant factor lies in planes (`float_planes.py`): expanded in registers.

With few rows the bytes of the weights take the time, and these are an eighth fewer, or a quarter of bfloat16's.
Products are those of the dense matrix; what is missing of elements with rare exponents is multiplied first.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from ...ir.loops import Buffer, Expr, binary, bitcast, broadcast, cast, const, lookup, shuffle
from ...ir.types import DType
from .book_kernel import AHEAD_BYTES
from .books import stream_cycles
from .context import Lowering
from .float_planes import CODES, ROWS, Form, Planes, form_of, pack_planes
from .gemm_kernel import FEW_ROWS, tiles
from .micro import LINE_BYTES
from .product import (
    Product,
    begin_sums,
    constant_matrix,
    finish_lanes,
    multiply_add,
    offset_at,
    unravel,
    whole_and_rest,
)
from .schedule import DENSE, Schedule, choose
from .tasks import tasks

EXPAND_CYCLES = 1.7
"""Cycles to make a vector of weights, as measured with weights in the second cache: ports of shuffles bind."""
MAX_VECTORS = 8
ACCUMULATORS = 16
FAR_BYTES = 8 << 20
"""Bytes that a run reads, from which on asking ahead for weights pays (`benchmarks/gemm.py`)."""
LANE_BYTES = 16
"""Bytes that instructions interleave at a time."""


def plane_form(ctx: Lowering, p: Product) -> Form | None:
    """The form in which a product reads its weights, None where dense ones are thought to be faster."""
    data = p.b.value.data
    if data is None or p.acc is not DType.F32 or any(p.b.batch) or p.m > FEW_ROWS or ctx.lanes() < 4:
        return None
    if p.a.value.type.dtype is not DType.F32 or data.dtype != np.float32 or ctx.target.arch != "x86_64":
        return None
    form = form_of(_matrix(p))
    if form is None:
        return None
    planes, dense = _cycles(ctx, p, 3.5 if form.halves else 1.5), _dense_cycles(ctx, p, 4 if form.halves else 2)
    if planes >= dense:
        return None
    problem = f"{prod(p.batch)} of {p.m}x{p.n}x{p.k} {p.acc} threads {ctx.threads}"
    name = "planes" if form.halves else "half planes"
    candidates: list[Schedule[Form | None]] = [
        Schedule(DENSE, prod(p.batch) * dense, None), Schedule(name, prod(p.batch) * planes, form),
    ]  # fmt: skip
    return choose(ctx, "planes", problem, candidates)


def _matrix(p: Product) -> np.ndarray:
    return constant_matrix(p).reshape(p.k, p.n)


def _cycles(ctx: Lowering, p: Product, element_bytes: float) -> float:
    vectors = p.k * -(-p.n // ctx.lanes())
    expanding = vectors * (EXPAND_CYCLES + p.m / ctx.target.fma_per_cycle)
    return max(expanding, stream_cycles(ctx.target, int(vectors * ctx.lanes() * element_bytes), ctx.footprint))


def _dense_cycles(ctx: Lowering, p: Product, element_bytes: int) -> float:
    best = min(tiles(ctx.target, DType.F32, p.m, p.n, p.k), key=lambda s: s.cycles)
    nbytes = p.k * -(-p.n // ctx.lanes()) * ctx.lanes() * element_bytes
    return max(best.cycles, stream_cycles(ctx.target, nbytes, ctx.footprint))


def multiply_by_planes(ctx: Lowering, p: Product, form: Form, family: str) -> None:
    """Append the kernel of a product (see `plane_form`)."""
    _Writer(ctx, p, form).write(family)


class _Writer:
    def __init__(self, ctx: Lowering, p: Product, form: Form) -> None:
        self.ctx, self.p, self.k, self.form = ctx, p, ctx.kernel(), form
        self.lanes, self.far = ctx.lanes(), ctx.footprint > FAR_BYTES
        self.vectors = min(-(-p.n // self.lanes), MAX_VECTORS, ACCUMULATORS // p.m)
        self.width, self.depth = self.vectors * self.lanes, -(-p.k // ROWS)
        planes: Planes = pack_planes(_matrix(p), form, self.width, self.lanes)
        self.groups, self.table = ctx.pack("planes", planes.groups), ctx.pack("highest", form.table)
        self.lists = {
            name: ctx.pack(name, getattr(planes, name))
            for name in ("first", "rows", "columns", "missing")
            if planes.missing.size
        }

    def write(self, family: str) -> None:
        k, p = self.k, self.p
        panels, group = -(-p.n // self.width), self.form.group_bytes(self.lanes)
        for t in tasks(k, p.macs, prod(p.batch) * panels):
            panel = k.let(t % panels, "panel")
            batch = tuple(k.let(b, "batch") for b in unravel(t / panels, p.batch))
            row = k.let(offset_at(p.a.batch, batch), "row")
            for columns, mine in whole_and_rest(k, panel, p.n, self.width):
                for _ in mine:
                    vectors = -(-columns // self.lanes)
                    at = k.let(panel * (self.depth * self.vectors * group), "at")
                    sums = self._begin(row, panel, vectors)
                    self._add(sums, row, at, vectors)
                    for r in range(p.m):
                        for v in range(vectors):
                            valid, value = min(self.lanes, columns - v * self.lanes), k.load(sums, r * vectors + v)
                            finish_lanes(k, p, (*batch, const(r), panel * self.width + v * self.lanes), valid, value)
        k.done(family)

    def _begin(self, row: Expr, panel: Expr, vectors: int) -> Buffer:
        """p.m × vectors accumulators: what sums begin from, and the products that the planes leave out."""
        k, p, lanes = self.k, self.p, self.lanes
        sums = k.registers("sums", p.acc, p.m * vectors, lanes)
        places = [(r, v) for r in range(p.m) for v in range(vectors)]
        starts = [begin_sums(k, p, panel * self.width + v * lanes, lanes) for _, v in places]
        if not self.lists:
            for i, start in enumerate(starts):
                k.store(sums, i, start)
            return sums
        begin = k.alloc("begin", p.acc, p.m * vectors * lanes, "stack")
        for i, start in enumerate(starts):
            k.store(begin, i * lanes, start)
        self._add_missing(begin, row, panel, vectors)
        for i in range(len(places)):
            k.store(sums, i, k.load(begin, i * lanes, lanes))
        return sums

    def _add_missing(self, begin: Buffer, row: Expr, panel: Expr, vectors: int) -> None:
        """A factor that is not finite has made its product infinite or NaN already."""
        k, p = self.k, self.p
        part = {name: k.tensor(value, name) for name, value in self.lists.items()}
        first, end = (k.let(cast(k.load(part["first"], panel + i), DType.I64), "list") for i in (0, 1))
        for e in k.loop("e", end, first):
            at = k.let(cast(k.load(part["rows"], e), DType.I64), "k")
            column = k.let(cast(k.load(part["columns"], e), DType.I64), "column")
            weight = k.let(k.load(part["missing"], e), "weight")
            for r in range(p.m):
                x = k.let(k.load(k.tensor(p.a.value, "a"), row + r * p.a.row + at * p.a.col), "x")
                i = k.let(column + r * vectors * self.lanes, "i")
                for _ in k.when(binary("eq", x - x, const(0, DType.F32))):
                    k.store(begin, i, multiply_add(x, weight, k.load(begin, i)))

    def _add(self, sums: Buffer, row: Expr, first: Expr, vectors: int) -> None:
        """All products along k."""
        k, p, group = self.k, self.p, self.form.group_bytes(self.lanes)
        table = k.let(k.load(k.tensor(self.table, "highest"), 0, CODES), "table")
        whole, rest = divmod(p.k, ROWS)
        for g in k.loop("g", whole) if whole else ():
            self._group(sums, table, (row, g, ROWS), k.let(first + g * (vectors * group), "group"), vectors)
        if rest:
            self._group(sums, table, (row, const(whole), rest), first + whole * vectors * group, vectors)

    def _group(self, sums: Buffer, table: Expr, at: tuple[Expr, Expr, int], start: Expr, vectors: int) -> None:
        """The products of up to four rows of a panel."""
        k, p, (row, g, count) = self.k, self.p, at
        a = k.tensor(p.a.value, "a")
        places = [[row + r * p.a.row + (g * ROWS + j) * p.a.col for j in range(count)] for r in range(p.m)]
        factors = [[k.let(broadcast(k.load(a, i), self.lanes), "x") for i in mine] for mine in places]
        group = self.form.group_bytes(self.lanes)
        for v in range(vectors):
            for line in range(v * group // LINE_BYTES, (v + 1) * group // LINE_BYTES) if self.far else ():
                k.prefetch(k.tensor(self.groups, "planes"), start + (line * LINE_BYTES + AHEAD_BYTES))
            weights = self._weights(table, start + v * group)
            for j, weight in zip(range(count), weights, strict=False):
                for r in range(p.m):
                    i = r * vectors + v
                    k.store(sums, i, multiply_add(factors[r][j], weight, k.load(sums, i)))

    def _weights(self, table: Expr, at: Expr) -> Iterator[Expr]:
        """Four vectors of weights of a group: its bytes are interleaved 128 bits at a time, then its words."""
        k, lanes = self.k, self.lanes
        buffer, size = k.tensor(self.groups, "planes"), ROWS * lanes
        low = (
            [k.let(bitcast(k.load(buffer, at + i * size, size), DType.U16), "low") for i in range(2)]
            if self.form.halves
            else [const(0, DType.U16, size // 2)] * 2
        )
        at = at + 2 * size if self.form.halves else at
        middle = k.let(k.load(buffer, at, size), "middle")
        codes = k.let(k.load(buffer, at + size, size // 2), "codes")
        parts = k.let(codes & 15, "codes"), k.let(binary("shr", codes, 4), "codes")
        top = k.let(lookup(table, shuffle(*parts, tuple(range(size)))), "top")
        for half in range(2):
            high = k.let(bitcast(_interleaved(middle, top, half), DType.U16), "high")
            for quarter in range(2):
                yield k.let(bitcast(_interleaved(low[half], high, quarter), DType.F32), "weight")


def _interleaved(a: Expr, b: Expr, half: int) -> Expr:
    """Elements of a and b in turn, of the lower or the upper half of each 128 bits."""
    step = LANE_BYTES // a.dtype.nbytes
    taken = [start + half * step // 2 + i for start in range(0, a.lanes, step) for i in range(step // 2)]
    return shuffle(a, b, tuple(i for t in taken for i in (t, a.lanes + t)))
