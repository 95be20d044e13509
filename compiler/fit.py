"""How well kernels fit a graphics processor, derived from their loops and the chip's figures, without running them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..codegen.devices import Chip, Device
from ..codegen.launch import launch
from ..ir.loops import Kernel
from ..ir.program import Program
from ..ir.types import DType
from ..passes.loops.count import dot_flops, flops, traffic
from ..passes.loops.pressure import registers, shared_bytes


@dataclass(frozen=True, slots=True)
class Fit:
    """One kernel on a `chip`, by its name and ONNX node.

    calls: steps that run it. groups, threads: work-groups and threads of one. flops, bytes: operations on floats and in
    dot products of bytes (half_flops: those on f16, dot_flops: those in dot products) and bytes that its threads ask
    memory for, in one run; tensors: bytes of all its tensors, once. registers: of a thread, estimated. resident:
    work-groups that one of the chip's units holds at a time, for want of what `limit` names. occupancy: the share of a
    unit's threads that they are. busy: the share of all units' threads that the whole grid is, at most 1. microseconds:
    at the chip's peak, of arithmetic (f16's and dot products' for operations that are theirs) or of memory, which
    `bound` says; each tensor moves once.
    """

    chip: str
    kernel: str
    node: str
    calls: int
    groups: int
    threads: int
    flops: float
    half_flops: float
    dot_flops: float
    bytes: float
    tensors: int
    registers: int
    shared_bytes: int
    resident: int
    limit: str
    occupancy: float
    busy: float
    microseconds: float
    bound: str

    @property
    def intensity(self) -> float:
        """Operations for each byte that threads ask for."""
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def best_intensity(self) -> float:
        """Operations for each byte of the tensors: what no cache and no tile exceeds."""
        return self.flops / self.tensors if self.tensors else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "intensity": self.intensity, "best_intensity": self.best_intensity}


def fit_of(program: Program, device: Device) -> tuple[Fit, ...]:
    """Every kernel of the device's, in order; empty where the target names no chip."""
    chip = device.chip
    if chip is None:
        return ()
    return tuple(_fit(program, k, device, chip) for k in program.kernels_of(host=False).values())


def report(program: Program, device: Device) -> dict[str, Any]:
    """`fit_of` as JSON, with the chip's figures and their sources; empty without a chip."""
    chip = device.chip
    kernels = [f.to_json() for f in fit_of(program, device)]
    if chip is None:
        return {}
    figures = {k: v for k, v in asdict(chip).items() if k != "occupancy"}
    return {"chip": {**figures, "threads": chip.threads, "ridge": chip.ridge}, "kernels": kernels}


def _fit(program: Program, kernel: Kernel, device: Device, chip: Chip) -> Fit:
    steps = [s for s in (*program.prepare, *program.steps) if s.kernel == kernel.name]
    made, work, halves, moved = launch(kernel, device), flops(kernel), flops(kernel, DType.F16), traffic(kernel)
    threads, needed, shared = made.group[0] * made.group[1] * made.group[2], registers(kernel), shared_bytes(kernel)
    resident, limit = _resident(chip, threads, needed, shared)
    tensors = sum(p.size * p.dtype.nbytes for p in kernel.params)
    halves, dots = halves if device.fp16 else 0.0, dot_flops(kernel)
    arithmetic = (work - halves + halves / chip.half_rate + dots * _dot_time(device)) / chip.flops
    memory = tensors / chip.bandwidth
    origin = next((s.origin[-1] for s in steps if s.origin), kernel.name)
    return Fit(
        chip.name, kernel.name, origin, len(steps), made.groups, threads, work + dots, halves, dots, moved,
        tensors, needed, shared,
        resident, limit, min(1.0, resident * threads / chip.threads),
        min(1.0, made.groups * threads / (chip.units * chip.threads)),
        max(arithmetic, memory) * 1e6, "arithmetic" if arithmetic > memory else "memory",
    )  # fmt: skip


def _dot_time(device: Device) -> float:
    """What an operation in a dot product of four bytes takes, in operations on floats."""
    return 1.0 if device.dots is None else device.dots / 4


def _resident(chip: Chip, threads: int, registers: int, shared: int) -> tuple[int, str]:
    """Work-groups that a unit holds, and what keeps it from holding more. Threads come in whole subgroups."""
    whole = -(-threads // chip.subgroup) * chip.subgroup
    limits = {
        "threads": chip.threads // whole,
        "registers": chip.threads_with(registers) // whole,
        **({"shared memory": chip.local_bytes // shared} if shared else {}),
    }
    limit = min(limits, key=lambda name: limits[name])
    return max(1, limits[limit]), limit
