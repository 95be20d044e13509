"""Graph → kernel calls: one file an operator family, found through the `@lowers` registry."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import replace

from ...codegen.target import Target
from ...ir.errors import UnsupportedOpError
from ...ir.graph import Graph, Node, Value
from ...ir.ops import Kind
from ...ir.ops import op as row
from ...ir.types import DType
from ..block_weights import is_block_weights
from .context import GRID_LOWERINGS, LOWERINGS, Call, Lowering, lowers, unfold
from .schedule import Tuning

__all__ = ["Call", "Lowering", "is_lowered", "is_refused", "lower_graph", "lower_node", "lowers"]


def is_lowered(op: str) -> bool:
    """Whether an operator has a lowering (or is a group of such)."""
    _load()
    return op == "c2c.Fused" or op in LOWERINGS


def is_refused(op: str) -> bool:
    """Whether an operator is known and refused in every form (`refused.py` has the reasons)."""
    _load()
    return op in LOWERINGS and LOWERINGS[op].__module__ == f"{__name__}.refused"


def lower_graph(
    graph: Graph,
    target: Target,
    threads: int,
    placed: frozenset[Value] = frozenset(),
    tuning: Tuning | None = None,
    *,
    for_memory: bool = False,
    activations: str = "f32",
    precision: DType = DType.F32,
) -> list[Call]:
    """Kernel calls of every node in order. Results that are `placed` (views) need none. for_memory: less memory is
    worth some time. activations: what those of products by integer weights may be rounded to. precision: see
    `Lowering`."""
    calls: list[Call] = []
    footprint = sum(v.type.nbytes for v in graph.values() if v.is_constant)
    for node in graph.nodes:
        there = [v for v in node.outputs if v in placed]
        if len(there) < len(node.outputs):
            found = lower_node(node, target, threads, tuning, footprint, for_memory, activations, precision)
            calls += [c for c in found if not any(v in there for v in c.args)]
    return calls


def lower_node(
    node: Node,
    target: Target,
    threads: int = 1,
    tuning: Tuning | None = None,
    footprint: int = 0,
    for_memory: bool = False,
    activations: str = "f32",
    precision: DType = DType.F32,
) -> list[Call]:
    """Kernel calls of one node, in a graph of `footprint` bytes of constants; raises UnsupportedOpError where no
    lowering exists."""
    _load()
    head, anchor, tail = _parts(node)
    lowering = (GRID_LOWERINGS.get(anchor.op) if target.device is not None else None) or LOWERINGS.get(anchor.op)
    if lowering is None:
        raise UnsupportedOpError(
            f"operator {anchor.op} is not supported", where=node.where, remedy="see docs/operators.md for what is"
        )
    if any(v is not None and v.type.dtype is DType.STRING for v in (*node.inputs, *node.outputs)):
        raise UnsupportedOpError(
            "string tensors are not supported", where=node.where, remedy="keep text processing outside of the model"
        )
    result = node.output if node.op == "c2c.Fused" else None
    ctx = Lowering(
        anchor, target, threads, tail=tail, result=result, group=node, tuning=tuning or Tuning(), head=head,
        footprint=footprint, for_memory=for_memory, activations=activations, precision=precision,
    )  # fmt: skip
    lowering(ctx)
    chosen = tuple(replace(c, origin=node.origin) for c in ctx.choices)
    for call in ctx.calls:
        call.choices, call.rounded = chosen, tuple(ctx.rounded)
    return ctx.calls


def _parts(node: Node) -> tuple[tuple[Node, ...], Node, tuple[Node, ...]]:
    """What the anchor of a fused group reads through, the anchor and the tail; any other node is an anchor alone."""
    if node.op != "c2c.Fused":
        return (), node, ()
    inner = unfold(node)
    through = (i for i, n in enumerate(inner) if row(n.op).kind is not Kind.INJECTIVE and not is_block_weights(n))
    first = next(through, 0)
    return tuple(inner[:first]), inner[first], tuple(inner[first + 1 :])


@functools.cache
def _load() -> None:
    """Import every family once, so that its `@lowers` rows are registered."""
    for module in sorted(m.name for m in pkgutil.walk_packages(__path__, f"{__name__}.")):
        importlib.import_module(module)
