"""Chains of convolutions and poolings beside the same layers one by one, in the network, one thread: times and arena.

usage: python benchmarks/pairs.py MODEL.onnx... [--lengths 3,3,1] [--seconds 4] [--target native]

Both forms run in turn in one process; times are medians. `--lengths` makes chains of so many layers, from the first
on and over again, instead of those that the compiler chooses; 1 leaves a layer alone.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from steps import load_calls

from c2c.codegen.target import Target
from c2c.compiler.driver import load_graph
from c2c.compiler.inputs import random_inputs
from c2c.compiler.options import CompileOptions
from c2c.compiler.pipeline import pipeline
from c2c.ir.graph import Graph, Node
from c2c.ir.ops import STAGES
from c2c.passes.base import Pass, PassContext, find_pass, run_pipeline
from c2c.passes.chain_convolutions import ChainConvolutions
from c2c.passes.lower import Call, lower_graph
from c2c.passes.lower.conv_chain_cost import Layer, schedules
from c2c.passes.views import find_views, placed_values


class Given(ChainConvolutions):
    """Chains of given lengths."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = itertools.cycle(lengths)

    def divide(self, layers: Sequence[Layer], context: PassContext) -> list[range]:
        found, at = [], 0
        while at < len(layers):
            found.append(range(at, min(len(layers), at + next(self.lengths))))
            at = found[-1].stop
        return found

    def strip(self, layers: Sequence[Layer], context: PassContext, nodes: Sequence[Node]) -> int | None:
        found = schedules(context.target, context.threads, layers)
        return min(found[1:], key=lambda s: s.cycles).plan if found[1:] else 1


class Form:
    """A network compiled with or without chains."""

    def __init__(self, source: Graph, options: CompileOptions, chain: Pass | None) -> None:
        graph = source.clone()
        names = pipeline(options.level)
        passes = [chain if n == ChainConvolutions.name else n for n in names]
        context = PassContext(options.target, options.threads, winograd_error=options.winograd_error)
        run_pipeline(graph, [p for p in passes if p is not None], context)
        views = find_views(graph)
        self.calls: list[Call] = lower_graph(graph, options.target, options.threads, placed_values(graph, views))
        self.loaded, self.arena = load_calls(self.calls, graph, options, views)
        self.samples = list[np.ndarray]()
        self.feeds = list(random_inputs(source).values())
        self.results = [np.empty(v.type.dims, v.type.dtype.numpy) for v in graph.outputs]

    def run(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self.samples.append(np.asarray(self.loaded.trace(self.feeds, self.results, len(self.calls))))

    def times(self) -> dict[str, float]:
        """Microseconds by the last ONNX node of a step, in order."""
        medians = np.median(np.array(self.samples), axis=0) / 1e3
        found: dict[str, float] = {}
        for call, t in zip(self.calls, medians, strict=True):
            name = call.node.origin[-1] if call.node.origin else call.node.output.name
            found[name] = found.get(name, 0.0) + float(t)
        return found


def rows(single: Form, chained: Form) -> Iterator[tuple[str, float, float, int]]:
    """(layers, µs one by one, µs chained, bytes between the layers) of each chain."""
    before, after = single.times(), chained.times()
    for call in chained.calls:
        if call.node.op != "c2c.ConvChain":
            continue
        body = call.node.attrs["body"]
        mine = [n for n in before if n in call.node.origin]
        layers = [n for n in body.nodes if n.op in STAGES]
        between = sum(n.inputs[0].type.nbytes for n in layers[1:])
        size = layers[0].inputs[0].type.dims[-1]
        text = f"{size}² {' '.join(map(_text, layers))}"
        yield text, sum(before[n] for n in mine), after[call.node.origin[-1]], between


def _text(node: Node) -> str:
    if node.op != "Conv":
        return node.op
    return f"{'dw' if node.attrs.get('group', 1) > 1 else ''}{node.inputs[1].type.dims[-1]}x{node.output.type.dims[1]}"


def compare(path: Path, target: str, lengths: Sequence[int], seconds: float) -> None:
    side = path.parent / "inputs.npz"
    shapes = {k: v.shape for k, v in np.load(side).items()} if side.exists() else {}
    options = CompileOptions(Target.parse(target), "model", shapes=shapes)
    source = load_graph(path, options)
    chain = Given(lengths) if lengths else find_pass(ChainConvolutions.name)
    single, chained = Form(source, options, None), Form(source, options, chain)
    single.loaded.run(single.feeds, single.results)
    chained.loaded.run(chained.feeds, chained.results)
    same = all(np.array_equal(a, b) for a, b in zip(single.results, chained.results, strict=True))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        single.run(0.1)
        chained.run(0.1)
    name = path.parent.name if path.stem == "model" else path.stem
    a, b = sum(single.times().values()), sum(chained.times().values())
    print(f"{name}: {a / 1e3:.3f} -> {b / 1e3:.3f} ms ({b / a:.3f}), arena {single.arena / 1e6:.2f} -> ", end="")
    print(f"{chained.arena / 1e6:.2f} MB, results {'equal' if same else 'DIFFER'}")
    for layers, before, after, between in rows(single, chained):
        print(f"  {before:8.1f} -> {after:8.1f} us ({after / before:.3f})  {between / 1e3:7.0f} KB between  {layers}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], default=[])
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--target", default="native")
    a = parser.parse_args()
    for path in a.models:
        compare(path, a.target, a.lengths, a.seconds)


if __name__ == "__main__":
    main()
