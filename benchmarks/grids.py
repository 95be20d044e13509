"""Whole networks on OpenCL against own processor code, on the same machine and as many threads.

usage: python benchmarks/grids.py MODEL.onnx... [--target opencl-cpu] [--threads 1] [--runs 5] [--nodes 0]

Runs take turns; medians of whole runs, copies of inputs and outputs included. PoCL is held to as many threads by
POCL_MAX_PTHREAD_COUNT; on one thread, hold the process to one core, too (taskset). --nodes: so many of each network's
slowest nodes, by the device's clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from c2c.codegen.target import Target
from c2c.compiler.api import from_compiled
from c2c.compiler.diagnostics import relative_error
from c2c.compiler.driver import compile_file
from c2c.compiler.grid_bench import nodes_of
from c2c.compiler.grid_run import grid_model
from c2c.compiler.inputs import checked_inputs, checked_outputs, random_inputs
from c2c.compiler.options import CompileOptions

BURST = 0.15
"""Seconds of the processor's turn."""


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(path: Path, target: str, threads: int, runs: int, nodes: int) -> None:
    compiled = compile_file(path, CompileOptions(Target.parse(target)))
    device = grid_model(compiled).device
    feeds = random_inputs(compiled.source)
    arrays = checked_inputs(compiled.program.inputs, feeds)
    found = checked_outputs(compiled.program.outputs, {}, arrays)
    device.run(arrays, found)
    own = from_compiled(compile_file(path, CompileOptions(Target.parse("native"), threads=threads)))
    expected = own.run(feeds)
    ports = zip(found, compiled.program.outputs, strict=True)
    error = max(relative_error(x, expected[p.name]) for x, p in ports)
    on_device: list[float] = []
    on_processor: list[float] = []
    steps = []
    for _ in range(runs):
        on_device.append(seconds(lambda: steps.append(device.trace(arrays, found))))
        end = time.perf_counter() + BURST
        while time.perf_counter() < end:
            on_processor.append(seconds(lambda: own.run(feeds)))
    a, b = (1e3 * statistics.median(x) for x in (on_device, on_processor))
    print(f"{path.stem:16} {a:9.2f} ms, own {b:8.2f} ms: {a / b:5.2f}x, error {error:.1e}", flush=True)
    for n in sorted(nodes_of(compiled, np.median(np.array(steps), 0)), key=lambda n: -n.milliseconds)[:nodes]:
        chosen = ", ".join(n.schedules)
        print(f"  {n.milliseconds:8.3f} ms {n.gflops:6.1f} GFLOP/s {n.gbs:5.1f} GB/s {'+'.join(n.ops)} {chosen}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--target", default="opencl-cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=0)
    a = parser.parse_args()
    os.environ["POCL_MAX_PTHREAD_COUNT"] = str(a.threads)
    for path in a.models:
        measure(path, a.target, a.threads, a.runs, a.nodes)


if __name__ == "__main__":
    main()
