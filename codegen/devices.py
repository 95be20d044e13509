"""What graphics processors offer, as data: the limits within which kernels are shaped.

A row holds for every device that a target names, so each number is the least that they have in common; sources are
named with the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Dialect: TypeAlias = Literal["opencl", "metal", "cuda"]


@dataclass(frozen=True, slots=True)
class Device:
    """Limits of a graphics processor. Sizes in bytes.

    dialect: language of its kernels. local_bytes: memory that the threads of a work-group share. work_group: threads of
    a work-group, at most. registers: 32-bit registers of a thread with which a processor still runs enough threads to
    hide latency. threads, lanes: rows and columns of threads that make a tile of a product, and neighbouring columns
    that each of them computes as a vector. unrolls: short loops of known length are marked to be unrolled; compilers
    for processors do better on their own.
    """

    dialect: Dialect
    local_bytes: int = 16 << 10
    work_group: int = 128
    registers: int = 64
    threads: tuple[int, int] = (8, 16)
    lanes: int = 1
    unrolls: bool = True


LEAST = Device("opencl")
"""Less than what OpenCL 1.2 demands of a full profile (32 KB of local memory, section 4.2): Oclgrind and embedded
devices run kernels made for it, too."""

DEVICES: dict[str, tuple[Device, str]] = {
    "opencl": (LEAST, "any device with OpenCL 1.2: kernels as source, a C driver that builds them"),
    "opencl-cpu": (
        Device("opencl", 32 << 10, 64, registers=512, threads=(8, 1), lanes=16, unrolls=False),
        "processors with OpenCL 1.2, such as PoCL: threads of a work-group take turns, vectors are registers",
    ),
}
"""Rows by target: the device and what the target stands for."""
