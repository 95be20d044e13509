"""Convolution layers of well-known networks on this machine, one thread: GF/s of each kernel beside the core's peak.

    python benchmarks/conv.py [--kind direct|pointwise|depthwise|winograd|first] [--seconds 0.5]

A layer is compiled between two reorders, so that it reads and writes blocked tensors as inside a network; the time is
that of its own steps, the least of many runs. Winograd's rate counts the operations of the direct form.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from steps import load_calls

from c2c.codegen.target import native
from c2c.compiler.machine import least, peak
from c2c.compiler.options import CompileOptions
from c2c.ir.graph import Graph, Node, Value, constant
from c2c.ir.types import DType, Layout, TensorType
from c2c.passes.lower import lower_graph


@dataclass(frozen=True)
class Layer:
    """A square convolution of an image of `size` pixels a side."""

    kind: str
    size: int
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    m: int = 0

    def __str__(self) -> str:
        groups = f" groups {self.groups}" if self.groups > 1 else ""
        return f"{self.kernel}x{self.kernel}/{self.stride} {self.size}² {self.inputs}->{self.outputs}{groups}" + (
            f" F({self.m}x{self.m})" if self.m else ""
        )


LAYERS = (
    *(Layer("direct", s, c, c) for s, c in ((56, 64), (28, 128), (14, 256), (7, 512), (224, 64))),
    *(Layer("direct", s, c, c, stride=2) for s, c in ((56, 128), (28, 256), (14, 512))),
    *(Layer("pointwise", s, a, b, 1) for s, a, b in ((56, 64, 256), (56, 256, 64), (28, 512, 128), (14, 1024, 256))),
    *(Layer("pointwise", s, a, b, 1) for s, a, b in ((14, 512, 512), (7, 2048, 512), (7, 1024, 1024), (14, 96, 576))),
    *(Layer("depthwise", s, c, c, groups=c) for s, c in ((112, 32), (56, 128), (28, 256), (14, 512), (7, 1024))),
    *(Layer("depthwise", s, c, c, stride=2, groups=c) for s, c in ((112, 64), (56, 128), (14, 512))),
    *(Layer("winograd", s, c, c, m=m) for m in (4, 2) for s, c in ((56, 64), (28, 128), (14, 256), (7, 512))),
    Layer("first", 224, 3, 64, 7, 2),
    Layer("first", 224, 3, 32, 3, 2),
    Layer("first", 224, 3, 64, 3, 1),
)


def measure(layer: Layer, seconds: float) -> float:
    """Nanoseconds of one layer."""
    target = native()
    rng = np.random.default_rng(0)
    out = -(-layer.size // layer.stride)
    block = Layout(target.lanes(DType.F32))
    weights = rng.standard_normal((layer.outputs, layer.inputs // layer.groups, layer.kernel, layer.kernel))
    x = TensorType(DType.F32, (1, layer.inputs, layer.size, layer.size))
    y = TensorType(DType.F32, (1, layer.outputs, out, out))
    a, b = Value("a", x), Value("b", x if layer.inputs < block.block else x.with_layout(block))
    c, d = Value("c", y.with_layout(block)), Value("d", y)
    w, bias = constant("w", weights.astype(np.float32)), constant("bias", np.zeros(layer.outputs, np.float32))
    attrs = {"pads": [layer.kernel // 2] * 4, "strides": [layer.stride] * 2, "group": layer.groups, "m": layer.m}
    op = "c2c.WinogradConv" if layer.m else "Conv"
    nodes = [
        Node("c2c.Reorder", (a,), (b,)),
        Node(op, (b, w, bias), (c,), attrs, (op,)),
        Node("c2c.Reorder", (c,), (d,)),
    ]
    graph = Graph("layer", [a], [d], nodes, ["d"])
    calls = lower_graph(graph, target, 1)
    loaded, _ = load_calls(calls, graph, CompileOptions(target, name="layer"))
    mine = [i for i, call in enumerate(calls) if call.node is nodes[1]]
    feed, result = rng.standard_normal(x.dims).astype(np.float32), np.zeros(y.dims, np.float32)
    return least(lambda: float(loaded.trace([feed], [result], len(calls))[mine].sum()), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted({la.kind for la in LAYERS}))
    parser.add_argument("--seconds", type=float, default=0.5, help="a layer")
    args = parser.parse_args()
    top = peak(native().lanes(DType.F32), args.seconds)
    print(f"{native().name}: peak {top:.1f} GF/s")
    for layer in LAYERS:
        if args.kind in (None, layer.kind):
            time_ns = measure(layer, args.seconds)
            out = -(-layer.size // layer.stride)
            flops = 2 * out * out * layer.outputs * layer.inputs // layer.groups * layer.kernel**2
            print(f"{layer!s:40} {time_ns / 1e3:10.1f} us {flops / time_ns:8.1f} GF/s {flops / time_ns / top:6.0%}")


if __name__ == "__main__":
    main()
