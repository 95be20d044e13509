"""Graph IR: SSA values and nodes in topological order.

Semantics are those of the newest ONNX opset; operators of our own are named `c2c.Name` (see `ops.py`).
A graph is changed only through `Rewriter`, which counts rewrites and keeps `origin`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .types import Counted, DType, TensorType


@dataclass(eq=False, slots=True)
class Value:
    """A tensor: a graph input, a constant (`data` is set) or a node's output. Identity is equality."""

    name: str
    type: TensorType
    data: np.ndarray | None = None
    producer: Node | None = field(default=None, repr=False)

    @property
    def is_constant(self) -> bool:
        return self.data is not None


@dataclass(eq=False, slots=True)
class Node:
    """One operator application. `inputs` holds None for an optional input left out."""

    op: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    origin: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for v in self.outputs:
            v.producer = self

    @property
    def output(self) -> Value:
        return self.outputs[0]

    def input(self, index: int) -> Value | None:
        """Input `index`, None where it is optional and left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def constant(self, index: int) -> np.ndarray | None:
        """The data of input `index` where that is a constant."""
        value = self.input(index)
        return None if value is None else value.data

    @property
    def where(self) -> str:
        """Node, operator and shapes, for an error's text."""
        shapes = ", ".join("-" if v is None else str(v.type) for v in self.inputs)
        name = self.origin[-1] if self.origin else self.output.name
        return f"node '{name}' ({self.op}), inputs {shapes or 'none'}"


@dataclass(eq=False, slots=True)
class Graph:
    """Inputs, outputs and nodes in topological order.

    `output_names` are the public names of the outputs, since one value may serve several outputs and passes may
    replace the value behind a name. Constants are reached through the nodes that read them. labels: by output name, the
    strings that its integers stand for, or that its columns of floats are named. counts: by output name, the axis of
    which only a bound is known, and who says how much of it is meant.
    """

    name: str
    inputs: list[Value]
    outputs: list[Value]
    nodes: list[Node]
    output_names: list[str]
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    counts: dict[str, Counted] = field(default_factory=dict)

    def uses(self) -> dict[Value, list[Node]]:
        """Readers of each value, in order; a node that reads a value twice stands twice."""
        found: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.inputs:
                if value is not None:
                    found.setdefault(value, []).append(node)
        return found

    def values(self) -> Iterator[Value]:
        """Every value once: inputs, then constants and results in order of first appearance."""
        seen: set[Value] = set()
        order: list[Value | None] = [*self.inputs]
        for node in self.nodes:
            order += [*node.inputs, *node.outputs]
        for value in [*order, *self.outputs]:
            if value is not None and value not in seen:
                seen.add(value)
                yield value

    def constants(self) -> list[Value]:
        return [v for v in self.values() if v.is_constant]

    def clone(self) -> Graph:
        """A copy with its own values and nodes; constants' data is shared."""
        copies: dict[Value, Value] = {v: Value(v.name, v.type, v.data) for v in self.values()}
        nodes = [
            Node(
                n.op,
                tuple(None if v is None else copies[v] for v in n.inputs),
                tuple(copies[v] for v in n.outputs),
                {k: a.clone() if isinstance(a, Graph) else a for k, a in n.attrs.items()},
                n.origin,
            )
            for n in self.nodes
        ]
        return Graph(
            self.name, [copies[v] for v in self.inputs], [copies[v] for v in self.outputs], nodes,
            [*self.output_names], dict(self.labels), dict(self.counts),
        )  # fmt: skip

    def sort(self) -> None:
        """Restore topological order, stable; drop nodes of which no output is read (dead code)."""
        order: list[Node] = []
        state: dict[Node, bool] = {}
        rank = {n: i for i, n in enumerate(self.nodes)}
        stack: list[tuple[Node, bool]] = [(v.producer, False) for v in reversed(self.outputs) if v.producer is not None]
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
                continue
            if node in state:
                continue
            state[node] = True
            stack.append((node, True))
            before = [v.producer for v in node.inputs if v is not None and v.producer is not None]
            stack += [(p, False) for p in reversed(before) if p not in state]
        if all(n in rank for n in order) and _is_topological(kept := sorted(order, key=rank.__getitem__)):
            order = kept
        self.nodes = order


def _is_topological(nodes: Sequence[Node]) -> bool:
    seen: set[Node] = set()
    for node in nodes:
        if any(v is not None and v.producer is not None and v.producer not in seen for v in node.inputs):
            return False
        seen.add(node)
    return True


def constant(name: str, data: np.ndarray) -> Value:
    """A constant value in plain layout."""
    array = np.ascontiguousarray(data).reshape(np.shape(data))
    return Value(name, TensorType(DType.of(array.dtype), array.shape), array)


class Rewriter:
    """The only way a pass changes a graph: new nodes, uses moved to new values, each rewrite named and counted.

    `allow` is asked before every rewrite (rule name, node): the driver bisects and traces through it.
    """

    def __init__(self, graph: Graph, allow: Callable[[str, Node], bool] | None = None) -> None:
        self.graph = graph
        self.count = 0
        self._allow = allow
        self._names = {v.name for v in graph.values()} | set(graph.output_names)
        self._moved: dict[Value, Value] = {}

    def allow(self, rule: str, node: Node) -> bool:
        """Ask before applying `rule` at `node`; counts the rewrite when the answer is yes."""
        if self._allow is not None and not self._allow(rule, node):
            return False
        self.count += 1
        return True

    def name(self, hint: str) -> str:
        """A name no value of this graph has."""
        name, k = hint, 1
        while name in self._names:
            name, k = f"{hint}_{k}", k + 1
        self._names.add(name)
        return name

    def constant(self, hint: str, data: np.ndarray) -> Value:
        return constant(self.name(hint), data)

    def emit(
        self,
        op: str,
        inputs: Iterable[Value | None],
        types: Sequence[TensorType],
        attrs: Mapping[str, Any] | None = None,
        *,
        origin: tuple[str, ...],
        hint: str = "",
    ) -> Node:
        """Append a node; its outputs get fresh names made from `hint`. Order is restored by `finish`."""
        outputs = tuple(Value(self.name(hint or op.rpartition(".")[2].lower()), t) for t in types)
        node = Node(op, tuple(inputs), outputs, dict(attrs or {}), origin)
        self.graph.nodes.append(node)
        return node

    def replace(self, old: Value, new: Value) -> None:
        """Every reader of `old`, and the graph's outputs, take `new` from now on (applied by `finish`)."""
        self._moved[old] = new

    def resolve(self, value: Value) -> Value:
        """What `value` has become so far."""
        while value in self._moved:
            value = self._moved[value]
        return value

    def finish(self) -> bool:
        """Apply the replacements, drop dead nodes, restore order. True when anything changed."""
        for node in self.graph.nodes:
            if any(v in self._moved for v in node.inputs if v is not None):
                node.inputs = tuple(None if v is None else self.resolve(v) for v in node.inputs)
        self.graph.outputs = [self.resolve(v) for v in self.graph.outputs]
        self._moved.clear()
        before = len(self.graph.nodes)
        self.graph.sort()
        return self.count > 0 or len(self.graph.nodes) != before
