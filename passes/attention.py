"""What a `c2c.Attention` computes: its body, written by the pass that fuses it and read by its lowering.

    MatMul(q, kᵀ) · scale, ELEMENTWISE…, Softmax, ELEMENTWISE…, MatMul(…, v)

The scores are of [*batch, rows, count], the last of `batch` being the heads. q, k, v and the result are of
[*batch, rows, size] or, with heads side by side, of [product of the others, rows, heads · size]. k and v may have fewer
heads, `kv_heads`, each for as many heads of q in a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ..ir.graph import Graph, Node, Rewriter, Value, constant
from ..ir.types import DType, TensorType
from .lower.context import unfold

HEADS = (0, 2, 1, 3)
"""Heads side by side in a row, as a permutation that parts them."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Elementwise nodes in order over `source`: `source` itself, or the last one's result, goes on."""

    source: Value
    nodes: tuple[Node, ...] = ()

    @property
    def result(self) -> Value:
        return self.nodes[-1].output if self.nodes else self.source

    def operands(self) -> list[Value]:
        """Values from outside, in order of first use."""
        inside = {self.source, *(n.output for n in self.nodes)}
        return list(dict.fromkeys(v for n in self.nodes for v in n.inputs if v is not None and v not in inside))


@dataclass(frozen=True, slots=True)
class Form:
    """One attention: `scores` is what happens to the scaled product before the softmax, `weights` what after it."""

    batch: tuple[int, ...]
    kv_heads: int
    scale: float
    scores: Chain
    weights: Chain

    @staticmethod
    def plain(batch: tuple[int, ...], kv_heads: int, scale: float) -> Form:
        """Nothing but the scale between the products and the softmax."""
        nothing = Chain(Value("", TensorType(DType.F32, ())))
        return Form(batch, kv_heads, scale, nothing, nothing)

    @property
    def heads(self) -> int:
        return self.batch[-1]

    @property
    def outer(self) -> int:
        """Independent products of all heads."""
        return prod(self.batch[:-1])

    def operands(self) -> list[Value]:
        """What the chains read."""
        return list(dict.fromkeys([*self.scores.operands(), *self.weights.operands()]))


def read_form(node: Node) -> Form:
    """The form of a c2c.Attention node, on the values outside of its body."""
    inner = unfold(node)
    ops = [n.op for n in inner]
    first, softmax = ops.index("MatMul"), ops.index("Softmax")
    second = ops.index("MatMul", softmax)
    scale = float(node.attrs["scale"])
    scaled = first + (scale != 1.0)
    return Form(
        inner[first].output.type.dims[:-2], int(node.attrs["kv_heads"]), scale,
        Chain(inner[scaled].output, tuple(inner[scaled + 1 : softmax])),
        Chain(inner[softmax].output, tuple(inner[softmax + 1 : second])),
    )  # fmt: skip


def emit_attention(
    rw: Rewriter, form: Form, qkv: Iterable[Value], result: TensorType, *, origin: tuple[str, ...], hint: str
) -> Value:
    """A c2c.Attention node of that form."""
    inputs = [*qkv, *form.operands()]
    attrs = attributes(form, inputs, result)
    return rw.emit("c2c.Attention", inputs, [result], attrs, origin=origin, hint=hint).output


def attributes(form: Form, inputs: list[Value], result: TensorType) -> dict[str, Any]:
    """Those of a node over `inputs`: q, k, v and the operands of the form; `result`: type of what it gives."""
    return {"scale": form.scale, "kv_heads": form.kv_heads, "body": _body(form, inputs, result)}


def _body(form: Form, inputs: list[Value], result: TensorType) -> Graph:
    body = _Body()
    inner = {v: body.value(v.type) for v in inputs}
    q, k, v = (inner[x] for x in inputs[:3])
    q = body.parted(q, form, form.heads)
    k = body.parted(k, form, form.kv_heads)
    v = body.parted(v, form, form.kv_heads)
    rank = len(form.batch) + 2
    k = body.moved("Transpose", k, _swapped(k.type.dims), perm=(*range(rank - 2), rank - 1, rank - 2))
    scores = q.type.with_shape((*form.batch, q.type.dims[-2], k.type.dims[-1]))
    x = body.op("MatMul", [q, k], scores)
    if form.scale != 1.0:
        x = body.op("Mul", [x, constant(body.name(), np.asarray(form.scale, q.type.dtype.numpy))], scores)
    x = body.chain(form.scores, x, inner)
    x = body.op("Softmax", [x], scores, axis=-1)
    x = body.chain(form.weights, x, inner)
    x = body.op("MatMul", [x, v], scores.with_shape((*scores.dims[:-1], v.type.dims[-1])))
    x = body.joined(x, form) if result.rank == 3 else x
    return Graph("body", list(inner.values()), [x], body.nodes, [x.name])


def _swapped(dims: tuple[int, ...]) -> tuple[int, ...]:
    return (*dims[:-2], dims[-1], dims[-2])


@dataclass(eq=False, slots=True)
class _Body:
    nodes: list[Node] = field(default_factory=list)
    count: int = 0

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def value(self, type_: TensorType) -> Value:
        return Value(self.name(), type_)

    def op(self, op: str, inputs: list[Value | None], type_: TensorType, **attrs: Any) -> Value:
        node = Node(op, tuple(inputs), (self.value(type_),), attrs)
        self.nodes.append(node)
        return node.output

    def moved(self, op: str, x: Value, dims: tuple[int, ...], **attrs: Any) -> Value:
        return self.op(op, [x], x.type.with_shape(dims), **attrs)

    def shaped(self, x: Value, dims: tuple[int, ...], op: str = "Reshape") -> Value:
        if x.type.dims == dims:
            return x
        return self.op(op, [x, constant(self.name(), np.asarray(dims, np.int64))], x.type.with_shape(dims))

    def parted(self, x: Value, form: Form, heads: int) -> Value:
        """[*batch, rows, size] of q, k or v with so many heads."""
        outer = form.batch[:-1]
        if x.type.rank == 3:
            batch, rows, width = x.type.dims
            x = self.shaped(x, (batch, rows, heads, width // heads))
            x = self.moved("Transpose", x, (batch, heads, rows, width // heads), perm=HEADS)
            x = self.shaped(x, (*outer, heads, rows, width // heads))
        if heads == form.heads:
            return x
        rows, size = x.type.dims[-2:]
        x = self.shaped(x, (*outer, heads, 1, rows, size))
        x = self.shaped(x, (*outer, heads, form.heads // heads, rows, size), "Expand")
        return self.shaped(x, (*form.batch, rows, size))

    def joined(self, x: Value, form: Form) -> Value:
        rows, size = x.type.dims[-2:]
        x = self.shaped(x, (form.outer, form.heads, rows, size))
        x = self.moved("Transpose", x, (form.outer, rows, form.heads, size), perm=HEADS)
        return self.shaped(x, (form.outer, rows, form.heads * size))

    def chain(self, chain: Chain, x: Value, outer: dict[Value, Value]) -> Value:
        inner = {**outer, chain.source: x}
        for n in chain.nodes:
            inputs = [None if v is None else inner[v] for v in n.inputs]
            inner[n.output] = self.op(n.op, inputs, n.output.type, **n.attrs)
        return inner[chain.result]
