"""Tiles of sums in a thread's registers, fed straight from memory: for devices whose work-groups have no memory of
their own that is nearer than the caches.

A thread makes rows × vectors of results. Each step of the sum reads an element for every row and a vector for every
column of vectors (Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, TOMS 2008, section 4, has
such tiles on processors).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ....codegen.target import Target
from ....ir.loops import Buffer, Expr, broadcast, cast, const, minimum, shuffle
from ....ir.types import DType
from ..context import KernelBuilder
from ..product import multiply_add
from ..tasks import guarded, pieces

IN_FLIGHT = 16
"""Multiply-adds that hide each other's latency, and that of loads."""
LOADS = 0.25
"""What a load costs beside multiply-adds that are enough to hide it."""
FINISHED_AT_ONCE = 8
"""Vectors of results that stand side by side; more are finished in a loop, from memory: their text would be long."""
THREADS = 16
"""That keep a device busy."""

Write = Callable[[Expr, int, Expr], None]
"""Stores neighbouring results: (first column, lanes, values)."""


@dataclass(frozen=True, slots=True)
class RegisterTile:
    """Rows and vectors of `lanes` columns."""

    rows: int
    vectors: int
    lanes: int

    def __str__(self) -> str:
        return f"rows={self.rows} vectors={self.vectors}x{self.lanes}"

    @property
    def width(self) -> int:
        return self.vectors * self.lanes

    @property
    def step(self) -> float:
        """Cost of one step of the sum: multiply-adds beside loads, of which those of vectors cross cache lines."""
        loads = self.rows + 2 * self.vectors
        return max(self.rows * self.vectors, IN_FLIGHT, loads) + LOADS * loads

    @property
    def registers(self) -> int:
        """Of 32 bits, for sums and one step's factors."""
        return (self.rows * self.vectors + self.vectors) * self.lanes + self.rows


ROWS = (1, 2, 3, 4, 6, 8, 12)
VECTORS = (1, 2, 3, 4, 6, 8)


def register_tiles(target: Target, rows: int, columns: int, dtype: DType) -> list[RegisterTile]:
    """What fits the registers, not much more than a result of so many rows and columns."""
    device = target.device
    assert device is not None
    most = max(1, device.lanes * 4 // dtype.nbytes)
    lanes = min(most, 1 << (columns - 1).bit_length())
    found = [
        RegisterTile(r, v, lanes)
        for r in ROWS if r == 1 or r <= rows
        for v in VECTORS if v == 1 or (v - 1) * lanes < columns
    ]  # fmt: skip
    return [t for t in found if t.registers * dtype.nbytes <= device.registers * 4]


def busy(threads: int) -> float:
    """How much longer so few threads take than as many as the device has room for."""
    return max(1.0, THREADS / threads)


@dataclass(frozen=True, slots=True)
class Columns:
    """A row's columns in vectors. beyond: what lies behind the last column may be read; else the last vector is read
    from further in front."""

    count: int
    lanes: int
    beyond: bool

    @property
    def vectors(self) -> int:
        return -(-self.count // self.lanes)

    @property
    def rest(self) -> int:
        """Columns in the last vector where that is not full."""
        return self.count % self.lanes

    def read_from(self, column: Expr, together: int) -> Expr:
        """Where the vector at a column is read, of `together` vectors a thread."""
        last = (self.vectors - 1) * self.lanes if self.beyond else self.count - self.lanes
        whole = not self.vectors % together and (self.beyond or not self.rest)
        return column if whole else minimum(column, last)

    def store(self, k: KernelBuilder, column: Expr, together: int, value: Expr, write: Write) -> None:
        """Write the lanes of a vector that are columns of the row."""
        if self.count >= self.lanes:
            for _ in guarded(k, column + self.lanes <= self.count, self.count % (self.lanes * together) > 0):
                write(column, self.lanes, value)
        if not self.rest:
            return
        first = 0 if self.beyond else self.lanes - self.rest
        begin = self.count - self.rest
        for _ in guarded(k, (column >= begin) & (column < self.count), self.vectors > 1 or together > 1):
            for at, width in pieces(self.rest):
                part = shuffle(value, None, tuple(range(first + at, first + at + width)))
                write(const(begin + at), width, part)


class Sums:
    """The tile's sums, zero at first; `total`: the type of totals that they go to after each piece of the depth, which
    are the results then."""

    def __init__(self, k: KernelBuilder, tile: RegisterTile, acc: DType, total: DType | None = None) -> None:
        self.k, self.tile = k, tile
        self.buffer = self._zeros("sums", acc)
        self.totals = None if total is None else self._zeros("totals", total)

    def _zeros(self, name: str, dtype: DType) -> Buffer:
        k, tile = self.k, self.tile
        made = k.registers(name, dtype, tile.rows * tile.vectors, tile.lanes)
        for i in range(tile.rows * tile.vectors):
            k.store(made, i, const(0, dtype, tile.lanes))
        return made

    def pieces(self, hint: str, count: int, each: int) -> Iterator[Expr]:
        """A loop over `count` steps; after every `each` the sums go to the totals, where there are any."""
        k = self.k
        if self.totals is None:
            yield from k.loop(hint, count)
            return
        for begin in k.loop("piece", count, step=each):
            yield from k.loop(hint, k.let(minimum(begin + each, count), "end"), begin)
            for at in range(self.tile.rows * self.tile.vectors):
                more = cast(k.load(self.buffer, at), self.totals.dtype)
                k.store(self.totals, at, k.load(self.totals, at) + more)
                k.store(self.buffer, at, const(0, self.buffer.dtype, self.tile.lanes))
        self.buffer, self.totals = self.totals, None

    def add(self, rows: Iterable[Expr], columns: Sequence[Expr]) -> None:
        """One step: an element of each row times a vector of each column of vectors."""
        k, lanes = self.k, self.tile.lanes
        factors = [k.let(c, "b") for c in columns]
        for i, row in enumerate(rows):
            factor = k.let(broadcast(row, lanes), "a")
            for j, column in enumerate(factors):
                at = i * self.tile.vectors + j
                k.store(self.buffer, at, multiply_add(factor, column, k.load(self.buffer, at)))

    def join(self, other: Sums) -> None:
        """Add the sums of other steps."""
        for at in range(self.tile.rows * self.tile.vectors):
            self.k.store(self.buffer, at, self.k.load(self.buffer, at) + self.k.load(other.buffer, at))

    def results(self) -> Iterator[tuple[Expr, Expr, Expr]]:
        """(row, vector, sum) of each."""
        k, tile = self.k, self.tile
        if tile.rows * tile.vectors <= FINISHED_AT_ONCE:
            for i in range(tile.rows):
                for j in range(tile.vectors):
                    value = k.let(k.load(self.buffer, i * tile.vectors + j), "value")
                    yield const(i), const(j), value
            return
        made = self.in_memory()
        for at in k.loop("i", tile.rows):
            for vector in k.loop("j", tile.vectors):
                place = (at * tile.vectors + vector) * tile.lanes
                yield at, vector, k.let(k.load(made, place, tile.lanes), "value")

    def elements(self) -> Iterator[tuple[Expr, Expr, Expr]]:
        """(row, column, sum) of each element, rows fastest."""
        k, tile = self.k, self.tile
        made = self.in_memory()
        for column in k.loop("j", tile.width):
            for row in k.loop("i", tile.rows):
                yield row, column, k.let(k.load(made, row * tile.width + column), "value")

    def in_memory(self) -> Buffer:
        """The sums, row by row."""
        k, tile = self.k, self.tile
        made = k.alloc("made", self.buffer.dtype, tile.rows * tile.width)
        for i in range(tile.rows * tile.vectors):
            k.store(made, i * tile.lanes, k.load(self.buffer, i))
        return made
