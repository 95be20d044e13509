"""Packs constants: every one in its smallest form, large ones in frames of their own, small ones in shared frames."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.types import DType
from . import frames
from .streams import MOST_LEVELS, Part, Stream, Words, encodings, range_coded, seems_coded
from .table import ALIGN, FILE_HEAD, MAGIC, VERSION, Frame, Group, Place, Table

CHUNK = 1 << 20
"""Elements of a part at most: what a decoder holds beside the image is a part's streams."""
SHARED = (1 << 12, 1 << 15, 1 << 17)
"""Elements below which a constant's streams share frames with others: the best one is kept."""
SHARED_BYTES = 1 << 20
"""Bytes of the image that a group of small constants covers at most."""
ROUNDS = 3
"""How often constants that share frames choose their forms."""
FINALISTS = 2
"""Forms, by the fast levels, that the slow level is tried on."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Bytes of one element type at `offset` (a multiple of 64) of the weight image; data: any contiguous array."""

    name: str
    dtype: DType
    data: np.ndarray[Any, Any]
    offset: int = -1

    @property
    def words(self) -> Words:
        """Its elements as unsigned integers."""
        return np.ascontiguousarray(self.data).reshape(-1).view(np.uint8).view(f"<u{self.dtype.nbytes}")


@dataclass(frozen=True, slots=True)
class PackedConstant:
    """What became of a constant. Sizes in bytes, packed: its share where frames are shared.

    levels: different values, 0 where they are more than 256. kept: elements that differ from the most frequent one.
    shannon: bits an element of independent symbols, H2(p) + p H(index), where it has levels.
    groups: first and last group that hold it, for reading it alone.
    """

    name: str
    dtype: str
    elements: int
    packed: float
    form: str
    levels: int
    kept: int
    shannon: float | None
    groups: tuple[int, int]

    @property
    def bits(self) -> float:
        """Bits an element in the file."""
        return 8 * self.packed / max(1, self.elements)

    @property
    def excess(self) -> float | None:
        """How far above Shannon's bound, as a fraction."""
        return None if not self.shannon else self.bits / self.shannon - 1


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """bytes: the file. table: by which it is decoded, words of 32 bits. report: of every constant, in order."""

    bytes: bytes
    table: np.ndarray[Any, Any]
    report: tuple[PackedConstant, ...]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Elements of constant `owner` that begin at byte `offset` of the image."""

    owner: int
    offset: int
    part: Part


def pack(constants: Sequence[Constant], image_bytes: int = 0) -> PackedWeights:
    """Pack constants; those without an offset are laid one after the other. Deterministic.

    image_bytes: of the weight image where it is larger than the constants' end. What no constant covers is zero.
    """
    laid = _laid(constants)
    size = max([image_bytes, *(c.offset + c.words.nbytes for c in laid)])
    own: dict[int, list[_Chunk]] = {}
    found: dict[int, list[Part]] = {}
    best: tuple[int, list[list[_Chunk]], list[list[tuple[Frame, bytes]]]] | None = None
    for limit in SHARED:
        small, groups = [i for i, c in enumerate(laid) if c.words.size < limit], []
        for i, c in enumerate(laid):
            if i not in small:
                own[i] = own.get(i) or list(_chunks(i, c))
                groups += [[chunk] for chunk in own[i]]
        for members in _batches(laid, small):
            found |= {i: _forms(laid[i]) for i in members if i not in found}
            parts = _together([found[i] for i in members])
            groups.append([_Chunk(i, laid[i].offset, p) for i, p in zip(members, parts, strict=True)])
        made = [_frames_of(g) for g in groups]
        total = sum(f.packed + 12 for g in made for f, _ in g)
        if best is None or total < best[0]:
            best = total, groups, made
    assert best is not None
    return _written(laid, size, best[1], best[2])


def _laid(constants: Sequence[Constant]) -> list[Constant]:
    top, out = 0, []
    for c in constants:
        at = c.offset if c.offset >= 0 else top
        if at % ALIGN:
            raise ValueError(f"constant {c.name} begins at {at}, not a multiple of {ALIGN}")
        out.append(Constant(c.name, c.dtype, c.data, at))
        top = -(-(at + c.words.nbytes) // ALIGN) * ALIGN
    return out


def _batches(constants: Sequence[Constant], small: Sequence[int]) -> Iterator[list[int]]:
    """Small constants that share frames, up to SHARED_BYTES each time."""
    batch: list[int] = []
    held = 0
    for i in small:
        size = constants[i].words.nbytes
        if batch and held + size > SHARED_BYTES:
            yield batch
            batch, held = [], 0
        if size:
            batch.append(i)
            held += size
    if batch:
        yield batch


def _forms(c: Constant) -> list[Part]:
    """What a constant that shares frames may become."""
    coded = range_coded(c.words, c.dtype.is_float)
    return [*encodings(c.words, c.dtype.is_float), *([coded] if coded else [])]


def _chunks(owner: int, c: Constant) -> Iterator[_Chunk]:
    words = c.words
    for at in range(0, words.size, CHUNK):
        part = _smallest(words[at : at + CHUNK], c.dtype.is_float)
        yield _Chunk(owner, c.offset + at * words.itemsize, part)


def _smallest(words: Words, is_float: bool) -> Part:
    """The form of fewest bytes."""
    parts = list(encodings(words, is_float))

    def size(part: Part, levels: tuple[int, ...]) -> int:
        return sum(len(frames.compress(data, levels)) for _, data in part.streams)

    rough = sorted(((size(p, frames.LEVELS[:-1]), i) for i, p in enumerate(parts)))
    finalists = [parts[i] for _, i in rough[:FINALISTS]]
    best = min(finalists, key=lambda p: size(p, frames.LEVELS))
    coded = range_coded(words, is_float, size(best, frames.LEVELS))
    return best if coded is None else min(coded, best, key=lambda p: size(p, frames.LEVELS))


def _together(candidates: list[list[Part]]) -> list[Part]:
    """A form for each constant, such that all that share frames cost least by estimate: one after the other takes the
    form that adds least to the others', several times over."""
    counts = [[{k: frames.histogram(d) for k, d in p.streams} for p in parts] for parts in candidates]
    total: dict[int, np.ndarray[Any, Any]] = {}
    chosen: list[int | None] = [None] * len(candidates)

    def added(form: dict[int, np.ndarray[Any, Any]]) -> float:
        held = {k: total.get(k, np.zeros(256, np.int64)) for k in form}
        return sum(
            float(c.sum()) if k == Stream.RANGE else frames.learned_bytes(held[k] + c) - frames.learned_bytes(held[k])
            for k, c in form.items()
        )

    for _ in range(ROUNDS):
        for i, forms in enumerate(counts):
            before = chosen[i]
            if before is not None:
                for k, c in forms[before].items():
                    total[k] = total[k] - c
            now = min(range(len(forms)), key=lambda j: added(forms[j]))
            for k, c in forms[now].items():
                total[k] = total.get(k, 0) + c
            chosen[i] = now
    return [parts[j or 0] for parts, j in zip(candidates, chosen, strict=True)]


def _frames_of(group: Sequence[_Chunk]) -> list[tuple[Frame, bytes]]:
    """The group's streams by kind, each as a frame."""
    joined: dict[int, list[bytes]] = {}
    for chunk in group:
        for kind, data in chunk.part.streams:
            joined.setdefault(kind, []).append(data)
    out = []
    for kind in sorted(joined):
        data = b"".join(joined[kind])
        if data:
            packed = frames.compress(data)
            out.append((Frame(kind, len(packed), len(data), zlib.crc32(packed)), packed))
    return out


def _written(
    constants: Sequence[Constant], size: int, groups: list[list[_Chunk]], made: list[list[tuple[Frame, bytes]]]
) -> PackedWeights:
    """The file and its table."""
    rows, at = [], FILE_HEAD
    for group, streams in zip(groups, made, strict=True):
        rows.append(Group(at, tuple(f for f, _ in streams), tuple(_place(c) for c in group)))
        at += sum(f.packed for f, _ in streams)
    body = b"".join(data for streams in made for _, data in streams)
    crc = zlib.crc32(body)
    unnamed = Table(bytes(16), at, crc, size, tuple(rows))
    identity = hashlib.sha256(unnamed.words().tobytes() + body).digest()[:16]
    head = MAGIC + struct.pack("<II16sQI", VERSION, len(rows), identity, at, crc)
    table = Table(identity, at, crc, size, tuple(rows)).words()
    return PackedWeights(head + struct.pack("<I", zlib.crc32(head)) + body, table, _report(constants, groups, rows))


def _place(chunk: _Chunk) -> Place:
    p = chunk.part
    return Place(chunk.offset, p.count, p.kept, p.where, p.what, p.width, p.half, p.levels)


def _report(constants: Sequence[Constant], groups: list[list[_Chunk]], rows: list[Group]) -> tuple[PackedConstant, ...]:
    packed = [0.0] * len(constants)
    spans: list[list[int]] = [[] for _ in constants]
    forms: list[list[str]] = [[] for _ in constants]
    for number, (group, row) in enumerate(zip(groups, rows, strict=True)):
        share = {f.kind: f.packed / f.decoded for f in row.frames}
        for chunk in group:
            packed[chunk.owner] += sum(len(data) * share[kind] for kind, data in chunk.part.streams if data)
            spans[chunk.owner].append(number)
            form = f"{chunk.part.where.name}/{chunk.part.what.name}".lower()
            if form not in forms[chunk.owner]:
                forms[chunk.owner].append(form)
    out = []
    for i, c in enumerate(constants):
        levels, kept, shannon = _shannon(c.words)
        span = (spans[i][0], spans[i][-1]) if spans[i] else (0, -1)
        form = "+".join(forms[i])
        out.append(PackedConstant(c.name, str(c.dtype), c.words.size, packed[i], form, levels, kept, shannon, span))
    return tuple(out)


def _shannon(words: Words) -> tuple[int, int, float | None]:
    """Levels (0: too many), elements that differ from the most frequent one (from zero), bits an element."""
    if words.size and seems_coded(words):
        levels, counts = np.unique(words, return_counts=True)
        if levels.size <= MOST_LEVELS:
            return levels.size, words.size - int(counts.max()), frames.entropy(counts)
    return 0, int(np.count_nonzero(words)), None
