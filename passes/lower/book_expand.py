"""Constant weights in a kernel's own order as indices, which a call before the kernel makes floats of, in the arena.

For kernels that read weights often enough that looking them up each time would cost more: convolutions, recurrences.
What they read then lies in the second-level cache, where the call has left it, and what is read from farther away are
indices of 2, 4 or 8 bits: word [w, lane] has those of vectors w·f to w·f + f, the first one in its lowest field.
"""

from __future__ import annotations

import numpy as np

from ...ir.graph import Value
from ...ir.types import DType
from .book_panels import expand, expanding_cycles
from .books import Book, book_of, stream_cycles
from .context import Lowering
from .schedule import DENSE, Schedule, choose
from .tasks import tasks

MEMORY_WORTH = 0.2
"""Of the time that weights alone take, which is a small part of a node's: see `book_panels.MEMORY_WORTH`."""
LEAST = 4096
"""Weights from which on a call of its own is worth its start."""


def pack_coded(ctx: Lowering, hint: str, data: np.ndarray, *, hidden: bool = False) -> Value:
    """A constant of whole vectors of weights as it is or, where few levels make that faster, expanded for this node.

    hidden: reading them from afar takes no time beside what is done with them.
    """
    book = _book(ctx, data)
    if book is None:
        return ctx.pack(hint, data)
    expanding = expanding_cycles(ctx.target, book.entries.size, data.size // ctx.lanes())
    if expanding is None:
        return ctx.pack(hint, data)
    share = book.field / (8 * data.itemsize)
    near = data.nbytes / ctx.target.l2_bytes_per_cycle
    dense = near if hidden else stream_cycles(ctx.target, data.nbytes, ctx.footprint)
    coded = max(expanding, stream_cycles(ctx.target, int(data.nbytes * share), int(ctx.footprint * share)))
    coded *= MEMORY_WORTH if ctx.for_memory else 1.0
    problem = f"{data.size} f32 levels {book.entries.size} of {max(ctx.footprint, data.nbytes)} bytes"
    name = f"book={book.entries.size} expanded"
    if not choose(ctx, "weights", problem, [Schedule(DENSE, dense, False), Schedule(name, coded, True)]):
        return ctx.pack(hint, data)
    return _expanded(ctx, hint, book, data.size)


def _book(ctx: Lowering, data: np.ndarray) -> Book | None:
    """The book of weights that, expanded, stay in the second-level cache with what the kernel reads beside them."""
    fits = data.size >= LEAST and data.size % ctx.lanes() == 0 and 2 * data.nbytes <= ctx.target.l2_bytes
    return book_of(data.reshape(1, -1)) if fits and data.dtype == np.float32 else None


def _expanded(ctx: Lowering, hint: str, book: Book, size: int) -> Value:
    lanes = ctx.lanes()
    words = book.words(book.indices.reshape(-1, lanes))
    source, entries = ctx.pack(f"{hint}.words", words.reshape(-1)), ctx.pack(f"{hint}.book", book.entries)
    out = ctx.scratch(hint, DType.F32, len(words) * book.in_word * lanes)
    k = ctx.kernel()
    for w in tasks(k, size, len(words)):
        table = k.let(k.load(k.tensor(entries), 0, book.entries.size), "table")
        to = k.let(w * (book.in_word * lanes), "to")
        expand(k, book, table, (k.tensor(source), k.let(w * lanes, "at")), (k.tensor(out), to), 1)
    k.done("expand")
    return out
