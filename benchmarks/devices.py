"""Networks on an OpenCL device beside the same networks as processor code: errors and milliseconds.

usage: python benchmarks/devices.py MODEL.onnx... [--target T] [--threads 2] [--seconds 2] [--shape x=1,3,48,48]

The network runs through its bundle and the C driver; copies of inputs and outputs are part of its time. Errors are the
largest difference from what the processor's code computes over the largest of its results, by output. PoCL runs on the
same cores: POCL_MAX_PTHREAD_COUNT says on how many, and --threads how many the processor's code uses.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

import c2c
from c2c.compiler.inputs import random_inputs


def milliseconds(run: Callable[[], object], seconds: float) -> float:
    """Median of runs for about `seconds`, three at least."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def error(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The largest of all outputs; of whole numbers the share that differs."""
    worst = 0.0
    for name, want in expected.items():
        if want.dtype.kind != "f":
            worst = max(worst, float(np.mean(found[name] != want)))
        elif want.size:
            scale = max(float(np.abs(want).max()), 1e-30)
            worst = max(worst, float(np.abs(found[name].astype(np.float64) - want).max()) / scale)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--target", default="opencl-cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--shape", action="append", default=[], help="NAME=D,D,… of an input that has open dimensions")
    args = parser.parse_args()
    shapes = {n: tuple(map(int, d.split(","))) for n, _, d in (s.partition("=") for s in args.shape)}
    for path in args.models:
        own = c2c.compile(path, threads=args.threads, shapes=shapes)
        device = c2c.compile(path, args.target, shapes=shapes)
        feeds = random_inputs(own.compiled.source)
        wrong = error(device.run(feeds), own.run(feeds))
        here, there = (milliseconds(partial(m.run, feeds), args.seconds) for m in (own, device))
        hosted = sum(s.host for s in device.compiled.program.steps)
        print(
            f"{path.parent.name if path.stem == 'model' else path.stem:18} error {wrong:.1e}   device {there:9.2f} ms"
            f"   processor {here:8.2f} ms   {there / here:6.2f}x   {hosted} steps on the host", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
