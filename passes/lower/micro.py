"""The inner loop of products: a register tile of rows × vectors accumulators over a run of k.

Elements of x are broadcast one by one or, where multiply-adds take a lane of a vector, read as vectors along k whose
lanes are the factors. Weights are read as vectors along n; packed ones are one linear stream.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...codegen.target import Target
from ...ir.loops import Buffer, Expr, broadcast, cast, shuffle
from .context import KernelBuilder
from .product import multiply_add


def splats_lanes(target: Target) -> bool:
    """Whether multiply-adds take a lane of a vector as a factor, so that x is best read as vectors along k."""
    return target.arch == "aarch64"


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of x: element k of row r lies at base + constant + k·step, (base, constant) = at[r]."""

    buffer: Buffer
    at: tuple[tuple[Expr, int], ...]
    step: int = 1


@dataclass(frozen=True, slots=True)
class Weights:
    """Vector v of step k lies at `at` + k·step + v·lanes; `step` is vectors·lanes where they are packed."""

    buffer: Buffer
    at: Expr
    step: int
    vectors: int
    lanes: int


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a product asks for beside its work: `lines` cache lines an iteration, at `at` + k·step, `span` in all.

    Elements, but for `lines`.
    """

    buffer: Buffer
    at: Expr
    step: int
    lines: int
    span: int


LINE_BYTES = 64


def prefetches(target: Target) -> bool:
    """Whether asking for cache lines pays: measured where it does, an instruction too many where only those count."""
    return target.arch == "x86_64"


def ahead(buffer: Buffer, at: Expr, count: int, lines: int, unroll: int) -> Ahead:
    """At least `lines` cache lines from `at` on, spread evenly over a run of `count` steps."""
    iterations = count // unroll
    each = -(-lines // iterations)
    elements = each * LINE_BYTES // buffer.dtype.nbytes
    return Ahead(buffer, at, elements // unroll, each, elements * iterations)


def rows_of(buffer: Buffer, at: Expr, row: int, count: int, *, first: int = 0, step: int = 1) -> Rows:
    """`count` rows, `row` elements apart, from row `first` on; `at` is where row 0 begins."""
    return Rows(buffer, tuple((at, r * row) for r in range(first, first + count)), step)


def packed(buffer: Buffer, at: Expr, vectors: int, lanes: int) -> Weights:
    return Weights(buffer, at, vectors * lanes, vectors, lanes)


def multiply(
    k: KernelBuilder,
    x: Rows,
    w: Weights,
    count: int,
    acc: Buffer,
    *,
    first: int = 0,
    sets: int = 1,
    unroll: int = 1,
    soon: Ahead | None = None,
) -> None:
    """acc[(first + r)·vectors + v] += Σ x[r, i] · w[i, v] for i below `count`.

    `sets` copies of the tile follow each other in `acc`: step i adds to copy i % sets, which hides the latency of
    small tiles. `unroll`: steps of one iteration, a multiple of `sets`. `soon`: read after this product.
    """
    inner = _Inner(k, x, w, acc, first, sets)
    if splats_lanes(k.ctx.target) and x.step == 1 and count >= w.lanes:
        unroll = max(unroll, w.lanes)
    main = count // unroll * unroll
    for i in k.loop("k", main, step=unroll) if main else ():
        if soon is not None:
            for line in range(soon.lines):
                k.prefetch(soon.buffer, soon.at + i * soon.step + line * (LINE_BYTES // soon.buffer.dtype.nbytes))
        inner.steps(i, unroll)
    for i in k.loop("k", count, main) if main < count else ():
        inner.steps(i, 1)


@dataclass(frozen=True, slots=True)
class _Inner:
    k: KernelBuilder
    x: Rows
    w: Weights
    acc: Buffer
    first: int
    sets: int

    def steps(self, i: Expr, count: int) -> None:
        """Steps i to i + count."""
        k, w = self.k, self.w
        lined = splats_lanes(k.ctx.target) and self.x.step == 1 and count == w.lanes > 1
        rows = self._lines(i, count) if lined else []
        vectors: list[Expr] = []
        for j in range(count):
            for v in range(w.vectors):
                if len(vectors) <= j * w.vectors + v:
                    vectors += self._weights(i, len(vectors), count * w.vectors)
            for r in range(len(self.x.at)):
                factor = shuffle(rows[r], None, (j,) * w.lanes) if lined else broadcast(self._x(r, i, j, 1), w.lanes)
                factor = k.let(factor, "x") if w.vectors > 1 else factor
                for v in range(w.vectors):
                    at = j % self.sets * (self.acc.size // self.sets) + (self.first + r) * w.vectors + v
                    k.store(self.acc, at, multiply_add(factor, vectors[j * w.vectors + v], k.load(self.acc, at)))

    def _lines(self, i: Expr, count: int) -> list[Expr]:
        """`count` elements of every row as a vector, neighbouring rows by one load; single ones come first, at a
        constant distance from where the pointer of the others stands."""
        runs, at = [0], self.x.at
        for r in range(1, len(at)):
            base, constant = at[runs[-1]]
            near = r - runs[-1] < self._most(self.x.buffer)
            if not near or at[r] != (base, constant + (r - runs[-1]) * count):
                runs.append(r)
        spans = list(zip(runs, [*runs[1:], len(at)], strict=True))
        lines: dict[int, Expr] = {}
        for first, end in sorted(spans, key=lambda span: span[1] - span[0] > 1):
            value = self._x(first, i, 0, (end - first) * count)
            lines.update(enumerate(self._pieces(value, end - first, count), first))
        return [lines[r] for r in range(len(at))]

    def _weights(self, i: Expr, first: int, end: int) -> list[Expr]:
        """Vectors of weights from number `first` of the steps after i on, those of a packed stream by one load."""
        w = self.w
        linear = w.step == w.vectors * w.lanes
        run = min(self._most(w.buffer), end - first) if linear else 1
        j, v = divmod(first, w.vectors)
        value = self.k.load(w.buffer, w.at + i * w.step + (j * w.step + v * w.lanes), run * w.lanes)
        return self._pieces(self.k.let(cast(value, self.acc.dtype), "w"), run, w.lanes)

    def _most(self, buffer: Buffer) -> int:
        """Registers that one load fills."""
        whole = self.w.lanes == self.k.ctx.lanes(buffer.dtype) and buffer.dtype is self.acc.dtype
        return 4 if self.k.ctx.target.loads_several and whole else 1

    def _pieces(self, value: Expr, count: int, lanes: int) -> list[Expr]:
        if count == 1:
            return [value]
        parts = [tuple(range(p * lanes, (p + 1) * lanes)) for p in range(count)]
        return [self.k.let(shuffle(value, None, part), "v") for part in parts]

    def _x(self, r: int, i: Expr, j: int, count: int) -> Expr:
        base, constant = self.x.at[r]
        value = self.k.load(self.x.buffer, base + i * self.x.step + (constant + j * self.x.step), count)
        value = cast(value, self.acc.dtype)
        return self.k.let(value, "x") if count > 1 else value
