"""Convolutions with zeros among their weights: time of each form by sparsity, beside the own dense kernel.

    python benchmarks/sparse.py [--size 14] [--channels 256] [--outputs 256] [--kernel 1] [--stride 1]
                                [--zeros 50 80 90] [--blocks 1 4] [--layout blocked|plain] [--target native]
                                [--seconds 0.2] [--all]

One thread of this machine; a layer lies between two reorders and the time is that of its own step, the least of many.
"over peak" is the speed over a dense kernel that runs at the peak of multiply-adds, --size that of the result. Beside
3x3 layers of stride 1 stands Winograd's form of the dense one. --all times every schedule beside the
cycles that the cost model gives it.
"""

from __future__ import annotations

import argparse
from math import prod

import numpy as np
from steps import load_calls

from c2c.codegen.target import Target
from c2c.compiler.machine import least, peak
from c2c.compiler.options import CompileOptions
from c2c.ir.graph import Graph, Node, Value, constant
from c2c.ir.types import DType, Layout, TensorType
from c2c.passes.lower import lower_graph
from c2c.passes.lower.schedule import Choice, Tuning


def pruned(shape: tuple[int, int, int, int], zeros: float, height: int) -> np.ndarray:
    """Random weights of which a fraction of the blocks of `height` output channels is zero."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(shape).astype(np.float32)
    kept = rng.uniform(size=(-(-shape[0] // height), *shape[1:])) >= zeros
    return w * np.repeat(kept, height, axis=0)[: shape[0]]


class Layer:
    """A convolution with given weights between tensors in one layout, of stride 1 or another; m: by F(m x m, 3 x 3)."""

    def __init__(
        self, size: int, weights: np.ndarray, layout: str, target: Target, *, stride: int = 1, m: int = 0
    ) -> None:
        self.target = target
        block = Layout(target.lanes(DType.F32) if layout == "blocked" else 0)
        outputs, inputs = weights.shape[:2]
        pad = weights.shape[2] // 2
        sides = (size - 1) * stride + weights.shape[2] - 2 * pad, size
        x, y = (TensorType(DType.F32, (1, c, s, s)) for c, s in zip((inputs, outputs), sides, strict=True))
        a, b = Value("a", x), Value("b", x.with_layout(block))
        c, d = Value("c", y.with_layout(block)), Value("d", y)
        bias = constant("bias", np.zeros(outputs, np.float32))
        attrs = {"pads": (pad,) * 4, "strides": (stride, stride), "kernel_shape": weights.shape[2:]}
        op, attrs = ("c2c.WinogradConv", attrs | {"m": m}) if m else ("Conv", attrs)
        conv = Node(op, (b, constant("w", weights), bias), (c,), attrs, ("conv",))
        copies = ("c2c.Reorder",) * 2 if block.block else ("c2c.Copy",) * 2
        nodes = [Node(copies[0], (a,), (b,)), conv, Node(copies[1], (c,), (d,))]
        self.graph = Graph("layer", [a], [d], nodes, ["d"])
        self.conv = conv
        self.feed = np.random.default_rng(1).standard_normal(x.dims).astype(np.float32)
        self.result = np.zeros(y.dims, np.float32)

    def choice(self) -> Choice | None:
        """What the lowering chooses between lists and dense weights."""
        found = [
            c for call in lower_graph(self.graph, self.target, 1) for c in call.choices if c.family == "conv-sparse"
        ]
        return found[0] if found else None

    def time_ns(self, seconds: float, choice: Choice | None = None, name: str = "") -> float:
        """Of the convolution, with schedule `name` of the choice."""
        tuning = Tuning({choice.key: name}) if choice is not None else None
        calls = lower_graph(self.graph, self.target, 1, tuning=tuning)
        loaded, _ = load_calls(calls, self.graph, CompileOptions(self.target, name="layer"))
        mine = [i for i, call in enumerate(calls) if call.node is self.conv]
        return least(lambda: float(loaded.trace([self.feed], [self.result], len(calls))[mine].sum()), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=14)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--outputs", type=int, default=256)
    parser.add_argument("--kernel", type=int, default=1)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--zeros", type=int, nargs="+", default=[30, 50, 70, 80, 90])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--layout", choices=("blocked", "plain"), default="blocked")
    parser.add_argument("--target", type=Target.parse, default="native")
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--all", action="store_true", help="every schedule")
    args = parser.parse_args()
    top = peak(args.target.lanes(DType.F32), args.seconds)
    shape = (args.outputs, args.channels, args.kernel, args.kernel)
    flops = 2 * args.size**2 * prod(shape)

    def layer_of(zeros: float, height: int, m: int = 0) -> Layer:
        return Layer(args.size, pruned(shape, zeros, height), args.layout, args.target, stride=args.stride, m=m)

    dense = layer_of(0, 1).time_ns(args.seconds)
    channels, kernel = f"{args.channels}->{args.outputs}", f"{args.kernel}x{args.kernel}/{args.stride}"
    name = f"{args.size}x{args.size} {channels} {kernel} {args.layout}"
    print(f"{args.target.name}: peak {top:.1f} GF/s; {name}: dense {dense / 1e3:.1f} us, {flops / dense:.1f} GF/s")
    if args.kernel == 3 and args.stride == 1 and args.layout == "blocked":
        ns = layer_of(0, 1, 4).time_ns(args.seconds)
        print(f"F(4x4, 3x3) {ns / 1e3:.1f} us  over dense {dense / ns:5.2f}  over peak {flops / ns / top:5.2f}")
    for height in args.blocks:
        for zeros in args.zeros:
            layer = layer_of(zeros / 100, height)
            choice = layer.choice()
            if choice is None:
                continue
            names = [n for n, _ in choice.candidates] if args.all else dict.fromkeys((choice.name, "dense"))
            for name in names:
                ns = layer.time_ns(args.seconds, choice, name)
                cycles = dict(choice.candidates)[name]
                print(
                    f"{height}x1 {zeros:3}% {name:24} {ns / 1e3:8.1f} us  over dense {dense / ns:5.2f}"
                    f"  over peak {flops / ns / top:5.2f}  model {cycles / 1e3:7.1f} kcycles, {cycles / ns:5.2f}/ns"
                )


if __name__ == "__main__":
    main()
