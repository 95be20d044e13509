"""Constants as byte streams: where the elements that matter lie, and what they are, each in a form that packs well.

A part (a run of elements of one constant) has one `Where` and one `What`. zstd entropy-codes literals and finds little
else in weights, so a stream never mixes kinds of symbols and no symbol straddles bytes: that is within 2 % of the
Shannon bound, where dense bytes of a sparse code book or bit-packed indices are 20 to 90 % above it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np

from .frames import histogram, learned_bytes
from .range_code import encode

Words: TypeAlias = np.ndarray[Any, Any]
"""Elements as unsigned integers of their width, one axis."""

MOST_LEVELS = 256
NIBBLE_LEVELS = 16
SPARSE = 0.15
"""Part of elements with one value from which positions of the others are tried."""
RANGE_CODED = 1 << 16
"""Elements up to which indices are range coded: of few, zstd's code tables are several percent; of many, they are less
than the time that bit by bit takes is worth."""
SAMPLE = 4096
"""Elements by which data of many different values is told without sorting it."""


class Where(IntEnum):
    """How the elements that differ from the fill (the first level) are found."""

    DENSE = 0  # every element is written
    GAPS = 1  # bytes: elements skipped before each one kept; 255: 255 of them, and the gap goes on
    SHORT_GAPS = 2  # the same with 32 in place of 255: a shorter code table
    BITMAP = 3  # bits, the lowest first: 1 where an element is kept
    NIBBLES = 4  # bytes: gap in the upper half, index in the lower one; 255: sixteen elements skipped


class What(IntEnum):
    """How the elements that are written are told."""

    RAW = 0  # their bytes
    PLANES = 1  # their first bytes, then their second ones, …
    ROTATED = 2  # planes of the words rotated left by one: a float's exponent becomes a byte of its own
    INDEX8 = 3  # an index into the levels, one a byte
    INDEX4 = 4  # two in a byte, the first in the lower half
    INDEX2 = 5  # four in a byte
    RANGE = 6  # indices into the levels, the fill too, by `range_code`


UNITS = {Where.GAPS: 255, Where.SHORT_GAPS: 32}
"""Elements that the byte of the same value skips."""
INDEX_BITS = {What.INDEX8: 8, What.INDEX4: 4, What.INDEX2: 2}


class Stream:
    """Numbers of the kinds of streams; those of one kind share a frame where constants are small.

    RAW and LEVEL: + log2 of an element's bytes. DENSE_INDEX, KEPT_INDEX: + 0, 1, 2 for 8, 4, 2 bits. PLANE: + an
    element's bytes (2, 4 or 8) + number of the byte. RANGE: range coded, which no other coder makes smaller.
    """

    RAW, LEVEL, HALF_LEVEL, DENSE_INDEX, KEPT_INDEX, NIBBLES, GAPS, BITMAP, PLANE, RANGE = (
        0,
        4,
        8,
        9,
        12,
        15,
        16,
        17,
        16,
        32,
    )


@dataclass(frozen=True, slots=True)
class Part:
    """`count` elements of `width` bytes as streams (kind, bytes), in the order in which they are read.

    kept: elements that the positions name (dense: all). levels: how many the level stream holds, the fill included.
    half: the levels, of f32, lie as f16.
    """

    where: Where
    what: What
    width: int
    count: int
    kept: int
    levels: int
    half: bool
    streams: tuple[tuple[int, bytes], ...]


def seems_coded(words: Words) -> bool:
    """False where a sample alone has more than 256 levels: then all need not be sorted."""
    step = max(1, words.size // SAMPLE)
    return np.unique(words[::step][:SAMPLE]).size <= MOST_LEVELS


def structure(words: Words) -> tuple[Words, np.ndarray[Any, Any]] | None:
    """Levels, the most frequent first, and each element's index of them; None where there are more than 256."""
    if not seems_coded(words):
        return None
    levels, indices, counts = np.unique(words, return_inverse=True, return_counts=True)
    if levels.size > MOST_LEVELS:
        return None
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(order.size, np.uint8)
    rank[order] = np.arange(order.size)
    return levels[order], rank[indices.reshape(-1)]


def encodings(words: Words, is_float: bool) -> Iterator[Part]:
    """Every form that may be the shortest for these elements."""
    width, n = words.itemsize, words.size
    values = list(_values(words, is_float))
    for what, streams in values:
        yield Part(Where.DENSE, what, width, n, n, 0, False, streams)
    found = structure(words)
    if found is not None:
        yield from _coded(words, is_float, *found)
    elif (kept := np.flatnonzero(words)).size < (1 - SPARSE) * n:
        zero = _levels(np.zeros(1, words.dtype), is_float)
        for where, positions in _positions(kept, n):
            for what, streams in _values(words[kept], is_float):
                yield Part(where, what, width, n, kept.size, 1, zero[1], (zero[0], positions, *streams))


def range_coded(words: Words, is_float: bool, most: float = np.inf) -> Part | None:
    """The range coded form; None where the elements have one value only, or too many of them, or are too many, or where
    it is expected to take more than `most` bytes."""
    found = structure(words) if words.size <= RANGE_CODED else None
    if found is None or found[0].size < 2:
        return None
    levels, indices = found
    book, half = _levels(levels, is_float)
    if learned_bytes(histogram(indices.tobytes())) + len(book[1]) > most:
        return None
    stream = (Stream.RANGE, encode(indices, levels.size))
    return Part(Where.DENSE, What.RANGE, words.itemsize, words.size, words.size, levels.size, half, (book, stream))


def _coded(words: Words, is_float: bool, levels: Words, indices: np.ndarray[Any, Any]) -> Iterator[Part]:
    width, n, k = words.itemsize, words.size, levels.size
    book, half = _levels(levels, is_float)
    for i, what in enumerate(INDEX_BITS):
        if k <= 1 << INDEX_BITS[what]:
            stream = (Stream.DENSE_INDEX + i, _bits(indices, INDEX_BITS[what]))
            yield Part(Where.DENSE, what, width, n, n, k, half, (book, stream))
    kept = np.flatnonzero(indices)
    if kept.size >= (1 - SPARSE) * n:
        return
    chosen = indices[kept] - np.uint8(1)
    if k <= NIBBLE_LEVELS:
        nibbles = (Stream.NIBBLES, _nibbles(kept, chosen))
        yield Part(Where.NIBBLES, What.INDEX4, width, n, kept.size, k, half, (book, nibbles))
    for where, positions in _positions(kept, n):
        for i, what in enumerate(INDEX_BITS):
            if k - 1 <= 1 << INDEX_BITS[what]:
                stream = (Stream.KEPT_INDEX + i, _bits(chosen, INDEX_BITS[what]))
                yield Part(where, what, width, n, kept.size, k, half, (book, positions, stream))


def _levels(levels: Words, is_float: bool) -> tuple[tuple[int, bytes], bool]:
    """The stream of levels, and whether they lie as f16."""
    if is_float and levels.itemsize == 4:
        with np.errstate(over="ignore"):
            half = levels.view(np.float32).astype(np.float16)
        if np.array_equal(half.astype(np.float32).view(np.uint32), levels):
            return (Stream.HALF_LEVEL, half.tobytes()), True
    return (Stream.LEVEL + _log2(levels.itemsize), levels.tobytes()), False


def _values(words: Words, is_float: bool) -> Iterator[tuple[What, tuple[tuple[int, bytes], ...]]]:
    width = words.itemsize
    yield What.RAW, ((Stream.RAW + _log2(width), words.tobytes()),)
    if width > 1:
        what = What.ROTATED if is_float else What.PLANES
        turned = rotate(words, 1) if is_float else words
        planes = np.ascontiguousarray(turned).view(np.uint8).reshape(-1, width)
        yield what, tuple((Stream.PLANE + width + j, planes[:, j].tobytes()) for j in range(width))


def rotate(words: Words, left: int) -> Words:
    """Every word rotated left by `left` bits (modulo its width)."""
    bits = words.itemsize * 8
    one, other = words.dtype.type(left % bits), words.dtype.type(-left % bits)
    return words if left % bits == 0 else (words << one) | (words >> other)


def _positions(kept: np.ndarray[Any, Any], n: int) -> Iterator[tuple[Where, tuple[int, bytes]]]:
    gaps = np.diff(kept, prepend=-1) - 1
    for where, unit in UNITS.items():
        yield where, (Stream.GAPS, _escaped(gaps, unit, unit, (gaps % unit).astype(np.uint8)))
    mask = np.zeros(n, np.bool_)
    mask[kept] = True
    yield Where.BITMAP, (Stream.BITMAP, np.packbits(mask, bitorder="little").tobytes())


def _nibbles(kept: np.ndarray[Any, Any], indices: np.ndarray[Any, Any]) -> bytes:
    gaps = np.diff(kept, prepend=-1) - 1
    return _escaped(gaps, 16, 0xFF, (gaps % 16 << 4 | indices).astype(np.uint8))


def _escaped(gaps: np.ndarray[Any, Any], unit: int, filler: int, last: np.ndarray[Any, Any]) -> bytes:
    """`last` of each gap, before it one `filler` for each whole `unit` in the gap."""
    ends = np.cumsum(gaps // unit + 1)
    out = np.full(int(ends[-1]) if ends.size else 0, filler, np.uint8)
    out[ends - 1] = last
    return out.tobytes()


def _bits(indices: np.ndarray[Any, Any], bits: int) -> bytes:
    """Indices of so many bits, the first in the lowest bits of a byte."""
    each = 8 // bits
    padded = np.zeros(-(-indices.size // each) * each, np.uint8)
    padded[: indices.size] = indices
    out = np.zeros(padded.size // each, np.uint8)
    for i in range(each):
        out |= padded[i::each] << np.uint8(bits * i)
    return out.tobytes()


def _log2(width: int) -> int:
    return width.bit_length() - 1
