"""The inner loop of products: a register tile of rows × vectors accumulators over a run of k.

Elements of x are broadcast one by one or, where multiply-adds take a lane of a vector, read as vectors along k whose
lanes are the factors. Weights are read as vectors along n; packed ones are one linear stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...codegen.target import Target
from ...ir.loops import Buffer, Expr, broadcast, cast, const, dot, shuffle
from ...ir.types import DType
from .context import KernelBuilder
from .product import multiply_add


def splats_lanes(target: Target) -> bool:
    """Whether multiply-adds take a lane of a vector as a factor, so that x is best read as vectors along k."""
    return target.arch == "aarch64"


def products_together(target: Target, dtype: DType) -> int:
    """Neighbouring products along k that one instruction adds into i32: pairs of i16 on x86, fours of bytes where the
    target has dot products of them and i8; into f32 pairs of bf16 where it has those."""
    if dtype is DType.BF16:
        return 2 if target.has_bf16 else 1
    if dtype is DType.I16:
        return 2 if target.arch == "x86_64" else 1
    return 4 if dtype is target.byte_levels else 1


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

AT_ONCE = 8
"""Lines fetched ahead in a row: more fill the buffers that the loads after them need."""


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
    soon: Sequence[Ahead] = (),
    together: int = 1,
    narrow: int = 0,
) -> None:
    """acc[(first + r)·vectors + v] += Σ x[r, i] · w[i, v] for i below `count`.

    `sets` copies of the tile follow each other in `acc`: step i adds to copy i % sets, which hides the latency of
    small tiles. `unroll`: steps of one iteration, a multiple of `sets`. `soon`: read after this product.
    `together`: steps that lie side by side in x (of step 1) and, lane by lane, in packed weights; `count` and `unroll`
    are multiples of it. `narrow`: so many times `together` products of bytes are first added in pairs of i16, which
    their sums must not leave; then these are multiples of all of them.
    """
    inner = _Inner(k, x, w, acc, first, sets, together, narrow)
    turns = 1
    if splats_lanes(k.ctx.target):
        if x.step == 1 and count >= w.lanes:
            long = len(x.at) == 1 and count >= 4 * w.lanes
            unroll, turns = max(unroll, 4 * w.lanes if long else w.lanes), 1 if long else 2
        unroll = min(unroll, count)
    main = 0
    for step in dict.fromkeys((turns * unroll, unroll)):
        begin, main = main, count // step * step
        for i in k.loop("k", main, begin, step) if begin < main else ():
            for item in soon:
                for line in range(item.lines):
                    k.prefetch(item.buffer, item.at + i * item.step + line * (LINE_BYTES // item.buffer.dtype.nbytes))
            for turn in range(0, step, unroll):
                inner.steps(i + turn, unroll)
    for i in k.loop("k", count, main, together) if main < count else ():
        inner.steps(i, together)


def in_turns(k: KernelBuilder, hint: str, begin: Expr, end: Expr, count: int) -> Iterator[Expr]:
    """A loop over `count` indices from begin to end whose body is written twice where every instruction counts.

    A generator of bodies: each value yielded stands for one index, or for every other one.
    """
    twice = splats_lanes(k.ctx.target) and count > 1
    for i in k.loop(hint, end - count % 2 if twice else end, begin, 2 if twice else 1) if count else ():
        yield i
        if twice:
            yield i + 1
    if twice and count % 2:
        yield end - 1


@dataclass(frozen=True, slots=True)
class _Inner:
    k: KernelBuilder
    x: Rows
    w: Weights
    acc: Buffer
    first: int
    sets: int
    together: int
    narrow: int = 0

    def steps(self, i: Expr, count: int) -> None:
        """Steps i to i + count."""
        if self.narrow:
            for j in range(0, count, self.together * self.narrow):
                self._narrow(i, j, self.together)
            return
        if self.together > 1:
            for j in range(0, count, self.together):
                self._together(i, j, self.together)
            return
        k, w = self.k, self.w
        lined = self._lined(i, count) if splats_lanes(k.ctx.target) else {}
        vectors: list[Expr] = []
        for j in range(count):
            for v in range(w.vectors):
                if len(vectors) <= j * w.vectors + v:
                    vectors += self._weights(i, len(vectors), count * w.vectors)
            for r, (base, constant) in enumerate(self.x.at):
                offset = constant + j * self.x.step
                if (found := lined.get((base, offset))) is not None:
                    factor = shuffle(found[0], None, (found[1],) * w.lanes)
                else:
                    factor = broadcast(self._x(base, i, offset, 1), w.lanes)
                factor = k.let(factor, "x") if w.vectors > 1 else factor
                for v in range(w.vectors):
                    at = j % self.sets * (self.acc.size // self.sets) + (self.first + r) * w.vectors + v
                    k.store(self.acc, at, multiply_add(factor, vectors[j * w.vectors + v], k.load(self.acc, at)))

    def _together(self, i: Expr, j: int, group: int) -> None:
        """Steps j to j + group after i, which lie side by side in x, and lane by lane in the weights."""
        k, w, width = self.k, self.w, self.w.lanes * group
        dtype = self.x.buffer.dtype
        vectors = []
        for v in range(w.vectors):
            value = k.load(w.buffer, w.at + i * w.step + (j * w.step + v * width), width)
            vectors.append(k.let(cast(value, dtype) if dtype is DType.I16 else value, "w"))
        for r, factor in enumerate(self._factors(i, j, group)):
            for v in range(w.vectors):
                at = j // group % self.sets * (self.acc.size // self.sets) + (self.first + r) * w.vectors + v
                k.store(self.acc, at, dot(factor, vectors[v], k.load(self.acc, at)))

    def _narrow(self, i: Expr, j: int, group: int) -> None:
        """`narrow` groups of steps from j after i, added in i16 before they are added to the sums."""
        k, w, width = self.k, self.w, self.w.lanes * group
        starts = range(j, j + group * self.narrow, group)
        weights = [
            [k.let(k.load(w.buffer, w.at + i * w.step + (s * w.step + v * width), width), "w") for s in starts]
            for v in range(w.vectors)
        ]
        ones, zeros = (const(n, DType.I16, width // 2) for n in (1, 0))
        for r, factors in enumerate(zip(*(self._factors(i, s, group) for s in starts), strict=True)):
            for v in range(w.vectors):
                total: Expr = zeros
                for x, factor in zip(factors, weights[v], strict=True):
                    total = dot(x, factor, total)
                at = (self.first + r) * w.vectors + v
                k.store(self.acc, at, dot(total, ones, k.load(self.acc, at)))

    def _factors(self, i: Expr, j: int, group: int) -> Iterator[Expr]:
        """Steps j to j + group after i of each row, in every lane. Rows that lie side by side come as one vector where
        multiply-adds take a lane of it."""
        k, x, lanes, at = self.k, self.x, self.w.lanes, 0
        while at < len(x.at):
            base, constant = x.at[at]
            beside = [(base, constant + n * group) for n in range(lanes)]
            several = splats_lanes(k.ctx.target) and list(x.at[at : at + lanes]) == beside
            count = lanes if several else 1
            value = k.load(x.buffer, base + i * x.step + (constant + j), group * count)
            value = k.let(value, "x") if several else value
            for n in range(count):
                factor = shuffle(value, None, tuple(range(n * group, (n + 1) * group)) * lanes)
                yield factor if several else k.let(factor, "x")
            at += count

    def _lined(self, i: Expr, count: int) -> dict[tuple[Expr, int], tuple[Expr, int]]:
        """Elements of x that the steps need, by base and offset: the vector that holds each, and its lane there.

        Single vectors are read first, at a constant distance from where the pointer of the others stands.
        """
        lanes, found = self.w.lanes, {}
        for base in dict.fromkeys(base for base, _ in self.x.at):
            rows = [constant for other, constant in self.x.at if other == base]
            offsets = {constant + j * self.x.step for constant in rows for j in range(count)}
            reads = [read for run in _runs(offsets, lanes) for read in self._reads(run, lanes)]
            for first, registers in sorted(reads, key=lambda read: read[1]):
                pieces = self._pieces(self._x(base, i, first, registers * lanes), registers, lanes)
                for r, piece in enumerate(pieces):
                    found.update({(base, first + r * lanes + n): (piece, n) for n in range(lanes)})
        return found

    def _reads(self, run: range, lanes: int) -> list[tuple[int, int]]:
        """Loads (first element, registers) of a run of elements; where it is ragged the last one overlaps."""
        whole, most = len(run) // lanes, self._most(self.x.buffer)
        reads = [(run.start + r * lanes, min(most, whole - r)) for r in range(0, whole, most)]
        return reads + [(run.stop - lanes, 1)] * (len(run) % lanes > 0 and whole > 0)

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

    def _x(self, base: Expr, i: Expr, offset: int, count: int) -> Expr:
        value = cast(self.k.load(self.x.buffer, base + i * self.x.step + offset, count), self.acc.dtype)
        return self.k.let(value, "x") if count > 1 else value


def _runs(offsets: set[int], lanes: int) -> list[range]:
    """Elements in runs without a gap of a whole vector."""
    runs: list[range] = []
    for at in sorted(offsets):
        if runs and at - runs[-1].stop < lanes:
            runs[-1] = range(runs[-1].start, at + 1)
        else:
            runs.append(range(at, at + 1))
    return runs
