"""Names and opsets visible where a node stands, and the order of nodes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx import NodeProto, OperatorSetIdProto

from ..ir.errors import OnnxImportError
from ..ir.graph import Value
from .onnx_attributes import Arguments
from .onnx_wire import text


@dataclass(eq=False, slots=True)
class Scope:
    """Names visible to the nodes of one graph or function body. prefix: of the origin of nodes inlined here."""

    opsets: dict[str, int]
    values: dict[str, Value | None] = field(default_factory=dict)
    outer: Scope | None = None
    prefix: str = ""
    arguments: Arguments | None = None
    depth: int = 0
    absent: frozenset[str] = frozenset()
    sequences: dict[str, list[Value]] = field(default_factory=dict)

    def find(self, name: str) -> Value | None:
        """The value of a name; None where its node could not be imported. Raises KeyError for an unknown name."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        raise KeyError(name)

    def find_sequence(self, name: str) -> list[Value] | None:
        """The elements of a sequence; None where the name is none."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.sequences:
                return scope.sequences[name]
            scope = scope.outer
        return None

    def knows(self, name: str) -> bool:
        try:
            self.find(name)
        except KeyError:
            return False
        return True


def opsets_of(imports: Sequence[OperatorSetIdProto]) -> dict[str, int]:
    """Version by domain, the default domain as ''."""
    text(*(o.domain for o in imports))
    return {"" if o.domain == "ai.onnx" else o.domain: int(o.version) for o in imports}


def _is_in_order(nodes: Sequence[NodeProto], scope: Scope) -> bool:
    """Whether every name that some node makes is made before it is read (a name nobody makes is no matter of order)."""
    waiting = {name for node in nodes for name in node.output}
    for node in nodes:
        if any(name in waiting and not scope.knows(name) for name in _reads(node) if name):
            return False
        waiting.difference_update(node.output)
    return True


def _reads(node: NodeProto) -> list[str]:
    """Names that a node reads, or may read in its subgraphs."""
    names = list(node.input)
    for a in node.attribute:
        if a.HasField("g"):
            names += [name for inner in a.g.node for name in _reads(inner)]
    return names


def in_order(nodes: list[NodeProto], scope: Scope) -> list[NodeProto]:
    """The nodes in topological order (as they are, where they are in order); raises OnnxImportError for a cycle."""
    if _is_in_order(nodes, scope):
        return nodes
    makers = {name: k for k, node in reversed([*enumerate(nodes)]) for name in node.output if name}
    needs = [sorted({makers[i] for i in _reads(node) if i in makers}) for node in nodes]
    waiting = [len(n) for n in needs]
    readers: dict[int, list[int]] = {}
    for k, before in enumerate(needs):
        for maker in before:
            readers.setdefault(maker, []).append(k)
    ready = [k for k, n in enumerate(waiting) if n == 0]
    heapq.heapify(ready)
    order: list[NodeProto] = []
    while ready:
        k = heapq.heappop(ready)
        order.append(nodes[k])
        for reader in readers.get(k, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        stuck = [n.name or (n.output[0] if n.output else n.op_type) for n, w in zip(nodes, waiting, strict=True) if w]
        raise OnnxImportError(f"the graph has a cycle: {', '.join(stuck[:5])}{', …' if len(stuck) > 5 else ''}")
    return order
