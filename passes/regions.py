"""Nodes between two values that compute element by element on one tensor, however its leading axes are grouped."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.graph import Node, Value
from ..ir.ops import Kind
from ..ir.ops import op as row
from .base import GraphRewriter
from .pattern import required

MAX_STEPS = 16
_ALONG_AXIS = ("QuantizeLinear", "DequantizeLinear", "BatchNormalization")
"""Elementwise operators whose further operands belong to one axis."""


@dataclass(frozen=True, slots=True)
class Region:
    """What lies between `source`, made from `root`'s result, and `end`: elementwise nodes, and reshapes of leading
    axes, each after those that it reads."""

    root: Node
    source: Value
    steps: tuple[Node, ...]
    end: Value

    def values(self) -> list[Value]:
        return [self.root.output, *(n.output for n in self.steps)]


def region_to(rw: GraphRewriter, end: Value, op: str) -> Region | None:
    """The region that ends in `end`, which one node reads, and begins at the nearest `op`; None where there is none, or
    something else reads what is inside."""
    root = _root(end, op, end.type.size, set())
    if root is None or not rw.has_one_reader(end):
        return None
    steps = _steps(root.output, end)
    inside = set(steps)
    for value in (root.output, *(n.output for n in steps)):
        if value is not end and (rw.is_output(value) or not set(rw.readers(value)) <= inside):
            return None
    return Region(root, root.output, tuple(steps), end)


def _root(value: Value, op: str, size: int, seen: set[Value]) -> Node | None:
    maker = value.producer
    if maker is None or value in seen or len(seen) > MAX_STEPS:
        return None
    seen.add(value)
    if maker.op == op:
        return maker if maker.output.type.size == size else None
    if not _is_step(maker, size):
        return None
    found = (_root(v, op, size, seen) for v in maker.inputs if v is not None and v.type.size == size)
    return next((root for root in found if root is not None), None)


def _steps(start: Value, end: Value) -> list[Node]:
    """Nodes on the ways from `start` to `end`, each after those that it reads."""
    leads: dict[Value, bool] = {start: True}
    steps: list[Node] = []

    def visit(value: Value) -> bool:
        if value not in leads:
            maker = value.producer
            leads[value] = False
            if maker is not None and _is_step(maker, end.type.size):
                leads[value] = any([visit(v) for v in maker.inputs if v is not None])
                if leads[value]:
                    steps.append(maker)
        return leads[value]

    visit(end)
    return steps


def _is_step(node: Node, size: int) -> bool:
    types = [v.type for v in (*node.inputs, *node.outputs) if v is not None]
    if len(node.outputs) != 1 or any(not t.is_static for t in types) or node.output.type.size != size:
        return False
    if node.op == "Reshape":
        return required(node).type.rank > 1 and required(node).type.dims[-2:] == node.output.type.dims[-2:]
    return row(node.op).kind is Kind.ELEMENTWISE and node.op not in _ALONG_AXIS


def finest(shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape of which all others are groups of neighbouring dimensions."""
    shape = max(shapes, key=len)
    return shape if all(groups(s, shape) is not None for s in shapes) else None


def groups(coarse: tuple[int, ...], fine: tuple[int, ...]) -> list[tuple[int, ...]] | None:
    """The dimensions of `fine` that each dimension of `coarse` is the product of, in order; None where it is not."""
    found: list[tuple[int, ...]] = []
    at = 0
    for d in coarse:
        begin, size = at, 1
        while at < len(fine) and (size < d or fine[at] == 1):
            size *= fine[at]
            at += 1
        if size != d:
            return None
        found.append(fine[begin:at])
    return found if at == len(fine) else None


def regrouped(dims: tuple[int, ...], coarse: tuple[int, ...], fine: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions that broadcast to `coarse`, as dimensions that broadcast to its `groups` in `fine`."""
    parts = groups(coarse, fine)
    assert parts is not None
    used = parts[len(parts) - len(dims) :]
    out: list[int] = []
    for d, part in zip(dims, used, strict=True):
        out += part if d != 1 or all(n == 1 for n in part) else (1,) * len(part)
    return tuple(out)
