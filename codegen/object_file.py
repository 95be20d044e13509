"""Reads objects back (ELF64, Mach-O 64, COFF): sections, symbols, sizes. Only what reports and tests need."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ..ir.errors import CodegenError
from .target import ObjectFormat

Kind: TypeAlias = Literal["text", "rodata", "data", "bss", "other"]
Data: TypeAlias = bytes | bytearray | mmap.mmap

WEIGHTS_SECTIONS = {"elf": ".rodata.weights", "macho": "__weights", "coff": ".rdata$w"}
"""The section that holds embedded weights and nothing else, by object format."""


@dataclass(frozen=True, slots=True)
class Section:
    """`header`: where in the file its header stands."""

    name: str
    kind: Kind
    offset: int
    size: int
    header: int
    address: int = 0


@dataclass(frozen=True, slots=True)
class Symbol:
    """section: index into `ObjectFile.sections`, None where undefined or absolute. `entry`: its place in the file."""

    name: str
    section: int | None
    value: int
    is_global: bool
    is_undefined: bool
    entry: int
    size: int = 0


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of machine code, constants (without weights), embedded weights, and writable data."""

    text: int
    rodata: int
    embedded_weights: int
    data: int
    bss: int


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """An object's structure. Symbol names are as C spells them (without Mach-O's underscore)."""

    format: ObjectFormat
    machine: Literal["x86_64", "aarch64"]
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    platform: str = ""

    @property
    def sizes(self) -> Sizes:
        weights = WEIGHTS_SECTIONS[self.format]

        def total(kind: Kind) -> int:
            return sum(s.size for s in self.sections if s.kind == kind and s.name != weights)

        embedded = sum(s.size for s in self.sections if s.name == weights)
        return Sizes(total("text"), total("rodata"), embedded, total("data"), total("bss"))

    @property
    def undefined(self) -> tuple[str, ...]:
        """Names that the linker must find elsewhere, sorted."""
        return tuple(sorted({s.name for s in self.symbols if s.is_undefined}))

    @property
    def exported(self) -> tuple[str, ...]:
        """Global names that the object defines, sorted."""
        return tuple(sorted(s.name for s in self.symbols if s.is_global and not s.is_undefined))

    def section(self, name: str) -> int:
        """Index of a section by name; raises CodegenError where there is none."""
        for i, s in enumerate(self.sections):
            if s.name == name:
                return i
        raise CodegenError(f"the object has no section {name}")


def read_object(source: Path | str | bytes | bytearray) -> ObjectFile:
    """Structure of an object file or its bytes; raises CodegenError for anything else."""
    if isinstance(source, bytes | bytearray):
        return _parse(source)
    with open(source, "rb") as stream:
        try:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(data)
        except ValueError as e:
            raise CodegenError(f"{source} is empty") from e


def _parse(data: Data) -> ObjectFile:
    head = bytes(data[:4])
    reader: Callable[[Data], ObjectFile] | None = None
    if head == b"\x7fELF":
        reader = _elf
    elif head == b"\xcf\xfa\xed\xfe":
        reader = _macho
    elif head[:2] in _COFF_MACHINES:
        reader = _coff
    if reader is None:
        raise CodegenError("not an object file in ELF, Mach-O or COFF")
    try:
        return reader(data)
    except (struct.error, IndexError, KeyError, ValueError) as e:
        raise CodegenError("the object file is truncated or malformed") from e


def text_at(data: Data, offset: int, limit: int = 1 << 16) -> str:
    """A zero-terminated name."""
    end = data.find(b"\0", offset, offset + limit)
    return bytes(data[offset : end if end >= 0 else offset + limit]).decode()


# --- ELF: System V ABI, chapter 4

_ELF_MACHINES: dict[int, Literal["x86_64", "aarch64"]] = {62: "x86_64", 183: "aarch64"}
ELF_SECTION = struct.Struct("<IIQQQQIIQQ")
ELF_SYMBOL = struct.Struct("<IBBHQQ")
_SHT_SYMTAB, _SHT_NOBITS = 2, 8
_SHF_WRITE, _SHF_ALLOC, _SHF_EXEC = 1, 2, 4


def _elf(data: Data) -> ObjectFile:
    machine = struct.unpack_from("<H", data, 18)[0]
    table = struct.unpack_from("<Q", data, 40)[0]
    step, count, names_at = struct.unpack_from("<HHH", data, 58)
    headers = [ELF_SECTION.unpack_from(data, table + i * step) for i in range(count)]
    names = headers[names_at][4]
    sections = tuple(
        Section(text_at(data, names + h[0]), _elf_kind(h[1], h[2]), h[4], h[5], table + i * step, h[3])
        for i, h in enumerate(headers)
    )
    symbols: list[Symbol] = []
    for h in headers:
        if h[1] == _SHT_SYMTAB:
            strings = headers[h[6]][4]
            for at in range(h[4] + ELF_SYMBOL.size, h[4] + h[5], ELF_SYMBOL.size):
                name, info, _, section, value, size = ELF_SYMBOL.unpack_from(data, at)
                if info & 15 in (3, 4):
                    continue
                where = section if 0 < section < 0xFF00 else None
                symbols.append(
                    Symbol(text_at(data, strings + name), where, value, info >> 4 != 0, section == 0, at, size)
                )
    return ObjectFile("elf", _ELF_MACHINES[machine], sections, tuple(symbols))


def _elf_kind(type_: int, flags: int) -> Kind:
    if not flags & _SHF_ALLOC:
        return "other"
    if flags & _SHF_EXEC:
        return "text"
    if flags & _SHF_WRITE:
        return "bss" if type_ == _SHT_NOBITS else "data"
    return "rodata"


# --- Mach-O: mach-o/loader.h, mach-o/nlist.h

_MACHO_MACHINES: dict[int, Literal["x86_64", "aarch64"]] = {0x01000007: "x86_64", 0x0100000C: "aarch64"}
_PLATFORMS = {1: "macos", 2: "ios"}
MACHO_SECTION = struct.Struct("<16s16sQQIIIIIIII")
MACHO_SYMBOL = struct.Struct("<IBBHQ")
LC_SEGMENT_64, LC_SYMTAB, LC_BUILD_VERSION = 0x19, 0x2, 0x32


def macho_commands(data: Data) -> list[tuple[int, int]]:
    """(command, offset) of each load command."""
    count, at, found = struct.unpack_from("<I", data, 16)[0], 32, []
    for _ in range(count):
        command, size = struct.unpack_from("<II", data, at)
        found.append((command, at))
        at += size
    return found


def _macho(data: Data) -> ObjectFile:
    machine = _MACHO_MACHINES[struct.unpack_from("<I", data, 4)[0]]
    sections: list[Section] = []
    symbols: list[Symbol] = []
    platform = ""
    for command, at in macho_commands(data):
        if command == LC_SEGMENT_64:
            for i in range(struct.unpack_from("<I", data, at + 64)[0]):
                header = at + 72 + i * MACHO_SECTION.size
                name, segment, address, size, offset, *_, flags, _, _, _ = MACHO_SECTION.unpack_from(data, header)
                kind = _macho_kind(segment.rstrip(b"\0"), flags)
                sections.append(Section(name.rstrip(b"\0").decode(), kind, offset, size, header, address))
        elif command == LC_BUILD_VERSION:
            platform = _PLATFORMS[struct.unpack_from("<I", data, at + 8)[0]]
        elif command == LC_SYMTAB:
            table, count, strings = struct.unpack_from("<III", data, at + 8)
            for i in range(count):
                entry = table + i * MACHO_SYMBOL.size
                name, type_, section, _, value = MACHO_SYMBOL.unpack_from(data, entry)
                where = section - 1 if type_ & 0x0E == 0x0E else None
                undefined = type_ & 0x0E == 0
                spelled = text_at(data, strings + name).removeprefix("_")
                symbols.append(Symbol(spelled, where, value, bool(type_ & 1), undefined, entry))
    return ObjectFile("macho", machine, tuple(sections), tuple(symbols), platform)


def _macho_kind(segment: bytes, flags: int) -> Kind:
    if flags & 0x80000400:
        return "text"
    if segment == b"__TEXT":
        return "rodata"
    if segment == b"__LD":
        return "other"
    return "bss" if flags & 0xFF == 1 else "data"


# --- COFF: Microsoft PE/COFF specification

_COFF_MACHINES: dict[bytes, Literal["x86_64", "aarch64"]] = {b"\x64\x86": "x86_64", b"\x64\xaa": "aarch64"}
COFF_SECTION = struct.Struct("<8sIIIIIIHHI")
COFF_SYMBOL = struct.Struct("<8sIhHBB")


def _coff(data: Data) -> ObjectFile:
    count, _, table, entries = struct.unpack_from("<HIII", data, 2)
    strings = table + entries * COFF_SYMBOL.size
    sections = []
    for i in range(count):
        at = 20 + i * COFF_SECTION.size
        name, _, address, size, offset, *_, flags = COFF_SECTION.unpack_from(data, at)
        sections.append(Section(_coff_name(data, name, strings), _coff_kind(flags), offset, size, at, address))
    symbols, i = [], 0
    while i < entries:
        at = table + i * COFF_SYMBOL.size
        name, value, section, _, storage, extra = COFF_SYMBOL.unpack_from(data, at)
        if not (storage == 3 and extra):
            where = section - 1 if section > 0 else None
            spelled = _coff_name(data, name, strings)
            symbols.append(Symbol(spelled, where, value, storage == 2, storage == 2 and section == 0, at))
        i += 1 + extra
    return ObjectFile("coff", _COFF_MACHINES[bytes(data[:2])], tuple(sections), tuple(symbols))


def _coff_name(data: Data, name: bytes, strings: int) -> str:
    """Eight characters, or a place in the string table (`/number` in sections, four zeros in symbols)."""
    if name[:4] == b"\0\0\0\0":
        return text_at(data, strings + struct.unpack_from("<I", name, 4)[0])
    if name[:1] == b"/":
        return text_at(data, strings + int(name[1:].rstrip(b"\0")))
    return name.rstrip(b"\0").decode()


def _coff_kind(flags: int) -> Kind:
    if flags & 0x02000A00:
        return "other"
    if flags & 0x20000020:
        return "text"
    if flags & 0x80:
        return "bss"
    return "data" if flags & 0x80000000 else "rodata"
