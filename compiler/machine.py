"""What one core of this machine reaches: multiply-adds by vector width, bandwidth by cache level, waking of threads.

The kernels are written in loop IR and compiled like a model's. Every figure is the best of many short runs: noise only
ever makes a run slower.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..codegen.llvm_program import emit_object
from ..codegen.target import Target, native
from ..ir.loops import Kernel, const, fma
from ..ir.loops_builder import Builder
from ..ir.program import Port, Program, Slot, Step
from ..ir.types import DType
from ..runtime_stub.loader import Bound, Loaded, aligned_bytes

CHAINS = 12
"""Independent multiply-adds in flight: more than latency times issue width of any core, and 14 registers in all."""

ROUNDS = 20_000
"""Steps of the multiply-add loop: some 0.1 ms."""

BURST_ROUNDS = 8_000
"""The same of a burst between two steps of a model: some 15 us, so that the call and the clock are a hundredth."""

READ_BYTES = 4 << 20
"""What a bandwidth run reads at least, passing over a small buffer many times."""

BARRIERS = 256
"""Parallel steps of the program that times barriers."""

PAUSE_SECONDS = 0.005
"""Long enough for waiting threads to fall asleep."""


@dataclass(frozen=True, slots=True)
class Peak:
    """Multiply-adds of f32 on registers, with `bits` of each used."""

    bits: int
    gflops: float


@dataclass(frozen=True, slots=True)
class Level:
    """Reading through `measured_bytes`, which lie in a memory that holds `bytes` (0: all)."""

    name: str
    bytes: int
    measured_bytes: int
    gbs: float


@dataclass(frozen=True, slots=True)
class Machine:
    """One core's limits. barrier_us: an empty parallel step of awake threads; wake_us: what sleeping ones add."""

    cpu: str
    cores: int
    peaks: tuple[Peak, ...]
    levels: tuple[Level, ...]
    barrier_us: float = 0.0
    wake_us: float = 0.0

    @property
    def gflops(self) -> float:
        """The best rate of multiply-adds, in GFLOP/s."""
        return max(p.gflops for p in self.peaks)

    def level(self, size: int) -> Level:
        """The nearest memory that holds `size` bytes."""
        return next((v for v in self.levels if not v.bytes or size <= v.bytes), self.levels[-1])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_machine(seconds: float = 0.5, *, threads: bool = True) -> Machine:
    """Measure for about `seconds`; `threads`: also what a parallel step costs."""
    target = native()
    lanes = [1] + [n for n in (4, 8, 16) if n * 32 <= target.vector_bits]
    sizes = _levels(target)
    share = seconds / (len(lanes) + len(sizes))
    peaks = tuple(Peak(32 * n, peak(n, share)) for n in lanes)
    levels = tuple(Level(name, size, part, bandwidth(part, share)) for name, size, part in sizes)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    barrier, wake = parallel_costs(min(cores, 64), share) if threads and cores > 1 else (0.0, 0.0)
    return Machine(target.cpu, cores, peaks, levels, barrier, wake)


def _levels(target: Target) -> list[tuple[str, int, int]]:
    """(name, bytes that it holds, bytes to measure); a shared last level is measured by a quarter of it."""
    l1, l2, l3 = target.l1_bytes, target.l2_bytes, target.l3_bytes
    found = [("L1", l1, l1 // 2), ("L2", l2, l2 // 2)]
    if l3 > l2:
        found.append(("L3", l3, max(l3 // 4, min(2 * l2, l3 // 2))))
    return [*found, ("memory", 0, 4 * max(l2, l3))]


def peak(lanes: int, seconds: float) -> float:
    """GFLOP/s of multiply-adds of vectors of `lanes` f32 that touch registers only."""
    run = _runner(_multiply_adds(lanes, ROUNDS), [], [CHAINS * lanes])
    return 2 * CHAINS * lanes * ROUNDS / least(run, seconds)


def peak_burst() -> tuple[Bound, int]:
    """A short run of the widest multiply-adds to be timed beside other code, and its operations."""
    lanes = native().lanes(DType.F32)
    loaded = load_kernel(_multiply_adds(lanes, BURST_ROUNDS), [], [CHAINS * lanes])
    return loaded.bind([], [np.zeros(CHAINS * lanes, np.float32)]), 2 * CHAINS * lanes * BURST_ROUNDS


def _multiply_adds(lanes: int, rounds: int) -> Kernel:
    k = Builder()
    y = k.param("y", DType.F32, CHAINS * lanes)
    acc = k.registers("acc", DType.F32, CHAINS, lanes)
    x, w = k.let(k.load(y, 0, lanes)), k.let(k.load(y, lanes, lanes))
    for i in range(CHAINS):
        k.store(acc, i, k.load(y, i * lanes, lanes))
    for _ in k.loop("i", rounds):
        for i in range(CHAINS):
            k.store(acc, i, fma(k.load(acc, i), x, w))
    for i in range(CHAINS):
        k.store(y, i * lanes, k.load(acc, i))
    return k.kernel("peak")


def bandwidth(size: int, seconds: float) -> float:
    """GB/s of reading `size` bytes again and again, in whole vectors."""
    lanes = native().lanes(DType.F32)
    step = CHAINS * lanes
    count = max(1, size // 4 // step)
    passes = max(1, READ_BYTES // size)
    k = Builder()
    x, y = k.param("x", DType.F32, count * step), k.param("y", DType.F32, step)
    acc = k.registers("acc", DType.F32, CHAINS, lanes)
    for i in range(CHAINS):
        k.store(acc, i, k.load(y, i * lanes, lanes))
    for _ in k.loop("pass", passes):
        for at in k.loop("at", count):
            for i in range(CHAINS):
                k.store(acc, i, k.load(acc, i) + k.load(x, at * step + i * lanes, lanes))
    for i in range(CHAINS):
        k.store(y, i * lanes, k.load(acc, i))
    run = _runner(k.kernel("read"), [count * step], [step])
    return count * step * 4 * passes / least(run, seconds)


def parallel_costs(threads: int, seconds: float) -> tuple[float, float]:
    """Microseconds of an empty parallel step on `threads` threads: all awake, all others asleep."""
    k = Builder()
    y = k.param("y", DType.F32, threads)
    for t in k.parallel("t", threads):
        k.store(y, t, const(1, DType.F32))
    kernel = k.kernel("empty")
    out = np.zeros(threads, np.float32)

    def timed(loaded: Loaded) -> float:
        start = time.perf_counter_ns()
        loaded.run([], [out])
        return float(time.perf_counter_ns() - start)

    many, alone = (load_kernel(kernel, [], [threads], n, threads) for n in (BARRIERS, 1))
    awake = least(lambda: timed(many), seconds) / BARRIERS
    call = least(lambda: timed(alone), seconds / 4) - awake

    def after_a_pause() -> float:
        time.sleep(PAUSE_SECONDS)
        return timed(alone)

    asleep = sorted(after_a_pause() for _ in range(max(5, int(seconds / PAUSE_SECONDS / 2))))
    return awake / 1e3, max(0.0, asleep[len(asleep) // 2] - call) / 1e3


def load_kernel(kernel: Kernel, inputs: list[int], outputs: list[int], steps: int = 1, threads: int = 1) -> Loaded:
    """A program that calls a kernel `steps` times on f32 inputs and outputs of these sizes."""
    name = f"machine_{kernel.name}"
    slots = [Slot("input", i) for i in range(len(inputs))] + [Slot("output", i) for i in range(len(outputs))]
    ports = [tuple(Port(f"{hint}{i}", DType.F32, (n,)) for i, n in enumerate(sizes))
             for hint, sizes in (("x", inputs), ("y", outputs))]  # fmt: skip
    calls = tuple(Step(kernel.name, tuple(slots), f"{name}_{i}") for i in range(steps))
    program = Program(name, ports[0], ports[1], {kernel.name: kernel}, calls, 0, bytearray(), threads)
    return Loaded(emit_object(program, native()), name, arena_bytes=0, threads=threads)


def _runner(kernel: Kernel, inputs: list[int], outputs: list[int]) -> Callable[[], float]:
    """A function that runs the kernel once on this thread and returns its nanoseconds."""
    loaded = load_kernel(kernel, inputs, outputs)
    x, y = ([aligned_bytes(4 * n).view(np.float32) for n in sizes] for sizes in (inputs, outputs))
    for a in x:
        a.fill(1.0)  # of its own pages, not of the one page of zeros
    return lambda: float(loaded.trace(x, y, 1)[0])


def least(run: Callable[[], float], seconds: float) -> float:
    """The least of the results of running for `seconds`, and three times at least."""
    run()
    end, best, count = time.perf_counter() + seconds, float("inf"), 0
    while count < 3 or time.perf_counter() < end:
        best, count = min(best, run()), count + 1
    return best
