"""Few rows of floats times weights of 8 or 4 bits in blocks on a grid (MatMulNBits): a thread expands a weight when it
reads it. Levels lie [K][N], of 4 bits two rows of k in a byte, the first in its low half."""

from __future__ import annotations

import numpy as np

from ....ir.graph import Value
from ....ir.loops import Expr, binary, cast, const
from ....ir.types import DType
from ...block_weights import BlockWeights
from ..context import KernelBuilder, Lowering, Site
from ..product import unravel
from .multiply import multiply_on_grid
from .rows import FEW, multiply_rows
from .tiles import Factor, GridProduct


def multiply_block_weights(ctx: Lowering, x: Value, w: BlockWeights) -> None:
    """Append the kernel of x [..., K] by the weights to the node's calls."""
    (depth, n), outer = w.levels.shape, ctx.node.output.type.dims[:-1]
    m = int(np.prod(outer))

    def row(k: KernelBuilder, batch: Expr, at: Expr, place: Expr) -> Expr:
        return k.load(k.tensor(x, "x"), place * depth + at)

    def finish(k: KernelBuilder, batch: Expr, row: Expr, column: Expr, value: Expr) -> None:
        site, bias = Site((*unravel(row, outer), column)), ctx.node.input(2)
        value = value if bias is None else value + k.read(bias, site)
        k.write(ctx.output, site, ctx.epilogue(k, site, value))

    product = GridProduct(1, m, n, depth, Factor(row, True), _expanded(ctx, w), DType.F32, None, finish)
    (multiply_rows if m < FEW else multiply_on_grid)(ctx, product, "block_product")


def _expanded(ctx: Lowering, w: BlockWeights) -> Factor:
    """(level - zero) · scale of each weight."""
    n, narrow = w.levels.shape[1], int(w.levels.max(initial=0)) < 16
    rows = np.pad(w.levels, ((0, len(w.levels) % 2), (0, 0))) if narrow else w.levels
    levels = ctx.pack("levels", np.ascontiguousarray(rows[::2] | rows[1::2] << 4 if narrow else rows))
    scales = ctx.pack("scales", np.ascontiguousarray(w.scales))
    single = bool(np.all(w.zeros == w.zeros.flat[0]))
    zeros = None if single else ctx.pack("zeros", np.ascontiguousarray(w.zeros))

    def read(k: KernelBuilder, batch: Expr, depth: Expr, column: Expr) -> Expr:
        if narrow:
            pair = cast(k.load(k.tensor(levels, "levels"), depth / 2 * n + column), DType.I32)
            level = binary("shr", pair, cast(depth % 2 * 4, DType.I32)) & 15
        else:
            level = cast(k.load(k.tensor(levels, "levels"), depth * n + column), DType.I32)
        block = k.let(depth / w.size * n + column, "block")
        zero: Expr = const(int(w.zeros.flat[0]), DType.I32)
        if zeros is not None:
            zero = cast(k.load(k.tensor(zeros, "zeros"), block), DType.I32)
        return cast(level - zero, DType.F32) * k.load(k.tensor(scales, "scales"), block)

    return Factor(read, False)
