"""The table by which packed weights are decoded: words of 32 bits, compiled into an app. docs/weights-file.md.

    head      HEAD words: see `HEAD`
    groups    4 words each, one more at the end: offset in the file (two words, the low one first), first frame, part
    frames    3 words each: bytes in the file; bytes decoded | kind of stream << 26; CRC-32 of its bytes in the file
    parts     4 words each: offset in the image / 64; elements; elements kept;
              where | what << 4 | log2 of an element's bytes << 8 | levels are f16 << 11 | levels << 16

A frame whose two sizes are equal is stored. The streams of a group's parts lie one after the other in the frame of
their kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

VERSION = 2
MAGIC = b"\x89C2W\r\n\x1a\n"
FILE_HEAD = 48
"""Bytes before the first frame: magic (8), version (4), groups (4), identity (16), size (8), CRC-32 of the frames (4),
CRC-32 of the 44 bytes before it (4)."""

HEAD = 18
"""Words: version, words of the table, identity (4), bytes of the file (2), CRC-32 of the frames, bytes of the image
(2), decoded bytes of the largest group (2), its bytes in the file at most, groups, frames, parts, reserved (0)."""

ALIGN = 64
KIND_SHIFT = 26
MOST_DECODED = (1 << KIND_SHIFT) - 1


@dataclass(frozen=True, slots=True)
class Frame:
    """One stream (or several of a kind) in the file: kind, bytes there, bytes decoded, CRC-32 of the bytes there."""

    kind: int
    packed: int
    decoded: int
    crc: int


@dataclass(frozen=True, slots=True)
class Place:
    """A part's row: where it goes in the image, and its form (`streams.Part` without its streams)."""

    offset: int
    count: int
    kept: int
    where: int
    what: int
    width: int
    half: bool
    levels: int


@dataclass(frozen=True, slots=True)
class Group:
    """What is decoded at a time. offset: of its first frame in the file."""

    offset: int
    frames: tuple[Frame, ...]
    parts: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """identity: of the file, 16 bytes. crc: CRC-32 of all frames. Sizes in bytes."""

    identity: bytes
    file_bytes: int
    crc: int
    image_bytes: int
    groups: tuple[Group, ...]

    def words(self) -> np.ndarray[Any, Any]:
        """The table as an app holds it."""
        frames = [f for g in self.groups for f in g.frames]
        parts = [p for g in self.groups for p in g.parts]
        size = HEAD + 4 * (len(self.groups) + 1) + 3 * len(frames) + 4 * len(parts)
        most = max((sum(f.packed for f in g.frames) for g in self.groups), default=0)
        scratch = max((scratch_bytes(g) for g in self.groups), default=0)
        out = [VERSION, size, *np.frombuffer(self.identity, "<u4").tolist(), *_two(self.file_bytes), self.crc]
        out += [*_two(self.image_bytes), *_two(scratch), most, len(self.groups), len(frames), len(parts), 0]
        at_frame = at_part = 0
        for g in self.groups:
            out += [*_two(g.offset), at_frame, at_part]
            at_frame, at_part = at_frame + len(g.frames), at_part + len(g.parts)
        out += [*_two(self.file_bytes), at_frame, at_part]
        for f in frames:
            out += [f.packed, f.decoded | f.kind << KIND_SHIFT, f.crc]
        for p in parts:
            form = p.where | p.what << 4 | (p.width.bit_length() - 1) << 8 | p.half << 11 | p.levels << 16
            out += [p.offset // ALIGN, p.count, p.kept, form]
        return np.array(out, "<u4")


def read_table(words: Sequence[int] | np.ndarray[Any, Any]) -> Table:
    """A table from its words, as `Table.words` gives them; raises ValueError where they are none."""
    w = np.asarray(words, np.int64).tolist()
    if len(w) < HEAD or w[0] != VERSION or w[1] != len(w):
        raise ValueError("not a table of packed weights of this version")
    count, frame_count, part_count = w[14:17]
    at_frames = HEAD + 4 * (count + 1)
    at_parts = at_frames + 3 * frame_count
    if at_parts + 4 * part_count != len(w):
        raise ValueError("a table of packed weights of the wrong size")
    frames = [_frame(w[at : at + 3]) for at in range(at_frames, at_parts, 3)]
    parts = [_place(w[at : at + 4]) for at in range(at_parts, len(w), 4)]
    starts = [w[HEAD + 4 * i : HEAD + 4 * i + 4] for i in range(count + 1)]
    groups = tuple(
        Group(a[0] | a[1] << 32, tuple(frames[a[2] : b[2]]), tuple(parts[a[3] : b[3]]))
        for a, b in zip(starts, starts[1:], strict=False)
    )
    identity = np.array(w[2:6], "<u4").tobytes()
    return Table(identity, w[6] | w[7] << 32, w[8], w[9] | w[10] << 32, groups)


def scratch_bytes(group: Group) -> int:
    """Memory for a group's decoded streams, each at a multiple of 8; none where its one stream is the image's bytes."""
    return 0 if is_plain(group) else sum(-(-f.decoded // 8) * 8 for f in group.frames)


def is_plain(group: Group) -> bool:
    """Whether the group is one part whose bytes are those of its frame."""
    return len(group.parts) == 1 and group.parts[0].where == 0 and group.parts[0].what == 0


def _two(value: int) -> tuple[int, int]:
    return value & 0xFFFFFFFF, value >> 32


def _frame(w: list[int]) -> Frame:
    return Frame(w[1] >> KIND_SHIFT, w[0], w[1] & MOST_DECODED, w[2])


def _place(w: list[int]) -> Place:
    offset, count, kept, form = w
    return Place(
        offset * ALIGN, count, kept, form & 15, form >> 4 & 15, 1 << (form >> 8 & 7), bool(form >> 11 & 1), form >> 16
    )
