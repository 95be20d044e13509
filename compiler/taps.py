"""Taps: every node's result becomes an output of the model, so that a run can be compared node by node."""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.types import PLAIN, DType

PREFIX = "tap:"


def tap(graph: Graph) -> None:
    """Append an output `tap:<ONNX node>` for each node result that is no output yet, in plain layout.

    Of several nodes made from one ONNX node the last has its result.
    """
    taken = set(graph.outputs)
    names = set(graph.output_names)
    copies: list[Node] = []
    sources = {PREFIX + (n.origin[-1] if n.origin else n.output.name): n for n in graph.nodes}
    for name, node in sources.items():
        value = node.output
        if value in taken or name in names or value.type.dtype is DType.STRING or len(node.outputs) > 1:
            continue
        plain = Value(f"{value.name}.tap", value.type.with_layout(PLAIN))
        copies.append(
            Node("c2c.Reorder" if value.type.layout.block else "c2c.Copy", (value,), (plain,), {}, node.origin)
        )
        graph.outputs.append(plain)
        graph.output_names.append(name)
        names.add(name)
    graph.nodes += copies
