"""What graphics processors offer, as data: the limits within which kernels are shaped.

A row holds for every device that a target names, so each number is the least that they have in common; sources are
named with the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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

    What calls are expected to take, in nanoseconds, to tell those that a host runs faster (`passes/host_steps.py`):
    launch: a kernel; operation: one of all threads together, thread_operation: one of a thread that runs alone;
    hand_over: the queue runs empty and memory changes hands, hand_over_byte: for each byte of it; host_operation: one
    of portable C on the host.
    """

    dialect: Dialect
    local_bytes: int = 16 << 10
    work_group: int = 128
    registers: int = 64
    threads: tuple[int, int] = (8, 16)
    lanes: int = 1
    unrolls: bool = True
    launch: float = 10e3
    operation: float = 0.01
    thread_operation: float = 10.0
    hand_over: float = 50e3
    hand_over_byte: float = 0.1
    host_operation: float = 1.0


LEAST = Device("opencl")
"""Less than what OpenCL 1.2 demands of a full profile (32 KB of local memory, section 4.2): Oclgrind and embedded
devices run kernels made for it, too."""

DEVICES: dict[str, tuple[Device, str]] = {
    "opencl": (LEAST, "any device with OpenCL 1.2: kernels as source, a C driver that builds them"),
    "opencl-cpu": (
        Device(
            "opencl",
            32 << 10,
            64,
            registers=512,
            threads=(8, 1),
            lanes=16,
            unrolls=False,
            operation=0.1,
            thread_operation=1.0,
            hand_over=20e3,
            hand_over_byte=0.0,
        ),  # fmt: skip
        "processors with OpenCL 1.2, such as PoCL: threads of a work-group take turns, vectors are registers",
    ),
    "metal": (replace(LEAST, dialect="metal"), "any device with Metal 2.2"),
    "cuda": (replace(LEAST, dialect="cuda"), "any device with CUDA"),
}
"""Rows by target: the device and what the target stands for."""
