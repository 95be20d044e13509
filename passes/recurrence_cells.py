"""Steps of recurrent networks written out as small operators: which values are cells, and of what weights.

A gate is a `Linear`: products of values [B, K] with columns of constants, and constants added; it is found through
additions, slices and splits of the columns, and concatenations in front of a product, in whatever order they come.
`Linear`s name parts of constants instead of holding their elements, so steps of the same weights compare equal.

    LSTM  c' = σ(f) c + σ(i) tanh(g),  h' = σ(o) tanh(c')
    GRU   h' = (1 - z) n + z h or n + z (h - n),  n = tanh(a + r (b)) or tanh(a + (r h) R),  z = σ(…), r = σ(…)
    RNN   h' = tanh(…) or relu(…)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..ir.graph import Node, Value
from ..ir.types import DType
from .pattern import either_order, made_by, required, scalar
from .views import part_start

MOST_DEPTH = 8
"""Additions, slices and splits between a gate and a product."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows and columns of a constant, which may be [n], [1, n] or hold one element only."""

    value: Value
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def matrix(self) -> np.ndarray:
        """[rows, columns]."""
        assert self.value.data is not None
        return self.value.data[slice(*self.rows), slice(*self.columns)]

    @property
    def row(self) -> np.ndarray:
        """[columns]: what is added to every row."""
        assert self.value.data is not None
        last = np.atleast_1d(self.value.data).reshape(-1, np.atleast_1d(self.value.data).shape[-1])[0]
        size = self.columns[1] - self.columns[0]
        return np.broadcast_to(last, (size,)) if last.size == 1 else last[slice(*self.columns)]


@dataclass(frozen=True, slots=True)
class Linear:
    """Sum of products (value [B, K], part [K, n]) and of constants [n]."""

    products: tuple[tuple[Value, Part], ...] = ()
    constants: tuple[Part, ...] = ()

    def __add__(self, other: Linear) -> Linear:
        return Linear(self.products + other.products, self.constants + other.constants)

    def part_of(self, value: Value) -> Part | None:
        """What `value` is multiplied with; None unless that is one part."""
        found = [p for v, p in self.products if v is value]
        return found[0] if len(found) == 1 else None

    def renamed(self, old: Value, new: Value) -> Linear:
        return replace(self, products=tuple((new if v is old else v, p) for v, p in self.products))

    def bias(self, size: int) -> np.ndarray:
        """[n], summed in float64."""
        return np.asarray(sum((p.row.astype(np.float64) for p in self.constants), np.zeros(size)))


@dataclass(frozen=True, slots=True)
class Cell:
    """One step. gates: LSTM i, o, f, g; GRU z, r, n, with the part of n behind the reset gate last if that acts after
    the product (`reset_after`); RNN one. h_old: where the form of the step tells it."""

    op: str
    h: Value
    gates: tuple[Linear, ...]
    c: Value | None = None
    c_old: Value | None = None
    h_old: Value | None = None
    reset_after: bool = False
    activation: str = "Tanh"


def find_cell(h: Value) -> Cell | None:
    """The step that ends in h [B, H]."""
    if h.producer is None or h.type.rank != 2 or h.type.dtype not in (DType.F32, DType.F64):
        return None
    match h.producer.op:
        case "Mul":
            return _lstm(h.producer)
        case "Add":
            return _gru(h.producer)
        case "Tanh" | "Relu":
            gate = _linear(required(h.producer), 0, h.type.dims[1])
            return Cell("RNN", h, (gate,), activation=h.producer.op) if gate and gate.products else None
    return None


def _lstm(node: Node) -> Cell | None:
    for a, b in either_order(node):
        squashed = made_by(b, "Tanh")
        o = _activated(a, "Sigmoid")
        added = made_by(required(squashed), "Add") if squashed else None
        if o is None or added is None:
            continue
        for kept, new in either_order(added):
            for f, c_old in _factors(kept, "Sigmoid"):
                for i, candidate in _factors(new, "Sigmoid"):
                    g = _activated(candidate, "Tanh")
                    if g is not None and c_old.type == node.output.type:
                        return Cell("LSTM", node.output, (i, o, f, g), added.output, c_old)
    return None


def _gru(node: Node) -> Cell | None:
    for kept, new in either_order(node):
        for z, h_old, n in _updates(kept, new):
            candidate = made_by(n, "Tanh")
            found = _candidate(required(candidate), h_old) if candidate else None
            if found is not None:
                return replace(found, h=node.output, gates=(z, *found.gates), h_old=h_old)
    return None


def _updates(kept: Value, new: Value) -> Iterator[tuple[Linear, Value, Value]]:
    """Gate z, old state and candidate of z h + (1 - z) n and of z (h - n) + n."""
    product = made_by(kept, "Mul")
    if product is None:
        return
    for gate, old in either_order(product):
        z = _activated(gate, "Sigmoid")
        if z is None:
            continue
        difference = made_by(old, "Sub")
        if difference is not None and required(difference, 1) is new:
            yield z, required(difference), new
        for rest, n in either_order(made_by(new, "Mul")) if made_by(new, "Mul") else ():  # type: ignore[arg-type]
            inverse = made_by(rest, "Sub")
            if inverse and scalar(required(inverse)) == 1.0 and required(inverse, 1) is gate:
                yield z, old, n


def _candidate(total: Value, h_old: Value) -> Cell | None:
    """Gates r and n (n in two parts where the reset gate acts after the product) of tanh's argument."""
    size = total.type.dims[-1]
    whole = _linear(total, 0, size)
    if whole is not None:
        for value, _ in whole.products:
            for r, other in _factors(value, "Sigmoid"):
                if other is h_old:
                    return Cell("GRU", total, (r, whole.renamed(value, h_old)))
        return None
    added = made_by(total, "Add")
    for x, gated in either_order(added) if added else ():
        a = _linear(x, 0, size)
        for r, inner in _factors(gated, "Sigmoid"):
            b = _linear(inner, 0, size)
            if a is not None and b is not None:
                return Cell("GRU", total, (r, a, b), reset_after=True)
    return None


def _factors(value: Value, activation: str) -> Iterator[tuple[Linear, Value]]:
    """A product of an activated gate and another value, as both."""
    node = made_by(value, "Mul")
    if node is None:
        return
    for a, b in either_order(node):
        gate = _activated(a, activation)
        if gate is not None:
            yield gate, b


def _activated(value: Value, activation: str) -> Linear | None:
    """The argument of an activation, of which `value` may be some columns."""
    begin, size = 0, value.type.dims[-1] if value.type.rank == 2 else 0
    while (part := _column_part(value)) is not None:
        value, begin = part[0], begin + part[1]
    node = made_by(value, activation)
    return _linear(required(node), begin, begin + size) if node and size else None


def _column_part(value: Value) -> tuple[Value, int] | None:
    """What a value is some columns of, and the first one."""
    node = value.producer
    if node is None or node.op not in ("Slice", "Split") or required(node).type.rank != 2:
        return None
    part = part_start(node, value)
    same = required(node).type.dims[0] == value.type.dims[0]
    return (required(node), part[1]) if part is not None and part[0] == 1 and same else None


def _linear(value: Value, begin: int, end: int, depth: int = MOST_DEPTH) -> Linear | None:
    """Columns [begin, end) of a value; None where they are no sum of products with constants."""
    if value.is_constant:
        return _constant(value, begin, end)
    node = value.producer
    if node is None or value.type.rank != 2 or depth == 0:
        return None
    if (part := _column_part(value)) is not None:
        return _linear(part[0], part[1] + begin, part[1] + end, depth - 1)
    if node.op == "Add":
        operands = [required(node, i) for i in range(2)]
        if any(v.type != value.type and not v.is_constant for v in operands):
            return None
        a, b = (_linear(v, begin, end, depth - 1) for v in operands)
        return a + b if a is not None and b is not None else None
    if node.op == "MatMul":
        return _product(node, begin, end)
    return None


def _constant(value: Value, begin: int, end: int) -> Linear | None:
    """A constant that is the same in every row."""
    data = value.data
    if data is None or data.size == 0 or data.ndim > 2 or (data.ndim == 2 and (data != data[:1]).any()):
        return None
    return Linear((), (Part(value, (0, 1), (begin, end)),))


def _product(node: Node, begin: int, end: int) -> Linear | None:
    x, weights = required(node), required(node, 1)
    if not weights.is_constant or weights.type.rank != 2 or x.type.rank != 2:
        return None
    joined = made_by(x, "Concat")
    parts = [required(joined, i) for i in range(len(joined.inputs))] if joined else [x]
    if joined and joined.attrs["axis"] % 2 != 1:
        parts = [x]
    products, row = [], 0
    for part in parts:
        rows = part.type.dims[1]
        products.append((part, Part(weights, (row, row + rows), (begin, end))))
        row += rows
    return Linear(tuple(products))
