"""Puts weights into an object after LLVM has made it: hundreds of megabytes never pass through a compiler.

The object holds a section with one cache line in place of the weights. Its header is changed to point at the end of the
file, where the weights follow; everything else keeps its place.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.errors import CodegenError
from .object_file import (
    COFF_SYMBOL,
    LC_SEGMENT_64,
    MACHO_SYMBOL,
    WEIGHTS_SECTIONS,
    ObjectFile,
    macho_commands,
    read_object,
)


@dataclass(frozen=True, slots=True)
class Packed:
    """What an object holds in place of plain weights: NAME_packed, words of 32 bits by which an app decodes them, and,
    where they are embedded, their bytes NAME_packed_weights."""

    table: Sequence[int]
    data: bytes = b""


ALIGN = 64
LIMIT_32 = (1 << 32) - 1


def reserve(obj: bytes, size: int) -> bytearray:
    """The object without its weights' bytes: append `size` bytes to what this returns. Raises CodegenError where the
    format cannot hold them."""
    parsed = read_object(obj)
    out = bytearray(obj)
    out += bytes(-len(out) % ALIGN)
    if parsed.format != "elf" and len(out) + size > LIMIT_32:
        raise CodegenError(
            f"{size} bytes of weights do not fit into a {parsed.format} object", remedy="use --weights file"
        )
    index = parsed.section(WEIGHTS_SECTIONS[parsed.format])
    {"elf": _elf, "macho": _macho, "coff": _coff}[parsed.format](out, parsed, index, size)
    return out


def _elf(out: bytearray, parsed: ObjectFile, index: int, size: int) -> None:
    struct.pack_into("<QQ", out, parsed.sections[index].header + 24, len(out), size)
    for s in parsed.symbols:
        if s.section == index:
            struct.pack_into("<Q", out, s.entry + 16, size)


def _coff(out: bytearray, parsed: ObjectFile, index: int, size: int) -> None:
    struct.pack_into("<II", out, parsed.sections[index].header + 16, size, len(out))
    table, entries = struct.unpack_from("<II", out, 8)
    i = 0
    while i < entries:
        at = table + i * COFF_SYMBOL.size
        _, _, section, _, storage, extra = COFF_SYMBOL.unpack_from(out, at)
        if storage == 3 and extra and section == index + 1:
            struct.pack_into("<I", out, at + COFF_SYMBOL.size, size)
        i += 1 + extra


def _macho(out: bytearray, parsed: ObjectFile, index: int, size: int) -> None:
    """One segment holds everything: addresses keep pace with places in the file, so the section gets a new address,
    and its symbols with it."""
    old = parsed.sections[index]
    segment = next(at for command, at in macho_commands(out) if command == LC_SEGMENT_64)
    start, _, file_start = struct.unpack_from("<QQQ", out, segment + 24)
    out += bytes(-(len(out) - file_start) % ALIGN)
    extent = len(out) - file_start
    address = start + extent
    struct.pack_into("<QQI", out, old.header + 32, address, size, len(out))
    struct.pack_into("<QQQ", out, segment + 32, extent + size, file_start, extent + size)
    for s in parsed.symbols:
        if s.section == index:
            struct.pack_into("<Q", out, s.entry + MACHO_SYMBOL.size - 8, address + s.value - old.address)
