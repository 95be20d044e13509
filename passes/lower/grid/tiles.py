"""Products by work-groups: tiles of both factors in shared memory, a tile of sums in each thread's registers.

A work-group makes a tile of the result; `depth` elements of every row and column at a time are brought into shared
memory by all threads and then read by each (Volkov and Demmel, Benchmarking GPUs to Tune Dense Linear Algebra, SC
2008). A thread's rows and columns lie apart, so that neighbouring threads read and write neighbouring elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from ....ir.loops import Buffer, Expr, broadcast, cast, const, lane, minimum, select
from ....ir.types import DType
from ..context import KernelBuilder, Lowering
from ..product import multiply_add
from ..schedule import Schedule

Read = Callable[[KernelBuilder, Expr, Expr, Expr], Expr]
"""An element of a factor: (kernel, batch, depth, row or column), all inside their ranges."""
Multiply: TypeAlias = Callable[[Expr, Expr, Expr], Expr]
"""A sum with another product in it: (element of a row, element of a column, sum)."""
Finish = Callable[[KernelBuilder, Expr, Expr, Expr, Expr], None]
"""Stores a result: (kernel, batch, row, column, sum)."""


FETCH = 3.0
"""Multiply-adds that bringing an element near takes."""


@dataclass(frozen=True, slots=True)
class Factor:
    """One side of a product. along_depth: its elements lie contiguous along the depth, not along rows or columns."""

    read: Read
    along_depth: bool


@dataclass(frozen=True, slots=True)
class GridProduct:
    """`batch` products of [m, depth] and [depth, n], sums of `acc`; `start` of a row and column is added to them.

    element: what factors are brought near as; None: `acc`. multiply: one step of the sum, `work` as long as a
    multiply-add of floats. fetch: what bringing an element near takes, in the same unit. exact: sums hold so many
    products exactly, or as well as is asked for; they are added up in `total`, which `start` and `finish` take. lanes:
    neighbouring columns that a thread takes as a vector; None: as the device likes.
    """

    batch: int
    m: int
    n: int
    depth: int
    a: Factor
    b: Factor
    acc: DType
    start: Callable[[KernelBuilder, Expr, Expr, Expr], Expr] | None
    finish: Finish
    element: DType | None = None
    multiply: Multiply = multiply_add
    work: float = 1.0
    fetch: float = FETCH
    exact: int | None = None
    total: DType = DType.I32
    lanes: int | None = None

    @property
    def near(self) -> DType:
        """Type of elements in shared memory and in a step."""
        return self.element or self.acc

    @property
    def settles(self) -> bool:
        """Whether sums go to totals on the way."""
        return self.exact is not None and self.exact < self.depth

    @property
    def problem(self) -> str:
        """What decides the schedule."""
        batch = f"{self.batch} x " if self.batch > 1 else ""
        of = f" of {self.near}" if self.near is not self.acc else ""
        added = f" in {self.total}" if self.settles and self.total is not DType.I32 else ""
        return f"{batch}{self.m}x{self.n}x{self.depth} {self.acc}{of}{added}"


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and vectors of columns of sums in a thread, and the depth that shared memory holds at a time; `threads` rows
    and columns of them in a work-group."""

    rows: int
    columns: int
    depth: int
    threads: tuple[int, int] = (8, 16)
    lanes: int = 1

    def __str__(self) -> str:
        return f"tile={self.m}x{self.n} depth={self.depth}"

    @property
    def m(self) -> int:
        return self.rows * self.threads[0]

    @property
    def n(self) -> int:
        return self.columns * self.threads[1] * self.lanes

    def registers(self, p: GridProduct) -> int:
        """Of 32 bits, for sums, their totals and one step's factors; what is no vector lies in one of its own."""

        def words(dtype: DType, lanes: int) -> int:
            return -(-dtype.nbytes * lanes // 4)

        sums = words(p.acc, self.lanes) + (words(p.total, self.lanes) if p.settles else 0)
        return self.rows * self.columns * sums + self.columns * words(p.near, self.lanes) + self.rows * words(p.near, 1)

    @property
    def pitches(self) -> tuple[int, int]:
        """Elements from one step of the depth to the next in shared memory, of both factors: one to spare, so that a
        column's lie in banks of their own, or a vector, which then stays where it is aligned."""
        return self.m + 1, self.n + self.lanes

    def shared_bytes(self, width: int) -> int:
        """Both factors' tiles."""
        return sum(self.pitches) * self.depth * width


SHAPES = tuple((r, c, d) for r, c in ((8, 4), (8, 2), (4, 4), (4, 2), (2, 2), (2, 1), (1, 1)) for d in (16, 8))
"""Rows, columns and depth, from many operations an element read to many work-groups."""

BESIDE = 16
"""Registers for addresses, numbers of loops and what is on its way to shared memory."""

GROUPS = 16
"""Work-groups that keep the smallest devices busy."""


def tile_schedules(ctx: Lowering, p: GridProduct) -> list[Schedule[Tile]]:
    """The tiles that fit the device, with what they take."""
    device = ctx.target.device
    assert device is not None
    lanes = p.lanes or device.lanes
    apart = max(1, lanes // device.lanes)  # a vector in place of columns that lie apart
    tiles = [Tile(r, c // apart, d, device.threads, lanes) for r, c, d in SHAPES if c % apart == 0]
    fitting = [
        t for t in tiles
        if t.shared_bytes(p.near.nbytes) <= device.local_bytes and t.registers(p) <= device.registers - BESIDE
        and (t.depth <= max(8, p.depth))
    ]  # fmt: skip
    return [Schedule(str(t), _cost(p, t), t) for t in fitting]


def write_tiles(ctx: Lowering, p: GridProduct, tile: Tile, family: str) -> None:
    """Append the kernel of a product by tiles."""
    _Tiled(ctx.kernel(), p, tile).write(family)


def _cost(p: GridProduct, t: Tile) -> float:
    """Work of all threads, in multiply-adds: those outside the result count, an element from shared memory counts half
    of one, and work-groups too few to keep a device busy leave a part of it idle."""
    blocks = p.batch * -(-p.m // t.m) * -(-p.n // t.n)
    threads = t.threads[0] * t.threads[1]
    steps = -(-p.depth // t.depth) * t.depth
    results = t.rows * t.columns * t.lanes
    per_step = p.work * results + 0.5 * (t.rows + t.columns) + p.fetch * (t.m + t.n) / threads
    if p.exact is not None and p.settles:
        per_step += 2 * results / p.exact
    return blocks * threads * steps * per_step * max(1.0, GROUPS / blocks)


@dataclass(frozen=True, slots=True)
class Extent:
    """A factor's tile: rows or columns, of how many in all, by depth; the threads that bring it, and where an element
    of a depth and a row or column lies in shared memory."""

    length: int
    size: int
    depth: int
    threads: int
    at: Callable[[Expr, Expr], Expr]


def bring(
    k: KernelBuilder,
    p: GridProduct,
    factor: Factor,
    shared: Buffer,
    begin: tuple[Expr, Expr, Expr],
    extent: Extent,
    number: Expr,
) -> None:
    """All threads together: a tile of a factor from `begin` on (batch, depth, row or column), zeros beyond the matrix'
    depth. number: of the thread."""
    z, first_depth, first = begin
    length, depth, threads = extent.length, extent.depth, extent.threads
    for i in k.loop("e", -(-length * depth // threads), kind="unroll"):
        e = k.let(i * threads + number, "element")
        d, place = (e % depth, e / depth) if factor.along_depth else (e / length, e % length)
        d, place = k.let(d, "d"), k.let(place, "place")
        for _ in k.when(e < length * depth) if length * depth % threads else iter((None,)):
            at, of = k.let(first_depth + d, "at"), k.let(first + place, "of")
            value = factor.read(k, z, minimum(at, p.depth - 1), minimum(of, extent.size - 1))
            value = cast(value, p.near)
            if p.depth % depth:
                value = select(at < p.depth, value, const(0, p.near))
            k.store(shared, extent.at(d, place), value)


class _Tiled:
    """Writes one kernel."""

    def __init__(self, k: KernelBuilder, p: GridProduct, tile: Tile) -> None:
        self.k, self.p, self.tile = k, p, tile

    def write(self, family: str) -> None:
        k, p, tile = self.k, self.p, self.tile
        for z in k.loop("batch", p.batch, kind="grid"):
            for y in k.loop("row_tile", -(-p.m // tile.m), kind="grid"):
                for x in k.loop("column_tile", -(-p.n // tile.n), kind="grid"):
                    shared = [
                        k.alloc("tile_a", p.near, tile.depth * tile.pitches[0], "shared"),
                        k.alloc("tile_b", p.near, tile.depth * tile.pitches[1], "shared"),
                    ]
                    for ty in k.loop("ty", tile.threads[0], kind="thread"):
                        for tx in k.loop("tx", tile.threads[1], kind="thread"):
                            self._thread((z, y, x), (ty, tx), shared)
        k.done(family)

    def _thread(self, block: tuple[Expr, Expr, Expr], thread: tuple[Expr, Expr], shared: list[Buffer]) -> None:
        k, p, tile = self.k, self.p, self.tile
        z, y, x = block
        first_row, first_column = k.let(y * tile.m, "first_row"), k.let(x * tile.n, "first_column")
        sums = self._zeros("sums", p.acc)
        number = k.let(thread[0] * tile.threads[1] + thread[1], "number")
        steps = -(-p.depth // tile.depth)
        together = p.exact // tile.depth if p.exact is not None and p.settles else steps
        totals = self._zeros("totals", p.total) if together < steps else None
        for step in k.loop("step", steps):
            self._step((z, first_row, first_column), step * tile.depth, (shared, sums), thread, number)
            if totals is not None:
                for _ in k.when(step % together >= together - 1):
                    self._settle(sums, totals)
        if totals is not None:
            self._settle(sums, totals)
        for i, j, at in self._sums():
            row = k.let(first_row + thread[0] + i * tile.threads[0], "row")
            column = k.let(first_column + (thread[1] + j * tile.threads[1]) * tile.lanes, "column")
            value = k.load(totals or sums, at)
            value = k.let(value if p.exact is None else cast(value, p.total), "value")
            for lane_of in range(tile.lanes):
                for _ in self._inside(row, column + lane_of):
                    single = value if tile.lanes == 1 else lane(value, lane_of)
                    if p.start is not None:
                        single = single + p.start(k, z, row, column + lane_of)
                    p.finish(k, z, row, column + lane_of, single)

    def _zeros(self, name: str, dtype: DType) -> Buffer:
        """Registers for the thread's sums."""
        k, tile = self.k, self.tile
        made = k.alloc(name, dtype, tile.rows * tile.columns, "register", tile.lanes)
        for _, _, at in self._sums():
            k.store(made, at, const(0, dtype, tile.lanes))
        return made

    def _settle(self, sums: Buffer, totals: Buffer) -> None:
        """Sums go to the totals, and begin anew."""
        k = self.k
        for _, _, at in self._sums():
            k.store(totals, at, k.load(totals, at) + cast(k.load(sums, at), totals.dtype))
            k.store(sums, at, const(0, sums.dtype, self.tile.lanes))

    def _step(
        self,
        place: tuple[Expr, Expr, Expr],
        begin: Expr,
        buffers: tuple[list[Buffer], Buffer],
        thread: tuple[Expr, Expr],
        number: Expr,
    ) -> None:
        """`tile.depth` elements of the sums from `begin` on; place: batch, first row and first column."""
        k, p, tile, (shared, sums) = self.k, self.p, self.tile, buffers
        z, first_row, first_column = place
        begin = k.let(begin, "begin")
        threads = tile.threads[0] * tile.threads[1]
        for factor, buffer, first, pitch, size, most in (
            (p.a, shared[0], first_row, tile.pitches[0], tile.m, p.m),
            (p.b, shared[1], first_column, tile.pitches[1], tile.n, p.n),
        ):
            extent = Extent(size, most, tile.depth, threads, lambda d, at, by=pitch: d * by + at)  # type: ignore[misc]
            bring(k, p, factor, buffer, (z, begin, first), extent, number)
        k.barrier()
        self._multiply(sums, shared, thread)
        k.barrier()

    def _sums(self) -> Iterator[tuple[Expr, Expr, Expr]]:
        """Loops over the thread's sums: row, column and place in its registers."""
        k, tile = self.k, self.tile
        for i in k.loop("i", tile.rows, kind="unroll"):
            for j in k.loop("j", tile.columns, kind="unroll"):
                yield i, j, i * tile.columns + j

    def _inside(self, row: Expr, column: Expr) -> Iterator[None]:
        k, p, tile = self.k, self.p, self.tile
        tests = [c < size for c, size, t in ((row, p.m, tile.m), (column, p.n, tile.n)) if size % t]
        if not tests:
            yield None
            return
        yield from k.when(tests[0] if len(tests) == 1 else tests[0] & tests[1])

    def _multiply(self, sums: Buffer, shared: list[Buffer], thread: tuple[Expr, Expr]) -> None:
        k, tile = self.k, self.tile
        for d in k.loop("d", tile.depth):
            a = k.alloc("a", self.p.near, tile.rows, "register")
            b = k.alloc("b", self.p.near, tile.columns, "register", tile.lanes)
            for i in k.loop("i", tile.rows, kind="unroll"):
                k.store(a, i, k.load(shared[0], d * tile.pitches[0] + thread[0] + i * tile.threads[0]))
            for j in k.loop("j", tile.columns, kind="unroll"):
                at = d * tile.pitches[1] + (thread[1] + j * tile.threads[1]) * tile.lanes
                k.store(b, j, k.load(shared[1], at, tile.lanes))
            for i, j, at in self._sums():
                left = broadcast(k.load(a, i), tile.lanes)
                k.store(sums, at, self.p.multiply(left, k.load(b, j), k.load(sums, at)))
