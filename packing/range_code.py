"""Adaptive range coding of indices into levels: no code table in the file, and fractions of a bit.

Each index is told by bits: whether it is the fill (level 0), by how many of the two before it were not; if it is not,
which of the others it is, the highest bit first, by the bits before. A bit's chance is the mean of those told so far at
the same place (Krichevsky and Trofimov 1981), of the last `MEMORY` or so. The coder is the one of LZMA (Martin 1979): a
reader takes 4 bytes first and one whenever the range has become small, which tells it where the stream ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

UNIT = 22
"""A chance is an integer of so many bits."""
CODED = 16
"""Of which so many divide the range."""
MEMORY = 1022
SHIFT = UNIT - CODED
LEAST, MOST = 1 << 12, (1 << UNIT) - (1 << 12)
"""That a chance may be."""
FLAGS = 3
"""Places of the first bit; those of the others follow."""

_SMALL = 1 << 24
_WHOLE = (1 << 32) - 1


def index_bits(levels: int) -> int:
    """Bits that tell which one of the levels but the fill."""
    return max(levels - 2, 0).bit_length()


def encode(indices: np.ndarray[Any, Any], levels: int) -> bytes:
    """The stream of indices below `levels`."""
    return _ranges(_told(indices, index_bits(levels)))


def _told(indices: np.ndarray[Any, Any], bits: int) -> Iterator[tuple[int, int]]:
    """(chance of a 0, bit) for each bit that tells the indices."""
    paths = [[(FLAGS + (1 << i | v >> (bits - i)), v >> (bits - 1 - i) & 1) for i in range(bits)] for v in range(255)]
    chances, seen = _start()
    last = before = 0
    for index in indices.tolist():
        kept = 1 if index else 0
        for place, bit in ((last + before, kept), *paths[index - 1]) if kept else ((last + before, 0),):
            chance = chances[place]
            yield chance >> SHIFT, bit
            _learn(chances, seen, place, bit)
        last, before = before, kept


def _start() -> tuple[list[int], list[int]]:
    """Chance of a 0 at each place, and how many bits were told there."""
    return [1 << (UNIT - 1)] * (FLAGS + 256), [0] * (FLAGS + 256)


def _learn(chances: list[int], seen: list[int], place: int, bit: int) -> None:
    chance, count = chances[place], seen[place]
    if bit:
        chance -= chance // (count + 2)
        chances[place] = chance if chance > LEAST else LEAST
    else:
        chance += ((1 << UNIT) - chance) // (count + 2)
        chances[place] = chance if chance < MOST else MOST
    if count < MEMORY:
        seen[place] = count + 1


def _ranges(told: Iterable[tuple[int, int]]) -> bytes:
    """The bytes that tell bits of such chances."""
    out = bytearray()
    low, width = 0, _WHOLE
    for chance, bit in told:
        bound = (width >> CODED) * chance
        if bit:
            low += bound
            width -= bound
        else:
            width = bound
        while width < _SMALL:
            if low > _WHOLE:
                _carry(out)
                low &= _WHOLE
            out.append(low >> 24)
            low = (low << 8) & _WHOLE
            width <<= 8
    if low > _WHOLE:
        _carry(out)
    return bytes(out) + (low & _WHOLE).to_bytes(4, "big")


def _carry(out: bytearray) -> None:
    at = len(out) - 1
    while out[at] == 0xFF:
        out[at] = 0
        at -= 1
    out[at] += 1


def decode(data: bytes, count: int, levels: int) -> tuple[np.ndarray[Any, Any], int]:
    """The indices [count] and how many bytes they took; raises IndexError where the stream ends early."""
    reader, bits = _Reader(data), index_bits(levels)
    out = np.zeros(count, np.int64)
    last = before = 0
    for k in range(count):
        kept = reader.bit(last + before)
        last, before = before, kept
        if kept:
            node = 1
            for _ in range(bits):
                node = node << 1 | reader.bit(FLAGS + node)
            out[k] = node - (1 << bits) + 1
    return out, reader.at


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.chances, self.seen = _start()
        self.data, self.at = data, 4
        self.code, self.width = data[0] << 24 | data[1] << 16 | data[2] << 8 | data[3], _WHOLE

    def bit(self, place: int) -> int:
        bound = (self.width >> CODED) * (self.chances[place] >> SHIFT)
        bit = 1 if self.code >= bound else 0
        if bit:
            self.code -= bound
            self.width -= bound
        else:
            self.width = bound
        _learn(self.chances, self.seen, place, bit)
        while self.width < _SMALL:
            self.width <<= 8
            self.code = (self.code << 8 | self.data[self.at]) & _WHOLE
            self.at += 1
        return bit
