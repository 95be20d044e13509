"""ARM without ARM hardware: executed instructions of one inference under qemu, and hot loops by llvm-mca.

usage: python benchmarks/arm/count.py MODEL.onnx... [--target arm64-neon] [--kernels] [--cpu cortex-a76] [--json OUT]

Table 1, a row a model: millions of instructions by class, multiply-adds done (lanes), error against ONNX Runtime where
it is installed. `--kernels`: the same for each kernel. Table 2: cycles and multiply-adds a cycle of the innermost loops
of the kernels that take most, for several cores, as llvm-mca models them: no caches, perfect branches (LLVM 19 has one
model for Cortex-A57, A76 and X1).

Needs qemu-aarch64, aarch64-linux-gnu-gcc and gcc for the first table, llvm-mca for the second; what is missing is said.
Counts are exact and repeat; they are no times.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hot_loops import CORES, analysed, loops

import c2c
from c2c.compiler.diagnostics import relative_error
from c2c.compiler.inputs import random_inputs
from c2c.ir.types import DType

HERE = Path(__file__).resolve().parent
CLASSES = ("fma", "fmul", "dot", "simd", "load", "store", "int", "branch")
TOOLS = ("qemu-aarch64", "aarch64-linux-gnu-gcc", "gcc")

LEAST_SHARE = 0.002
"""Kernels with less of all instructions are not shown."""

Counts = dict[str, int]


def counts(text: str) -> Counts:
    """Numbers of a line of classes.c; `insns` is the sum of the classes."""
    found = dict(zip((*CLASSES, "lanes"), map(int, text.split(",")), strict=True))
    return {"insns": sum(found[c] for c in CLASSES), **found}


def reference(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """What ONNX Runtime computes without its optimisations."""
    try:
        ort: Any = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(a) for a in session.run(None, feeds)]


def executed(
    model: c2c.CompiledModel, feeds: dict[str, np.ndarray], folder: Path, cpu: str
) -> tuple[Counts, dict[str, Counts], list[np.ndarray]]:
    """Counts of one inference, in all and of each function, and its results."""
    manifest = model.save(folder, emit=("obj", "asm"))
    plugin, program = folder / "classes.so", folder / "program"
    build_plugin = f"gcc -O2 -shared -fPIC {HERE / 'classes.c'} -o {plugin}"
    build = f"aarch64-linux-gnu-gcc -O2 -static {HERE / 'driver.c'} {folder / 'model.o'} -lm -o {program}"
    for command in (build_plugin.split(), build.split()):
        subprocess.run(command, check=True)
    command = ["qemu-aarch64", "-cpu", cpu, "-plugin", f"{plugin},out={folder / 'counts'}", str(program)]
    command += [str(manifest["bytes"]["arena"])]
    outputs = [np.empty(p.shape, DType(p.dtype).numpy) for p in model.outputs]
    for i, p in enumerate(model.inputs):
        feeds[p.name].tofile(folder / f"in{i}")
        command += ["in", str(folder / f"in{i}"), str(feeds[p.name].nbytes)]
    for i, a in enumerate(outputs):
        command += ["out", str(folder / f"out{i}"), str(a.nbytes)]
    subprocess.run(command, check=True)
    rows = [line.split() for line in (folder / "counts").read_text().splitlines() if line.startswith("1 ")]
    by_name = {name: counts(numbers) for _, name, numbers in rows}
    results = [np.fromfile(folder / f"out{i}", a.dtype).reshape(a.shape) for i, a in enumerate(outputs)]
    return by_name.pop("mark"), by_name, results


def error(results: list[np.ndarray], expected: list[np.ndarray] | None) -> float:
    """`relative_error` of the worst output."""
    if expected is None:
        return float("nan")
    return max(relative_error(a, b) for a, b in zip(results, expected, strict=True))


def row(name: str, c: Counts, more: str = "") -> str:
    share = 100 * c["fma"] / max(c["insns"], 1)
    numbers = " | ".join(f"{c[k] / 1e6:.3f}" for k in ("insns", *CLASSES, "lanes"))
    return f"| {name} | {numbers} | {share:.0f} % |{more}"


def instruction_table(a: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    missing = [t for t in TOOLS if shutil.which(t) is None]
    if missing:
        print(f"instruction counts skipped: {', '.join(missing)} not found\n")
    else:
        print(f"| {a.target}, M | insns | {' | '.join(CLASSES)} | lanes | fma | error |")
        print("|---" * (len(CLASSES) + 5) + "|")
    for path in a.models:
        options = {"winograd_weights": "compile", **dict(o.split("=", 1) for o in a.option)}
        model = c2c.compile(path, target=a.target, name="model", **options)
        feeds = random_inputs(model.compiled.source)
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            entry: dict[str, Any] = {"model": path.stem, "target": a.target}
            if missing:
                model.save(folder, emit=("asm",))
            else:
                total, kernels, results = executed(model, feeds, folder, a.cpu)
                entry |= {"counts": total, "kernels": kernels, "error": error(results, reference(path, feeds))}
                print(row(path.stem, total, f" {entry['error']:.1e} |"), flush=True)
                by_size = sorted(kernels.items(), key=lambda item: -item[1]["insns"])
                for name, c in by_size if a.kernels else ():
                    if c["insns"] >= LEAST_SHARE * total["insns"]:
                        print(row(f"· {name}", c, " |"))
            entry["assembly"] = (folder / "model.s").read_text()
        found.append(entry)


def loop_table(a: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    if shutil.which(a.mca) is None:
        print(f"\nhot loops skipped: {a.mca} not found")
        return
    print(f"\n| hot loop | insns | fma | insns/fma | {' | '.join(f'{c}: cycles, fma/cycle' for c in CORES)} |")
    print("|---" * (4 + len(CORES)) + "|")
    for entry in found:
        kernels = entry.get("kernels", {})
        entry["loops"] = []
        hot = sorted(loops(entry.pop("assembly")), key=lambda loop: -kernels.get(loop.kernel, {"fma": loop.fma})["fma"])
        for loop in hot[: a.loops]:
            cycles = {core: analysed(a.mca, core, loop) for core in CORES}
            entry["loops"].append({"kernel": loop.kernel, "insns": len(loop.body), "fma": loop.fma, "cycles": cycles})
            shown = " | ".join(f"{c:.1f}, {loop.fma / c:.2f}" for c in cycles.values())
            ratio = len(loop.body) / loop.fma
            print(
                f"| {entry['model']} {loop.kernel} | {len(loop.body)} | {loop.fma} | {ratio:.3f} | {shown} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--target", default="arm64-neon")
    parser.add_argument("--cpu", default="cortex-a76", help="what qemu emulates")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of c2c.compile")
    parser.add_argument("--kernels", action="store_true", help="counts of each kernel as well")
    parser.add_argument("--loops", type=int, default=6, help="hot loops of each model (default 6)")
    parser.add_argument("--mca", default="llvm-mca")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    found: list[dict[str, Any]] = []
    instruction_table(a, found)
    loop_table(a, found)
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
