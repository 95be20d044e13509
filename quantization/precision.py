"""Which numbers of a network get more than 8 bits, chosen by what 8 bits cost its output and by time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ..compression.layers import Layer
from ..ir.graph import Value
from .places import Place

WIDE_TIME = 1.0
"""What products of 16 bits take beyond those of 8, over the latter: half as many are added by one instruction."""

DEPTHWISE_TIME = 8.0
"""A product of a depthwise layer over one of other layers, which read each input for many channels."""

VALUE_TIME = 16.0
"""Products of 8 bits in whose time one more byte of an element is written and read."""

WEIGHT_TIME = 64.0
"""Products of 8 bits that a byte of the file is worth."""


NARROWED = 1 / 256
"""What is left of the cost of a tensor's levels with 16 times as many."""


@dataclass(frozen=True, slots=True)
class Precision:
    """floats: layers that stay as they are. values: tensors whose levels have 16 bits; weights: layers whose weights
    have. All others have 8."""

    floats: frozenset[Layer] = frozenset()
    values: frozenset[Value] = frozenset()
    weights: frozenset[Layer] = frozenset()

    def without(self, floats: Iterable[Layer]) -> Precision:
        """With these layers in floats as well."""
        return Precision(self.floats | frozenset(floats), self.values, self.weights - frozenset(floats))


@dataclass(frozen=True, slots=True)
class Costs:
    """Relative squared error of the network's output with only this tensor's levels, or this layer's weights, of 8
    bits and all else dense."""

    places: Mapping[Place, float]
    weights: Mapping[Layer, float]

    @property
    def total(self) -> float:
        return sum(self.places.values()) + sum(self.weights.values())

    def of(self, layer: Layer, read: Value) -> float:
        """What a layer costs that reads `read`."""
        return self.weights.get(layer, 0.0) + sum(c for p, c in self.places.items() if read in p.values)


def operations(layer: Layer) -> float:
    """Multiply-adds of a run, those of depthwise layers by their time."""
    d = layer.dense.size // layer.channels
    return layer.node.output.type.size * d * (DEPTHWISE_TIME if layer.groups > 1 else 1.0)


def widest(costs: Costs) -> Precision:
    """16 bits for everything."""
    return Precision(values=frozenset(v for p in costs.places for v in p.values), weights=frozenset(costs.weights))


def widened(costs: Costs, readers: Mapping[Place, Collection[Layer]], most: float) -> Precision:
    """16 bits where they save most for their time, and floats where 16 bits would still cost more than the rest, until
    what is left of the costs is at most `most`."""
    steps = _Steps(costs, readers)
    while steps.left > most and steps.next():
        pass
    return steps.precision()


class _Steps:
    """left: what is left of the costs, of each part (`leaves`) and of all."""

    def __init__(self, costs: Costs, readers: Mapping[Place, Collection[Layer]]) -> None:
        self.readers = readers
        self.leaves: dict[Place | Layer, float] = dict(costs.places.items())
        self.leaves.update(costs.weights.items())
        self.wide: set[Place | Layer] = set()
        self.floats: set[Layer] = set()

    @property
    def left(self) -> float:
        return sum(self.leaves.values())

    def next(self) -> bool:
        """Take the step that saves most for its time; whether there was one."""
        slow = {v for w in self.wide for v in self._layers(w)} | self.floats
        found = [(self._saved(w) / self._price(w, slow), i, w) for i, w in enumerate(self.leaves) if self._is_open(w)]
        if not found:
            return False
        which = max(found, key=lambda f: (f[0], -f[1]))[2]
        self.leaves[which] -= self._saved(which)
        if which not in self.wide:
            self.wide.add(which)
            return True
        for layer in self._layers(which):
            self.floats.add(layer)
            self.leaves[layer] = 0.0
        return True

    def precision(self) -> Precision:
        places = [p for p in self.wide if isinstance(p, Place)]
        weights = {w for w in self.wide if isinstance(w, Layer)}
        return Precision(
            frozenset(self.floats), frozenset(v for p in places for v in p.values), frozenset(weights - self.floats)
        )

    def _is_open(self, which: Place | Layer) -> bool:
        if isinstance(which, Layer):
            return which not in self.wide and which not in self.floats
        return which not in self.wide or not self.floats.issuperset(self._layers(which))

    def _layers(self, which: Place | Layer) -> Collection[Layer]:
        return [which] if isinstance(which, Layer) else self.readers.get(which, ())

    def _saved(self, which: Place | Layer) -> float:
        return self.leaves[which] * (1.0 if which in self.wide or isinstance(which, Layer) else 1 - NARROWED)

    def _price(self, which: Place | Layer, slow: Collection[Layer]) -> float:
        floats = which in self.wide
        time = sum(WIDE_TIME * operations(v) for v in self._layers(which) if floats or v not in slow)
        if isinstance(which, Layer):
            return time + WEIGHT_TIME * which.dense.size
        return time + VALUE_TIME * sum(v.type.size for v in which.values)
