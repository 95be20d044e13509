"""Bytes that products and convolutions move from and to global memory, counted by Oclgrind, beside what their tiles
need: each tile its rows and columns of both factors once, and each result once.

usage: python benchmarks/traffic.py MODEL.onnx [--image 56] [--target opencl] [--depth 1200]

--image: only nodes that read or write images of that height, and products. --depth: sums of more products are left out,
a work-group of which takes the simulator minutes. One work-group of each kernel runs; all of them read alike.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions
from c2c.compiler.tables import print_table
from c2c.tests.traffic import Traffic, sampled, tiles_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--image", type=int, default=56)
    parser.add_argument("--target", default="opencl")
    parser.add_argument("--depth", type=int, default=1200)
    a = parser.parse_args()
    compiled = compile_file(a.model, CompileOptions(Target.parse(a.target), "net"))

    def wanted(found: Traffic) -> bool:
        return found.depth <= a.depth and (not found.heights or a.image in found.heights)

    nodes = [t for t in tiles_of(compiled) if wanted(t)]
    with tempfile.TemporaryDirectory() as folder:
        counted = sampled(compiled, nodes, Path(folder))
    rows = [
        [t.node, t.problem, t.tile, f"{t.least / 1e6:.2f}", f"{counted[t.kernel] / 1e6:.2f}",
         f"{counted[t.kernel] / t.least:.2f}"]
        for t in nodes
    ]  # fmt: skip
    print_table(str(a.model), ["node", "product", "tile", "MB of tiles", "MB counted", "ratio"], rows, 3)


if __name__ == "__main__":
    main()
