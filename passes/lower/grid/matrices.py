"""Products by work-groups whose subgroups multiply matrices of 8×8: tiles of both factors in shared memory, matrices of
sums held by each subgroup.

Both factors lie near as they lie in memory, so that neighbouring threads read and write neighbours; a matrix is turned
when it is loaded. Sums go back through shared memory, a line of matrices at a time, since only there single elements
have a place that is known (Apple, Metal Shading Language Specification 2.3, SIMD-group matrices).
"""

from __future__ import annotations

from dataclasses import dataclass

from ....ir.loops import MATRIX, MATRIX_THREADS, Buffer, Expr, const
from ....ir.types import DType
from ..context import KernelBuilder, Lowering
from ..product import multiply_add
from ..schedule import Schedule
from ..tasks import guarded
from .halves import multiply_halves
from .tiles import GROUPS, Extent, GridProduct, bring

SUBGROUPS = (2, 2)
"""Of a work-group, along rows and columns."""
THREADS = SUBGROUPS[0] * SUBGROUPS[1] * MATRIX_THREADS
SPARE = 16
"""Bytes between lines of a tile: lines begin in other banks of shared memory, and each is aligned."""
SHAPES = tuple((r, c, d) for r, c in ((4, 4), (4, 2), (2, 4), (2, 2), (2, 1), (1, 2), (1, 1)) for d in (16, 32, 8))
"""Rows and columns of matrices of a subgroup, and depth; of equal cost the first wins: little shared memory, few
barriers."""


@dataclass(frozen=True, slots=True)
class MatrixTile:
    """Rows and columns of matrices of a subgroup, and the depth that shared memory holds at a time."""

    rows: int
    columns: int
    depth: int

    def __str__(self) -> str:
        return f"simdgroup={self.m}x{self.n} depth={self.depth}"

    @property
    def m(self) -> int:
        return self.rows * SUBGROUPS[0] * MATRIX

    @property
    def n(self) -> int:
        return self.columns * SUBGROUPS[1] * MATRIX

    @property
    def registers(self) -> int:
        """Of 32 bits, for sums and one step's factors."""
        return (self.rows * self.columns + self.rows + self.columns) * MATRIX * MATRIX // MATRIX_THREADS

    def shared_bytes(self, p: GridProduct) -> int:
        """Both factors' tiles, and each subgroup's line of results."""
        near = sum(
            Near.of(f.along_depth, size, self.depth, p.near).elements for f, size in ((p.a, self.m), (p.b, self.n))
        )
        return near * p.near.nbytes + SUBGROUPS[0] * self.n * MATRIX * _sums(p).nbytes


@dataclass(frozen=True, slots=True)
class Near:
    """A factor's tile in shared memory: lines of the depth, or of its rows or columns, `step` elements apart."""

    along_depth: bool
    step: int
    elements: int

    @staticmethod
    def of(along_depth: bool, size: int, depth: int, dtype: DType) -> Near:
        lines, length = (size, depth) if along_depth else (depth, size)
        step = pitch(length, dtype)
        return Near(along_depth, step, lines * step)

    def at(self, depth: Expr, place: Expr) -> Expr:
        """Where an element of a row or column lies."""
        return place * self.step + depth if self.along_depth else depth * self.step + place


def pitch(length: int, dtype: DType) -> int:
    """Elements from one line of so many to the next."""
    return length + SPARE // dtype.nbytes


def matrix_schedules(ctx: Lowering, p: GridProduct) -> list[Schedule[MatrixTile]]:
    """The tiles that fit a device whose subgroups multiply matrices, with what they take."""
    device = ctx.target.device
    assert device is not None
    plain = p.multiply in (multiply_add, multiply_halves) and p.near in (DType.F32, DType.F16)
    if not (
        device.matrices
        and plain
        and _sums(p) is DType.F32
        and device.subgroup == MATRIX_THREADS
        and device.work_group >= THREADS
    ):
        return []
    tiles = [MatrixTile(*shape) for shape in SHAPES]
    fitting = [
        t for t in tiles
        if t.shared_bytes(p) <= device.local_bytes and t.registers <= device.registers and t.depth <= max(8, p.depth)
    ]  # fmt: skip
    return [Schedule(str(t), _cost(p, t), t) for t in fitting]


def _sums(p: GridProduct) -> DType:
    """The type that a product's sums have in the end: matrices of halves have none on the way."""
    return p.acc if p.exact is None else p.total


def _cost(p: GridProduct, t: MatrixTile) -> float:
    """As of tiles without matrices, in the same unit: matrices are multiplied as fast as threads multiply and add."""
    blocks = p.batch * -(-p.m // t.m) * -(-p.n // t.n)
    steps = -(-p.depth // t.depth) * t.depth
    share = MATRIX / MATRIX_THREADS
    multiply = t.rows * t.columns * MATRIX * share
    per_step = multiply + 0.5 * (t.rows + t.columns) * share + p.fetch * (t.m + t.n) / THREADS
    back = 1.5 * t.m * t.n / THREADS
    return blocks * THREADS * (steps * per_step + back) * max(1.0, GROUPS / blocks)


def write_matrices(ctx: Lowering, p: GridProduct, tile: MatrixTile, family: str) -> None:
    """Append the kernel of a product by matrices."""
    _Matrices(ctx.kernel(), p, tile).write(family)


class _Matrices:
    """Writes one kernel."""

    def __init__(self, k: KernelBuilder, p: GridProduct, tile: MatrixTile) -> None:
        self.k, self.p, self.tile = k, p, tile
        self.a, self.b = (
            Near.of(f.along_depth, size, tile.depth, p.near) for f, size in ((p.a, tile.m), (p.b, tile.n))
        )
        self.line = tile.columns * MATRIX
        """Elements of a subgroup's row."""

    def write(self, family: str) -> None:
        k, p, tile = self.k, self.p, self.tile
        for z in k.loop("batch", p.batch, kind="grid"):
            for y in k.loop("row_tile", -(-p.m // tile.m), kind="grid"):
                for x in k.loop("column_tile", -(-p.n // tile.n), kind="grid"):
                    near = [
                        k.alloc("tile_a", p.near, self.a.elements, "shared"),
                        k.alloc("tile_b", p.near, self.b.elements, "shared"),
                    ]
                    back = k.alloc("back", _sums(p), SUBGROUPS[0] * tile.n * MATRIX, "shared")
                    for sy in k.loop("sy", SUBGROUPS[0], kind="thread"):
                        for sx in k.loop("sx", SUBGROUPS[1], kind="thread"):
                            for lane in k.loop("lane", MATRIX_THREADS, kind="thread"):
                                self._thread((z, y * tile.m, x * tile.n), (sy, sx), lane, (near, back))
        k.done(family)

    def _thread(
        self,
        first: tuple[Expr, Expr, Expr],
        subgroup: tuple[Expr, Expr],
        lane: Expr,
        shared: tuple[list[Buffer], Buffer],
    ) -> None:
        """first: batch, row and column of the work-group's tile."""
        k, p, tile, (near, back) = self.k, self.p, self.tile, shared
        (sy, sx), (z, row, column) = subgroup, first
        group = k.let(sy * SUBGROUPS[1] + sx, "group")
        number = k.let(group * MATRIX_THREADS + lane, "number")
        place = k.let(sy * (tile.rows * MATRIX), "own_row"), k.let(sx * self.line, "own_column")
        sums = k.matrices("sums", _sums(p), tile.rows * tile.columns)
        for i in k.loop("i", tile.rows * tile.columns, kind="unroll"):
            k.store(sums, i, const(0.0, sums.dtype, MATRIX * MATRIX))
        for step in k.loop("step", -(-p.depth // tile.depth)):
            begin = k.let(step * tile.depth, "begin")
            for factor, lies, buffer, at, size, most in (
                (p.a, self.a, near[0], row, tile.m, p.m),
                (p.b, self.b, near[1], column, tile.n, p.n),
            ):
                bring(k, p, factor, buffer, (z, begin, at), Extent(size, most, tile.depth, THREADS, lies.at), number)
            k.barrier()
            self._multiply(near, place, sums)
            k.barrier()
        here = k.let(group * (self.line * MATRIX), "here")
        for i in k.loop("i", tile.rows, kind="unroll"):
            for j in k.loop("j", tile.columns, kind="unroll"):
                k.matrix_store((back, here + j * MATRIX, self.line), sums, i * tile.columns + j)
            k.barrier()
            self._finish((z, row + place[0] + i * MATRIX, column + place[1]), back, here, lane)
            k.barrier()

    def _multiply(self, near: list[Buffer], place: tuple[Expr, Expr], sums: Buffer) -> None:
        k, tile = self.k, self.tile
        for d in k.loop("d", tile.depth, step=MATRIX):
            a, b = k.matrices("a", self.p.near, tile.rows), k.matrices("b", self.p.near, tile.columns)
            for held, buffer, lies, own, count in (
                (a, near[0], self.a, place[0], tile.rows),
                (b, near[1], self.b, place[1], tile.columns),
            ):
                turned = lies.along_depth == (held is b)
                for i in k.loop("i", count, kind="unroll"):
                    where = lies.at(d, own + i * MATRIX)
                    k.matrix_load(held, i, (buffer, where, lies.step), transposed=turned)
            for i in k.loop("i", tile.rows, kind="unroll"):
                for j in k.loop("j", tile.columns, kind="unroll"):
                    k.matrix_multiply((sums, i * tile.columns + j), (a, i), (b, j))

    def _finish(self, first: tuple[Expr, Expr, Expr], back: Buffer, here: Expr, lane: Expr) -> None:
        """A subgroup's line of matrices of results, from `first` on: batch, row, column."""
        k, p, (z, row, column) = self.k, self.p, first
        partial = p.m % self.tile.m or p.n % self.tile.n
        for e in k.loop("e", self.line * MATRIX // MATRIX_THREADS, kind="unroll"):
            at = k.let(e * MATRIX_THREADS + lane, "at")
            r, c = k.let(row + at / self.line, "row"), k.let(column + at % self.line, "column")
            for _ in guarded(k, (r < p.m) & (c < p.n), partial > 0):
                value = k.let(k.load(back, here + at), "value")
                p.finish(k, z, r, c, value if p.start is None else value + p.start(k, z, r, c))
