"""Products with weights of few levels: kernels on indices beside the own dense kernel, by shape and bits.

    python benchmarks/codebook.py [--shapes 1x1024x1024 …] [--bits 2 4 6] [--seconds 0.3]
                                  [--cold-bytes BYTES] [--target native] [--activations f32 int8] [--form panels]

`--activations int8` are products of bytes (`round-activations`), with the time that it takes to round: by indices
("book"), and by bytes ("bytes"); their difference from the float32 product is relative to the largest result.
`--form panels`: indices are expanded panel by panel, for many rows, and not at every use.
Shapes are rows × columns × depth. One thread of this machine; the kernels pass in turn over copies of the weights, as
many as `--cold-bytes` of dense ones make up (default: a single one, whose weights stay where they fit), so that larger
numbers show weights from farther away; with `--in-row` each kernel finds its own weights where they fit. Times are
medians; GB/s are those of the dense weights; "over dense" is the median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from steps import load_calls

from c2c.codegen.target import Target
from c2c.compiler.machine import peak
from c2c.compiler.options import ACTIVATIONS, CompileOptions
from c2c.ir.graph import Graph, Node, Value, constant
from c2c.ir.types import DType, TensorType
from c2c.passes.base import PassContext, run_pipeline
from c2c.passes.lower import lower_graph
from c2c.passes.lower.schedule import DENSE, Tuning

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shape:
    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"


def coded(shape: Shape, bits: int, seed: int) -> Array:
    """Normal levels, each taken equally often."""
    rng = np.random.default_rng(seed)
    levels = np.sort(rng.standard_normal(1 << bits)).astype(np.float32)
    return levels[rng.integers(0, 1 << bits, (shape.k, shape.n))]


class Product:
    """A MatMul by coded weights, in a form: dense or book, with activations of float32 or rounded."""

    def __init__(self, shape: Shape, weights: Array, form: str, activations: str, target: Target) -> None:
        a = Value("a", TensorType(DType.F32, (shape.m, shape.k)))
        y = Value("y", TensorType(DType.F32, (shape.m, shape.n)))
        node = Node("MatMul", (a, constant("b", weights)), (y,), {}, ("matmul",))
        graph = Graph("product", [a], [y], [node], ["y"])
        self.cycles = 0.0
        if activations != "f32":
            self.cycles += _round(graph, activations, target)
        calls = lower_graph(graph, target, 1)
        choice = next(c for call in calls for c in call.choices if c.family == "book")
        self.name, cycles = next((n, c) for n, c in choice.candidates if form in n)
        self.cycles += cycles
        self.is_chosen = choice.name == self.name
        calls = lower_graph(graph, target, 1, tuning=Tuning({choice.key: self.name}))
        self.loaded, _ = load_calls(calls, graph, CompileOptions(target, name="product"))
        self.feed = np.random.default_rng(7).standard_normal(a.type.dims).astype(np.float32)
        self.result, self.steps = np.zeros(y.type.dims, np.float32), len(calls)

    def time_ns(self) -> float:
        return float(self.loaded.trace([self.feed], [self.result], self.steps).sum())


def _round(graph: Graph, activations: str, target: Target) -> float:
    """Round whatever the cost model says; the cycles that it expects of rounding alone."""
    trial = PassContext(target, activations=activations)
    run_pipeline(graph.clone(), ("round-activations",), trial)
    (choice,) = trial.choices
    run_pipeline(
        graph,
        ("round-activations", "fuse"),
        PassContext(target, activations=activations, tuning=Tuning({choice.key: activations})),
    )
    calls = lower_graph(graph, target, 1)
    return dict(choice.candidates)[activations] - min(c.cycles for call in calls for c in call.choices)


def measure(
    shape: Shape, bits: int, copies: int, seconds: float, target: Target, activations: str, in_row: int, form: str
) -> str:
    weights = [coded(shape, bits, seed) for seed in range(copies)]
    forms = [(DENSE, "f32"), (form, activations)] + ([(DENSE, activations)] if activations != "f32" else [])
    sets = [[Product(shape, w, *form, target) for w in weights] for form in forms]
    for products in sets:
        for p in products:
            p.time_ns()
    error = max(np.abs(d.result - b.result).max() for d, b in zip(*sets[:2], strict=True))
    if activations != "f32":
        error /= max(np.abs(d.result).max() for d in sets[0])
    times: list[list[float]] = [[] for _ in sets]
    end = time.perf_counter() + seconds
    while not times[0] or time.perf_counter() < end:
        for found, products in zip(times, sets, strict=True):
            found += [p.time_ns() for _ in range(in_row) for p in products]
    medians = [statistics.median(t) for t in times]
    dense, book = medians[:2]
    gains = [statistics.median(d / b for d, b in zip(times[0], t, strict=True)) for t in times[1:]]
    others = f"  bytes {medians[2] / 1e3:8.1f} us over dense {gains[1]:5.2f}" if len(sets) > 2 else ""
    chosen = "book" if sets[1][0].is_chosen else "bytes" if len(sets) > 2 else DENSE
    return (
        f"{shape!s:>16} {bits} bits {activations}"
        f"  dense {dense / 1e3:8.1f} us {4 * shape.n * shape.k / dense:6.1f} GB/s"
        f"  book {book / 1e3:8.1f} us {2 * shape.m * shape.n * shape.k / book:6.1f} GF/s  over dense {gains[0]:5.2f}"
        f"{others}  chosen {chosen:5} model {sets[0][0].cycles / sets[1][0].cycles:5.2f}  max difference {error:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ("1x512x256", "1x1024x512", "1x1024x1024", "1x4096x4096", "4x1024x1024", "16x1024x1024", "64x1024x1024")
    parser.add_argument("--shapes", nargs="+", default=default, metavar="MxNxK")
    parser.add_argument("--bits", nargs="+", type=int, default=[4])
    parser.add_argument("--seconds", type=float, default=0.3, help="a shape and number of bits")
    parser.add_argument("--cold-bytes", type=int, default=0)
    parser.add_argument(
        "--in-row", type=int, default=1, metavar="N", help="runs of one kernel before it is another's turn"
    )
    parser.add_argument("--target", default="native", help="one that this machine runs")
    parser.add_argument("--form", choices=("tile", "panels"), default="tile", help="of book products of floats")
    parser.add_argument("--activations", nargs="+", choices=ACTIVATIONS, default=["f32"])
    args = parser.parse_args()
    target = Target.parse(args.target)
    print(f"{target}: peak {peak(target.lanes(DType.F32), 0.2):.1f} GF/s")
    for text in args.shapes:
        shape = Shape(*map(int, text.split("x")))
        copies = max(1, args.cold_bytes // (4 * shape.n * shape.k))
        for bits in args.bits:
            for activations in args.activations:
                print(
                    measure(shape, bits, copies, args.seconds, target, activations, args.in_row, args.form), flush=True
                )


if __name__ == "__main__":
    main()
