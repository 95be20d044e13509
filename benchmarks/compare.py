"""c2c beside other engines, in one run: each serves the same inputs in a process of its own, in turn, in short bursts.

usage: python benchmarks/compare.py MODEL.onnx|FOLDER... [--engines c2c,onnxruntime,openvino,ncnn,mnn,iree]
           [--peers-python PYTHON] [--threads 1,2] [--seconds 4] [--json OUT]
       python benchmarks/compare.py --from OUT...

The engines other than c2c live in a virtual environment of their own:

    python3 -m venv peers
    peers/bin/pip install onnx onnxruntime openvino ncnn pnnx torch MNN 'iree-base-compiler[onnx]' iree-base-runtime

Bursts in turn let the machine's noise hit all alike: quote the ratio of medians, on an idle machine. The reference of
the errors is onnxruntime; an engine whose error is above 1e-2 of the largest output does not count. inputs.npz beside a
model.onnx gives its inputs, otherwise they are random by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from networks import given_inputs, models, name_of

from c2c.compiler.diagnostics import relative_error

HERE = Path(__file__).parent
ENGINES = ("c2c", "onnxruntime", "openvino", "ncnn", "mnn", "iree")
BURST = 0.15
"""Seconds of one engine's turn."""

WRONG = 1e-2
"""Errors relative to the largest output from which an engine's time does not count."""


def feeds_of(path: Path) -> dict[str, np.ndarray]:
    """The inputs of a model: inputs.npz beside it, else standard normal floats and integers below 100."""
    given = given_inputs(path)
    if given:
        return given
    graph = onnx.load(path, load_external_data=False).graph
    constants, rng = {i.name for i in graph.initializer}, np.random.default_rng(0)
    feeds = {}
    for value in graph.input:
        if value.name in constants:
            continue
        type_ = value.type.tensor_type
        shape, dtype = (
            [d.dim_value or 1 for d in type_.shape.dim],
            onnx.helper.tensor_dtype_to_np_dtype(type_.elem_type),
        )
        whole = np.dtype(dtype).kind in "iub"
        feeds[value.name] = (rng.integers(0, 100, shape) if whole else rng.standard_normal(shape)).astype(dtype)
    return feeds


class Engine:
    """One engine's process. Raises RuntimeError with its last words when it dies."""

    def __init__(self, name: str, python: str, path: Path, threads: int, inputs: Path) -> None:
        self.words = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [python, str(HERE / "peers.py"), name, str(path), str(threads), str(inputs)]
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
        self.process = subprocess.Popen(
            ["taskset", "-c", cores, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.words,
            text=True,
        )
        self.times: list[float] = []
        self.facts: dict[str, Any] = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.words.seek(0)
            raise RuntimeError(" ".join(self.words.read().split())[-200:] or "died")
        return json.loads(line)

    def ask(self, request: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return self._answer()

    def outputs(self) -> list[np.ndarray]:
        with tempfile.TemporaryDirectory() as folder:
            self.ask(f"save {folder}/out.npz")
            return list(np.load(f"{folder}/out.npz").values())

    def burst(self) -> None:
        count = 1 if not self.times else max(1, min(50, int(BURST / min(self.times))))
        self.times += self.ask(f"run {count}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.words.close()


def error_of(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """`relative_error` of the worst output, whatever its rank; infinite where sizes differ."""
    pairs = zip(found, expected, strict=False)
    return max(relative_error(a.reshape(b.shape), b) if a.size == b.size else float("inf") for a, b in pairs)


def measure(path: Path, threads: int, engines: dict[str, str], seconds: float) -> dict[str, Any]:
    """One row: engines by name, each with its times and error, or with what went wrong."""
    row: dict[str, Any] = {"model": name_of(path), "threads": threads}
    running: dict[str, Engine] = {}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        np.savez(inputs, **feeds_of(path))
        for name, python in engines.items():
            try:
                running[name] = Engine(name, python, path, threads, inputs)
            except RuntimeError as e:
                results[name] = {"failed": str(e)}
        reference = next((n for n in ("onnxruntime", *engines) if n in running), None)
        expected = running[reference].outputs() if reference else []
        for engine in running.values():
            engine.facts["error"] = error_of(engine.outputs(), expected)
        end = time.perf_counter() + seconds * len(running)
        while time.perf_counter() < end:
            for engine in running.values():
                engine.burst()
        for name, engine in running.items():
            results[name] = engine.facts | {"ms": statistics.median(engine.times) * 1e3, "runs": len(engine.times)}
            engine.close()
    return row | {"engines": {n: results[n] for n in engines if n in results}}


def ratio(row: dict[str, Any]) -> tuple[str, float]:
    """The fastest right engine beside c2c, and its time over c2c's: above 1, c2c is faster."""
    times = {n: r["ms"] for n, r in row["engines"].items() if n != "c2c" and r.get("error", 1) < WRONG}
    name = min(times, key=lambda n: times[n])
    return name, times[name] / row["engines"]["c2c"]["ms"]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: milliseconds of each engine (in brackets: wrong output), c2c's speed over the fastest other one."""
    names = list(dict.fromkeys(n for r in rows for n in r["engines"]))
    lines = [f"| | {' | '.join(names)} | c2c is faster by |", "|---" * (len(names) + 2) + "|"]

    def cell(found: dict[str, Any] | None) -> str:
        if not found or "ms" not in found:
            return "–"
        text = f"{found['ms']:.3g}" if found["ms"] < 1000 else f"{found['ms']:.0f}"
        return text if found["error"] < WRONG else f"({text})"

    for row in rows:
        found = row["engines"]
        best, gain = ratio(row)
        cells = " | ".join(cell(found.get(n)) for n in names)
        lines.append(f"| {row['model']} | {cells} | {gain:.2f} ({best}) |")
    gains = [ratio(r)[1] for r in rows]
    lines.append(f"| geometric mean |{' |' * len(names)} {exp(sum(map(log, gains)) / len(gains)):.2f} |")
    return "\n".join(lines)


def report(rows: list[dict[str, Any]]) -> str:
    """A table for each number of threads, with what it was measured on."""
    rows = [r for r in rows if "ms" in r["engines"].get("c2c", {})]
    versions = {n: f["version"] for r in rows for n, f in r["engines"].items() if "version" in f}
    parts = [f"{date.today()}, {cpu()}, " + ", ".join(f"{n} {v}" for n, v in versions.items())]
    for threads in sorted({r["threads"] for r in rows}):
        parts += [f"\nMilliseconds, {threads} thread(s):\n", table([r for r in rows if r["threads"] == threads])]
    return "\n".join(parts)


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter of the engines other than c2c")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=4, help="for each engine, model and number of threads")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--from", dest="given", nargs="+", type=Path, help="print the table of earlier runs")
    a = parser.parse_args()
    rows: list[dict[str, Any]] = [r for f in a.given or () for r in json.loads(f.read_text())]
    engines = {n: sys.executable if n == "c2c" else a.peers_python for n in a.engines.split(",")}
    for path in models(a.models):
        for threads in map(int, a.threads.split(",")):
            row = measure(path, threads, engines, a.seconds)
            rows.append(row)
            cells = (
                f"{n} {r['ms']:.3f}" if "ms" in r else f"{n} {r['failed'][-80:]}" for n, r in row["engines"].items()
            )
            print(f"{row['model']} {threads}: " + "  ".join(cells), file=sys.stderr, flush=True)
            if a.json:
                a.json.write_text(json.dumps(rows, indent=1))
    print(report(rows))


if __name__ == "__main__":
    main()
