"""Transposes and changes of layout beside a plain copy of the same bytes in the same memory, one thread.

usage: python benchmarks/transposes.py [--target native] [--seconds 0.3] [--only u8]

Each row: microseconds of the transpose, GB/s read and written, and the copy's median time over its own (100 %: as fast
as a copy). Both run in turn in one process on the same buffers. Sizes say which memory holds source and result.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from steps import load_calls

from c2c.codegen.target import Target
from c2c.compiler.options import CompileOptions
from c2c.ir.graph import Graph, Node, Value
from c2c.ir.types import DType, Layout, TensorType
from c2c.passes.lower import lower_graph
from c2c.runtime_stub.loader import Loaded, aligned_bytes


@dataclass(frozen=True)
class Case:
    """A transpose, or without `perm` a change of layout from `block` channels together to `result_block`."""

    dims: tuple[int, ...]
    perm: tuple[int, ...] = ()
    dtype: DType = DType.F32
    block: int = 0
    result_block: int = 0

    @property
    def name(self) -> str:
        how = f"perm {self.perm}" if self.perm else f"block {self.block} to {self.result_block}"
        return f"{self.dtype} {'x'.join(map(str, self.dims))} {how}"

    def types(self) -> tuple[TensorType, TensorType]:
        x = TensorType(self.dtype, self.dims, Layout(self.block))
        if self.perm:
            return x, x.with_shape([self.dims[p] for p in self.perm])
        return x, x.with_layout(Layout(self.result_block))

    def nodes(self, x: Value, y: Value) -> list[Node]:
        """The node and what brings layouts from and to the model's border, where they are plain."""
        if self.perm:
            return [Node("Transpose", (x,), (y,), {"perm": self.perm})]
        inner = Value("inner", x.type.with_layout(Layout(self.block or self.result_block)))
        return [Node("c2c.Reorder", (x,), (inner,)), Node("c2c.Reorder", (inner,), (y,))]

    @property
    def step(self) -> int:
        """Which of the nodes is meant."""
        return int(not self.perm and self.result_block == 0)


MATRICES = [(256, 256), (512, 512), (500, 519), (1024, 1024), (1000, 1037), (2048, 2048), (4096, 4096)]
IMAGES = [
    ((1, 64, 56, 56), (0, 2, 3, 1)),
    ((1, 56, 56, 64), (0, 3, 1, 2)),
    ((1, 64, 128, 128), (0, 2, 3, 1)),
    ((1, 128, 128, 64), (0, 3, 1, 2)),
    ((1, 3, 512, 512), (0, 2, 3, 1)),
    ((1, 512, 512, 3), (0, 3, 1, 2)),
    ((8, 12, 128, 64), (0, 1, 3, 2)),
    ((12, 128, 12, 64), (0, 2, 1, 3)),
    ((64, 64, 256), (2, 1, 0)),
]
REORDERS = [(1, 64, 56, 56), (1, 64, 64, 64), (1, 256, 14, 14), (1, 64, 128, 128), (1, 256, 56, 56), (1, 40, 31, 31)]


def cases(target: Target) -> list[Case]:
    found = [Case(m, (1, 0), t) for t in (DType.F32, DType.I16, DType.U8) for m in MATRICES]
    found += [Case(d, p, t) for t in (DType.F32, DType.I16, DType.U8) for d, p in IMAGES]
    block = target.lanes(DType.F32)
    for t in (DType.F32, DType.U8):
        for dims in REORDERS:
            found += [Case(dims, (), t, 0, block), Case(dims, (), t, block, 0)]
    return found


class Timed:
    """Nodes between an input and an output, in this process."""

    def __init__(self, nodes: list[Node], x: Value, y: Value, target: Target) -> None:
        graph = Graph("moved", [x], [y], nodes, ["y"])
        self.steps = len(nodes)
        self.loaded: Loaded = load_calls(lower_graph(graph, target, 1), graph, CompileOptions(target, "moved"))[0]

    def run(self, source: np.ndarray, result: np.ndarray, times: int) -> np.ndarray:
        """Nanoseconds of each step, the median of `times` runs."""
        return np.median([self.loaded.trace([source], [result], self.steps) for _ in range(times)], axis=0)


def measure(case: Case, target: Target, seconds: float) -> tuple[float, float]:
    """Median nanoseconds of the case and of a copy of as many bytes."""
    a, b = case.types()
    plain = TensorType(a.dtype, a.dims)
    x, y = Value("x", plain), Value("y", b if case.perm else plain)
    moved = Timed(case.nodes(x, y), x, y, target)
    source, result = aligned_bytes(a.nbytes, 4096), aligned_bytes(b.nbytes, 4096)
    source[:] = 1  # else it is one page of zeros, read from the first cache
    flat = TensorType(DType.U8, (min(a.nbytes, b.nbytes),))
    x, y = Value("x", flat), Value("y", flat)
    copied = Timed([Node("c2c.Copy", (x,), (y,))], x, y, target)
    samples: list[tuple[float, float]] = []
    times = max(1, (1 << 20) // a.nbytes)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples) < 5:
        samples.append((moved.run(source, result, times)[case.step], copied.run(source, result, times)[0]))
    first, second = np.median(np.array(samples[1:]), axis=0)
    return float(first), float(second)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="native")
    parser.add_argument("--seconds", type=float, default=0.3, help="a case")
    parser.add_argument("--only", default="", help="cases with this in their name")
    args = parser.parse_args(argv)
    target = Target.parse(args.target)
    for case in cases(target):
        if args.only in case.name:
            moved, copied = measure(case, target, args.seconds)
            size = sum(t.nbytes for t in case.types())
            print(f"{case.name:42} {moved / 1e3:9.1f} us {size / moved:6.1f} GB/s {copied / moved:5.0%} of a copy")


if __name__ == "__main__":
    main()
