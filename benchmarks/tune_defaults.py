"""How good the cost model's choices are on this machine: by family, beside the best schedules that tuning finds.

    python benchmarks/tune_defaults.py MODEL.onnx... [--seconds 60] [--json OUT]

Prints the facts of this core as `codegen/target.py` states them (bytes a cycle), then for each family: problems, how
many of them take another schedule when measured, and microseconds of both. A family that loses more than a few percent
wants other constants; a table of shapes is not made, since it would only serve the models given.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from c2c.codegen.target import native
from c2c.compiler.driver import load_graph
from c2c.compiler.machine import measure_machine
from c2c.compiler.options import CompileOptions
from c2c.compiler.tune import Tuner
from c2c.compiler.tuning import Measured
from c2c.ir.types import DType


def facts() -> dict[str, float]:
    """Bytes a cycle of each memory; the clock is that of the multiply-adds at `fma_per_cycle`."""
    target, machine = native(), measure_machine(0.5, threads=False)
    gigahertz = machine.gflops / (2 * target.lanes(DType.F32) * target.fma_per_cycle)
    return {"GHz": gigahertz, **{v.name: v.gbs / gigahertz for v in machine.levels}}


def by_family(measured: dict[tuple[str, str], Measured]) -> dict[str, dict[str, float]]:
    """Problems, those that change, and microseconds before and after, where both were measured."""
    rows: dict[str, dict[str, float]] = {}
    for (family, _), m in measured.items():
        row = rows.setdefault(family, {"problems": 0, "changed": 0, "us": 0.0, "tuned_us": 0.0})
        row["problems"] += 1
        row["changed"] += m.name != m.default
        if m.default_us is not None:
            row["us"] += m.default_us
            row["tuned_us"] += min(m.us, m.default_us) if m.name != m.default else m.default_us
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="a model")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    print(f"{native().cpu}: " + ", ".join(f"{k} {v:.1f}" for k, v in facts().items()) + " (bytes a cycle)")
    options = CompileOptions(native())
    everything: dict[tuple[str, str], Measured] = {}
    for path in a.models:
        report = Tuner(load_graph(path, options), options, a.seconds).run()
        everything |= report.measured
        print(f"{path.stem}: {report.before:.3f} ms, tuned {report.after:.3f} ms, {report.rounds} rounds", flush=True)
        for (family, problem), m in sorted(report.changed.items()):
            before = "" if m.default_us is None else f"{m.default_us:.1f}"
            print(f"  {family} {problem}: {m.default} {before} -> {m.name} {m.us:.1f} us")
    rows = by_family(everything)
    for family, row in sorted(rows.items()):
        loss = row["us"] / row["tuned_us"] - 1 if row["tuned_us"] else 0.0
        print(f"{family}: {row['changed']:.0f} of {row['problems']:.0f} problems change, {loss:.1%} slower untuned")
    if a.json:
        a.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
