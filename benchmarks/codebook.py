"""Products with weights of few levels: the kernel on indices beside the own dense kernel, by shape and bits.

    python benchmarks/codebook.py [--shapes 1x1024x1024 …] [--bits 2 4 6] [--seconds 0.3]
                                  [--cold-bytes BYTES] [--target native]

Shapes are rows × columns × depth. One thread of this machine; both kernels pass in turn over copies of the weights, as
many as `--cold-bytes` of dense ones make up (default: a single one, whose weights stay where they fit), so that larger
numbers show weights from farther away. Times are medians; GB/s are those of the dense weights; "over dense" is the
median of the ratios of neighbouring runs.
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
from c2c.compiler.options import CompileOptions
from c2c.ir.graph import Graph, Node, Value, constant
from c2c.ir.types import DType, TensorType
from c2c.passes.lower import lower_graph
from c2c.passes.lower.schedule import Tuning

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
    """A MatMul by coded weights, by the schedule that a name begins with (dense, book)."""

    def __init__(self, shape: Shape, weights: Array, start: str, target: Target) -> None:
        a = Value("a", TensorType(DType.F32, (shape.m, shape.k)))
        y = Value("y", TensorType(DType.F32, (shape.m, shape.n)))
        node = Node("MatMul", (a, constant("b", weights)), (y,), {}, ("matmul",))
        graph = Graph("product", [a], [y], [node], ["y"])
        choice = next(c for c in lower_graph(graph, target, 1)[-1].choices if c.family == "book")
        self.name, self.cycles = next((n, c) for n, c in choice.candidates if n.startswith(start))
        self.is_chosen = choice.name == self.name
        calls = lower_graph(graph, target, 1, tuning=Tuning({choice.key: self.name}))
        self.loaded, _ = load_calls(calls, graph, CompileOptions(target, name="product"))
        self.feed = np.random.default_rng(7).standard_normal(a.type.dims).astype(np.float32)
        self.result, self.steps = np.zeros(y.type.dims, np.float32), len(calls)

    def time_ns(self) -> float:
        return float(self.loaded.trace([self.feed], [self.result], self.steps).sum())


def measure(shape: Shape, bits: int, copies: int, seconds: float, target: Target) -> str:
    weights = [coded(shape, bits, seed) for seed in range(copies)]
    pairs = [[Product(shape, w, start, target) for w in weights] for start in ("dense", "book")]
    error = max(np.abs(d.result - b.result).max() for d, b in zip(*pairs, strict=True) if d.time_ns() and b.time_ns())
    times: list[list[float]] = [[], []]
    end = time.perf_counter() + seconds
    while not times[0] or time.perf_counter() < end:
        for found, products in zip(times, pairs, strict=True):
            found += [p.time_ns() for p in products]
    dense, book = (statistics.median(t) for t in times)
    gain = statistics.median(d / b for d, b in zip(*times, strict=True))
    chosen = next(p[0].name.split()[0] for p in pairs if p[0].is_chosen)
    return (
        f"{shape!s:>16} {bits} bits  dense {dense / 1e3:8.1f} us {4 * shape.n * shape.k / dense:6.1f} GB/s"
        f"  book {book / 1e3:8.1f} us {2 * shape.m * shape.n * shape.k / book:6.1f} GF/s  over dense {gain:5.2f}"
        f"  chosen {chosen:8} model {pairs[0][0].cycles / pairs[1][0].cycles:5.2f}  max difference {error:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ("1x512x256", "1x1024x512", "1x1024x1024", "1x4096x4096", "4x1024x1024", "16x1024x1024", "64x1024x1024")
    parser.add_argument("--shapes", nargs="+", default=default, metavar="MxNxK")
    parser.add_argument("--bits", nargs="+", type=int, default=[4])
    parser.add_argument("--seconds", type=float, default=0.3, help="a shape and number of bits")
    parser.add_argument("--cold-bytes", type=int, default=0)
    parser.add_argument("--target", default="native", help="one that this machine runs")
    args = parser.parse_args()
    target = Target.parse(args.target)
    print(f"{target}: peak {peak(target.lanes(DType.F32), 0.2):.1f} GF/s")
    for text in args.shapes:
        shape = Shape(*map(int, text.split("x")))
        copies = max(1, args.cold_bytes // (4 * shape.n * shape.k))
        for bits in args.bits:
            print(measure(shape, bits, copies, args.seconds, target), flush=True)


if __name__ == "__main__":
    main()
