"""A network cut into what runs as one: each layer by itself, and what lies between."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..compiler.api import CompiledModel
from ..ir.graph import Graph, Node, Value
from .layers import Layer


@dataclass(eq=False, slots=True)
class Step:
    """Nodes that run as one: between two layers, or one layer (`layers`, two for an LSTM)."""

    nodes: list[Node]
    layers: list[Layer] = field(default_factory=list)
    reads: list[Value] = field(default_factory=list)
    gives: list[Value] = field(default_factory=list)
    model: CompiledModel | None = None
    dense: CompiledModel | None = None


def steps_of(graph: Graph, layers: list[Layer], cuts: frozenset[Value]) -> list[Step]:
    """The graph's nodes in order, cut before and after each layer and after what makes one of `cuts`."""
    by_node: dict[Node, list[Layer]] = {}
    for layer in layers:
        by_node.setdefault(layer.node, []).append(layer)
    absorbed = {layer.add for layer in layers if layer.add is not None}
    steps: list[Step] = []
    pending: list[Node] = []
    for node in graph.nodes:
        if node in absorbed:
            continue
        if node in by_node:
            if pending:
                steps.append(Step(pending))
                pending = []
            steps.append(Step([node], by_node[node]))
        else:
            pending.append(node)
            if not cuts.isdisjoint(node.outputs):
                steps.append(Step(pending))
                pending = []
    if pending:
        steps.append(Step(pending))
    _connect(graph, steps)
    return steps


def _connect(graph: Graph, steps: list[Step]) -> None:
    """What each step reads and gives; the result of a layer is the one with its bias added."""
    needed = set(graph.outputs)
    for step in steps:
        inside = {v for n in step.nodes for v in n.outputs}
        seen = dict.fromkeys(v for n in step.nodes for v in n.inputs if v is not None and not v.is_constant)
        step.reads = [v for v in seen if v not in inside]
        needed |= set(step.reads)
    for step in steps:
        if step.layers and step.layers[0].takes_bias:
            step.gives = [step.layers[0].output]
        elif step.layers and step.layers[0].kind == "recurrent":
            step.gives = [v for v in step.nodes[0].outputs if v in needed or v is step.nodes[0].outputs[0]]
        else:
            step.gives = [v for n in step.nodes for v in n.outputs if v in needed]
