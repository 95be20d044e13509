"""The expected speed of compressed models (`c2c compress`, `compiler/estimate.py`) beside the clock.

usage: python benchmarks/expected.py DENSE.onnx SMALL.onnx [DENSE.onnx SMALL.onnx ...] [--seconds 3]

Both models of a pair run in turn in one process on one thread; times are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from c2c.codegen.target import native
from c2c.compiler.api import from_compiled
from c2c.compiler.driver import Compiled, compile_file
from c2c.compiler.estimate import expected_cycles
from c2c.compiler.inputs import random_inputs
from c2c.compiler.machine import peak
from c2c.compiler.options import CompileOptions
from c2c.ir.types import DType


def compiled(path: Path) -> Compiled:
    """As `c2c compress` compiles for its report."""
    return compile_file(path, CompileOptions(native(), winograd_weights="load", keep_constants=True))


def medians(models: list[Compiled], seconds: float) -> list[float]:
    """Seconds of the steps of each, run in turn."""
    loaded = [from_compiled(m) for m in models]
    feeds = [random_inputs(m.graph, 0) for m in models]
    counts = [len(m.calls) for m in models]
    times: list[list[float]] = [[] for _ in models]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for model, feed, steps, mine in zip(loaded, feeds, counts, times, strict=True):
            mine.append(float(model.trace(feed, steps).sum()) / 1e9)
    return [statistics.median(t) for t in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    target = native()
    lanes = target.lanes(DType.F32)
    for dense, small in zip(args.models[::2], args.models[1::2], strict=True):
        pair = [compiled(dense), compiled(small)]
        cycles = [expected_cycles(c) for c in pair]
        times = medians(pair, args.seconds)
        hertz = peak(lanes, 0.2) * 1e9 / (2 * lanes * target.fma_per_cycle)
        told = [c / hertz / t for c, t in zip(cycles, times, strict=True)]
        print(
            f"{small}: {times[0] * 1e3:.3f} ms dense, {times[1] * 1e3:.3f} ms; expected {cycles[0] / cycles[1]:.2f}x, "
            f"measured {times[0] / times[1]:.2f}x; expected time over measured {told[0]:.2f} and {told[1]:.2f}"
        )


if __name__ == "__main__":
    main()
