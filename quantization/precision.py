"""Which tensors and weights of a network get more than 8 bits, chosen by what 8 bits cost its output and by time."""

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


def widened(costs: Costs, readers: Mapping[Place, Collection[Layer]], most: float) -> Precision:
    """16 bits where they save most for their time, until what is left of the costs is at most `most`."""
    left = costs.total
    slow: set[Layer] = set()
    values: list[Place] = []
    weights: list[Layer] = []
    open_: list[Place | Layer] = [*costs.places, *costs.weights]

    def cost(which: Place | Layer) -> float:
        return costs.weights[which] if isinstance(which, Layer) else costs.places[which]

    def price(which: Place | Layer) -> float:
        mine = [which] if isinstance(which, Layer) else readers.get(which, ())
        time = sum(WIDE_TIME * operations(layer) for layer in mine if layer not in slow)
        if isinstance(which, Layer):
            return time + WEIGHT_TIME * which.dense.size
        return time + VALUE_TIME * sum(v.type.size for v in which.values)

    while left > most and open_:
        best = max(open_, key=lambda which: cost(which) / price(which))
        open_.remove(best)
        left -= cost(best)
        if isinstance(best, Layer):
            weights.append(best)
            slow.add(best)
        else:
            values.append(best)
            slow.update(readers.get(best, ()))
    return Precision(values=frozenset(v for p in values for v in p.values), weights=frozenset(weights))
