"""What graphics processors offer, as data: the limits within which kernels are shaped.

A row holds for every device that a target names, so each number is the least that they have in common; sources are
named with the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Dialect: TypeAlias = Literal["opencl", "metal", "cuda"]


@dataclass(frozen=True, slots=True)
class Chip:
    """One graphics processor, to tell how well a kernel fits it: `units` that each run work-groups of their own.

    flops: of float32, a second, a multiply-add counting two; half_rate: those of f16 in the time of one of them;
    bandwidth: bytes a second from memory. Of a unit: threads that it holds where each has at most so many 32-bit
    registers (pairs of registers and threads, the fewest first), shared bytes, threads in lock-step. source: where the
    figures are from.
    """

    name: str
    units: int
    flops: float
    half_rate: int
    bandwidth: float
    occupancy: tuple[tuple[int, int], ...]
    local_bytes: int
    subgroup: int
    source: str

    @property
    def threads(self) -> int:
        """That a unit holds at most."""
        return self.occupancy[0][1]

    def threads_with(self, registers: int) -> int:
        """That a unit holds, each with so many registers; those beyond the most that a thread has lie in memory."""
        return next((threads for most, threads in self.occupancy if registers <= most), self.occupancy[-1][1])

    @property
    def ridge(self) -> float:
        """Operations a byte from which on arithmetic, not memory, takes the time (Williams, Waterman and Patterson,
        Roofline, CACM 2009)."""
        return self.flops / self.bandwidth


ADRENO_740 = Chip(
    "Adreno 740", 6, 1536 * 2 * 680e6, 2, 67.2e9, tuple((4 * n, min(2048, 96 // n * 128)) for n in range(1, 49)),
    32 << 10, 64,
    "shader processors, registers (96 vectors of 4 for 2 · 64 threads), 16 waves of 128 and shared memory: Mesa, "
    "src/freedreno/common/freedreno_devices.py; 256 multiply-adds a clock and processor: Lam, Chips and Cheese, 2024 "
    "(Adreno 730, X1), twice as many of f16: the same, Inside the Snapdragon 855's iGPU (Adreno 640); 680 MHz and "
    "LPDDR5X-8400 on 64 bits: Snapdragon 8 Gen 2",
)  # fmt: skip
MALI_G710 = Chip(
    "Mali-G710 MP10", 10, 10 * 64 * 2 * 850e6, 2, 60e9, ((32, 1024), (64, 512)), 32 << 10, 16,
    "64 multiply-adds a clock and core, warps of 16: Arm, Mali GPU Datasheet; two of f16 for one of f32: Arm, "
    "Mali Offline Compiler User Guide, Valhall; 1024 threads with 32 registers, 512 above: Mesa, "
    "src/panfrost (panfrost_max_thread_count); 850 MHz and LPDDR5X-7500 on 64 bits: Dimensity 9000",
)  # fmt: skip
APPLE_A16 = Chip(
    "Apple A16", 5, 5 * 128 * 2 * 1398e6, 1, 51.2e9,
    ((52, 1024), (56, 896), (64, 832), (68, 768), (72, 704), (80, 640), (92, 576), (104, 512), (116, 448), (128, 384)),
    32 << 10, 32,
    "1024 threads with 104 halves of a register, 384 with 256: Mesa, src/asahi (agx_occupancy_for_register_count; "
    "measured on the A14's generation); 32 KB for a threadgroup, 32 threads in a simdgroup: Apple, Metal Feature Set "
    "Tables; 5 cores of 128 at 1398 MHz, of f16 as of f32 since A15 (Turner, metal-benchmarks), LPDDR5-6400 on 64 bits",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Device:
    """Limits of a graphics processor. Sizes in bytes.

    dialect: language of its kernels. local_bytes: memory that the threads of a work-group share. work_group: threads of
    a work-group, at most. registers: 32-bit registers of a thread with which a processor still runs enough threads to
    hide latency. threads, lanes: rows and columns of threads that make a tile of a product, and neighbouring columns
    that each of them computes as a vector. shares: the memory that a work-group shares is nearer than the caches; else
    products read straight from memory. unrolls: short loops of known length are marked to be unrolled; compilers for
    processors do better on their own. subgroup: threads that run in lock-step; 1: not known. shuffles: what lets them
    exchange values of registers, their number being certain: the language, or an extension of OpenCL by the name of its
    maker; empty: nothing. matrices: whether 32 of them multiply matrices of 8×8. images, fp16: whether it reads them
    through a cache of their own, and computes in 16-bit floats. half_rate: operations on these, in a vector of so many,
    in the time of one on float32. f64: whether it has 64-bit floats. tensors: that a kernel takes at most; None: any
    number. What a device cannot run runs on the host. dots: what a dot product of four signed bytes takes that is added
    to an i32, in multiply-adds of floats; None: no instruction has it on some of them. arm_dots: OpenCL has them by the
    names of Arm's extension, too (compilers made of clang may define the extension where it is not). chip: one of those
    that the row stands for, by which reports rate kernels.

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
    shares: bool = True
    unrolls: bool = True
    launch: float = 10e3
    operation: float = 0.01
    thread_operation: float = 10.0
    hand_over: float = 50e3
    hand_over_byte: float = 0.1
    host_operation: float = 1.0
    subgroup: int = 1
    shuffles: Literal["", "language", "intel", "qcom"] = ""
    matrices: bool = False
    images: bool = False
    fp16: bool = False
    half_rate: int = 1
    f64: bool = False
    tensors: int | None = None
    dots: float | None = None
    arm_dots: bool = False
    chip: Chip | None = None

    @property
    def exchange(self) -> int:
        """Threads that exchange values of registers; 1: none do."""
        return self.subgroup if self.shuffles else 1


LEAST = Device("opencl")
"""Less than what OpenCL 1.2 demands of a full profile (32 KB of local memory, section 4.2): Oclgrind and embedded
devices run kernels made for it, too."""

CPU = Device(
    "opencl", 32 << 10, 64, registers=512, threads=(8, 1), lanes=16, shares=False, unrolls=False, operation=0.1,
    thread_operation=1.0, hand_over=20e3, hand_over_byte=0.0, f64=True,
)  # fmt: skip
ADRENO = replace(
    LEAST, local_bytes=32 << 10, work_group=1024, subgroup=64, shuffles="qcom", images=True, fp16=True, half_rate=2,
    chip=ADRENO_740,
)  # fmt: skip
"""Qualcomm, Snapdragon Mobile Platform OpenCL General Programming and Optimization (80-NB295-11), and Mesa, as above:
since Adreno 6xx. Dot products of bytes since A650 (has_dp4acc there), and where the driver has
cl_khr_integer_dot_product."""
MALI = replace(
    LEAST, local_bytes=32 << 10, work_group=256, subgroup=16, images=True, fp16=True, half_rate=2, dots=1.0,
    arm_dots=True, chip=MALI_G710,
)  # fmt: skip
"""Arm Mali GPU OpenCL Developer Guide: 256 threads with 64 registers at most; local memory lies in memory. Valhall.
Dot products of bytes since G76: Arm, Compute Library (cl_arm_integer_dot_product_int8); their rate is taken to be that
of multiply-adds."""
INTEL = replace(
    LEAST, local_bytes=64 << 10, work_group=256, subgroup=16, shuffles="intel", images=True, fp16=True, half_rate=2
)
"""Intel, oneAPI GPU Optimization Guide: 64 KB a subslice, 128 registers of 32 bytes for 16 threads. Since Gen9, whose
units do twice as much in f16 (Intel, The Compute Architecture of Intel Processor Graphics Gen9, 2015); dot products of
bytes (DP4A) since Gen12."""
NVIDIA = replace(LEAST, local_bytes=48 << 10, work_group=1024, subgroup=32, images=True, f64=True)
"""NVIDIA, CUDA C++ Programming Guide, table of compute capabilities; its OpenCL has no cl_khr_fp16 and no exchanges of
values."""
CUDA = replace(NVIDIA, dialect="cuda", shuffles="language", dots=1.0)
"""The same, section on warp shuffle functions; dot products of bytes (__dp4a) since 6.1, as many as multiply-adds of
floats on 7.x and 8.0. Older devices run them written out."""
CUDA_VOLTA = replace(CUDA, fp16=True)
"""The same, tables of arithmetic instructions: since compute capability 7.0 one on f16 takes the time of one on f32;
before, that of 64 on some devices."""
METAL = Device("metal", 16 << 10, 512, subgroup=32, images=True, fp16=True, tensors=31)
"""Apple, Metal Feature Set Tables: what families Apple3 and Mac2 have in common."""
METAL_IOS = replace(
    METAL, local_bytes=32 << 10, work_group=1024, shuffles="language", matrices=True, chip=APPLE_A16
)  # fmt: skip
"""The same, family Apple7 (A14, 2020): SIMD-scoped permute and matrix multiply operations; 32 threads in a
simdgroup."""
METAL_MACOS = replace(METAL_IOS, chip=None)
"""The same, M1."""

DEVICES: dict[str, tuple[Device, str]] = {
    "opencl": (LEAST, "any device with OpenCL 1.2: kernels as source, a C driver that builds them"),
    "opencl-cpu": (
        CPU, "processors with OpenCL 1.2, such as PoCL: threads of a work-group take turns, vectors are registers"
    ),
    "opencl-adreno": (ADRENO, "Qualcomm Adreno since 6xx"),
    "opencl-mali": (MALI, "Arm Mali since Valhall (G77)"),
    "opencl-intel": (INTEL, "Intel graphics since Gen9"),
    "opencl-nvidia": (NVIDIA, "NVIDIA by OpenCL"),
    "metal": (METAL, "any device with Metal 2.2, those before A14 and Macs with Intel's or AMD's graphics, too"),
    "metal-ios": (METAL_IOS, "iPhone and iPad since A14 (Apple7): Metal source, an Objective-C driver"),
    "metal-macos": (METAL_MACOS, "Macs with Apple silicon (Apple7): Metal source, an Objective-C driver"),
    "cuda": (CUDA, "NVIDIA since compute capability 5.0: CUDA source for NVRTC, a C driver"),
    "cuda-volta": (CUDA_VOLTA, "NVIDIA since compute capability 7.0: arithmetic in f16"),
}  # fmt: skip
"""Rows by target: the device and what the target stands for."""
