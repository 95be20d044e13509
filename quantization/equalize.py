"""Cross-layer equalisation: channels of a tensor brought to like ranges, the weights around it taking up the factors.

A tensor has one scale, so that a channel of small values gets few levels. Where layers make a tensor and layers read
it, x[c] · s[c] is made by rows times s and read by columns divided by s, exactly (Nagel et al. 2019). Tensors that
sums, pooling and Relu join take the same factors; a Clip takes none.
How far channels are brought together (s = range^-strength) is what the noise of levels and of weights is least at,
since columns that differ more cost the weights precision (as SmoothQuant balances the two, Xiao et al. 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..compression.layers import Layer
from ..ir.graph import Graph, Node, Value
from .grid import LEVELS

_WEIGHT_LEVELS = 127

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)

MOST = 64.0
"""The largest factor of a channel."""

_ALIKE = ("Relu", "LeakyRelu", "Identity", "Dropout", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
"""Operators of one tensor that a positive factor a channel passes through."""


@dataclass(frozen=True, slots=True)
class Channels:
    """Of a tensor over the samples: largest magnitude and mean square of each channel."""

    reach: np.ndarray
    power: np.ndarray


@dataclass(eq=False, slots=True)
class Joint:
    """Tensors whose channels take one vector of factors. fixed: one of them is the network's own input or output, or
    read or made by an operator that factors do not pass through."""

    values: list[Value] = field(default_factory=list)
    makers: list[Layer] = field(default_factory=list)
    readers: list[Layer] = field(default_factory=list)
    fixed: bool = False


def channels_of(tensor: np.ndarray) -> Channels:
    """tensor: [samples, 1, C, …]."""
    axes = tuple(i for i in range(tensor.ndim) if i != 2)
    low, high = tensor.min(axes), tensor.max(axes)
    power = np.square(tensor, dtype=np.float32).mean(axes, dtype=np.float64)
    return Channels(np.maximum(np.abs(low), np.abs(high)).astype(np.float64), power)


def find_joints(graph: Graph, layers: Sequence[Layer]) -> list[Joint]:
    """Joints with layers on both sides that may be given factors, in the order of computation."""
    return _Search(graph, layers).joints()


def factors(joint: Joint, seen: Mapping[Value, Channels]) -> np.ndarray | None:
    """The factor of each channel, None where the channels stay as they are best or nothing was seen of them."""
    known = [seen[v] for v in joint.values if v in seen]
    if not known or joint.fixed:
        return None
    reach = np.maximum.reduce([c.reach for c in known])
    live = reach > 1e-6 * max(float(reach.max()), 1e-30)
    best, least = None, np.inf
    for strength in STRENGTHS:
        s = np.where(live, (np.maximum(reach, 1e-30) / reach.max()) ** -strength, 1.0)
        s = np.minimum(s, MOST)
        cost = sum(_noise(layer, s, c) for layer in joint.readers for c in known)
        if cost < 0.98 * least:
            best, least = (s if strength else None), cost
    return best


def scaled_rows(layer: Layer, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of a layer whose output channels are multiplied by `factor`."""
    rows = layer.rows(layer.dense).astype(np.float64)
    return _f32(layer, rows * factor.reshape(rows.shape[:2])[:, :, None]), np.asarray(
        layer.bias_vector() * factor, np.float32
    )


def scaled_columns(layer: Layer, factor: np.ndarray) -> np.ndarray:
    """Weights of a layer whose input channels were multiplied by `factor`."""
    rows = layer.rows(layer.dense).astype(np.float64)
    return _f32(layer, rows / _by_column(layer, rows, factor)[:, None, :])


def _f32(layer: Layer, rows: np.ndarray) -> np.ndarray:
    return layer.tensor(rows.astype(np.float32))


def _by_column(layer: Layer, rows: np.ndarray, channel: np.ndarray) -> np.ndarray:
    """[groups, d] of a number a channel of the input; d = channels · window."""
    own = channel.reshape(rows.shape[0], -1)
    return np.repeat(own, rows.shape[2] // own.shape[1], 1)


def _noise(layer: Layer, s: np.ndarray, c: Channels) -> float:
    """Expected squared error of the layer's results, of its input's levels and of its weights', over their power."""
    rows = layer.rows(layer.dense).astype(np.float64)
    factor, power = _by_column(layer, rows, s), _by_column(layer, rows, c.power)
    step = float((s * c.reach).max()) / LEVELS
    of_levels = step**2 / 12 * np.sum(np.square(rows / factor[:, None, :]))
    steps = np.abs(rows / factor[:, None, :]).max(2) / _WEIGHT_LEVELS
    of_weights = np.sum(np.square(steps) / 12 * (factor**2 * power).sum(1)[:, None])
    return float((of_levels + of_weights) / max(np.sum(np.square(rows) * power[:, None, :]), 1e-30))


class _Search:
    def __init__(self, graph: Graph, layers: Sequence[Layer]) -> None:
        self.graph = graph
        self.uses = graph.uses()
        self.by_node = {layer.node: layer for layer in layers}
        self.added = {layer.add for layer in layers if layer.add is not None}
        self.parent: dict[Value, Value] = {}
        self.fixed: set[Value] = {*graph.inputs, *graph.outputs}

    def root(self, v: Value) -> Value:
        self.parent.setdefault(v, v)
        while self.parent[v] is not v:
            v = self.parent[v]
        return v

    def joints(self) -> list[Joint]:
        for node in self.graph.nodes:
            self._pass(node)
        found: dict[Value, Joint] = {}
        for v in self.graph.values():
            if v in self.parent and not v.is_constant:
                joint = found.setdefault(self.root(v), Joint())
                joint.values.append(v)
                joint.fixed |= v in self.fixed
        for layer in self.by_node.values():
            found[self.root(layer.output)].makers.append(layer)
            found[self.root(_source(layer.node))].readers.append(layer)
        return [j for j in found.values() if j.makers and j.readers and not j.fixed]

    def _pass(self, node: Node) -> None:
        computed = [v for v in node.inputs if v is not None and not v.is_constant]
        for v in (*computed, *node.outputs):
            self.root(v)
        if node in self.by_node:
            if node.output.type.rank < 2 or len(computed) > 1 or not self._is_whole(self.by_node[node]):
                self.fixed |= {*computed, *node.outputs}
        elif node in self.added or node.op in _ALIKE and len(node.outputs) == 1:
            self._join(computed[0], node.output)
        elif node.op == "Add" and len(computed) == 2 and all(v.type.shape == node.output.type.shape for v in computed):
            self._join(computed[0], node.output)
            self._join(computed[1], node.output)
        elif node.op in ("Flatten", "Reshape", "Squeeze") and _keeps_channels(computed[0], node.output):
            self._join(computed[0], node.output)
        else:
            self.fixed |= {*computed, *node.outputs}

    def _join(self, a: Value, b: Value) -> None:
        self.parent[self.root(a)] = self.root(b)

    def _is_whole(self, layer: Layer) -> bool:
        """Whether the layer's input has its channels where factors are taken from: along axis 1, or the last."""
        source = _source(layer.node)
        return layer.kind == "conv" or source.type.rank == 2


def _source(node: Node) -> Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _keeps_channels(a: Value, b: Value) -> bool:
    """Whether [1, C, 1, …] becomes [1, C, …]."""
    return (
        a.type.is_static and b.type.is_static and a.type.dims[:2] == b.type.dims[:2] and a.type.size == a.type.dims[1]
    )
