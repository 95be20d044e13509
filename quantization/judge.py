"""What two files answer, compiled by c2c, on the samples held out; which layers the compiler runs in integers."""

from __future__ import annotations

import time

import numpy as np
from onnx import ModelProto

from ..codegen.target import Target
from ..compiler.api import CompiledModel, from_compiled
from ..compiler.diagnostics import PassObserver
from ..compiler.driver import compile_file, load_graph, optimise
from ..compiler.estimate import expected_cycles
from ..compiler.options import CompileOptions, Debug
from ..compression.acceptance import Agreement, agreement, expected_loss, pick_measure
from ..compression.samples import Samples
from ..ir.graph import Graph, Node

_RUNS = 7

LEAST_NOISE = 1e-6
"""What levels of 12 bits leave at best."""

_INTEGER = ("c2c.IntegerConv", "MatMulInteger")


class Judge:
    """Compares quantised networks with the dense one, which runs once. measure, output: what counts as the same answer,
    and which output is judged (`compression.acceptance`)."""

    def __init__(self, dense: ModelProto, samples: Samples, measure: str, output: int) -> None:
        self.samples = samples
        self.output = output
        self._options = CompileOptions(Target.parse("native"), shapes=samples.shapes(), keep_constants=True)
        self.model = self.compiled(dense)
        self.answers = self._run(self.model)
        self.measure = pick_measure(measure, self.answers)

    def compiled(self, model: ModelProto) -> CompiledModel:
        return from_compiled(compile_file(model.SerializeToString(), self._options))

    def agreement(self, model: CompiledModel) -> Agreement:
        return agreement(self.answers, self._run(model), self.measure)

    def noise_for(self, most: float, noise: float) -> float:
        """The noise, from `noise` downwards by halves of a decibel, whose expected loss is at most `most`."""
        while noise > LEAST_NOISE and expected_loss(self.answers, self.measure, noise) > most:
            noise *= 10**-0.05
        return noise

    def milliseconds(self, other: CompiledModel) -> tuple[float, float]:
        """Least time of a run of the dense network and of another, taken in turns on one thread."""
        feeds = {n: a[-1] for n, a in self.samples.arrays.items()}
        models = (self.model, other)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(_RUNS):
            for model, taken in zip(models, times, strict=True):
                start = time.perf_counter()
                model.run(feeds)
                taken.append(time.perf_counter() - start)
        return 1e3 * min(times[0]), 1e3 * min(times[1])

    def cycles(self, other: CompiledModel) -> tuple[float, float]:
        """Cycles that the compiler expects of the dense network and of another on this machine's core."""
        return expected_cycles(self.model.compiled), expected_cycles(other.compiled)

    def _run(self, model: CompiledModel) -> np.ndarray:
        held = self.samples.held_out
        found = []
        for i in range(held.start, held.stop):
            outputs = list(model.run({n: a[i] for n, a in self.samples.arrays.items()}).values())
            found.append(np.array(outputs[self.output]))
        return np.stack(found)


def integer_nodes(model: ModelProto, samples: Samples) -> set[str]:
    """Names of the file's nodes that the compiler turns into integer arithmetic."""
    options = CompileOptions(
        Target.parse("native"), shapes=samples.shapes(), debug=Debug(stop_after="integer-arithmetic")
    )
    graph = load_graph(model.SerializeToString(), options)
    optimise(graph, options, PassObserver(options.debug))
    return {name for node in _nodes(graph) if node.op in _INTEGER for name in node.origin}


def _nodes(graph: Graph) -> list[Node]:
    found = []
    for node in graph.nodes:
        found.append(node)
        for a in node.attrs.values():
            if isinstance(a, Graph):
                found += _nodes(a)
    return found
