"""The generated C program: from its start to the first result, and the memory it takes, beside one inference.

usage: python benchmarks/program.py MODEL.onnx... [--threads 1] [--runs 15] [--json OUT]

Builds the bundle's example.c with the weights in a file, which the program maps, and runs it again and again, in turn
with inferences of the same bundle in this process. `load_ms` is what the first result takes beyond one inference,
within main; `process_ms` the same for the whole process, with exec and the dynamic linker. `resident_mb` is the peak,
`over_mb` what of it is neither weights, nor prepared of them, nor arena. The weights' file is in the system's cache: it
was just written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import c2c
from c2c.ir.types import DType

MEASURED_MAIN = """\
#define main example_main
#include "example.c"
#undef main
#include <string.h>
#include <time.h>

int main(int argc, char **argv) {
    struct timespec from, to;
    char line[256];
    FILE *status;
    int error;
    clock_gettime(CLOCK_MONOTONIC, &from);
    error = example_main(argc, argv);
    clock_gettime(CLOCK_MONOTONIC, &to);
    fprintf(stderr, "%.6f", (double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) * 1e-6);
    if ((status = fopen("/proc/self/status", "r")))
        while (fgets(line, sizeof line, status))
            if (!strncmp(line, "VmHWM:", 6)) fprintf(stderr, " %ld", atol(line + 6));
    return error;
}
"""
"""Runs the example's main; its milliseconds and the peak of resident memory in KB go to standard error."""


def build(folder: Path, name: str, threads: int) -> Path:
    """The measured example of a bundle."""
    (folder / "measured.c").write_text(MEASURED_MAIN)
    use = [f"-DUSE_THREADS={threads}"] if threads > 1 else []
    sources = ["measured.c", f"{name}.o", "c2c_runtime.c"]
    command = ["cc", "-O2", "-D_GNU_SOURCE", *use, *sources, "-lpthread", "-lm", "-o", "program"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "program"


def one_run(program: Path) -> tuple[float, float, int]:
    """Milliseconds of the process and of main, peak resident KB."""
    start = time.perf_counter()
    done = subprocess.run([program], cwd=program.parent, capture_output=True, text=True, check=True)
    process = (time.perf_counter() - start) * 1e3
    main, peak = done.stderr.split()
    return process, float(main), int(peak)


def measure(path: Path, threads: int, runs: int) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory() as out:
        folder = Path(out)
        compiled = c2c.compile(path, threads=threads)
        manifest = compiled.save(folder, weights="file")
        program = build(folder, compiled.name, threads)
        model = c2c.load(folder)
        feeds = {p.name: np.zeros(p.shape, DType(p.dtype).numpy) for p in model.inputs}
        results = model.run(feeds)
        processes, mains, peaks, inferences = [], [], [], []
        for _ in range(runs):
            process, main, peak = one_run(program)
            processes.append(process)
            mains.append(main)
            peaks.append(peak)
            for _ in range(5):
                start = time.perf_counter()
                model.run(feeds, results)
                inferences.append((time.perf_counter() - start) * 1e3)
        weights, prepared, arena = (manifest["bytes"][k] / 1e6 for k in ("weights", "prepared", "arena"))
        inference, resident = statistics.median(inferences), max(peaks) * 1024 / 1e6
    return {
        "model": compiled.name, "threads": threads, "inference_ms": round(inference, 2),
        "load_ms": round(statistics.median(mains) - inference, 2),
        "process_ms": round(statistics.median(processes) - inference, 2),
        "resident_mb": round(resident, 1), "weights_mb": round(weights, 1), "arena_mb": round(arena, 1),
        "prepared_mb": round(prepared, 1), "over_mb": round(resident - weights - prepared - arena, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    rows = []
    for path in a.models:
        rows.append(measure(path, a.threads, a.runs))
        print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
        if a.json:
            a.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
