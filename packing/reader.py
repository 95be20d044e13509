"""Decodes packed weights in numpy: the definition of the format for tests, and the reader of the Python interface."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard

from .frames import decompress
from .range_code import decode
from .streams import INDEX_BITS, UNITS, Stream, What, Where, Words, rotate
from .table import FILE_HEAD, MAGIC, VERSION, Group, Place, Table, read_table


def unpack(packed: bytes | memoryview, table: np.ndarray[Any, Any] | Sequence[int]) -> np.ndarray[Any, Any]:
    """The weight image, bytes [image_bytes], at a multiple of 64; ValueError where the file is not the table's."""
    known = read_table(table)
    data = bytes(packed)
    check(data, known)
    room = np.zeros(known.image_bytes + 64, np.uint8)
    skip = -room.ctypes.data % 64
    image = room[skip : skip + known.image_bytes]
    for number in range(len(known.groups)):
        unpack_group(data, known, number, image)
    return image


def check(data: bytes, table: Table) -> None:
    """Raises ValueError where the file is not the one that the table describes."""
    if data[: len(MAGIC)] != MAGIC or len(data) < FILE_HEAD:
        raise ValueError("not a file of packed weights")
    version, groups, identity, size, crc, head = struct.unpack_from("<II16sQII", data, len(MAGIC))
    if version != VERSION:
        raise ValueError(f"packed weights of version {version}, this one reads {VERSION}")
    if identity != table.identity:
        raise ValueError("packed weights of another model")
    if len(data) != table.file_bytes:
        raise ValueError(f"packed weights of {len(data)} bytes, {table.file_bytes} expected")
    if (head, crc, size, groups) != (zlib.crc32(data[: FILE_HEAD - 4]), table.crc, len(data), len(table.groups)):
        raise ValueError("the head of the packed weights is damaged")
    if zlib.crc32(data[FILE_HEAD:]) != table.crc:
        raise ValueError("the packed weights are damaged: their checksum is wrong")


def unpack_group(data: bytes, table: Table, number: int, image: np.ndarray[Any, Any]) -> None:
    """Decode one group into the image; raises ValueError where it is damaged."""
    group = table.groups[number]
    try:
        streams = _streams(data, group)
        for place in group.parts:
            _part(place, streams, image)
    except (zstandard.ZstdError, IndexError) as e:
        raise ValueError(f"group {number} of the packed weights is damaged: {e}") from e
    if any(at != buffer.size for buffer, at in streams.values()):
        raise ValueError(f"group {number} of the packed weights is damaged: bytes are left over")


_Streams = dict[int, tuple[np.ndarray[Any, Any], int]]
"""Bytes of each kind of stream, and how many of them are read."""


def _streams(data: bytes, group: Group) -> _Streams:
    found: _Streams = {}
    at = group.offset
    for frame in group.frames:
        packed = data[at : at + frame.packed]
        at += frame.packed
        if zlib.crc32(packed) != frame.crc:
            raise ValueError("a frame of the packed weights is damaged: its checksum is wrong")
        raw = np.frombuffer(decompress(packed, frame.decoded), np.uint8)
        if raw.size != frame.decoded:
            raise ValueError("a frame of the packed weights has the wrong size")
        found[frame.kind] = (raw, 0)
    return found


def _take(streams: _Streams, kind: int, size: int) -> np.ndarray[Any, Any]:
    if not size:
        return np.zeros(0, np.uint8)
    buffer, at = streams.get(kind, (np.zeros(0, np.uint8), 0))
    if at + size > buffer.size:
        raise ValueError("a stream of the packed weights is too short")
    streams[kind] = (buffer, at + size)
    return buffer[at : at + size]


def _part(p: Place, streams: _Streams, image: np.ndarray[Any, Any]) -> None:
    target = image[p.offset : p.offset + p.count * p.width].view(f"<u{p.width}")
    levels = _levels(p, streams)
    if p.what == What.RANGE:
        target[:] = levels[_range_coded(p, streams)]
        return
    if p.where == Where.DENSE:
        target[:] = _values(p, streams, levels, Stream.DENSE_INDEX)
        return
    target[:] = levels[0]
    if p.where == Where.NIBBLES:
        positions, indices = _nibbles(p, streams)
        target[positions] = levels[indices + 1]
    else:
        positions = _bitmap(p, streams) if p.where == Where.BITMAP else _gaps(p, streams)
        target[positions] = _values(p, streams, levels[1:], Stream.KEPT_INDEX)


def _levels(p: Place, streams: _Streams) -> Words:
    if p.half:
        halves = _take(streams, Stream.HALF_LEVEL, 2 * p.levels).view("<f2")
        return halves.astype("<f4").view("<u4")
    return _take(streams, Stream.LEVEL + p.width.bit_length() - 1, p.width * p.levels).view(f"<u{p.width}")


def _values(p: Place, streams: _Streams, levels: Words, first: int) -> Words:
    what, m = What(p.what), p.kept
    if what is What.RAW:
        return _take(streams, Stream.RAW + p.width.bit_length() - 1, m * p.width).view(f"<u{p.width}")
    if what in INDEX_BITS:
        bits = INDEX_BITS[what]
        each = 8 // bits
        kind = first + list(INDEX_BITS).index(what)
        packed = _take(streams, kind, -(-m // each))
        spread = np.stack([packed >> np.uint8(bits * i) & np.uint8((1 << bits) - 1) for i in range(each)], -1)
        return levels[spread.reshape(-1)[:m]]
    planes = [_take(streams, Stream.PLANE + p.width + j, m) for j in range(p.width)]
    words = np.ascontiguousarray(np.stack(planes, -1)).reshape(-1).view(f"<u{p.width}")
    return rotate(words, -1) if what is What.ROTATED else words


def _range_coded(p: Place, streams: _Streams) -> np.ndarray[Any, Any]:
    buffer, at = streams.get(Stream.RANGE, (np.zeros(0, np.uint8), 0))
    indices, size = decode(buffer[at:].tobytes(), p.count, p.levels)
    _take(streams, Stream.RANGE, size)
    return indices


def _escaped(p: Place, streams: _Streams, kind: int, filler: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The stream up to the last element kept, and where in it elements are."""
    buffer, at = streams.get(kind, (np.zeros(0, np.uint8), 0))
    ends = np.flatnonzero(buffer[at:] != filler)
    if ends.size < p.kept:
        raise ValueError("a stream of the packed weights is too short")
    stream = _take(streams, kind, int(ends[p.kept - 1]) + 1 if p.kept else 0)
    return stream, stream != filler


def _positions(p: Place, steps: np.ndarray[Any, Any], is_last: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    positions: np.ndarray[Any, Any] = np.cumsum(steps)[is_last] + np.arange(p.kept)
    if p.kept and positions[-1] >= p.count:
        raise ValueError("the packed weights name an element beyond the end")
    return positions


def _nibbles(p: Place, streams: _Streams) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    stream, is_last = _escaped(p, streams, Stream.NIBBLES, 0xFF)
    steps = np.where(is_last, stream >> 4, 16).astype(np.int64)
    return _positions(p, steps, is_last), (stream[is_last] & 15).astype(np.int64)


def _gaps(p: Place, streams: _Streams) -> np.ndarray[Any, Any]:
    stream, is_last = _escaped(p, streams, Stream.GAPS, UNITS[Where(p.where)])
    return _positions(p, stream.astype(np.int64), is_last)


def _bitmap(p: Place, streams: _Streams) -> np.ndarray[Any, Any]:
    bits = np.unpackbits(_take(streams, Stream.BITMAP, -(-p.count // 8)), bitorder="little")
    positions = np.flatnonzero(bits)
    if positions.size != p.kept or (p.kept and positions[-1] >= p.count):
        raise ValueError("a bitmap of the packed weights is damaged")
    return positions
