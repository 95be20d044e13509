"""Products of strided matrices, and what their kernels share: sums, coordinates, whole and partial tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Expr, cast, const, fma, shuffle
from ...ir.types import DType
from .context import INDEX, KernelBuilder
from .tasks import guarded, pieces

Finish: TypeAlias = Callable[[KernelBuilder, tuple[Expr, ...], int, Expr], None]
"""Stores a vector of results: (kernel, coordinates (*batch, m, n) of lane 0, lanes along n, value)."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix in a value's memory: element strides of the product's batch dimensions, of its rows and its columns."""

    value: Value
    batch: tuple[int, ...]
    row: int
    col: int


@dataclass(frozen=True, slots=True)
class Product:
    """One (batched) product. `acc`: type of the sums, to which elements of `a` and `b` are converted.

    `start`: a constant with one element a column, padded to whole vectors, from which the sums begin.
    """

    batch: tuple[int, ...]
    m: int
    n: int
    k: int
    a: Matrix
    b: Matrix
    acc: DType
    finish: Finish
    start: Value | None = None

    @property
    def macs(self) -> int:
        return prod(self.batch) * self.m * self.n * self.k


def constant_matrix(p: Product) -> np.ndarray:
    """The second factor [..., K, N], a constant, as a view of its data where that lies as it says."""
    data, (row, col) = p.b.value.data, (p.b.row, p.b.col)
    assert data is not None
    if not p.batch and data.ndim == 2 and sorted((row, col)) == [1, data.shape[1]] and 1 not in data.shape:
        return data if col == 1 else data.T
    data = np.ascontiguousarray(data)
    dims = [d if s else 1 for d, s in zip(p.batch, p.b.batch, strict=True)]
    steps = [s * data.itemsize for s in (*p.b.batch, row, col)]
    return np.lib.stride_tricks.as_strided(data, (*dims, p.k, p.n), steps)


def multiply_add(a: Expr, b: Expr, c: Expr) -> Expr:
    """a·b + c, fused where the type is a float's."""
    return fma(a, b, c) if c.dtype.is_float else a * b + c


def tree_sum(values: list[Expr]) -> Expr:
    """Sum as a balanced tree."""
    while len(values) > 1:
        values = [values[i] + values[i + 1] if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return values[0]


def is_index(a: Expr, b: int) -> Expr:
    return (a < b + 1) & (a >= b)


def unravel(index: Expr, dims: tuple[int, ...]) -> tuple[Expr, ...]:
    """Row-major coordinates of a linear index."""
    coords: list[Expr] = []
    for position, d in enumerate(reversed(dims)):
        last = position == len(dims) - 1
        coords.append(INDEX if d == 1 else index if last else index % d)
        index = index / d if d > 1 else index
    return tuple(reversed(coords))


def offset_at(steps: tuple[int, ...], coords: tuple[Expr, ...]) -> Expr:
    total: Expr = INDEX
    for c, s in zip(coords, steps, strict=True):
        total = total + c * s
    return total


def whole_and_rest(k: KernelBuilder, index: Expr, size: int, step: int) -> Iterator[tuple[int, Iterator[None]]]:
    """(extent, guard) of the whole tiles and of the last, partial one."""
    whole, rest = size // step, size % step
    if whole:
        yield step, guarded(k, index < whole, rest > 0)
    if rest:
        yield rest, guarded(k, index >= whole, whole > 0)


def stacked(p: Product, value: Value, size: int, used: list[int]) -> Matrix:
    """Packed matrices of `size` elements, one for each index of the batch dimensions that are used."""
    steps, step = [], size
    for dim, use in zip(reversed(p.batch), reversed(used), strict=True):
        steps.append(step if use else 0)
        step *= dim if use else 1
    return Matrix(value, tuple(reversed(steps)), 0, 0)


def begin_sums(k: KernelBuilder, p: Product, column: Expr, lanes: int) -> Expr:
    """What the sums of `lanes` columns begin from."""
    if p.start is None:
        return const(0, p.acc, lanes)
    return cast(k.load(k.tensor(p.start), column, lanes), p.acc)


def finish_lanes(k: KernelBuilder, p: Product, coords: tuple[Expr, ...], valid: int, value: Expr) -> None:
    """Store the first `valid` lanes."""
    if valid == value.lanes:
        p.finish(k, coords, valid, value)
        return
    value = k.let(value, "y")
    for first, width in pieces(valid):
        part = shuffle(value, None, tuple(range(first, first + width)))
        p.finish(k, (*coords[:-1], coords[-1] + first), width, part)
