"""Matrix products on this machine, one thread: GF/s beside the core's peak, GB/s of all operands, % of peak.

    python benchmarks/gemm.py [--kind gemm|gemv|batched|attention] [--seconds 0.5]

Beside one row stand the microseconds with float32 weights as they are, where they would lie in planes.

Constant weights take turns in a few copies, as inside a network, whose weights come from the third-level cache. The
time is the median of many runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from steps import load_calls

from c2c.codegen.target import native
from c2c.compiler.machine import peak
from c2c.compiler.options import CompileOptions
from c2c.ir.graph import Graph, Node, Value, constant
from c2c.ir.types import DType, TensorType
from c2c.passes.attention import Form, attributes
from c2c.passes.lower import lower_graph
from c2c.passes.lower.schedule import DENSE, Tuning
from c2c.runtime_stub.loader import Loaded

Array = np.ndarray[Any, Any]
FAR_BYTES = 8 << 20


@dataclass(frozen=True)
class Shape:
    """`count` products of m×k by k×n; attention: `count` heads, m queries and keys, k elements each."""

    kind: str
    m: int
    n: int
    k: int
    count: int = 1

    def __str__(self) -> str:
        return (f"{self.count} of " if self.count > 1 else "") + f"{self.m}x{self.n}x{self.k}"

    @property
    def flops(self) -> int:
        return 2 * self.count * self.m * self.n * self.k * (2 if self.kind == "attention" else 1)


SHAPES = (
    *(Shape("gemm", 128, n, k) for n, k in ((384, 384), (1536, 384), (384, 1536), (768, 3072))),
    *(Shape("gemm", 64, n, k) for n, k in ((1024, 512), (1024, 1024), (256, 1024))),
    *(Shape("gemm", m, n, k) for m, n, k in ((48, 384, 384), (2048, 64, 257), (512, 384, 1536))),
    *(Shape("gemm", m, n, k) for m, n, k in ((5, 1000, 1000), (67, 101, 333), (129, 250, 777), (1000, 7, 64))),
    *(Shape("gemv", 1, n, k) for n, k in ((1024, 512), (1024, 1024), (256, 1024), (4096, 4096), (214, 512), (1, 4096))),
    *(Shape("batched", m, n, k, c) for c, m, n, k in ((12, 128, 128, 32), (12, 128, 32, 128), (64, 5, 70, 33))),
    *(Shape("attention", s, s, d, h) for h, s, d in ((12, 48, 32), (12, 128, 32), (12, 512, 64), (3, 197, 64))),
)


def node_of(shape: Shape, seed: int) -> tuple[Node, list[Value]]:
    """The operator, and the inputs that are not constant."""

    def value(name: str, *dims: int) -> Value:
        return Value(name, TensorType(DType.F32, dims))

    if shape.kind == "attention":
        joined = shape.count * shape.k
        q, k, v = (value(name, 1, shape.m, joined) for name in "qkv")
        form, y = Form.plain((1, shape.count), shape.count, shape.k**-0.5), value("y", 1, shape.m, joined)
        return Node("c2c.Attention", (q, k, v), (y,), attributes(form, [q, k, v], y.type), ("attention",)), [q, k, v]
    batch = (shape.count,) if shape.kind == "batched" else ()
    a, y = value("a", *batch, shape.m, shape.k), value("y", *batch, shape.m, shape.n)
    if batch:
        b = value("b", *batch, shape.k, shape.n)
        return Node("MatMul", (a, b), (y,), {}, ("matmul",)), [a, b]
    weights = np.random.default_rng(seed).standard_normal((shape.k, shape.n)).astype(np.float32)
    return Node("MatMul", (a, constant("b", weights)), (y,), {}, ("matmul",)), [a]


def load(shape: Shape, seed: int, dense: bool) -> tuple[Loaded, list[Array], list[Array], int]:
    """A product ready to run: its inputs, its result, and the number of steps. dense: weights not in planes."""
    node, inputs = node_of(shape, seed)
    graph = Graph("product", inputs, [node.output], [node], ["y"])
    calls = lower_graph(graph, native(), 1)
    if dense:
        names = {c.key: DENSE for call in calls for c in call.choices if c.family == "planes"}
        calls = lower_graph(graph, native(), 1, tuning=Tuning(names))
    loaded, _ = load_calls(calls, graph, CompileOptions(native(), name="product"))
    rng = np.random.default_rng(seed)
    feeds = [rng.standard_normal(v.type.dims).astype(np.float32) for v in inputs]
    return loaded, feeds, [np.zeros(node.output.type.dims, np.float32)], len(calls)


def measure(shape: Shape, seconds: float, *, dense: bool = False) -> float:
    """Nanoseconds of one product."""
    copies = max(1, min(4, FAR_BYTES // (4 * shape.k * shape.n))) if shape.kind in ("gemm", "gemv") else 1
    items = [load(shape, seed, dense) for seed in range(copies)]
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        for loaded, feeds, results, steps in items:
            times.append(float(loaded.trace(feeds, results, steps).sum()))
    return statistics.median(times[len(items) :] or times)


def bytes_of(shape: Shape) -> int:
    operands = shape.m * shape.k + shape.k * shape.n + shape.m * shape.n
    return 4 * shape.count * (4 * shape.m * shape.k if shape.kind == "attention" else operands)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted({s.kind for s in SHAPES}))
    parser.add_argument("--seconds", type=float, default=0.5, help="a shape")
    args = parser.parse_args()
    top = peak(native().lanes(DType.F32), args.seconds)
    print(f"{native().name}: peak {top:.1f} GF/s")
    for shape in SHAPES:
        if args.kind in (None, shape.kind):
            ns = measure(shape, args.seconds)
            rates = f"{shape.flops / ns:8.1f} GF/s {bytes_of(shape) / ns:7.1f} GB/s {shape.flops / ns / top:6.0%}"
            beside = ""
            if shape.kind == "gemv":
                beside = f"   dense weights {measure(shape, args.seconds, dense=True) / 1e3:10.1f} us"
            print(f"{shape.kind:10} {shape!s:24} {ns / 1e3:10.1f} us {rates}{beside}")


if __name__ == "__main__":
    main()
