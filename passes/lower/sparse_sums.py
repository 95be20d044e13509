"""The loop through a list (`sparse.py`): sums of a block of rows over the vectors of a tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.loops import Buffer, Expr, binary, bitcast, broadcast, cast, const, shuffle
from ...ir.types import DType
from .context import KernelBuilder
from .micro import splats_lanes
from .product import multiply_add
from .sparse import Lists
from .sparse_cost import sets_of


@dataclass(frozen=True, slots=True)
class Source:
    """Where lists read x: elements from column to column, from `base` on, which is the tile's first pixel in the first
    column of the chunk; at: of the tile's vectors in a column."""

    x: Buffer
    base: Expr
    step: int
    at: tuple[int, ...]


class Sums:
    """Lists as parameters of a kernel, and the loop through one of them."""

    def __init__(self, k: KernelBuilder, lists: Lists, bias: np.ndarray | None, blocks: int) -> None:
        self.k, self.lists, self.lanes = k, lists, k.ctx.lanes()
        parts = {"first": lists.first, "gaps": lists.gaps, "values": lists.values.reshape(-1)}
        if bias is not None:
            parts["bias"] = np.zeros(blocks * lists.height, bias.dtype)
            parts["bias"][: bias.size] = bias
        self.parts = {name: k.tensor(k.ctx.pack(name, data), name) for name, data in parts.items()}

    def bias(self, block: Expr) -> list[Expr]:
        """First sums of the rows of a block."""
        k, height, zero = self.k, self.lists.height, const(0, DType.F32, self.lanes)
        if "bias" not in self.parts:
            return [zero] * height
        rows = [k.load(self.parts["bias"], block * height + h) for h in range(height)]
        return [k.let(broadcast(row, self.lanes), "b") for row in rows]

    def run(self, source: Source, index: Expr, start: Sequence[Expr]) -> Buffer:
        """height × vectors accumulators after list `index`; start: the first value of each."""
        k, lanes, sums = self.k, self.lanes, len(start)
        height, step = self.lists.height, self.lists.step
        sets = min(step, sets_of(k.ctx.target, height, len(source.at)))
        acc = k.registers("acc", DType.F32, sets * sums, lanes)
        for i, value in enumerate(start):
            k.store(acc, i, value)
        for i in range(sums, sets * sums):
            k.store(acc, i, const(0, DType.F32, lanes))
        at = k.registers("at", DType.I64, 1, 1)
        k.store(at, 0, source.base)
        begin, end = (k.let(cast(k.load(self.parts["first"], index + i), DType.I64), "list") for i in (0, 1))
        for j in k.loop("j", end, begin, step):
            for i, gap in enumerate(self._gaps(j)):
                here = k.let(k.load(at, 0) + gap * source.step, "here")
                k.store(at, 0, here)
                self._products(source, here, list(self._weights(j + i)), acc, i % sets * sums)
        for i in range(sums) if sets > 1 else ():
            k.store(acc, i, k.load(acc, i) + k.load(acc, sums + i))
        return acc

    def _gaps(self, j: Expr) -> list[Expr]:
        """Those of the entries of a turn."""
        k, step, gaps = self.k, self.lists.step, self.parts["gaps"]
        bits = gaps.dtype.bits
        if step < 4 or step * bits > 64:
            return [cast(k.load(gaps, j + i), DType.I64) for i in range(step)]
        word = k.let(bitcast(k.load(gaps, j, step), DType.U32 if step * bits == 32 else DType.U64), "gaps")
        parts = [binary("shr", word, bits * i) if i else word for i in range(step)]
        return [cast(p & (1 << bits) - 1 if i < step - 1 else p, DType.I64) for i, p in enumerate(parts)]

    def _products(self, source: Source, here: Expr, weights: list[Expr], acc: Buffer, first: int) -> None:
        """One column of x times an entry's weights."""
        k = self.k
        xs = [k.load(source.x, here + at, self.lanes) for at in source.at]
        if len(weights) > 1:
            xs = [k.let(x, "x") for x in xs]
        for h, weight in enumerate(weights):
            for v, x in enumerate(xs):
                i = first + h * len(xs) + v
                k.store(acc, i, multiply_add(x, weight, k.load(acc, i)))

    def _weights(self, j: Expr) -> Iterator[Expr]:
        """The values of an entry, each in all lanes."""
        k, lanes, height, values = self.k, self.lanes, self.lists.height, self.parts["values"]
        if height == lanes and splats_lanes(k.ctx.target):
            vector = k.let(k.load(values, j * height, height), "w")
            yield from (k.let(shuffle(vector, None, (h,) * lanes), "w") for h in range(height))
            return
        for h in range(height):
            yield k.let(broadcast(k.load(values, j * height + h), lanes), "w")
