"""Groups for one kernel each: an anchor, a reduction or an elementwise head, then elementwise work on its result.

Before: y = conv(x, w), z = y + r, t = relu(z). After: t = c2c.Fused(x, w, r) {conv, add, relu}.
The lattice of `ir.ops.Kind` decides, no list of pairs: a member reads the result before it, has the shape and layout of
the head's result, and what happens inside is read inside only. Other operands may be any values made before, and where
DequantizeLinear makes them for one member only, it joins the group before that.
A convolution also takes the pad by reflection, edges or wrapping before it, which it reads through, a Winograd one
enlargements by whole factors and a concatenation as well; a product of few rows takes the expansion of its weights from
blocks of levels.
Preserves: values read outside the group, outputs of the graph. Needs: layouts chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ..codegen.target import Target
from ..ir.graph import Graph, Node, Value
from ..ir.ops import Kind
from ..ir.ops import op as row
from ..ir.types import DType, TensorType
from .base import GraphRewriter, Pass, PassContext, register_pass
from .block_weights import block_weights
from .lower.context import Lowering
from .lower.conv import reads_around
from .pattern import int_list, made_by, required, scalar
from .reading import OPERATORS, Reading, readings_of
from .views import concat_offsets

MAX_OPERANDS = 12
"""Tensors that one group may read: each is a pointer in a register. Constant numbers are none."""

_HEADS = (Kind.ANCHOR, Kind.REDUCTION, Kind.ELEMENTWISE)
_WHOLE_RESULT = frozenset({"ArgMax", "ArgMin"})
"""Reductions whose loops carry more than the result's value: no tail."""


_NARROWED = frozenset({"c2c.IntegerConv", "MatMulInteger"})
"""Anchors whose results may be stored in a narrower type."""


@register_pass
class Fuse(Pass):
    name = "fuse"

    def run(self, graph: Graph, context: PassContext) -> bool:
        rewriter = context.rewriter(graph)
        rank = {n: i for i, n in enumerate(graph.nodes)}
        anchors = [n for n in graph.nodes if row(n.op).kind in (Kind.ANCHOR, Kind.REDUCTION)]
        elementwise = [n for n in graph.nodes if row(n.op).kind is Kind.ELEMENTWISE]
        taken: set[Node] = set()
        # Of two anchors that an operator joins the later one takes it: the other's result is there by then.
        for head in (*reversed(anchors), *elementwise):
            group = [] if head in taken else grow(rewriter, head, taken, rank)
            group = [*read_through(rewriter, head, context.target), *group] if group else group
            if len(group) > 1 and rewriter.allow(self.name, head):
                taken.update(group)
                _replace(rewriter, group)
        return rewriter.finish()


def grow(rw: GraphRewriter, head: Node, taken: set[Node], rank: dict[Node, int]) -> list[Node]:
    """The longest group from `head` on of which only the last value is read outside."""
    if row(head.op).kind not in _HEADS or len(head.outputs) > 1 or head.op in _WHOLE_RESULT or not _is_fit(head):
        return []
    group = [head]
    best = 1
    while True:
        last = group[-1]
        if rw.is_output(last.output):
            break
        readers = sorted((r for r in set(rw.readers(last.output)) if r not in group), key=lambda n: rank[n])
        follower = next((r for r in readers if r not in taken and _may_follow(head, last, r)), None)
        if follower is None:
            break
        group += [*_dequantized(rw, head, last, follower, taken), follower]
        if sum(not v.is_constant or v.type.size > 1 for v in _operands(group)) > MAX_OPERANDS:
            break
        if _is_closed(rw, group):
            best = len(group)
    return group[:best]


def read_through(rw: GraphRewriter, head: Node, target: Target) -> list[Node]:
    """What an anchor reads through: Resize and Pad before a Winograd convolution of a blocked image, a Pad before a
    direct one, the expansion of weights in blocks of levels before a product of few rows."""
    if (made := block_weights(head)) is not None and rw.has_one_reader(made.output):
        return [made]
    if head.op == "Conv" and (pad := made_by(required(head), "Pad")) is not None and rw.has_one_reader(pad.output):
        return [pad] if reads_around(Lowering(head, target, 1, head=(pad,))) else []
    return _moved(rw, head) if head.op == "c2c.WinogradConv" and required(head).type.layout.block else []


def _moved(rw: GraphRewriter, head: Node) -> list[Node]:
    """What a Winograd convolution of a blocked image reads through.

    A concatenation is left where its inputs are written to their place in its result.
    """

    def is_fit(reading: Reading, m: int) -> bool:
        """Tiles begin at pixels of the source, or lie on a few of them."""
        return m % reading.rows.factor == 0 or reading.rows.factor > m

    def joined(maker: Node, nodes: list[Node]) -> list[Node] | None:
        """`nodes` behind one more, where that can be read through."""
        if maker.op not in OPERATORS or not rw.has_one_reader(maker.output):
            return None
        readings = readings_of([maker, *nodes], int_list(head.attrs["pads"]))
        fits = readings is not None and all(is_fit(r, head.attrs["m"]) for r in readings)
        return [maker, *nodes] if fits else None

    nodes: list[Node] = []
    value = required(head)
    while (maker := value.producer) is not None and (longer := joined(maker, nodes)) is not None:
        if maker.op == "Concat":
            for part in dict.fromkeys(maker.inputs):
                if part is not None and part.producer is not None and maker.inputs.count(part) == 1:
                    longer = joined(part.producer, longer) or longer
            return longer if len(longer) > len(nodes) + 1 or concat_offsets(maker) is None else nodes
        nodes, value = longer, required(maker)
    return nodes


def _dequantized(rw: GraphRewriter, head: Node, last: Node, node: Node, taken: set[Node]) -> list[Node]:
    """DequantizeLinear nodes whose results only `node` reads, beside the group's: their levels are read instead."""
    found = []
    for value in node.inputs:
        made = None if value is None or value is last.output else value.producer
        if made is None or made.op != "DequantizeLinear" or made in taken or not rw.has_one_reader(made.output):
            continue
        levels, result = made.input(0), head.output.type
        if levels is None or not _is_fit(made) or levels.type.shape != result.shape:
            continue
        if levels.type.layout == made.output.type.layout == result.layout:
            found.append(made)
    return found


def _is_fit(node: Node) -> bool:
    types = [v.type for v in (*node.inputs, *node.outputs) if v is not None]
    return all(t.is_static and t.dtype is not DType.STRING for t in types) and not _is_per_axis(node)


def _is_per_axis(node: Node) -> bool:
    """Quantisation with a scale for each channel: its operands do not broadcast as others do."""
    if node.op not in ("QuantizeLinear", "DequantizeLinear"):
        return False
    return any(v is not None and v.type.size != 1 for v in node.inputs[1:]) or scalar(node.input(1)) is None


def _may_follow(head: Node, last: Node, node: Node) -> bool:
    """Whether `node` may be computed where `last` just was: elementwise, of the same shape and layout."""
    result = head.output.type
    if row(node.op).kind is not Kind.ELEMENTWISE or len(node.outputs) > 1 or not _is_fit(node):
        return False
    type_ = node.output.type
    if type_.shape != result.shape or type_.layout != result.layout:
        return False
    narrows = row(head.op).kind is Kind.ELEMENTWISE or head.op in _NARROWED
    if type_.dtype.bits != last.output.type.dtype.bits and not narrows:
        return False
    operands = [v for v in node.inputs if v is not None and v is not last.output]
    return all(reads_along(v.type, result) for v in operands)


def reads_along(type_: TensorType, result: TensorType) -> bool:
    """Whether an operand can be read at the lanes of a result: in its layout, or the same in every channel."""
    if type_.layout == result.layout:
        return not type_.layout.block or type_.rank == result.rank
    channel = 1 - (result.rank - type_.rank)
    return not type_.layout.block and (channel < 0 or type_.dims[channel] == 1)


def _is_closed(rw: GraphRewriter, group: list[Node]) -> bool:
    members = set(group)
    return all(not rw.is_output(n.output) and set(rw.readers(n.output)) <= members for n in group[:-1])


def _operands(group: list[Node]) -> list[Value]:
    """Values from outside, in order of first use."""
    inside = {n.output for n in group}
    return list(dict.fromkeys(v for n in group for v in n.inputs if v is not None and v not in inside))


def _replace(rw: GraphRewriter, group: list[Node]) -> None:
    """One `c2c.Fused` node where the last member stands."""
    operands = _operands(group)
    last = group[-1].output
    names = dict.fromkeys(name for n in group for name in n.origin)
    for name in group[-1].origin:
        names.pop(name, None)
    origin = (*names, *group[-1].origin)
    node = rw.emit("c2c.Fused", operands, [last.type], {"body": _body(group, operands)}, origin=origin, hint=last.name)
    rw.place_after(group[-1], node)
    rw.replace(last, node.output)


def _operand_names(group: list[Node]) -> Iterator[str]:
    """x0, x1, …, without those that a result of the group has."""
    taken = {v.name for n in group for v in n.outputs}
    return (name for i in itertools.count() if (name := f"x{i}") not in taken)


def _body(group: list[Node], operands: list[Value]) -> Graph:
    """The group over inputs of its own."""
    inner = {v: Value(name, v.type) for v, name in zip(operands, _operand_names(group), strict=False)}
    nodes: list[Node] = []
    for n in group:
        results = tuple(Value(v.name, v.type) for v in n.outputs)
        reads = tuple(None if v is None else inner[v] for v in n.inputs)
        nodes.append(Node(n.op, reads, results, dict(n.attrs), n.origin))
        inner.update(zip(n.outputs, results, strict=True))
    result = nodes[-1].output
    return Graph("body", [inner[v] for v in operands], [result], nodes, [result.name])
