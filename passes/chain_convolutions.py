"""Convolutions and poolings in a row computed strip by strip: the tensors between them need no memory of their own.

Before: y = conv(x), z = conv(y), each with its elementwise tail, y read by z only. After: z = c2c.ConvChain(x) {both}.
Inverted bottlenecks (expand, depthwise, project), pairs of depthwise and pointwise layers, first layers and the pooling
behind them; what is chained is chosen by expected time and by the bytes that leave the arena. Pads, enlargements,
concatenations of them and changes of layout that the first layer alone reads join its chain, and make one of a single
layer. Preserves: tensors that others read.
Needs: layouts chosen, groups fused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.graph import Graph, Node, Value
from ..ir.ops import READ_THROUGH
from .base import GraphRewriter, Pass, PassContext, register_pass
from .lower.conv_chain import read_stage, remap_stage
from .lower.conv_chain_cost import Layer, cut, schedules
from .lower.remap import is_step
from .lower.schedule import choose
from .views import concat_offsets


@register_pass
class ChainConvolutions(Pass):
    name = "chain-convolutions"

    def run(self, graph: Graph, context: PassContext) -> bool:
        rewriter = context.rewriter(graph)
        for run in _runs(rewriter, context):
            for part in self.divide([link.layer for link in run], context):
                links = [run[i] for i in part]
                if len(links) == 1:
                    continue
                nodes = [n for link in links for n in link.nodes]
                strip = self.strip([link.layer for link in links], context, nodes)
                if strip is not None and rewriter.allow(self.name, nodes[0]):
                    join(rewriter, nodes, strip)
        return rewriter.finish()

    def divide(self, layers: Sequence[Layer], context: PassContext) -> list[range]:
        """Chains and single layers, as parts of a row of layers."""
        return cut(context.target, context.threads, layers, context.optimize_for == "memory")

    def strip(self, layers: Sequence[Layer], context: PassContext, nodes: Sequence[Node]) -> int | None:
        """Rows of a strip; None where the layers stay apart."""
        memory = context.optimize_for == "memory"
        problem = f"{' '.join(map(str, layers))} threads {context.threads}{' memory' if memory else ''}"
        return choose(
            context, "conv-chain", problem, schedules(context.target, context.threads, layers, memory), *nodes
        )


@dataclass(frozen=True, slots=True)
class Link:
    """A layer and the nodes that compute it."""

    nodes: tuple[Node, ...]
    layer: Layer


def _runs(rewriter: GraphRewriter, context: PassContext) -> list[list[Link]]:
    """The longest rows of layers each of which alone reads the one before, as its data."""
    runs: list[list[Link]] = []
    open_: dict[Value, list[Link]] = {}
    moved: dict[Value, tuple[Node, ...]] = {}
    lanes = context.target.lanes()
    for node in rewriter.graph.nodes:
        is_open = len(node.outputs) == 1 and rewriter.has_one_reader(node.output)
        if node.op in READ_THROUGH and is_open and is_step(node, context.target):
            before = (n for v in node.inputs if v is not None for n in moved.get(v, ()))
            moved[node.output] = (*dict.fromkeys(before), node)
        stage = read_stage(node, context.target, context.threads)
        if stage is None:
            continue
        run = None if stage.goes_on else open_.pop(stage.layer.x, None)
        if run is None:
            run = _read_through(moved.get(stage.layer.x, ()), context)
            runs.append(run)
        run.append(Link((node,), stage.layer))
        if node.output.type.layout.block == lanes and is_open:
            open_[node.output] = run
    return [r for r in runs if len(r) > 1]


def _read_through(nodes: Sequence[Node], context: PassContext) -> list[Link]:
    """As many of the last `nodes` as one layer can read through, as a run of one link, or an empty one.

    A concatenation whose inputs are written to their place in its result is no reason to read through anything, nor
    is a change of layout of what stays in the second cache.
    """
    for first in range(len(nodes)):
        if nodes[first].op == "Concat" and concat_offsets(nodes[first]) is not None:
            continue
        stage = remap_stage(nodes[first:], context.target, context.threads)
        if stage is None:
            continue
        near = stage.layer.y.nbytes <= context.target.l2_bytes // 4
        if not near or any(n.op != "c2c.Reorder" for n in nodes[first:]):
            return [Link(tuple(nodes[first:]), stage.layer)]
    return []


def join(rewriter: GraphRewriter, nodes: Sequence[Node], strip: int) -> None:
    """One `c2c.ConvChain` where the last node stands."""
    made = {n.output for n in nodes}
    operands = list(dict.fromkeys(v for n in nodes for v in n.inputs if v is not None and v not in made))
    last = nodes[-1]
    origin = tuple(dict.fromkeys(name for n in nodes for name in n.origin))
    attrs = {"body": _body(nodes, operands), "strip": strip}
    node = rewriter.emit("c2c.ConvChain", operands, [last.output.type], attrs, origin=origin, hint=last.output.name)
    rewriter.place_after(last, node)
    rewriter.replace(last.output, node.output)


def _body(nodes: Sequence[Node], operands: Sequence[Value]) -> Graph:
    """The nodes, groups opened, over inputs of their own."""
    inner = {v: Value(f"x{i}", v.type) for i, v in enumerate(operands)}
    inside: list[Node] = []

    def add(node: Node, known: dict[Value, Value]) -> None:
        result = Value(f"y{len(inside)}", node.output.type)
        inputs = tuple(None if v is None else known[v] for v in node.inputs)
        inside.append(Node(node.op, inputs, (result,), dict(node.attrs), node.origin))
        known[node.output] = result

    for node in nodes:
        if node.op == "c2c.Fused":
            body: Graph = node.attrs["body"]
            known = {v: inner[o] for v, o in zip(body.inputs, node.inputs, strict=True) if o is not None}
            for member in body.nodes:
                add(member, known)
            inner[node.output] = known[body.nodes[-1].output]
        else:
            add(node, inner)
    result = inside[-1].output
    return Graph("body", [inner[v] for v in operands], [result], inside, [result.name])
