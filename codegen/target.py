"""Targets as data: one row a target; passes ask facts, never names.

A target's name is `BASE[+feature|-feature]…[-OS]`, for instance `x86-64-v3+avxvnni` or `arm64-neon+dotprod-macos`.
Adding a target is a row of `TARGETS`; adding a feature is a row of `FEATURES`.
"""

from __future__ import annotations

import difflib
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias

from ..ir.errors import TargetError
from ..ir.types import DType
from .cores import CORES, SLOWEST, Core, cache_bytes
from .devices import DEVICES, Device

ObjectFormat: TypeAlias = Literal["elf", "macho", "coff"]


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature as users name it: LLVM's names for it and the features that it needs, and that need what it needs."""

    llvm: tuple[str, ...]
    needs: tuple[str, ...] = ()


def _features(**rows: str) -> dict[str, Feature]:
    """`name=needs`, all of them spelled as LLVM does."""
    return {n: Feature((n,), tuple(needs.split())) for n, needs in rows.items()}


FEATURES: dict[str, dict[str, Feature]] = {
    "x86_64": {
        **_features(sse3="", ssse3="sse3", popcnt="", avx="sse42", f16c="avx", fma="avx", avx2="avx"),
        "sse41": Feature(("sse4.1",), ("ssse3",)),
        "sse42": Feature(("sse4.2",), ("sse41",)),
        **_features(bmi="", bmi2="", lzcnt="", movbe="", avxvnni="avx2"),
        **_features(avx512f="avx2 fma f16c", avx512bw="avx512f", avx512cd="avx512f", avx512dq="avx512f"),
        **_features(avx512vl="avx512f", avx512vnni="avx512f", avx512bf16="avx512bw", avx512vbmi="avx512bw"),
        **_features(avx512fp16="avx512bw avx512vl avx512dq"),
    },
    "aarch64": {
        "neon": Feature(("neon",)),
        "fp16": Feature(("fullfp16",), ("neon",)),
        **_features(dotprod="neon", i8mm="neon", bf16="neon", fp16fml="fp16"),
    },
    "gpu": _features(fp16="", dots=""),
}

SPELLINGS = {"fullfp16": "fp16"}
"""LLVM's names that are accepted beside our own."""

V3 = tuple("sse3 ssse3 sse41 sse42 popcnt avx f16c fma avx2 bmi bmi2 lzcnt movbe".split())
V4 = (*V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

OSES = ("linux", "macos", "ios", "android", "windows")
_TRIPLES = {
    "linux": "{arch}-unknown-linux-gnu",
    "android": "{arch}-unknown-linux-android21",
    "macos": "{apple}-apple-macosx11.0.0",
    "ios": "{apple}-apple-ios13.0.0",
    "windows": "{arch}-pc-windows-msvc",
}
_FORMATS: dict[str, ObjectFormat] = {
    "linux": "elf", "android": "elf", "macos": "macho", "ios": "macho", "windows": "coff",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """Facts about a machine. Sizes in bytes.

    has: names of `FEATURES` that the processor has. extra: LLVM features, with sign, beyond what `cpu` implies. device:
    what a graphics processor offers, for arch "gpu": threads of scalars, in the language of its dialect.
    """

    name: str
    arch: Literal["x86_64", "aarch64", "gpu"]
    cpu: str
    has: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    os: str = "linux"
    edits: tuple[str, ...] = ()
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10
    l3_bytes: int = 8 << 20
    core: Core = Core()
    about: str = ""
    device: Device | None = None

    @staticmethod
    def parse(text: str) -> Target:
        """The target of a name; raises TargetError with near matches. `str` gives the name back."""
        base = max((n for n in TARGETS if re.match(rf"{re.escape(n)}(?![\w.])", text)), key=len, default=None)
        if base is None:
            raise _unknown("target", text, TARGETS)
        target = native() if base == "native" else TARGETS[base]
        edits, os_name = _split_suffix(text[len(base) :], text, target.arch)
        if os_name is not None and target.device is not None:
            raise TargetError(f"target '{base}' is source for any operating system", remedy=f"leave -{os_name} out")
        if os_name is not None:
            target = replace(target, os=os_name)
        for edit in edits:
            target = target._edited(edit)
        if target.os == "ios" and target.arch != "aarch64":
            raise TargetError(f"there is no {target.arch} machine with iOS", remedy="use an arm64 target")
        return target

    def __str__(self) -> str:
        own = native().os if self.name == "native" else "linux"
        return self.name + "".join(self.edits) + (f"-{self.os}" if self.os != own else "")

    def _edited(self, edit: str) -> Target:
        """With `+feature` (and what it needs) or without `-feature` (and what needs it)."""
        table, sign, name = FEATURES[self.arch], edit[0], edit[1:]
        if sign == "+":
            wanted = [f for f in _needed(name, table) if f not in self.has]
            has = (*self.has, *wanted)
        else:
            wanted = [f for f in table if f == name or name in _needed(f, table)]
            has = tuple(f for f in self.has if f not in wanted)
        if self.device is not None:
            return replace(self, has=has, device=self._device_with(has), edits=(*self.edits, edit))
        spelled = tuple(sign + llvm for f in wanted for llvm in table[f].llvm)
        return replace(self, has=has, extra=(*self.extra, *spelled), edits=(*self.edits, edit))

    def _device_with(self, has: tuple[str, ...]) -> Device:
        assert self.device is not None
        if "dots" in has and self.device.dialect == "metal":
            raise TargetError("Metal has no dot products of bytes", where=f"target '{self.name}'")
        dots = (self.device.dots or 1.0) if "dots" in has else None
        return replace(self.device, dots=dots, fp16="fp16" in has)

    @property
    def features(self) -> tuple[str, ...]:
        """LLVM features with sign, to be given beside `cpu`. LLVM splits `vpdpwssd` where it is not told that it is
        fast, and halves its rate."""
        wide = ("-prefer-256-bit",) if self.vector_bits == 512 else ()
        whole = ("+fast-dpwssd",) if {"avx512vnni", "avxvnni"} & set(self.has) else ()
        return (*self.extra, *wide, *whole)

    @property
    def vector_bits(self) -> int:
        """Width of a vector register."""
        if self.device is not None:
            return 32
        return 512 if "avx512f" in self.has else 256 if "avx2" in self.has else 128

    @property
    def registers(self) -> int:
        """Number of vector registers."""
        if self.device is not None:
            return self.device.registers
        return 32 if self.arch == "aarch64" or self.vector_bits == 512 else 16

    @property
    def fma_per_cycle(self) -> int:
        """Vector multiply-adds that begin in one cycle."""
        return self.core.wide_fmas if self.vector_bits >= 512 else 2

    @property
    def dots_per_cycle(self) -> int:
        """Vector dot products of small integers that begin in one cycle, where they add to their sums."""
        return 2

    @property
    def l2_bytes_per_cycle(self) -> int:
        """What a core reads from its second-level cache in a cycle."""
        return self.core.l2_bytes

    @property
    def knows_core(self) -> bool:
        """Whether `core` tells of one processor's cores, not of many."""
        return self.cpu in CORES

    def stream_bytes_per_cycle(self, footprint: int) -> float:
        """What a core streams from where `footprint` bytes stay: a fifth of the third-level cache, which others share,
        or memory."""
        return self.core.l3_bytes if footprint <= self.l3_bytes // 5 else self.core.memory_bytes

    @property
    def has_fma(self) -> bool:
        return self.arch != "x86_64" or "fma" in self.has

    @property
    def has_dot_prod(self) -> bool:
        """Four int8 products and their sum into int32 in one instruction."""
        return any(f in self.has for f in ("dotprod", "avxvnni", "avx512vnni"))

    @property
    def byte_levels(self) -> DType | None:
        """Type of bytes whose products with i8 instructions add in fours, to i32 of a whole register; None where no
        instruction does. Graphics processors keep levels in bytes in any case: what they move counts."""
        if self.device is not None:
            return DType.I8
        if "avx512vnni" in self.has or "i8mm" in self.has or "avxvnni" in self.has and self.vector_bits == 256:
            return DType.U8
        return DType.I8 if "dotprod" in self.has else None

    @property
    def adds_byte_pairs(self) -> bool:
        """Products of u8 and i8 added in pairs to an i16 that saturates, and no dot products of bytes."""
        return "ssse3" in self.has and not self.has_dot_prod

    @property
    def permutes_bytes(self) -> bool:
        """Whether one instruction picks any bytes of two whole vectors."""
        return "avx512vbmi" in self.has and self.vector_bits == 512

    @property
    def has_fp16(self) -> bool:
        """Arithmetic on f16, not only conversion."""
        if self.device is not None:
            return self.device.fp16
        return any(f in self.has for f in ("fp16", "avx512fp16"))

    @property
    def has_bf16(self) -> bool:
        """Products of bf16 added in pairs to f32 of a whole register."""
        return "bf16" in self.has or "avx512bf16" in self.has

    @property
    def converts_f16(self) -> bool:
        """Conversion between f16 and f32 in one instruction."""
        return self.arch != "x86_64" or "f16c" in self.has

    @property
    def rounds(self) -> bool:
        """floor, ceil, trunc and round in one instruction."""
        return self.arch != "x86_64" or "sse41" in self.has

    @property
    def passes_nan(self) -> bool:
        """min and max of floats in one instruction, whose result is NaN where either operand is."""
        return self.arch == "aarch64"

    @property
    def loads_several(self) -> bool:
        """Up to four vector registers from consecutive memory in one instruction."""
        return self.arch == "aarch64"

    @property
    def object_format(self) -> ObjectFormat:
        return _FORMATS[self.os]

    @property
    def symbol_prefix(self) -> str:
        """What the object format puts in front of a C name."""
        return "_" if self.object_format == "macho" else ""

    @property
    def triple(self) -> str:
        """LLVM's normalised target triple."""
        return _TRIPLES[self.os].format(arch=self.arch, apple="arm64" if self.arch == "aarch64" else self.arch)

    @property
    def runs_here(self) -> bool:
        """Whether this process can load and run the target's objects."""
        if self.device is not None:
            return False
        here = native()
        return self.arch == here.arch and self.os == here.os and set(self.has) <= set(here.has)

    def lanes(self, dtype: DType = DType.F32) -> int:
        """Elements of a full vector register; 1 where threads stand side by side instead."""
        return 1 if self.device is not None else self.vector_bits // dtype.bits


def _needed(name: str, table: dict[str, Feature]) -> list[str]:
    """A feature and all that it needs, needs first."""
    found: list[str] = []
    for need in table[name].needs:
        found += [n for n in _needed(need, table) if n not in found]
    return [*found, name]


def _split_suffix(suffix: str, text: str, arch: str) -> tuple[list[str], str | None]:
    """`+a-b-macos` → ([+a, -b], macos); the operating system stands last."""
    if not re.fullmatch(r"([+-][^+-]+)*", suffix):
        raise _unknown("target", text, TARGETS)
    parts = re.findall(r"[+-][^+-]+", suffix)
    os_name = None
    if parts and parts[-1][0] == "-" and parts[-1][1:] in OSES:
        os_name = parts.pop()[1:]
    parts = [part[0] + SPELLINGS.get(part[1:], part[1:]) for part in parts]
    for part in parts:
        if part[1:] not in FEATURES[arch]:
            taken_away = part[0] == "-"
            kind = "feature or operating system" if taken_away else "feature"
            raise _unknown(kind, part[1:], [*FEATURES[arch], *(OSES if taken_away else ())], text)
    return parts, os_name


def _unknown(kind: str, given: str, names: Iterable[str], where: str = "") -> TargetError:
    known = list(names)
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    if not near and kind != "feature":
        near = difflib.get_close_matches(where, TARGETS, n=3, cutoff=0.8)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return TargetError(f"unknown {kind} '{given}'", where=f"target '{where}'" if where else "", remedy=hint)


def _host_os() -> str:
    return {"darwin": "macos", "win32": "windows"}.get(sys.platform, "linux")


@cache
def native() -> Target:
    """This machine: LLVM's name of its processor and all its features."""
    import llvmlite.binding as llvm

    arch: Literal["x86_64", "aarch64"] = "aarch64" if platform.machine().lower() in ("arm64", "aarch64") else "x86_64"
    on = {k for k, v in llvm.get_host_cpu_features().items() if v}
    has = tuple(n for n, f in FEATURES[arch].items() if on.issuperset(f.llvm)) or TARGETS["arm64-neon"].has
    if arch == "x86_64":
        extra = tuple(f"{'+' if v else '-'}{k}" for k, v in sorted(llvm.get_host_cpu_features().items()))
        has = tuple(f for f in has if set(_needed(f, FEATURES[arch])) <= set(has))
    else:
        extra = tuple(f"+{k}" for k in sorted(on))
    sizes = {level: cache_bytes(level) for level in (1, 2, 3)}
    row = TARGETS["native"]
    cpu = llvm.get_host_cpu_name()
    return replace(
        row, arch=arch, cpu=cpu, has=has, extra=extra, os=_host_os(), core=CORES.get(cpu, row.core),
        l1_bytes=sizes[1] or row.l1_bytes, l2_bytes=sizes[2] or row.l2_bytes, l3_bytes=sizes[3] or row.l3_bytes,
    )  # fmt: skip


_X86 = Target("x86-64", "x86_64", "x86-64", about="any 64-bit x86 (SSE2)")
_V3 = replace(_X86, name="x86-64-v3", cpu="x86-64-v3", has=V3, about="AVX2 and FMA: since Haswell, Zen")
_NEON = Target(
    "arm64-neon", "aarch64", "generic", ("neon",), ("+neon",), l2_bytes=256 << 10, l3_bytes=2 << 20,
    core=Core(memory_bytes=6.0), about="any 64-bit ARM (ARMv8.0)",
)  # fmt: skip


def _features_of(device: Device) -> tuple[str, ...]:
    has = {"fp16": device.fp16, "dots": device.dots is not None}
    return tuple(name for name in FEATURES["gpu"] if has[name])


TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        _X86,
        _V3,
        replace(
            _V3, name="x86-64-v4", cpu="x86-64-v4", has=V4, l2_bytes=1 << 20, core=SLOWEST,
            about="AVX-512: Skylake-X, Zen 4",
        ),
        Target("native", "x86_64", "", about="this machine, all its features"),
        _NEON,
        replace(
            _NEON, name="arm64-dotprod", has=("neon", "dotprod"), extra=("+neon", "+dotprod"),
            l2_bytes=512 << 10, about="ARMv8.2 with int8 dot products: since Cortex-A55, A76, Apple A13",
        ),
        *(
            Target(n, "gpu", n, _features_of(device), about=about, device=device)
            for n, (device, about) in DEVICES.items()
        ),
    )
}  # fmt: skip
"""Rows by name; `native` is filled in by `Target.parse`, since it differs by machine."""
