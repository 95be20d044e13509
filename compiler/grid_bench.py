"""Times a model on a graphics processor node by node, by the device's own clock (OpenCL's profiling events)."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..codegen.launch import Launch, launch
from .bench import MIN_RUNS, operators_of, steps_by_node, work_of_calls
from .driver import Compiled
from .fit import Fit, fit_of
from .grid_run import grid_model
from .inputs import checked_inputs, checked_outputs, random_inputs
from .work import Work


@dataclass(frozen=True, slots=True)
class GridTime:
    """A node: ONNX nodes, operators, kernels, their launches, schedules chosen, median milliseconds, share of the sum,
    its work."""

    origin: tuple[str, ...]
    ops: tuple[str, ...]
    kernels: tuple[str, ...]
    launches: tuple[Launch, ...]
    schedules: tuple[str, ...]
    milliseconds: float
    share: float
    work: Work

    @property
    def gflops(self) -> float:
        return self.work.flops / self.milliseconds / 1e6 if self.milliseconds else 0.0

    @property
    def gbs(self) -> float:
        return self.work.bytes / self.milliseconds / 1e6 if self.milliseconds else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "gflops": self.gflops, "gbs": self.gbs, "intensity": self.work.intensity}


@dataclass(frozen=True, slots=True)
class GridReport:
    """milliseconds: median of whole runs, copies of inputs and outputs included. fit: of the kernels to the chip that
    the target names, which need not be the device that ran them."""

    name: str
    device: str
    runs: int
    milliseconds: float
    fastest: float
    arena_bytes: int
    weight_bytes: int
    nodes: tuple[GridTime, ...]
    fit: tuple[Fit, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self), "nodes": [n.to_json() for n in self.nodes], "fit": [f.to_json() for f in self.fit]
        }  # fmt: skip


def bench_on_grid(compiled: Compiled, seconds: float) -> GridReport:
    """Measure for about `seconds`, after one run that the device's compiler takes part in."""
    program = compiled.program
    model = grid_model(compiled)
    arrays = checked_inputs(program.inputs, random_inputs(compiled.source))
    results = checked_outputs(program.outputs, {}, arrays)
    model.run(arrays, results)
    whole: list[float] = []
    steps: list[np.ndarray] = []
    end = time.perf_counter() + seconds
    while len(whole) < MIN_RUNS or time.perf_counter() < end:
        begin = time.perf_counter()
        model.run(arrays, results)
        whole.append(time.perf_counter() - begin)
        steps.append(model.trace(arrays, results, len(program.steps)))
    nodes = nodes_of(compiled, np.median(np.asarray(steps), axis=0))
    device = compiled.options.target.device
    assert device is not None
    return GridReport(
        program.name, model.device.device_name, len(whole), statistics.median(whole) * 1e3, min(whole) * 1e3,
        program.arena_bytes, len(program.weights), nodes, fit_of(program, device),
    )  # fmt: skip


def nodes_of(compiled: Compiled, nanoseconds: np.ndarray) -> tuple[GridTime, ...]:
    """Times of the program's steps as those of nodes."""
    device = compiled.options.target.device
    assert device is not None
    total = float(nanoseconds.sum()) or 1.0
    found = []
    for node, mine in steps_by_node(compiled).items():
        calls, taken = [compiled.calls[i] for i in mine], float(nanoseconds[mine].sum())
        found.append(
            GridTime(
                node.origin or (node.output.name,),
                operators_of(node),
                tuple(c.kernel.name for c in calls),
                tuple(launch(c.kernel, device) for c in calls if not c.host),
                tuple(dict.fromkeys(f"{c.family} {c.name}{c.reason}" for call in calls for c in call.choices)),
                taken / 1e6, taken / total, work_of_calls(node, calls),
            )
        )  # fmt: skip
    return tuple(found)
