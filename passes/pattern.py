"""Small matchers that rule tables are written with; each returns None where the value has another form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isclose

import numpy as np

from ..ir.graph import Node, Value
from ..ir.types import DType
from .base import GraphRewriter

SCALAR_TOLERANCE = 1e-4
"""Relative tolerance for constants that exporters wrote out in decimal or float16 (1/sqrt 2, 1/6, 0.044715)."""


def made_by(value: Value | None, *ops: str) -> Node | None:
    """The producer of a value when it is its first result and one of `ops`."""
    if value is None or value.producer is None or value.producer.output is not value:
        return None
    return value.producer if value.producer.op in ops else None


def scalar(value: Value | None) -> float | None:
    """The number that a one-element constant holds."""
    if value is None or value.data is None or value.data.size != 1 or value.type.dtype is DType.STRING:
        return None
    return float(value.data.reshape(-1)[0])


def near(a: float | None, b: float) -> bool:
    return a is not None and isclose(a, b, rel_tol=SCALAR_TOLERANCE)


def required(node: Node, index: int = 0) -> Value:
    """An input that the operator requires."""
    value = node.inputs[index]
    assert value is not None, node.where
    return value


def either_order(node: Node) -> Iterator[tuple[Value, Value]]:
    """Both operands of a commutative binary node, in both orders."""
    a, b = required(node, 0), required(node, 1)
    yield a, b
    yield b, a


@dataclass(frozen=True, slots=True)
class Affine:
    """scale * x + shift, with constant numbers."""

    x: Value
    scale: float
    shift: float


def affine(value: Value, readers: GraphRewriter | None = None) -> Affine:
    """A value as scale * x + shift, through additions and multiplications by one-element constants.

    Only steps that keep the shape count, and, given `readers`, only results with one reader.
    """
    scale, shift = 1.0, 0.0
    while (node := made_by(value, "Add", "Sub", "Mul", "Div", "Neg")) is not None:
        if readers is not None and not readers.has_one_reader(value):
            break
        step = _affine_step(node)
        if step is None or step.x.type.shape != value.type.shape:
            break
        value, scale, shift = step.x, scale * step.scale, scale * step.shift + shift
    return Affine(value, scale, shift)


def _affine_step(node: Node) -> Affine | None:
    a = required(node)
    if node.op == "Neg":
        return Affine(a, -1.0, 0.0)
    b = required(node, 1)
    x, y = scalar(a), scalar(b)
    if y is not None and not a.is_constant:
        match node.op:
            case "Add":
                return Affine(a, 1.0, y)
            case "Sub":
                return Affine(a, 1.0, -y)
            case "Mul":
                return Affine(a, y, 0.0)
            case "Div" if y:
                return Affine(a, 1.0 / y, 0.0)
    elif x is not None and not b.is_constant:
        match node.op:
            case "Add":
                return Affine(b, 1.0, x)
            case "Sub":
                return Affine(b, -1.0, x)
            case "Mul":
                return Affine(b, x, 0.0)
    return None


@dataclass(frozen=True, slots=True)
class Product:
    """scale * product of factors."""

    factors: tuple[Value, ...]
    scale: float


def product(rw: GraphRewriter, node: Node) -> Product:
    """A Mul or Div node as a product, through inner ones with one reader and one-element constants."""
    factors: list[Value] = []
    scale = 1.0
    todo: list[Value] = [node.output]
    while todo:
        value = todo.pop()
        inner = made_by(value, "Mul", "Div")
        if (number := scalar(value)) is not None:
            scale *= number
        elif inner is None or not (value is node.output or rw.has_one_reader(value)):
            factors.append(value)
        elif inner.op == "Mul":
            todo += [required(inner, 1), required(inner, 0)]
        elif divisor := scalar(required(inner, 1)):
            scale /= divisor
            todo.append(required(inner, 0))
        else:
            factors.append(value)
    return Product(tuple(factors), scale)


def pair(factors: tuple[Value, ...]) -> Iterator[tuple[Value, Value]]:
    """Both orders of exactly two factors."""
    if len(factors) == 2:
        yield factors
        yield factors[1], factors[0]


def channel_vector(value: Value | None, rank: int, axis: int, size: int) -> np.ndarray | None:
    """A constant that varies along `axis` of a rank-`rank` result at most, as [size] float64."""
    if value is None or value.data is None or not value.type.dtype.is_float or value.type.rank > rank:
        return None
    axis %= rank
    dims = (1,) * (rank - value.type.rank) + value.type.dims
    if any(d != 1 for i, d in enumerate(dims) if i != axis) or dims[axis] not in (1, size):
        return None
    return np.broadcast_to(value.data.reshape(-1).astype(np.float64), (size,))


def reduced_axes(node: Node) -> tuple[int, ...] | None:
    """Axes of a Reduce* node, sorted and counted from 0; None where they are not constant."""
    rank = required(node).type.rank
    if node.input(1) is None:
        return () if node.attrs.get("noop_with_empty_axes", 0) else tuple(range(rank))
    axes = node.constant(1)
    if axes is None:
        return None
    if axes.size == 0 and not node.attrs.get("noop_with_empty_axes", 0):
        return tuple(range(rank))
    return tuple(sorted(int(a) % rank for a in axes.reshape(-1)))


def int_list(values: object) -> tuple[int, ...]:
    """An attribute that holds integers, as a tuple."""
    return tuple(int(v) for v in np.asarray(values).reshape(-1))
