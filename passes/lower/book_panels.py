"""Panels of a product's constant factor as indices, expanded panel by panel where many rows share one.

Each worker has room for one panel of floats, which stays in the second-level cache while its rows pass over it.
"""

from __future__ import annotations

import numpy as np

from ...codegen.target import Target
from ...ir.loops import Buffer, Expr, binary, const, lookup
from ...ir.types import DType
from .books import Book, expand_cycles
from .context import KernelBuilder, Lowering
from .panels import Panels, pack_panels
from .product import Product

STORE_CYCLES = 3.0
"""To store a vector of 64 bytes where products read it, in the second cache: measured by `benchmarks/codebook.py`."""
MEMORY_WORTH = 0.8
"""Time with indices that counts as one with dense weights, where memory is worth some: they take a fraction of it."""


def fits(target: Target, vectors: int, depth: int) -> bool:
    """Whether a panel stays in the second-level cache with what is read beside it."""
    return 2 * vectors * depth * target.vector_bits // 8 <= target.l2_bytes


def expanding_cycles(target: Target, entries: int, vectors: int) -> float | None:
    """Cycles to make so many vectors of floats of indices, in memory; None where that is slow."""
    cost = expand_cycles(target, entries)
    return None if cost is None else vectors * (cost + STORE_CYCLES * target.vector_bits / 512)


class CodedPanels:
    """The factor [K, N] of a product, without batches, by its book."""

    def __init__(self, ctx: Lowering, p: Product, plan: Panels, book: Book) -> None:
        self.book, self.depth, self.lanes, self.several = book, p.k, plan.lanes, ctx.threads > 1
        indices = np.lib.stride_tricks.as_strided(book.indices, (p.k, p.n), (p.b.row, p.b.col))
        self.words_a_panel = -(-p.k * plan.tile.vectors // book.in_word)
        self.words = ctx.pack("words", self._words(indices, plan.tile.vectors * plan.lanes))
        self.entries = ctx.pack("book", book.entries)
        self.size = self.words_a_panel * book.in_word * plan.lanes
        self.panel = ctx.scratch("panel", DType.F32, ctx.threads * self.size)

    def _words(self, indices: np.ndarray, width: int) -> np.ndarray:
        parts = []
        for first in range(0, indices.shape[1], width):
            panel = pack_panels(indices[:, first : first + width], width, self.lanes)
            parts.append(self.book.words(panel.reshape(-1, self.lanes)).reshape(-1))
        return np.concatenate(parts)

    def fill(self, k: KernelBuilder, nb: Expr, vectors: int) -> Expr:
        """Expand panel nb, of so many vectors; where it lies."""
        base = k.let(k.worker * self.size, "base") if self.several else const(0)
        table = k.let(k.load(k.tensor(self.entries, "book"), 0, self.book.entries.size), "table")
        start = k.let(nb * (self.words_a_panel * self.lanes), "words")
        count = -(-self.depth * vectors // self.book.in_word)
        expand(
            k, self.book, table, (k.tensor(self.words, "words"), start), (k.tensor(self.panel, "panel"), base), count
        )
        return base


def expand(
    k: KernelBuilder, book: Book, table: Expr, source: tuple[Buffer, Expr], to: tuple[Buffer, Expr], count: int
) -> None:
    """`count` words of indices as vectors of floats, one after another."""
    lanes = k.ctx.lanes(DType.F32)
    for w in k.loop("w", count):
        word = k.let(k.load(source[0], source[1] + w * lanes, lanes), "word")
        for j in range(book.in_word):
            index = binary("shr", word, j * book.field) if j else word
            k.store(to[0], to[1] + w * (book.in_word * lanes) + j * lanes, lookup(table, index))
