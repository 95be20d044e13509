"""Operands rearranged into the order in which a kernel reads them: at compile time where constant, else by a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import TypeAlias

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Expr, cast, const
from ...ir.types import DType
from .book_expand import pack_coded
from .context import KernelBuilder, Lowering, Site
from .product import multiply_add
from .tasks import pieces

Convert: TypeAlias = Callable[[KernelBuilder, Expr], Expr]


def gathered(ctx: Lowering, hint: str, source: Value, index: np.ndarray, dtype: DType | None = None) -> Value:
    """out[i] = Σ_j source[index[j, i]] as `dtype` (the source's own by default), with -1 for nothing.

    `index` is [terms, n] with n a multiple of the lanes; the source lies in plain layout.
    """
    dtype = dtype or source.type.dtype
    if source.data is not None:
        flat = np.append(source.data.reshape(-1), source.data.dtype.type(0))
        return pack_coded(ctx, hint, flat[index].astype(dtype.numpy).sum(0, dtype=dtype.numpy))
    terms, n = index.shape
    lanes = ctx.lanes(dtype)
    assert n % lanes == 0, "whole vectors"
    table = ctx.pack(f"{hint}.index", np.maximum(index, 0).reshape(-1).astype(np.int64))
    used = ctx.pack(f"{hint}.used", (index >= 0).reshape(-1).astype(dtype.numpy))
    out = ctx.scratch(hint, dtype, n)
    k = ctx.kernel()
    for i in k.loop("i", n, step=lanes):
        total: Expr = const(0, dtype, lanes)
        for j in range(terms):
            at, mask = (k.load(k.tensor(v), i + j * n, lanes) for v in (table, used))
            total = multiply_add(cast(k.load(k.tensor(source), at, lanes), dtype), mask, total)
        k.store(k.tensor(out), i, total)
    k.done("gather")
    return out


def to_whole_vectors(index: np.ndarray, lanes: int) -> np.ndarray:
    """[terms, n] with -1 appended until n is a multiple of `lanes`."""
    terms, n = index.shape
    return np.pad(index, ((0, 0), (0, -n % lanes)), constant_values=-1)


def bordered(
    ctx: Lowering,
    x: Value,
    dtype: DType,
    before: tuple[int, int, int],
    shape: tuple[int, int, int],
    spread: bool,
    convert: Convert | None = None,
) -> Value:
    """A call that copies x [N, C, 1 to 3 spatial axes] into zero borders: [N, C, *shape], `before` elements in.

    `convert` makes the new elements (of `dtype`) of the old ones; a cast by default. `spread`: worth all threads.
    """
    n, channels, *size = x.type.dims
    leading, lanes = 3 - len(size), ctx.lanes(dtype)
    depth, height, width = (*(1,) * leading, *size)
    out = ctx.scratch("bordered", dtype, n, channels, *shape[leading:])
    k = ctx.kernel()
    count = n * channels
    for plane in k.parallel("plane", count) if spread and ctx.threads > 1 and count > 1 else k.loop("plane", count):
        base = k.let(plane * prod(shape), "base")
        image, c = k.let(plane / channels, "n"), k.let(plane % channels, "c")
        for i, some in spans(k, prod(shape), lanes):
            k.store(k.tensor(out), base + i, const(0, dtype, some))
        for d in k.loop("d", depth):
            for h in k.loop("h", height):
                row = (d + before[0]) * (shape[1] * shape[2]) + (h + before[1]) * shape[2] + before[2]
                row = k.let(base + row, "row")
                for w, some in spans(k, width, lanes):
                    value = k.read(x, Site((image, c, *(d, h, w)[leading:]), -1, some))
                    k.store(k.tensor(out), row + w, convert(k, value) if convert else cast(value, dtype))
    k.done("border")
    return out


def spans(k: KernelBuilder, size: int, lanes: int) -> Iterator[tuple[Expr, int]]:
    """(first element, lanes) over `size` elements: whole vectors, then ever shorter ones."""
    whole = size // lanes
    if whole:
        for i in k.loop("i", whole):
            yield i * lanes, lanes
    for first, width in pieces(size - whole * lanes):
        yield const(whole * lanes + first), width
