"""Weights of bytes with at most 16 levels as indices of 2 or 4 bits, looked up in registers before integer products.

A byte of indices has those of f rows of fours: byte [g, column, j] those of rows (g·f + i)·4 + j for i below f, the
first in its lowest field, so that a register of bytes gives f registers of factors for dot products of bytes in fours.
Sums are exact: every target gives the same ones, whatever instructions it has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...codegen.target import Target
from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, binary, bitcast, dot, lookup, shuffle
from ...ir.types import DType
from .books import FIELDS, stream_cycles
from .context import KernelBuilder, Lowering
from .micro import Rows, prefetches
from .panels import pack_panels
from .tile import Tile

FOURS = 4
"""Neighbouring products that one dot product adds."""
MAX_LEVELS = 16
"""Levels beyond which indices take as many bits as the bytes themselves."""
MAX_VECTORS = 8
AHEAD_BYTES = 8 << 10


def byte_form(target: Target) -> DType:
    """The type of rows of bytes whose dot products with i8 cost least."""
    return target.byte_levels or (DType.I8 if target.arch == "aarch64" else DType.U8)


@dataclass(frozen=True, slots=True)
class ByteBook:
    """entries: int8, as many as a power of two. indices: uint8 [K, N]. field: bits of an index."""

    entries: np.ndarray
    indices: np.ndarray
    field: int

    @property
    def in_byte(self) -> int:
        """Indices in a byte."""
        return 8 // self.field

    @property
    def together(self) -> int:
        """Rows whose indices lie in the same bytes."""
        return FOURS * self.in_byte

    def panels(self, length: int, width: int, lanes: int) -> np.ndarray:
        """uint8 panels [N / width][length / together][width][4] of `length` rows, the last panel of whole vectors."""
        rows, columns = self.indices.shape
        padded = np.zeros((length, columns), np.uint8)
        padded[:rows] = self.indices
        fields = padded.reshape(-1, self.in_byte, FOURS, columns)
        shifts = (np.arange(self.in_byte) * self.field).astype(np.uint8)
        joined = np.bitwise_or.reduce(fields << shifts[:, None, None], axis=1)
        groups = np.ascontiguousarray(joined.transpose(0, 2, 1)).reshape(len(joined), -1)
        return pack_panels(groups, width * FOURS, lanes * FOURS)


def byte_book(weights: np.ndarray) -> ByteBook | None:
    """The book of whole numbers [K, N] that fit into i8; None where they have too many levels."""
    if weights.size == 0 or weights.min() < -128 or weights.max() > 127:
        return None
    counts = np.bincount(weights.reshape(-1).astype(np.int16) + 128, minlength=256)
    levels = np.flatnonzero(counts)
    if levels.size > MAX_LEVELS:
        return None
    bits = max(1, (levels.size - 1).bit_length())
    entries = np.full(1 << bits, levels[-1] - 128, np.int8)
    entries[: levels.size] = levels - 128
    index = np.zeros(256, np.uint8)
    index[levels] = np.arange(levels.size)
    return ByteBook(entries, index[weights.astype(np.int16) + 128], next(f for f in FIELDS if bits <= f))


def lookup_cycles(target: Target) -> float | None:
    """Cycles to make a register of bytes of one of indices, with the bytes spread for products of pairs where no
    instruction takes fours; None where nothing looks bytes up. As measured by `benchmarks/codebook.py` on x86, else
    instructions."""
    if target.arch == "aarch64":
        return 1.25
    if "avx512vbmi" in target.has and "avx512vnni" in target.has:
        return 0.8
    if target.vector_bits == 512:
        return 1.75 if target.has_dot_prod else 3.25
    return None if target.vector_bits < 256 else 0.9 if target.has_dot_prod else 2.4


def dot_cycles(target: Target) -> float:
    """Cycles of a dot product of a register of bytes."""
    if target.byte_levels is not None:
        return 1 / target.dots_per_cycle
    return 3.0 if target.arch == "aarch64" else 2.0 if target.vector_bits == 512 else 1.4


def book_cycles(target: Target, book: ByteBook, rows: int, length: int, columns: int) -> tuple[Tile, float] | None:
    """The tile for a product of `rows`, and the cycles that it is expected to take; None where nothing looks up."""
    expand, lanes = lookup_cycles(target), target.lanes(DType.I32)
    if expand is None:
        return None
    vectors = -(-columns // lanes)
    tile = _tile(target, rows, vectors)
    steps = -(-length // FOURS) * vectors
    expanding = steps * (-(-rows // tile.rows) * expand + rows * dot_cycles(target))
    return tile, max(expanding, stream_cycles(target, steps * lanes * FOURS // book.in_byte))


def _tile(target: Target, rows: int, vectors: int) -> Tile:
    """Rows × vectors whose sums, indices, factors and book fit the registers."""
    spare, factor = (4, 1) if target.byte_levels is not None else (6, 2)
    fits = [
        Tile(r, v)
        for r in range(1, min(rows, 8) + 1)
        for v in range(1, min(vectors, MAX_VECTORS) + 1)
        if r * v + v + r * factor + spare <= target.registers
    ]
    return min(fits, key=lambda t: (-(-rows // t.rows), -t.rows * t.vectors))


class CodedBytes:
    """The factor [K, N] of a product in the form of indices (`integer_product.Factor`)."""

    def __init__(self, ctx: Lowering, book: ByteBook, tile: Tile, length: int) -> None:
        lanes = ctx.lanes(DType.I32)
        self.book, self.tile, self.together, self.lanes = book, tile, book.together, lanes
        self.panels = ctx.pack("indices", book.panels(length, tile.vectors * lanes, lanes))
        self.entries: Value = ctx.pack("book", book.entries)
        self.column = length // book.in_byte

    def sets(self, size: int, needed: int) -> int:
        return max(1, min(needed // size, self.book.in_byte))

    def multiply(self, k: KernelBuilder, x: Rows, at: Expr, tile: Tile, acc: Buffer, count: int, sets: int) -> None:
        table = k.let(k.load(k.tensor(self.entries, "book"), 0, self.book.entries.size), "table")
        width = self.lanes * FOURS
        buffer, ahead = k.tensor(self.panels, "indices"), prefetches(k.ctx.target)
        for g in k.loop("k", count // self.together):
            start = k.let(at + g * (tile.vectors * width), "at")
            for v in range(tile.vectors) if ahead else ():
                k.prefetch(buffer, start + (v * width + AHEAD_BYTES))
            bytes_ = [k.let(k.load(buffer, start + v * width, width), "indices") for v in range(tile.vectors)]
            for i in range(self.book.in_byte):
                factors = self._factors(k, x, g * self.together + i * FOURS)
                for v, value in enumerate(bytes_):
                    weights = k.let(lookup(table, _shifted(value, i * self.book.field)), "weights")
                    for r, factor in enumerate(factors):
                        to = (i % sets * tile.rows + r) * tile.vectors + v
                        k.store(acc, to, dot(factor, weights, k.load(acc, to)))

    def _factors(self, k: KernelBuilder, x: Rows, first: Expr) -> list[Expr]:
        repeated = tuple(range(FOURS)) * self.lanes
        return [
            k.let(shuffle(k.load(x.buffer, base + first + constant, FOURS), None, repeated), "x")
            for base, constant in x.at
        ]


def _shifted(value: Expr, bits: int) -> Expr:
    """Bytes whose lowest bits are those from `bits` on; the others are of any value."""
    if not bits:
        return value
    return bitcast(binary("shr", bitcast(value, DType.U32), bits), DType.U8)
