"""Few rows of floats times weights of 8 or 4 bits in blocks, expanded in registers (MatMulNBits).

y[n] = Σ_b scale[b, n] (Σ_k x[k] q[k, n] - zero[b, n] Σ_k x[k]), k in block b: sums of x are taken once for all columns.
Levels lie in panels `[N / (V·lanes)][K][V·lanes]`; of 4 bits two rows of k share a byte, the first one in its low half.
"""

from __future__ import annotations

from math import prod

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, binary, broadcast, cast, const, fma, reduce, shuffle
from ...ir.types import DType
from ..block_weights import BlockWeights
from .context import KernelBuilder, Lowering, Site
from .conv_kernel import unravel
from .packing import spans
from .tasks import guarded, pieces, tasks

ROWS = 2
"""Rows that are worked on at once."""


def even(w: BlockWeights) -> BlockWeights:
    """With another row of level zero, whose x is taken to be zero: the last block is no longer than it was."""
    return BlockWeights(np.pad(w.levels, ((0, 1), (0, 0))), w.scales, w.zeros, w.size)


class BlockWriter:
    """Products of floats; `packed_levels`, `prepare` and `tile` are what other forms do otherwise."""

    def __init__(self, ctx: Lowering, x: Value, w: BlockWeights) -> None:
        self.ctx, self.x, self.w = ctx, x, w
        self.length, self.rows = x.type.dims[-1], prod(x.type.dims[:-1])
        self.n, self.lanes = w.levels.shape[1], ctx.lanes(DType.F32)
        self.total = -(-self.n // self.lanes)
        self.vectors = min(self.total, 8 if ctx.target.registers >= 32 else 4)
        self.narrow = int(w.levels.max(initial=0)) < 16
        self.single = bool(np.all(w.zeros == w.zeros.flat[0]))
        self.levels = ctx.pack("levels", self.packed_levels())
        self.scales = ctx.pack("scales", self._panels(w.scales, self.total))
        self.zeros = None if self.single else ctx.pack("zeros", self._panels(w.zeros, self.total))

    @property
    def together(self) -> int:
        """Rows of levels that share bytes."""
        return 2 if self.narrow else 1

    def packed_levels(self) -> np.ndarray:
        joined = self.w.levels[::2] | self.w.levels[1::2] << 4 if self.narrow else self.w.levels
        return self._panels(joined, self.total)

    def _panels(self, rows: np.ndarray, total: int) -> np.ndarray:
        whole = np.zeros((len(rows), total * self.lanes), rows.dtype)
        whole[:, : self.n] = rows
        width = self.vectors * self.lanes
        return np.concatenate([whole[:, i : i + width].reshape(-1) for i in range(0, whole.shape[1], width)])

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Runs (blocks, length) of equal blocks along k."""
        whole, rest = divmod(self.length, self.w.size)
        return [(n, size) for n, size in ((whole, self.w.size), (1, rest)) if n and size]

    def write(self) -> None:
        self.prepare()
        k, (panels, rest) = self.ctx.kernel(), divmod(self.total, self.vectors)
        count = panels + (rest > 0)
        for panel in tasks(k, self.rows * self.length * self.n, count):
            for vectors, cond in ((self.vectors, panel < panels), (rest, panel >= panels)):
                if vectors and (vectors == rest or panels):
                    for _ in guarded(k, cond, bool(rest and panels)):
                        for row in range(0, self.rows, ROWS):
                            self.tile(k, row, min(ROWS, self.rows - row), panel, vectors)
        k.done("block_product")

    def prepare(self) -> None:
        """Σ x over each block, [rows, blocks]."""
        blocks = sum(n for n, _ in self.blocks)
        out, lanes = self.ctx.scratch("sums", DType.F32, self.rows * blocks), self.lanes
        self.sums = out
        k = self.ctx.kernel()
        acc = k.registers("acc", DType.F32, 1, 1)
        for row in k.loop("row", self.rows):
            first = 0
            for count, size in self.blocks:
                for b in k.loop("b", first + count, first):
                    k.store(acc, 0, const(0.0, DType.F32))
                    for i, width in spans(k, size, lanes):
                        at = row * self.length + b * self.w.size + i
                        part = k.load(k.tensor(self.x), at, width)
                        k.store(acc, 0, k.load(acc, 0) + (reduce("add", part) if width > 1 else part))
                    k.store(k.tensor(out), row * blocks + b, k.load(acc, 0))
                first += count
        k.done("block_sums")

    def tile(self, k: KernelBuilder, row: int, rows: int, panel: Expr, vectors: int) -> None:
        """A tile of rows over the vectors of a panel."""
        lanes, width = self.lanes, vectors * self.lanes
        blocks = sum(n for n, _ in self.blocks)
        step = self.vectors * lanes
        acc = k.registers("acc", DType.F32, rows * vectors, lanes)
        part = k.registers("part", DType.F32, rows * vectors, lanes)
        for i in range(rows * vectors):
            k.store(acc, i, const(0.0, DType.F32, lanes))
        levels = k.let(panel * (step * (len(self.w.levels) // self.together)), "q")
        facts = k.let(panel * (step * blocks), "s")
        first = 0
        for count, size in self.blocks:
            for b in k.loop("b", first + count, first):
                for i in range(rows * vectors):
                    k.store(part, i, const(0.0, DType.F32, lanes))
                x = [k.let(b * self.w.size + (row + r) * self.length, "x") for r in range(rows)]
                q = k.let(levels + b * (self.w.size // self.together * width), "q")
                whole = size // self.together
                for pair in k.loop("k", whole):
                    self._steps(k, x, pair, q, part, vectors, self.together)
                if size % self.together:
                    self._steps(k, x, const(whole), q, part, vectors, 1)
                self._add_block(k, (row, rows), b, facts + b * width, (acc, part))
            first += count
        for r in range(rows):
            for v in range(vectors):
                value = k.load(acc, r * vectors + v)
                self.finish(k, row + r, panel * step + v * lanes, v == vectors - 1, value)

    def _steps(self, k: KernelBuilder, x: list[Expr], i: Expr, q: Expr, part: Buffer, vectors: int, count: int) -> None:
        """`count` steps of k, whose levels share bytes."""
        lanes = self.lanes
        factors = [
            [k.let(broadcast(k.load(k.tensor(self.x), at + i * self.together + j), lanes), "x") for at in x]
            for j in range(count)
        ]
        for v in range(vectors):
            raw = k.load(k.tensor(self.levels), q + i * (vectors * lanes) + v * lanes, lanes)
            word = k.let(cast(raw, DType.I32), "q")
            for j in range(count):
                level = word
                if self.narrow:
                    fifteen, four = const(15, DType.I32, lanes), const(4, DType.I32, lanes)
                    level = binary("shr", word, four) if j else binary("and", word, fifteen)
                value = k.let(cast(level, DType.F32), "w")
                for r in range(len(x)):
                    at = r * vectors + v
                    k.store(part, at, fma(factors[j][r], value, k.load(part, at)))

    def _add_block(
        self, k: KernelBuilder, rows: tuple[int, int], b: Expr, at: Expr, sides: tuple[Buffer, Buffer]
    ) -> None:
        """acc += scale (part - zero Σ x)."""
        (row, count), (acc, part), lanes = rows, sides, self.lanes
        blocks, vectors = sum(n for n, _ in self.blocks), acc.size // rows[1]
        totals = [k.let(k.load(k.tensor(self.sums), (row + r) * blocks + b), "t") for r in range(count)]
        for v in range(vectors):
            scale = k.let(k.load(k.tensor(self.scales), at + v * lanes, lanes), "scale")
            zero: Expr = const(float(self.w.zeros.flat[0]), DType.F32, lanes)
            if self.zeros is not None:
                zero = k.let(cast(k.load(k.tensor(self.zeros), at + v * lanes, lanes), DType.F32), "zero")
            for r in range(count):
                i = r * vectors + v
                centred = k.load(part, i) - zero * broadcast(totals[r], lanes)
                k.store(acc, i, fma(scale, centred, k.load(acc, i)))

    def finish(self, k: KernelBuilder, row: int, column: Expr, last: bool, value: Expr) -> None:
        ctx, lanes, ragged = self.ctx, self.lanes, self.n % self.lanes
        outer = unravel(k, const(row), self.ctx.node.output.type.dims[:-1])

        def write(at: Expr, width: int, result: Expr) -> None:
            site, bias = Site((*outer, at), -1, width), ctx.node.input(2)
            result = result if bias is None else result + k.read(bias, site)
            k.write(ctx.output, site, ctx.epilogue(k, site, result))

        maybe, value = bool(ragged) and last, k.let(value, "y")
        if not maybe or self.n >= lanes:
            for _ in guarded(k, column <= self.n - lanes, maybe):
                write(column, lanes, value)
        for _ in guarded(k, column > self.n - lanes, self.n >= lanes) if maybe else ():
            for skip, width in pieces(ragged):
                part = shuffle(value, None, tuple(range(skip, skip + width)))
                write(const(self.n - ragged + skip), width, part)
