"""What processor cores do in a cycle, by LLVM's names for them: facts that no feature tells.

Register tiles made for two wide multiply-adds in a cycle are as fast on cores that begin one, and the other way round
they are not: one of 30 pixels and a vector reached 75 % of the peak of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Core:
    """wide_fmas: multiply-adds of 512 bits that begin in a cycle. The others are bytes that one core reads in a cycle:
    from its second-level cache, from its share of the third, and what it streams from memory. What is set is that of a
    Zen 3."""

    wide_fmas: int = 2
    l2_bytes: int = 32
    l3_bytes: float = 16.0
    memory_bytes: float = 4.0


_MESH = Core(l2_bytes=48, l3_bytes=9.0, memory_bytes=5.0)
"""Servers of Intel, whose last level lies across a mesh; measured on an Emerald Rapids (`c2c bench --machine`)."""

SLOWEST = Core(l3_bytes=9.0, memory_bytes=5.0)
"""What all cores with AVX-512 can do, and as many multiply-adds as the best begin."""

CORES: dict[str, Core] = {
    **dict.fromkeys("skylake-avx512 cascadelake cooperlake icelake-server".split(), _MESH),
    **dict.fromkeys("sapphirerapids emeraldrapids graniterapids".split(), _MESH),
    **dict.fromkeys("cannonlake icelake-client tigerlake rocketlake".split(), Core(wide_fmas=1)),
    "znver4": Core(wide_fmas=1, l3_bytes=27.0, memory_bytes=9.0),
    "znver5": Core(l2_bytes=64, l3_bytes=27.0, memory_bytes=9.0),
}
"""Rows by LLVM's name of the processor. That of znver4 is measured; one core of znver5 is thought to do the same on
twice the width."""


def cache_bytes(level: int) -> int:
    """Size of a data cache of this machine's first core, 0 where the system does not say (Linux does)."""
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            found, kind, size = ((folder / f).read_text().strip() for f in ("level", "type", "size"))
            if found == str(level) and kind != "Instruction":
                return int(size.removesuffix("K")) << 10
        except (OSError, ValueError):
            continue
    return 0
