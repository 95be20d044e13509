"""c2c.WinogradConv on a grid: a thread transforms a tile of one channel, n² products, a thread a tile of results; with
`--precision f16` transforms are in f16 where the device computes in it.

V [n²][C][tiles] and U [n²][C][K] give M [n²][K][tiles], or [n²][tiles][K] where tiles are too few for vectors;
n = m + 2.
"""

from __future__ import annotations

import numpy as np

from ....ir.graph import Value
from ....ir.loops import Expr, cast, const, maximum, minimum, select
from ....ir.types import DType
from ...winograd_math import input_matrix, output_matrix, transform_weights
from ..context import KernelBuilder, Lowering, lowers_on_grid
from ..product import Matrix, Product, unravel
from ..winograd_transform import apply
from .conv_shape import ConvShape
from .halves import computes_in_halves
from .product import multiply_matrices

FEW_VECTORS = 4
"""Of tiles: with fewer, vectors lie along the output channels."""


@lowers_on_grid("c2c.WinogradConv")
def lower_winograd(ctx: Lowering) -> None:
    """Three kernels: both transforms and the products."""
    x, w = ctx.node.inputs[:2]
    assert x is not None and w is not None
    _Winograd(ctx, x, w).write()


class _Winograd(ConvShape):
    """F(m×m, 3×3) over all images."""

    def __init__(self, ctx: Lowering, x: Value, w: Value) -> None:
        super().__init__(ctx, x, w)
        self.m = int(ctx.node.attrs["m"])
        self.n = self.m + 2
        _, h, wide = self.outs
        self.near = DType.F16 if self.dtype is DType.F16 and computes_in_halves(ctx) else DType.F32
        self.grid = (self.batch, -(-h // self.m), -(-wide // self.m))

    @property
    def tiles(self) -> int:
        images, rows, columns = self.grid
        return images * rows * columns

    def write(self) -> None:
        positions, tiles = self.n**2, self.tiles
        v = self.ctx.scratch("v", self.near, positions, self.channels_in, tiles)
        sums = self.ctx.scratch("m", self.near, positions, self.channels_out, tiles)
        device = self.ctx.target.device
        assert device is not None
        by_channels = tiles < FEW_VECTORS * device.lanes and device.lanes > 1
        self._inputs(v)
        self._products(v, sums, by_channels)
        steps = (1, self.channels_out) if by_channels else (tiles, 1)
        self._outputs(sums, steps)

    def _inputs(self, v: Value) -> None:
        """Bᵀ d B of every tile, zeros beyond the image."""
        k, n = self.ctx.kernel(), self.n
        _, h, w = self.window.axes
        for c in k.loop("channel", self.channels_in):
            for t in k.loop("tile", self.tiles):
                image, row, column = unravel(t, self.grid)
                rows = [k.let(row * self.m + (i - h.pad), "row") for i in range(n)]
                columns = [k.let(column * self.m + (j - w.pad), "column") for j in range(n)]
                known = [[k.let((p >= 0) & (p < a.size), "inside") for p in ps] for ps, a in ((rows, h), (columns, w))]
                base = k.let((image * self.channels_in + c) * (h.size * w.size), "base")
                lines = [k.let(base + minimum(maximum(r, 0), h.size - 1) * w.size, "line") for r in rows]
                places = [k.let(minimum(maximum(p, 0), w.size - 1), "place") for p in columns]
                source, half = k.tensor(self.x, "x"), []
                for j in range(n):
                    read = [cast(k.load(source, line + places[j]), self.near) for line in lines]
                    values = [
                        k.let(select(known[0][i] & known[1][j], x, const(0, self.near))) for i, x in enumerate(read)
                    ]
                    half.append(apply(k, input_matrix(self.m), values))
                for i in range(n):
                    for j, value in enumerate(apply(k, input_matrix(self.m), [half[j][i] for j in range(n)])):
                        at = (i * n + j) * (self.channels_in * self.tiles)
                        k.store(k.tensor(v, "v"), c * self.tiles + t + at, value)
        k.done("winograd_input")

    def _products(self, v: Value, sums: Value, by_channels: bool) -> None:
        positions, c, kk, tiles = self.n**2, self.channels_in, self.channels_out, self.tiles
        assert self.w.data is not None
        u = transform_weights(self.w.data, self.m).astype(self.near.numpy)
        weights = Matrix(self.ctx.pack("winograd", np.ascontiguousarray(u).reshape(-1)), (c * kk,), 1, kk)
        inputs = Matrix(v, (c * tiles,), tiles, 1)

        def finish(k: KernelBuilder, coords: tuple[Expr, ...], lanes: int, value: Expr) -> None:
            p, row, column = coords
            wide = kk if by_channels else tiles
            k.store(k.tensor(sums, "m"), (p * (kk * tiles)) + row * wide + column, cast(value, self.near))

        if by_channels:
            turned = [Matrix(x.value, x.batch, x.col, x.row) for x in (inputs, weights)]
            product = Product((positions,), tiles, kk, c, turned[0], turned[1], DType.F32, finish)
        else:
            product = Product((positions,), kk, tiles, c, weights, inputs, DType.F32, finish)
        multiply_matrices(self.ctx, product, "winograd_product")

    def _outputs(self, sums: Value, steps: tuple[int, int]) -> None:
        """Aᵀ m A of every tile, bias and tail; what lies beyond the image is left out."""
        k, n, m = self.ctx.kernel(), self.n, self.m
        _, h, w = self.window.axes
        for c in k.loop("channel", self.channels_out):
            for t in k.loop("tile", self.tiles):
                image, row, column = unravel(t, self.grid)
                base = k.let(c * steps[0] + t * steps[1], "base")
                half = []
                for j in range(n):
                    values = [
                        k.let(k.load(k.tensor(sums, "m"), base + (i * n + j) * (self.channels_out * self.tiles)))
                        for i in range(n)
                    ]
                    half.append(apply(k, output_matrix(m), values))
                made = k.alloc("made", self.near, m * m)
                for i in range(m):
                    for j, value in enumerate(apply(k, output_matrix(m), [half[j][i] for j in range(n)])):
                        k.store(made, i * m + j, value)
                start = k.let(cast(self.start(k, c), self.near), "start")
                for i_at in k.loop("i", m):
                    for j_at in k.loop("j", m):
                        y, x = k.let(row * m + i_at, "to_row"), k.let(column * m + j_at, "to_column")
                        for _ in k.when((y < h.out) & (x < w.out)):
                            value = cast(k.load(made, i_at * m + j_at) + start, self.dtype)
                            self.store(k, image, c, (const(0), y, x), value)
        k.done("winograd_output")
