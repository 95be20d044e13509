"""Matrices of few distinct values as indices into a book of them: how they lie in memory, and what expanding costs.

An index takes a field of 2, 4 or 8 bits of a 32-bit word, so that every byte holds whole indices (which is what packed
weights need); word [w, column] has the indices of rows w·f to w·f + f of the matrix, the first in its lowest field.
Words lie in panels as elements of dense matrices do. The book is a vector of 2^n floats that stays in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...codegen.target import Target
from ...ir.structure import structure

WORD = 32
FIELDS = (2, 4, 8)
"""Bits of a field."""
MAX_ENTRIES = 64
"""Entries of the largest book that stays in registers."""

FAST_STREAM = 9.0
"""Bytes a cycle that cores of servers read from their third-level cache."""


@dataclass(frozen=True, slots=True)
class Book:
    """entries: the values, float32, as many as a power of two; those beyond the levels repeat the last one.

    indices: uint8, of the constant's shape. field: bits of an index in a word.
    """

    entries: np.ndarray
    indices: np.ndarray
    field: int

    @property
    def in_word(self) -> int:
        """Indices in a word."""
        return WORD // self.field

    def words(self, indices: np.ndarray) -> np.ndarray:
        """[rows, columns] of indices as uint32 [rows / in_word, columns]; rows that are missing have index 0."""
        rows, columns = indices.shape
        padded = np.zeros((-(-rows // self.in_word) * self.in_word, columns), np.uint32)
        padded[:rows] = indices
        shifts = np.arange(self.in_word, dtype=np.uint32) * np.uint32(self.field)
        parts = padded.reshape(-1, self.in_word, columns) << shifts[:, None]
        return np.asarray(np.bitwise_or.reduce(parts, axis=1))


def book_of(data: np.ndarray | None) -> Book | None:
    """The book of a float32 constant, None where it has too many distinct values."""
    if data is None or data.dtype != np.float32:
        return None
    found = structure(data)
    if found.levels is None or found.indices is None or found.levels.size > MAX_ENTRIES:
        return None
    field = next(f for f in FIELDS if found.bits <= f)
    entries = np.full(1 << found.bits, found.levels[-1])
    entries[: found.levels.size] = found.levels
    return Book(entries, found.indices, field)


def expand_cycles(target: Target, entries: int) -> float | None:
    """Cycles to make one vector of weights of a vector of words, as measured by `benchmarks/codebook.py` where that
    runs; None where it is slow.

    AVX-512: half a shift and one permutation for 16 or 32 entries, two and a selection for 64; AVX2: one for 8, and a
    selection for each doubling; NEON: `tbl` reads 16 entries by bytes, whose numbers take three instructions.
    """
    if target.vector_bits == 512:
        return 0.75 if entries <= 16 else 1.25 if entries <= 32 else 2.6
    if target.vector_bits == 256:
        return 0.75 if entries <= 8 else 2.0 if entries <= 16 else 5.2 * entries / 32
    if target.arch == "aarch64":
        return (5.0 if entries <= 16 else 7.0 * entries / 16) / target.fma_per_cycle
    return None


def stream_cycles(target: Target, nbytes: int, footprint: int = 0) -> float:
    """Cycles to read weights once: from the second cache where that holds twice as much, or `footprint` bytes that are
    read between one reading and the next, else from farther away.

    On targets that stand for many cores books must pay where that is not slow, too.
    """
    held = max(2 * nbytes, footprint)
    if held <= target.l2_bytes:
        return nbytes / target.l2_bytes_per_cycle
    rate = target.stream_bytes_per_cycle(held)
    return nbytes / (rate if target.knows_core else max(rate, FAST_STREAM))
