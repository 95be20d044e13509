"""One layout for each tensor, chosen for the whole graph: channels in blocks of a vector where that pays.

Before: plain tensors. After: tensors between convolutions (and what lies between) in `Layout(block)`, `c2c.Reorder`
where a blocked one meets an operator that needs a plain one. Preserves: inputs and outputs of the graph are plain.
The choice is a minimum cut between "blocked" and "plain" (Boykov, Kolmogorov, PAMI 2004, for two labels exact): an edge
weighs what a conversion costs, and each operator adds what it loses in either layout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from ..ir.graph import Graph, Node, Value
from ..ir.ops import Kind
from ..ir.ops import op as row
from ..ir.types import PLAIN, DType, Layout, TensorType
from .base import GraphRewriter, Pass, PassContext, register_pass
from .layout_roles import CALL, READ_THROUGH_SHARE, Demand, Role, demand, is_read_through
from .minimum_cut import Network

_BLOCKED, _PLAIN = 0, 1
"""The two terminals of the cut."""


@register_pass
class ChooseLayout(Pass):
    name = "choose-layout"

    def run(self, graph: Graph, context: PassContext) -> bool:
        dtype = context.precision
        block = context.target.lanes(DType.F32 if dtype is DType.BF16 else dtype)
        if block < 2:
            return False
        demands = {n: demand(n, block, dtype) for n in graph.nodes}
        if all(d.role is Role.PLAIN for d in demands.values()):
            return False
        blocked = _cut(graph, demands, block)
        rewriter = context.rewriter(graph)
        if not any(v for pair in blocked.values() for v in pair) or not rewriter.allow(self.name, graph.nodes[0]):
            return False
        _Blocker(rewriter, demands, blocked, Layout(block)).apply()
        return rewriter.finish()


# ---- choice ----


@dataclass(eq=False)
class _Network:
    """Capacities between numbered variables; a variable on the source's side is blocked."""

    edges: dict[tuple[int, int], int] = field(default_factory=dict)
    count: int = 2

    def variable(self) -> int:
        self.count += 1
        return self.count - 1

    def add(self, a: int, b: int, cost: int) -> None:
        """Pay `cost` when `a` is blocked and `b` is plain."""
        if cost > 0 and a != b:
            self.edges[a, b] = self.edges.get((a, b), 0) + cost

    def blocked(self) -> set[int]:
        """The variables that a minimum cut makes blocked."""
        network = Network(self.count)
        for (a, b), cost in self.edges.items():
            network.add(a, b, cost)
        return set(range(self.count)) - network.sink_side(_BLOCKED, _PLAIN)


def _cut(graph: Graph, demands: dict[Node, Demand], block: int) -> dict[Node, tuple[bool, bool]]:
    """For each node that may choose: whether it reads, and whether it writes, blocked tensors."""
    network = _Network()
    sides: dict[Node, tuple[int, int]] = {}
    for node, want in demands.items():
        if want.role is Role.PLAIN:
            continue
        reads = network.variable()
        writes = reads if want.role is Role.SAME else network.variable()
        sides[node] = (reads, writes)
        network.add(writes, _PLAIN, want.blocked + 1)
        network.add(_BLOCKED, writes, want.plain + want.plain_out)
        network.add(_BLOCKED, reads, want.plain_in)
        network.add(reads, _PLAIN, want.blocked_in)
    all_readers = _readers(graph, demands)
    for value, readers in all_readers.items():
        if value.type.rank < 3 or not value.type.is_static:
            continue
        producer = value.producer
        written = sides[producer][1] if producer in sides else _PLAIN
        wanted = [_PLAIN if n is None or n not in sides else sides[n][0] for n in readers]
        cost = _reorder_cost(value.type, block)
        if len(readers) == 1 and is_read_through(readers[0], all_readers, demands):
            cost //= READ_THROUGH_SHARE
        if any(n is not None and row(n.op).kind is Kind.ELEMENTWISE for n in readers):
            cost += 2 * value.type.nbytes + CALL  # it could not join the group of its producer
        _conversion(network, written, list(dict.fromkeys(wanted)), cost)
    chosen = network.blocked()
    return {n: (r in chosen, w in chosen) for n, (r, w) in sides.items()}


def _readers(graph: Graph, demands: dict[Node, Demand]) -> dict[Value, list[Node | None]]:
    """Who reads each tensor that may be blocked; None stands for the caller."""
    found: dict[Value, list[Node | None]] = {}
    for node, want in demands.items():
        tensors = want.tensors if want.role is not Role.PLAIN else node.inputs
        for value in dict.fromkeys(tensors):
            if value is not None and not value.is_constant:
                found.setdefault(value, []).append(node)
        for value in node.inputs:
            # An operand that must stay plain, such as a map that is the same for every channel.
            if want.role is not Role.PLAIN and value is not None and value not in want.tensors:
                found.setdefault(value, []).append(None)
    for value in graph.outputs:
        found.setdefault(value, []).append(None)
    return found


def _conversion(network: _Network, written: int, wanted: list[int], cost: int) -> None:
    """Pay `cost` once when any reader wants the other layout than the one written."""
    if len(wanted) == 1:
        network.add(written, wanted[0], cost)
        network.add(wanted[0], written, cost)
        return
    infinite = 1 << 50
    some_plain, some_blocked = network.variable(), network.variable()
    network.add(written, some_plain, cost)
    network.add(some_blocked, written, cost)
    for w in wanted:
        network.add(some_plain, w, infinite)
        network.add(w, some_blocked, infinite)


def _reorder_cost(type_: TensorType, block: int) -> int:
    free = prod(type_.dims[2:]) == 1 and type_.dims[1] % block == 0
    return 1 if free else 2 * type_.nbytes + CALL


# ---- rewriting ----


@dataclass(eq=False)
class _Blocker:
    """Emits every node in the layouts chosen, with conversions where they change."""

    rewriter: GraphRewriter
    demands: dict[Node, Demand]
    blocked: dict[Node, tuple[bool, bool]]
    layout: Layout
    converted: dict[tuple[Value, Layout], Value] = field(default_factory=dict)

    def apply(self) -> None:
        for node in list(self.rewriter.graph.nodes):
            reads, writes = self.blocked.get(node, (False, False))
            self._rewrite(node, self.layout if reads else PLAIN, self.layout if writes else PLAIN)
        outputs = [self.rewriter.resolve(v) for v in self.rewriter.graph.outputs]
        self.rewriter.graph.outputs = [self._convert(v, PLAIN, None) if v.type.layout != PLAIN else v for v in outputs]

    def _rewrite(self, node: Node, reads: Layout, writes: Layout) -> None:
        tensors = self.demands[node].tensors
        inputs = [None if v is None else self.rewriter.resolve(v) for v in node.inputs]
        for i, value in enumerate(inputs):
            if value is None:
                continue
            if value.is_constant:
                if reads != PLAIN and node.inputs[i] in tensors:
                    inputs[i] = self._constant(value, node.output.type.rank)
                continue
            wanted = reads if node.inputs[i] in tensors else PLAIN
            if value.type.layout != wanted:
                inputs[i] = self._convert(value, wanted, node)
        types = [v.type.with_layout(writes) for v in node.outputs]
        if types == [v.type for v in node.outputs] and all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
            return
        hint = node.output.name
        new = self.rewriter.emit(node.op, inputs, types, node.attrs, origin=node.origin, hint=hint)
        self.rewriter.place_after(node, new)
        for old, value in zip(node.outputs, new.outputs, strict=True):
            self.rewriter.replace(old, value)

    def _convert(self, value: Value, layout: Layout, reader: Node | None) -> Value:
        """`value` in another layout, made before its first reader that needs it."""
        key = (value, layout)
        if key not in self.converted:
            origin = value.producer.origin if value.producer is not None else (value.name,)
            type_ = value.type.with_layout(layout)
            node = self.rewriter.emit("c2c.Reorder", [value], [type_], origin=origin, hint=value.name)
            if reader is not None:
                self.rewriter.place_before(reader, node)
            self.converted[key] = node.output
        return self.converted[key]

    def _constant(self, value: Value, rank: int) -> Value:
        """A constant with one element a channel, with leading 1-dims, to be laid in the blocked layout."""
        key = (value, self.layout)
        if key not in self.converted:
            assert value.data is not None
            data = value.data.reshape((1,) * (rank - value.type.rank) + value.type.dims)
            fresh = self.rewriter.constant(value.name, data)
            self.converted[key] = Value(fresh.name, fresh.type.with_layout(self.layout), fresh.data)
        return self.converted[key]
