"""Which tensors hold levels, and which of them share a scale.

Levels are read by quantised layers. They pass through operators that move or pick elements, whose operands and result
share one scale, and through means, which sum levels. Where two tensors of full size meet (a residual sum, a gate), they
come as levels if a quantised layer makes them, so that no tensor of floats lies between layers; but for the one that is
computed last and read here alone: the layer that makes it goes on to the sum before anything is rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..compression.layers import Layer
from ..ir.graph import Graph, Node, Value
from ..ir.ops import Kind
from ..ir.ops import op as row
from ..ir.types import DType

MOVING = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Identity")
"""Operators whose results are elements of their operands."""

MEANS = ("GlobalAveragePool", "AveragePool", "ReduceMean")


@dataclass(eq=False, slots=True)
class Place:
    """Tensors that hold levels of one grid, in the order of computation."""

    values: list[Value] = field(default_factory=list)


def find_places(graph: Graph, layers: Iterable[Layer]) -> list[Place]:
    """What has to hold levels for these layers to be computed of levels."""
    work = _Search(graph, list(layers))
    for layer in work.layers:
        work.visit(_data(layer))
    work.join()
    groups: dict[Value, Place] = {}
    for v in sorted(work.members, key=work.rank.__getitem__):
        groups.setdefault(work.root(v), Place()).values.append(v)
    return list(groups.values())


def _data(layer: Layer) -> Value:
    value = layer.node.inputs[0]
    assert value is not None
    return value


class _Search:
    """members: tensors that hold levels, and the tensor whose scale each takes."""

    def __init__(self, graph: Graph, layers: list[Layer]) -> None:
        self.layers = layers
        self.uses = graph.uses()
        self.kept = set(graph.outputs)
        self.rank = {v: i for i, v in enumerate(graph.values())}
        self.made = {v for layer in layers for v in (layer.node.output, layer.output)}
        self.members: dict[Value, Value] = {}
        self._pairs: list[tuple[Value, Value]] = []

    def root(self, v: Value) -> Value:
        while self.members[v] is not v:
            v = self.members[v]
        return v

    def visit(self, v: Value) -> None:
        pending = [v]
        while pending:
            v = pending.pop()
            if v in self.members or v.is_constant or v.type.dtype is not DType.F32:
                continue
            self.members[v] = v
            node = v.producer
            if node is None or node.output is not v:
                continue
            if node.op in MEANS:
                pending += _computed(node)[:1]
            elif node.op in MOVING:
                sources = _computed(node) if node.op == "Concat" else _computed(node)[:1]
                for s in sources:
                    if s.type.dtype is DType.F32:
                        self._pairs.append((v, s))
                pending += sources
        for a, b in self._pairs:
            self.members[self.root(b)] = self.root(a)
        self._pairs.clear()

    def join(self) -> None:
        """Operands of sums and gates between layers, until there are no more."""
        done: set[Value] = set()
        while open_ := [v for v in self.members if v not in done]:
            for v in open_:
                done.add(v)
                for operand in self._meeting(v):
                    self.visit(operand)

    def _meeting(self, v: Value) -> Iterator[Value]:
        """The tensors of full size that meet where `v` is computed."""
        node = v.producer
        if node is None or row(node.op).kind is not Kind.ELEMENTWISE:
            return
        operands = _computed(node)
        full = [o for o in operands if o.type.shape == v.type.shape]
        if len(operands) > 1 and len({frozenset(_sources(o)) for o in operands}) > 1:
            last = max(operands, key=self.rank.__getitem__)
            yield from (o for o in full if self._is_ours(o) and not (o is last and self._goes_on(o)))
        else:
            for o in full:
                yield from self._meeting(o)

    def _goes_on(self, v: Value) -> bool:
        """Whether the layer that makes `v` makes it for one reader, elementwise operators between them or none."""
        alone = len(self.uses.get(v, ())) == 1 and v not in self.kept
        return alone and all(s in self.made for s in _sources(v))

    def _is_ours(self, v: Value) -> bool:
        return any(s in self.made or s in self.members for s in _sources(v))


def _computed(node: Node) -> list[Value]:
    return [v for v in node.inputs if v is not None and not v.is_constant]


def _sources(v: Value) -> set[Value]:
    """The results of other than elementwise operators that `v` is computed of."""
    found: set[Value] = set()
    pending, seen = [v], {v}
    while pending:
        v = pending.pop()
        node = v.producer
        if node is None or row(node.op).kind is not Kind.ELEMENTWISE:
            found.add(v)
            continue
        for o in _computed(node):
            if o not in seen:
                seen.add(o)
                pending.append(o)
    return found
