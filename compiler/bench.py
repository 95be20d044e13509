"""Times a compiled model on this machine, whole and node by node.

Node times come from a `c2c_parallel` that is a timer: the model hands every step to it, so that the shipped code is
measured as it is, on one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..ir.loops import Step
from .api import CompiledModel, from_compiled
from .driver import Compiled
from .inputs import random_inputs

MIN_RUNS = 5


@dataclass(frozen=True, slots=True)
class NodeTime:
    """A step: symbol, ONNX nodes, kernel, median milliseconds, share of the sum."""

    symbol: str
    origin: tuple[str, ...]
    kernel: str
    milliseconds: float
    share: float


@dataclass(frozen=True, slots=True)
class BenchReport:
    """milliseconds: median of whole runs with the compiled number of threads; nodes: one thread, in order."""

    name: str
    threads: int
    runs: int
    milliseconds: float
    fastest: float
    arena_bytes: int
    nodes: tuple[NodeTime, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{'ms':>9}  share  node  (kernel)"]
        for n in sorted(self.nodes, key=lambda n: -n.milliseconds):
            name = n.origin[-1] if n.origin else n.symbol
            lines.append(f"{n.milliseconds:9.4f}  {n.share:5.1%}  {name}  ({n.kernel})")
        lines.append(
            f"{self.milliseconds:9.3f} ms median of {self.runs} runs, {self.threads} thread(s), "
            f"fastest {self.fastest:.3f} ms, arena {self.arena_bytes / 1e6:.2f} MB"
        )
        return "\n".join(lines)


def bench_model(compiled: Compiled, seconds: float) -> BenchReport:
    """Measure for about `seconds`: half on whole runs, half on nodes."""
    model = from_compiled(compiled)
    feeds = random_inputs(compiled.source)
    outputs = model.run(feeds)
    whole = _repeat(lambda: model.run(feeds, outputs), seconds / 2)
    nodes = _node_times(model, compiled.program.steps, feeds, seconds / 2)
    return BenchReport(
        compiled.program.name, compiled.program.threads, len(whole), statistics.median(whole) * 1e3, min(whole) * 1e3,
        compiled.program.arena_bytes, nodes,
    )  # fmt: skip


def _repeat(call: Callable[[], object], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def _node_times(
    model: CompiledModel, steps: tuple[Step, ...], feeds: dict[str, Any], seconds: float
) -> tuple[NodeTime, ...]:
    samples: list[list[int]] = [[] for _ in steps]
    end = time.perf_counter() + seconds
    runs = 0
    while runs < MIN_RUNS or time.perf_counter() < end:
        runs += 1
        for sample, nanoseconds in zip(samples, model.trace(feeds, len(steps)), strict=True):
            sample.append(nanoseconds)
    medians = [statistics.median(s) / 1e6 for s in samples]
    total = sum(medians) or 1.0
    return tuple(NodeTime(s.symbol, s.origin, s.kernel, m, m / total) for s, m in zip(steps, medians, strict=True))
