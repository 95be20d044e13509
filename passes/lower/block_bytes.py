"""Few rows times weights of 8 or 4 bits in blocks, with the rows rounded to bytes block by block.

y[n] = Σ_b s[b] scale[b, n] (Σ_k l[k] q[k, n] - zero[b, n] Σ_k l[k]), k in block b, x[k] rounded to s[b] l[k] with s[b]
the largest magnitude in the block over 127. What stands in brackets is a whole number, exact on every target. Levels q
lie in panels `[N / (V·lanes)][K / (4·f)][V·lanes][4]`; of 4 bits two fours of k share bytes, the first in low halves.
"""

from __future__ import annotations

from math import prod

import numpy as np

from ...codegen.target import Target
from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, binary, bitcast, broadcast, cast, const, dot, maximum, reduce, shuffle, unary
from ...ir.program import Rounded
from ...ir.types import DType
from ..block_weights import BlockWeights, read_block_weights
from ..rounding import SIGNED_STEPS, block_errors
from .block_product import ROWS, BlockWriter, even
from .books import stream_cycles
from .byte_books import FOURS, dot_cycles
from .context import KernelBuilder, Lowering
from .grid.block_product import multiply_block_weights
from .packing import spans
from .panels import pack_panels
from .schedule import Schedule, choose

SMALLEST = 1e-30
"""Blocks of smaller elements come out as zeros."""
BLOCK_CYCLES = 3.0
"""To scale and add a block's sums, a vector."""
WIDEN_CYCLES = 2.0
"""To make a vector of floats of levels."""


def lower_block_product(ctx: Lowering) -> None:
    """MatMul or Gemm of x [..., K] and the weights that the head of its group dequantises."""
    weights = read_block_weights(ctx.head[0], ctx.node)
    x = ctx.node.inputs[0]
    assert weights is not None and x is not None
    if takes_bytes(ctx, x, weights):
        ByteBlockWriter(ctx, x, weights).write()
    elif ctx.target.device is not None and ctx.target.device.shares:
        multiply_block_weights(ctx, x, weights)
    else:
        BlockWriter(ctx, x, even(weights) if weights.levels.shape[0] % 2 else weights).write()


def takes_bytes(ctx: Lowering, x: Value, w: BlockWeights) -> bool:
    """Whether rows may be rounded, and that is expected to be faster."""
    narrow = int(w.levels.max(initial=0)) < 16
    length, columns = w.levels.shape
    if ctx.activations != "int8" or length % _step(narrow) or w.size % _step(narrow):
        return False
    target, rows = ctx.target, prod(x.type.dims[:-1])
    vectors, passes = -(-columns // ctx.lanes()), -(-rows // ROWS)
    streamed = stream_cycles(target, length * vectors * ctx.lanes() // (2 if narrow else 1))
    floats = length * vectors * (WIDEN_CYCLES * passes + rows / target.fma_per_cycle)
    expand = 0.75 if narrow else 0.25
    steps = length // FOURS * (passes * expand + rows * dot_cycles(target))
    whole = vectors * (steps + -(-length // w.size) * rows * BLOCK_CYCLES)
    candidates = [
        Schedule("f32", max(floats, streamed), False),
        Schedule("int8", max(whole, streamed) + 4 * rows * -(-length // ctx.lanes()), True),
    ]
    problem = f"{rows}x{columns}x{length} blocks of {w.size} bits {4 if narrow else 8} threads {ctx.threads}"
    return choose(ctx, "activations", problem, candidates)


def _step(narrow: bool) -> int:
    """Rows of weights whose levels lie in the same bytes."""
    return FOURS * (2 if narrow else 1)


def _weight_form(target: Target) -> DType:
    return DType.U8 if target.arch == "x86_64" or target.byte_levels is DType.U8 else DType.I8


class ByteBlockWriter(BlockWriter):
    """Products of bytes in the place of products of floats."""

    def __init__(self, ctx: Lowering, x: Value, w: BlockWeights) -> None:
        self.form = _weight_form(ctx.target)
        self.offset = 128 if self.form is DType.I8 and int(w.levels.max(initial=0)) >= 16 else 0
        super().__init__(ctx, x, w)
        expected, largest = block_errors(w.levels, w.scales, w.zeros, w.size)
        ctx.rounded.append(Rounded(ctx.node.origin, "int8", self.length, self.n, 0.0, expected, largest))

    @property
    def together(self) -> int:
        return 2 if self.narrow else 1

    def packed_levels(self) -> np.ndarray:
        levels = (self.w.levels.astype(np.int16) - self.offset).astype(np.uint8)
        padded = np.pad(levels, ((0, 0), (0, self.total * self.lanes - self.n)))
        fours = padded.reshape(-1, self.together, FOURS, padded.shape[1])
        joined = fours[:, 0] | fours[:, 1] << 4 if self.narrow else fours[:, 0]
        groups = np.ascontiguousarray(joined.transpose(0, 2, 1)).reshape(len(joined), -1)
        packed = pack_panels(groups, self.vectors * self.lanes * FOURS, self.lanes * FOURS)
        return packed if self.narrow else packed.view(self.form.numpy)

    def prepare(self) -> None:
        """The rows' levels, and each block's scale and sum of levels, [rows, blocks]."""
        ctx, count = self.ctx, sum(n for n, _ in self.blocks)
        self.level = ctx.scratch("bytes", DType.I8, self.rows * self.length)
        self.scale = ctx.scratch("scales", DType.F32, self.rows * count)
        self.sum = ctx.scratch("sums", DType.I32, self.rows * count)
        k = ctx.kernel()
        for row in k.loop("row", self.rows):
            first = 0
            for blocks, size in self.blocks:
                for b in k.loop("b", first + blocks, first):
                    self._round(k, row * self.length + b * self.w.size, row * count + b, size)
                first += blocks
        k.done("block_levels")

    def _round(self, k: KernelBuilder, at: Expr, block: Expr, size: int) -> None:
        at, block = k.let(at, "at"), k.let(block, "block")
        x, peak, total = k.tensor(self.x), k.registers("peak", DType.F32, 1, 1), k.registers("total", DType.I32, 1, 1)
        k.store(peak, 0, const(SMALLEST, DType.F32))
        k.store(total, 0, const(0, DType.I32))
        for i, width in spans(k, size, self.lanes):
            part = unary("abs", k.load(x, at + i, width))
            k.store(peak, 0, maximum(k.load(peak, 0), reduce("max", part) if width > 1 else part))
        largest = k.let(k.load(peak, 0), "largest")
        factor = k.let(const(float(SIGNED_STEPS), DType.F32) / largest, "factor")
        for i, width in spans(k, size, self.lanes):
            level = cast(unary("round", k.load(x, at + i, width) * broadcast(factor, width)), DType.I32)
            level = k.let(level, "level")
            k.store(k.tensor(self.level), at + i, cast(level, DType.I8))
            k.store(total, 0, k.load(total, 0) + (reduce("add", level) if width > 1 else level))
        k.store(k.tensor(self.scale), block, largest * float(np.float32(1) / np.float32(SIGNED_STEPS)))
        k.store(k.tensor(self.sum), block, k.load(total, 0))

    def tile(self, k: KernelBuilder, row: int, rows: int, panel: Expr, vectors: int) -> None:
        lanes, width = self.lanes, vectors * self.lanes
        count = sum(n for n, _ in self.blocks)
        acc = k.registers("acc", DType.F32, rows * vectors, lanes)
        part = k.registers("part", DType.I32, rows * vectors, lanes)
        for i in range(rows * vectors):
            k.store(acc, i, const(0.0, DType.F32, lanes))
        per_panel = self.vectors * lanes
        levels = k.let(panel * (per_panel * (self.length // self.together)), "q")
        facts = k.let(panel * (per_panel * count), "s")
        first = 0
        for blocks, size in self.blocks:
            for b in k.loop("b", first + blocks, first):
                for i in range(rows * vectors):
                    k.store(part, i, const(0, DType.I32, lanes))
                x = [k.let(b * self.w.size + (row + r) * self.length, "x") for r in range(rows)]
                q = k.let(levels + b * (self.w.size // self.together * width), "q")
                for g in k.loop("k", size // (FOURS * self.together)):
                    self._fours(k, x, g, q, part, vectors)
                self._add(k, (row, rows), b, facts + b * width, (acc, part))
            first += blocks
        for r in range(rows):
            for v in range(vectors):
                value = k.load(acc, r * vectors + v)
                self.finish(k, row + r, panel * per_panel + v * lanes, v == vectors - 1, value)

    def _fours(self, k: KernelBuilder, x: list[Expr], g: Expr, q: Expr, part: Buffer, vectors: int) -> None:
        """The products of one load of levels a vector."""
        width, fours = self.lanes * FOURS, tuple(range(FOURS)) * self.lanes
        start = k.let(q + g * (vectors * width), "at")
        levels = [k.let(k.load(k.tensor(self.levels), start + v * width, width), "q") for v in range(vectors)]
        for i in range(self.together):
            at = g * (FOURS * self.together) + i * FOURS
            factors = [k.let(shuffle(k.load(k.tensor(self.level), row + at, FOURS), None, fours), "x") for row in x]
            for v, value in enumerate(levels):
                weights = k.let(self._weights(value, i), "w")
                for r, factor in enumerate(factors):
                    to = r * vectors + v
                    k.store(part, to, dot(factor, weights, k.load(part, to)))

    def _weights(self, value: Expr, i: int) -> Expr:
        if not self.narrow:
            return value
        if i:
            value = bitcast(binary("shr", bitcast(value, DType.U32), 4), DType.U8)
        return bitcast(binary("and", value, const(15, DType.U8, value.lanes)), self.form)

    def _add(self, k: KernelBuilder, rows: tuple[int, int], b: Expr, at: Expr, sides: tuple[Buffer, Buffer]) -> None:
        """acc += s scale (part - zero Σ l), each operation rounded by itself."""
        (row, count), (acc, part), lanes = rows, sides, self.lanes
        blocks, vectors = sum(n for n, _ in self.blocks), acc.size // rows[1]
        places = [(row + r) * blocks + b for r in range(count)]
        totals = [k.let(k.load(k.tensor(self.sum), i), "total") for i in places]
        own = [k.let(broadcast(k.load(k.tensor(self.scale), i), lanes), "own") for i in places]
        for v in range(vectors):
            scale = k.let(k.load(k.tensor(self.scales), at + v * lanes, lanes), "scale")
            zero: Expr = const(int(self.w.zeros.flat[0]) - self.offset, DType.I32, lanes)
            if self.zeros is not None:
                zero = cast(k.load(k.tensor(self.zeros), at + v * lanes, lanes), DType.I32) - self.offset
                zero = k.let(zero, "zero")
            for r in range(count):
                i = r * vectors + v
                whole = k.load(part, i) - zero * broadcast(totals[r], lanes)
                k.store(acc, i, k.load(acc, i) + cast(whole, DType.F32) * (scale * own[r]))
