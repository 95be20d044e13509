"""The tables of the README: compile time, sizes, arena, error and speed against onnxruntime, for models and networks.

usage: python benchmarks/networks.py MODEL.onnx|FOLDER... [--threads 1] [--seconds 4] [--json OUT]

A folder stands for its *.onnx and */model.onnx; inputs.npz beside a model.onnx gives its inputs, otherwise they are
random by seed. c2c and onnxruntime run in turn in short bursts, so that the machine's noise hits both alike: quote the
ratio of medians, on an idle machine. Memory is the peak of a process that only compiles.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from c2c.codegen.target import Target
from c2c.compiler.api import from_compiled
from c2c.compiler.diagnostics import relative_error
from c2c.compiler.driver import compile_file
from c2c.compiler.inputs import random_inputs
from c2c.compiler.options import CompileOptions

BURST = 0.15
"""Seconds of one side's turn."""


def models(items: list[Path]) -> list[Path]:
    """Model files named by the arguments, in order."""
    found: list[Path] = []
    for item in items:
        found += sorted(item.glob("*.onnx")) + sorted(item.glob("*/model.onnx")) if item.is_dir() else [item]
    return found


def name_of(path: Path) -> str:
    return path.parent.name if path.stem == "model" else path.stem


def given_inputs(path: Path) -> dict[str, np.ndarray]:
    """Arrays of inputs.npz beside the model, by input name."""
    side = path.parent / "inputs.npz"
    return dict(np.load(side)) if side.exists() else {}


def burst(call: Callable[[], object]) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + BURST
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def measure(path: Path, threads: int, seconds: float) -> dict[str, object]:
    """One row."""
    feeds = given_inputs(path)
    shapes = {k: v.shape for k, v in feeds.items()}
    start = time.perf_counter()
    compiled = compile_file(path, CompileOptions(Target.parse("native"), "model", threads, shapes=shapes))
    model = from_compiled(compiled)
    compile_seconds = time.perf_counter() - start
    feeds = feeds or random_inputs(compiled.source)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    expected = session.run(None, feeds)
    found = model.run(feeds)
    error = max(relative_error(found[o.name], e) for o, e in zip(session.get_outputs(), expected, strict=True))
    ours: list[float] = []
    theirs: list[float] = []
    end = time.perf_counter() + seconds
    while not ours or time.perf_counter() < end:
        ours += burst(lambda: model.run(feeds, found))
        theirs += burst(lambda: session.run(None, feeds))
    a, b = statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3
    plan = compiled.plan
    over = plan.arena_bytes / max(1, plan.lower_bound)
    return {
        "model": name_of(path), "threads": threads, "c2c_ms": round(a, 3), "onnxruntime_ms": round(b, 3),
        "ratio": round(a / b, 3), "error": float(f"{error:.1e}"), "compile_s": round(compile_seconds, 2),
        "arena_mb": round(plan.arena_bytes / 1e6, 2), "arena_over_bound": round(over, 3),
        "weights_mb": round(len(compiled.program.weights) / 1e6, 2), "kernels": len(compiled.program.kernels),
    }  # fmt: skip


def compile_only(path: Path) -> dict[str, object]:
    """`c2c compile` in a process of its own: seconds, peak memory, section sizes."""
    arguments = [f"--shape={k}={','.join(map(str, v.shape))}" for k, v in given_inputs(path).items() if v.shape]
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "c2c", "compile", str(path), "-o", out, "--json", *arguments]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    if done.returncode:
        return {"model": name_of(path), "error": done.stderr[-300:]}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    sizes = json.loads(done.stdout)["bytes"]
    return {"model": name_of(path), "compile_s": round(seconds, 2), "peak_mb": round(peak), **sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--compile-only", action="store_true", help="one model: compile time, peak memory, sizes")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    rows: list[dict[str, object]] = []
    for path in models(a.models):
        try:
            row = compile_only(path) if a.compile_only else measure(path, a.threads, a.seconds)
        except Exception as e:  # one model's failure is a row of the table
            row = {"model": name_of(path), "error": f"{type(e).__name__}: {e}"[:300]}
        rows.append(row)
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        if a.json:
            a.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
