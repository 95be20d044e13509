"""Times a compiled model on this machine, whole and node by node, beside what the machine could do.

Node times come from a `c2c_parallel` that is a timer: the model hands every step to it, so that the shipped code is
measured as it is, on one thread. Steps that belong to one node are summed. Before each step the timer also runs a few
microseconds of multiply-adds on registers: clocks drift, and a rate is compared with the peak of the same moment.

The roofline of a node (Williams, Waterman, Patterson, CACM 52(4), 2009): its operations at the peak rate, or its bytes
at the bandwidth of the memory they come from, whichever takes longer. Activations come from the nearest memory that
holds those of the node, weights from the nearest that holds all weights and the arena: a run passes over all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..ir.graph import Node
from ..ir.ops import GROUPS
from ..passes.lower import Call
from ..passes.lower.schedule import Choice
from .api import CompiledModel, from_compiled
from .driver import Compiled
from .inputs import random_inputs
from .machine import Machine, measure_machine, peak_burst
from .work import Work, stored, work_of

MIN_RUNS = 5

MACHINE_SECONDS = 0.5
"""Time to measure the machine itself."""


@dataclass(frozen=True, slots=True)
class NodeTime:
    """A node: ONNX nodes, operators, kernels, schedules chosen, median milliseconds, share of the sum, its work.

    peak_flops: operations that multiply-adds on registers would have done in its time.
    """

    origin: tuple[str, ...]
    ops: tuple[str, ...]
    kernels: tuple[str, ...]
    schedules: tuple[str, ...]
    milliseconds: float
    share: float
    work: Work
    limit_ms: float
    peak_flops: float

    @property
    def gflops(self) -> float:
        """Rate in operations of the direct form."""
        return self._rate(self.work.flops)

    @property
    def own_gflops(self) -> float:
        """Rate in operations that are done."""
        return self._rate(self.work.own_flops)

    @property
    def gbs(self) -> float:
        return self._rate(self.work.bytes)

    @property
    def roofline(self) -> float:
        """The time that the roofline allows as a part of the time taken."""
        return self.limit_ms / self.milliseconds if self.milliseconds else 0.0

    @property
    def peak(self) -> float:
        """Operations that are done as a part of what the FMA peak of the same moment allows."""
        return min(self.work.flops, self.work.own_flops) / self.peak_flops if self.peak_flops else 0.0

    def _rate(self, amount: float) -> float:
        return amount / self.milliseconds / 1e6 if self.milliseconds else 0.0

    def to_json(self) -> dict[str, Any]:
        rates = {n: getattr(self, n) for n in ("gflops", "own_gflops", "gbs", "peak", "roofline")}
        return {**asdict(self), "intensity": self.work.intensity, **rates}


@dataclass(frozen=True, slots=True)
class BenchReport:
    """milliseconds: median of whole runs with the compiled number of threads; nodes: one thread, in order."""

    name: str
    threads: int
    runs: int
    milliseconds: float
    fastest: float
    arena_bytes: int
    weight_bytes: int
    nodes: tuple[NodeTime, ...]
    machine: Machine

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "nodes": [n.to_json() for n in self.nodes]}


def bench_model(compiled: Compiled, seconds: float, machine: Machine | None = None) -> BenchReport:
    """Measure for about `seconds`, half on whole runs, half on nodes; and the machine, unless it is known."""
    model = from_compiled(compiled)
    machine = machine or measure_machine(MACHINE_SECONDS, threads=False)
    feeds = random_inputs(compiled.source)
    outputs = {p.name: np.empty(p.shape, p.dtype.numpy) for p in model.outputs}
    whole = _repeat(lambda: model.run(feeds, outputs), seconds / 2)
    steps, possible = step_times(model, len(compiled.calls), feeds, seconds / 2)
    program = compiled.program
    nodes = node_times(compiled, steps, possible, machine)
    return BenchReport(
        program.name, program.threads, len(whole), statistics.median(whole) * 1e3, min(whole) * 1e3,
        program.arena_bytes, len(program.weights), nodes, machine,
    )  # fmt: skip


def _repeat(call: Callable[[], object], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def step_times(
    model: CompiledModel, steps: int, feeds: dict[str, Any], seconds: float
) -> tuple[np.ndarray, np.ndarray]:
    """Over runs for about `seconds`, medians [steps] of nanoseconds and of the operations that the FMA peak would have
    done in them, by the rates just before and after the step."""
    beside, flops = peak_burst()
    end = time.perf_counter() + seconds
    samples: list[np.ndarray] = []
    while len(samples) < MIN_RUNS or time.perf_counter() < end:
        samples.append(model.trace(feeds, steps, beside))
    bursts, times = np.moveaxis(np.asarray(samples), -1, 0)
    after = np.concatenate((bursts[:, 1:], bursts[:, -1:]), axis=1)
    possible = times * flops * 2 / np.maximum(bursts + after, 1)
    return np.median(times, axis=0), np.median(possible, axis=0)


def steps_by_node(compiled: Compiled) -> dict[Node, list[int]]:
    """Numbers of the program's steps by the node that they belong to, in order."""
    steps: dict[Node, list[int]] = {}
    for i, call in enumerate(compiled.calls):
        steps.setdefault(call.node, []).append(i)
    return steps


def operators_of(node: Node) -> tuple[str, ...]:
    """Operators of a node, or of all in a group."""
    if node.op == "c2c.Bounded":
        return (node.attrs["body"].nodes[0].op,)
    return tuple(n.op for n in node.attrs["body"].nodes) if node.op in GROUPS else (node.op,)


def work_of_calls(node: Node, calls: Sequence[Call]) -> Work:
    """Work of a node whose calls read their constants as they are stored."""
    constants = dict.fromkeys(v for call in calls for v in call.args if v.is_constant)
    return stored(work_of(node), sum(v.type.nbytes for v in constants))


def node_times(
    compiled: Compiled, nanoseconds: np.ndarray, possible: np.ndarray, machine: Machine
) -> tuple[NodeTime, ...]:
    """Times of the program's steps, and what the peak would have done in them (`step_times`), as those of nodes."""
    total = float(nanoseconds.sum()) or 1.0
    footprint = len(compiled.program.weights) + compiled.program.arena_bytes
    found = []
    for node, mine in steps_by_node(compiled).items():
        calls, taken = [compiled.calls[i] for i in mine], float(nanoseconds[mine].sum())
        work = work_of_calls(node, calls)
        limit = limit_seconds(work, machine, footprint)
        found.append(
            NodeTime(
                node.origin or (node.output.name,),
                operators_of(node),
                tuple(dict.fromkeys(c.kernel.name for c in calls)),
                tuple(f"{c.family} {c.name}{c.reason}" for c in choices_of(compiled, calls[0])),
                taken / 1e6, taken / total, work, limit * 1e3, float(possible[mine].sum()),
            )
        )  # fmt: skip
    return tuple(found)


def choices_of(compiled: Compiled, call: Call) -> tuple[Choice, ...]:
    """Schedules of the node of a call: those that graph passes chose for an ONNX node in it, then its kernels'."""
    origin = set(call.node.origin)
    return (*(c for c in compiled.choices if not origin.isdisjoint(c.origin)), *call.choices)


def limit_seconds(work: Work, machine: Machine, footprint: int) -> float:
    """The least time of a node by the roofline; Winograd's operations are those that it does."""
    moved = work.bytes - work.weight_bytes
    activations = moved / machine.level(moved).gbs
    weights = work.weight_bytes / machine.level(footprint).gbs
    return max(min(work.flops, work.own_flops) / machine.gflops, activations + weights) / 1e9
