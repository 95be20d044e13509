"""Runs a network twice side by side, dense and compressed, layer by layer over all samples.

What lies between layers is compiled once, in segments; a layer itself takes its weights as inputs, so that nothing is
compiled again when they change. A layer is visited with the inputs that it gets in both networks, before it runs.
Memory: the tensors that are still to be read, of all samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..codegen.target import Target
from ..compiler.api import CompiledModel, from_compiled
from ..compiler.driver import compile_graph
from ..compiler.options import CompileOptions
from ..ir.graph import Graph, Node, Value
from .layers import Layer, alone
from .steps import Step, steps_of

Tensors = dict[Value, np.ndarray]


@dataclass(frozen=True, slots=True)
class Weights:
    """What a layer computes with: its tensor and, where it takes one, its bias a channel."""

    tensor: np.ndarray
    bias: np.ndarray | None = None


MOST_THREADS = 8
HEAVY = 4e9
"""Multiply-adds over all samples from which a convolution is compiled for each of its weights: faster kernels."""

Visit = Callable[[Layer, np.ndarray, np.ndarray], Weights | None]
"""Takes a layer and its inputs [samples, …] in the dense and in the compressed network; returns what the compressed
one is to compute with, None for the dense weights."""

Between = Callable[[Value, np.ndarray, np.ndarray], np.ndarray | None]
"""Takes a tensor [samples, …] of the cuts in the dense and in the compressed network; returns what the compressed one
goes on with, None for what it is."""


class Runner:
    """graph: with static shapes. Samples are fed one by one, with the shapes that the graph was imported with. cuts:
    further tensors that lie between steps."""

    def __init__(self, graph: Graph, layers: list[Layer], cuts: Collection[Value] = ()) -> None:
        self.graph = graph
        self.layers = layers
        self.cuts = frozenset(cuts)
        self.steps = steps_of(graph, layers, self.cuts)
        last: dict[Value, int] = {}
        for i, step in enumerate(self.steps):
            for v in step.reads:
                last[v] = i
        self._free = [[v for v in s.reads if last[v] == i and v not in graph.outputs] for i, s in enumerate(self.steps)]
        self._settled: dict[Value, tuple[np.ndarray, np.ndarray]] = {}
        self._options = CompileOptions(Target.parse("native"), name="segment", threads=threads(), winograd_error=0.0)

    def run(
        self,
        feeds: Mapping[str, np.ndarray],
        visit: Visit | None = None,
        *,
        between: Between | None = None,
        both: bool = True,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Outputs [samples, …] of the dense and of the compressed network; with `both` False only the dense runs."""
        dense: Tensors = {v: feeds[v.name] for v in self.graph.inputs}
        small: Tensors = dict(dense)
        self._between(self.graph.inputs, dense, small, between)
        for i, step in enumerate(self.steps):
            weights = self._visited(step, dense, small, visit)
            self._step(step, dense, None)
            same = not weights and all(dense[v] is small[v] for v in step.reads)
            if same or not both:
                small.update({v: dense[v] for v in step.gives})
            else:
                self._step(step, small, weights)
            self._between(step.gives, dense, small, between)
            for v in self._free[i]:
                dense.pop(v, None)
                small.pop(v, None)
        return [_result(v, dense, feeds) for v in self.graph.outputs], [
            _result(v, small, feeds) for v in self.graph.outputs
        ]

    def _between(self, values: Sequence[Value], dense: Tensors, small: Tensors, between: Between | None) -> None:
        for v in values if between is not None else ():
            if v in self.cuts and v in dense:
                assert between is not None
                found = between(v, dense[v], small[v])
                small[v] = small[v] if found is None else found

    def settle(self, feeds: Mapping[str, np.ndarray], spreads: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """From now on each result named in `spreads` (mean, deviation [C]) is scaled and shifted by channel, in both
        networks, such that over these feeds the dense network's has that mean and deviation: inputs that are not the
        real ones then give activations as large as the real ones do."""
        tensors: Tensors = {v: feeds[v.name] for v in self.graph.inputs}
        for step, free in zip(self.steps, self._free, strict=True):
            self._step(step, tensors, None)
            for v in step.gives:
                if v.name in spreads and v not in self._settled:
                    self._settled[v] = _towards(tensors[v], *spreads[v.name])
                    self._shift(v, tensors)
            for v in free:
                tensors.pop(v, None)

    def _shift(self, v: Value, tensors: Tensors) -> None:
        if v in self._settled:
            scale, shift = self._settled[v]
            tensors[v] = tensors[v] * scale + shift

    def replay(
        self,
        start: int,
        tensors: Tensors,
        weights: Mapping[Layer, Weights] | None = None,
        *,
        between: Callable[[Value, np.ndarray], np.ndarray | None] = lambda v, x: None,
    ) -> list[np.ndarray]:
        """Outputs of the dense network from step `start` on, that step with `weights`; tensors: what is live before;
        between: takes a result of a later step, and returns what it goes on with, None for what it is."""
        live = dict(tensors)
        for i, step in enumerate(self.steps[start:]):
            self._step(step, live, weights if i == 0 else None)
            for v in step.gives:
                changed = between(v, live[v])
                live[v] = live[v] if changed is None else changed
        return [_result(v, live, {}) for v in self.graph.outputs]

    def live_before(self, feeds: Mapping[str, np.ndarray]) -> list[Tensors]:
        """The tensors that are live before each step of the dense network, for a few samples."""
        tensors: Tensors = {v: feeds[v.name] for v in self.graph.inputs}
        kept = []
        for step, free in zip(self.steps, self._free, strict=True):
            kept.append(dict(tensors))
            self._step(step, tensors, None)
            for v in free:
                tensors.pop(v, None)
        kept.append(tensors)
        return kept

    def forget(self) -> None:
        """The layers' dense weights have changed."""
        for step in self.steps:
            step.dense = None

    def _visited(self, step: Step, dense: Tensors, small: Tensors, visit: Visit | None) -> dict[Layer, Weights]:
        found: dict[Layer, Weights] = {}
        for layer in step.layers if visit is not None else ():
            assert visit is not None
            inputs = [self._inputs_of(layer, t) for t in (dense, small)]
            weights = visit(layer, *inputs)
            if weights is not None:
                found[layer] = weights
        return found

    def _inputs_of(self, layer: Layer, tensors: Tensors) -> np.ndarray:
        node = layer.node
        source = node.inputs[1 if layer.kind == "embedding" else 0]
        assert source is not None
        if layer.kind == "recurrent" and layer.index == 2:
            return self._hidden(layer, tensors)
        return tensors[source]

    def _hidden(self, layer: Layer, tensors: Tensors) -> np.ndarray:
        """The states [samples, steps, batch, H] that an LSTM's recurrent matrix multiplies, of the dense cell."""
        step = next(s for s in self.steps if layer in s.layers)
        results: Tensors = dict(tensors)
        self._step(step, results, None)
        y = results[step.gives[0]]  # [samples, T, 1, B, H]
        start = layer.node.input(5)
        first = np.zeros_like(y[:, :1])
        if start is not None:
            initial = np.broadcast_to(start.data, y[:, 0].shape) if start.data is not None else tensors[start]
            first = initial.reshape(first.shape)
        return np.concatenate([first, y[:, :-1]], 1)[:, :, 0]

    def _step(self, step: Step, tensors: Tensors, weights: Mapping[Layer, Weights] | None) -> None:
        """Run a step for all samples; adds what it gives to `tensors`."""
        if step.layers and step.layers[0].kind == "matmul":
            layer = step.layers[0]
            w = _weights(layer, weights)
            x = tensors[layer.node.inputs[0]]  # type: ignore[index]
            matrix = w.tensor.T if layer.transposed else w.tensor
            y = x.reshape(-1, matrix.shape[0]) @ matrix
            if w.bias is not None:
                y += w.bias
            tensors[layer.output] = y.reshape(len(x), *layer.output.type.dims)
            return
        count = len(tensors[step.reads[0]]) if step.reads else 1
        heavy = step.layers and step.layers[0].kind == "conv" and _operations(step.layers[0]) * count > HEAVY
        if heavy:
            model = self._with_constants(step, weights)
        else:
            model = step.model = step.model or self._compile(step)
        fixed = {}
        for layer in () if heavy else step.layers:
            w = _weights(layer, weights)
            fixed[f"w{layer.index}"] = w.tensor
            if w.bias is not None:
                fixed["bias"] = w.bias
        given = {port.name: v for port, v in zip(model.inputs, step.reads, strict=False)}
        results = {p.name: np.empty((count, *p.shape), p.dtype.numpy) for p in model.outputs}
        for s in range(count):
            feeds = {name: tensors[v][s] for name, v in given.items()}
            model.run({**feeds, **fixed}, {name: r[s : s + 1].reshape(r.shape[1:]) for name, r in results.items()})
        for v, port in zip(step.gives, model.outputs, strict=True):
            tensors[v] = results[port.name]
            self._shift(v, tensors)

    def _with_constants(self, step: Step, weights: Mapping[Layer, Weights] | None) -> CompiledModel:
        """A convolution compiled for the weights that it has now; the dense ones once."""
        layer = step.layers[0]
        changed = weights is not None and layer in weights
        if not changed and step.dense is not None:
            return step.dense
        w = _weights(layer, weights)
        model = from_compiled(compile_graph(alone(layer, w.tensor, w.bias), self._options))
        if not changed:
            step.dense = model
        return model

    def _compile(self, step: Step) -> CompiledModel:
        copies: dict[Value, Value] = {}
        for i, v in enumerate(step.reads):
            copies[v] = Value(f"x{i}", v.type)
        inputs = [copies[v] for v in step.reads]
        for layer in step.layers:
            copies[layer.weight] = Value(f"w{layer.index}", layer.weight.type)
            inputs.append(copies[layer.weight])
        nodes = [_copied(n, copies) for n in step.nodes]
        if step.layers and step.layers[0].takes_bias:
            layer = step.layers[0]
            bias = Value("bias", layer.weight.type.with_shape((layer.channels,)))
            inputs.append(bias)
            nodes[0].inputs = (*nodes[0].inputs[:2], bias)
            copies[layer.output] = nodes[0].output
        outputs = [copies[v] for v in step.gives]
        names = [f"y{i}" for i in range(len(outputs))]
        graph = Graph("segment", inputs, outputs, nodes, names)
        return from_compiled(compile_graph(graph, self._options))


def threads() -> int:
    """Processors that this process may use, MOST_THREADS at most; results do not depend on how many."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, MOST_THREADS)


def _towards(result: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift a channel of results [samples, batch, C, …]; a channel that hardly varies is only shifted."""
    axes = tuple(i for i in range(result.ndim) if i != 2)
    shape = [1, 1, -1, *[1] * (result.ndim - 3)]
    own, spread = result.mean(axes, dtype=np.float64), result.std(axes, dtype=np.float64)
    varies = spread > 1e-3 * max(float(spread.max()), 1e-20)
    scale = np.where(varies, deviation / np.maximum(spread, 1e-30), 1.0)
    return tuple(np.asarray(a.reshape(shape), np.float32) for a in (scale, mean - scale * own))  # type: ignore[return-value]


def _operations(layer: Layer) -> int:
    """Multiply-adds of a sample; none for grouped convolutions, which gain nothing from constant weights."""
    return 0 if layer.groups > 1 else layer.node.output.type.size * (layer.dense.size // layer.channels)


def _weights(layer: Layer, weights: Mapping[Layer, Weights] | None) -> Weights:
    """The given ones, or the dense ones."""
    if weights and layer in weights:
        return weights[layer]
    return Weights(layer.dense, layer.bias_vector() if layer.takes_bias else None)


def _copied(node: Node, copies: dict[Value, Value]) -> Node:
    inputs = tuple(None if v is None else copies.setdefault(v, Value(v.name, v.type, v.data)) for v in node.inputs)
    outputs = tuple(Value(v.name, v.type) for v in node.outputs)
    copies.update(zip(node.outputs, outputs, strict=True))
    return Node(node.op, inputs, outputs, dict(node.attrs), node.origin)


def _result(v: Value, tensors: Tensors, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    if v.data is not None:
        count = len(next(iter(feeds.values()))) if feeds else len(next(iter(tensors.values())))
        return np.broadcast_to(v.data, (count, *v.data.shape))
    return tensors[v]
